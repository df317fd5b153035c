"""`python -m recotransfer` is the command line."""

from recotransfer.cli import main

if __name__ == "__main__":
    main()

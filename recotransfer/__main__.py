"""`python -m recotransfer` is the command line."""

from recotransfer.cli.main import main

if __name__ == "__main__":
    main()

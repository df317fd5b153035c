"""The rows of `adapters.py`, one module per domain."""

"""Rows of `adapters.py`, by domain."""

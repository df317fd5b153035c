"""Splits that refuse leaks, metrics, and intervals."""

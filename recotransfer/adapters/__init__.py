"""Adapters: turn the records of a domain into a `Problem`, and predictions back into what the domain uses."""

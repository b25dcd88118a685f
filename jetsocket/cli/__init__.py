"""The terminal: what `python -m jetsocket` does."""

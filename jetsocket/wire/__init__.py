"""The wire: one WebSocket connection and what is under it. No pool in here; usable alone."""

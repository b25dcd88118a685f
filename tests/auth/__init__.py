"""Tests of credentials and one-time addresses, against a real WebSocket server; HTTP is `responses`'."""

"""The command `manage.py jetsocket`."""

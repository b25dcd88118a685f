# PYTHON_ARGCOMPLETE_OK
"""``python -m jetsocket``: the same as the console script ``jetsocket``."""

from __future__ import annotations

import sys

from jetsocket.cli.main import console, main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(console())

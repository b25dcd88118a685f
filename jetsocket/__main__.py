# PYTHON_ARGCOMPLETE_OK
"""``python -m jetsocket``: the same as the console script ``jetsocket``."""

from __future__ import annotations

import sys

from jetsocket.cli.console import console

__all__ = ["console"]

if __name__ == "__main__":
    sys.exit(console())

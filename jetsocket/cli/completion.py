"""What the shell completes besides commands and options: values, and what a command takes by its place."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from jetsocket.cli.pools import CORRELATIONS
from jetsocket.cli.thresholds import FIGURES

__all__ = ["prepare"]

_FILES = ("FILE", "FILE.svg", "PATH")
_VALUES = {
    "--correlation": [name for name in CORRELATIONS if ":" not in name],
    "--fail-if": [f"{figure}{'<' if figure == 'rate' else '>'}" for figure in FIGURES],
}


def prepare(commands: Mapping[str, argparse.ArgumentParser], completers: Any) -> None:
    """Tell argcomplete what to offer; by itself, it offers the names of files for any value.

    Args:
        commands: Their parsers, which are good for nothing else afterwards.
        completers: argcomplete's module of that name.
    """
    for parser in commands.values():
        for action in parser._actions:
            if action.option_strings and action.nargs is None and action.metavar not in _FILES:
                offered = next((_VALUES[each] for each in action.option_strings if each in _VALUES), None)
                made: Any = action
                made.completer = (
                    completers.SuppressCompleter()
                    if offered is None
                    else completers.ChoicesCompleter(offered)
                )
    script: Any = commands["serve"].add_argument("script", nargs="?")
    script.completer = completers.FilesCompleter(("py",))
    commands["fleet"].add_argument("what", nargs="?", choices=("status", "forget"))

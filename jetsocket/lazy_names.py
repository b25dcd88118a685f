"""A package's public names, each loaded when it is first asked for (PEP 562).

`import jetsocket` is in the start of every program and test run that may never open a connection. Type
checkers see none of this: a package that uses it imports its names under `TYPE_CHECKING`, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]], modules: Sequence[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make `__getattr__` and `__dir__` of a package.

    Args:
        package: Its `__name__`.
        homes: Its names, by the module that defines them.
        modules: Those of its modules that are there without being imported.

    Returns:
        Both functions.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def load(name: str) -> object:
        """Load a public name, and keep it: the next time this is not called."""
        if name in home_of:
            value: object = getattr(import_module(home_of[name]), name)
        elif name in modules:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        """All names of the package, loaded or not."""
        return sorted({*vars(sys.modules[package]), *home_of, *modules})

    return load, names


__all__ = ["lazy_names"]

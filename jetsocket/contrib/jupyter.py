"""`%load_ext jetsocket`: the magic `%jetsocket`, which shows the pools of a notebook.

What a cell that is run again does with its pools and leases needs no extension; see `jetsocket.notebook`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jetsocket.notebook import pools

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["load_ipython_extension", "unload_ipython_extension"]

_USAGE = "say `%jetsocket status`, or `%jetsocket status NAME` for one pool"


def load_ipython_extension(shell: InteractiveShell) -> None:
    """What `%load_ext jetsocket` calls."""
    register: Any = shell.register_magic_function  # whose types are those of its decorator
    register(_jetsocket, "line", "jetsocket")


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """What `%unload_ext jetsocket` calls."""
    shell.magics_manager.magics["line"].pop("jetsocket", None)


def _jetsocket(line: str) -> Shown:
    """Show the pools of this notebook: `%jetsocket status`, or `%jetsocket status NAME`."""
    from IPython.core.error import UsageError  # here: `load_ipython_extension` is reachable without IPython

    words = line.split(None, 1)
    if not words or words[0] != "status":
        raise UsageError(_USAGE)
    known = [pool for pool in pools() if not pool.is_closed]
    chosen = [pool for pool in known if len(words) == 1 or pool.name == words[1].strip()]
    if len(words) > 1 and not chosen:
        names = ", ".join(repr(pool.name) for pool in known) or "none"
        raise UsageError(f"no open pool of this notebook is called {words[1].strip()!r}; there are: {names}")
    return Shown(chosen)


class Shown:
    """Some pools, to be shown one below the other."""

    def __init__(self, chosen: list[Any]) -> None:
        """Show those."""
        self._html = "".join(pool._repr_html_() for pool in chosen) or "<p>no pool is open</p>"
        self._text = "\n".join(map(_told, chosen)) or "no pool is open"

    def _repr_html_(self) -> str:
        return self._html

    def __repr__(self) -> str:
        return self._text


def _told(pool: Any) -> str:
    held = "".join(f"\n  {lease}" for lease in pool.leases())
    return f"{pool!r}\n{pool.stats()}{held}"

"""What a notebook keeps: the value of each cell, and the last traceback, with the leases in them.

Reads `sys.modules`, and never imports IPython.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, cast


def _outputs() -> Mapping[int, Any] | None:
    """The values of the cells that were run, by number; None outside a notebook and IPython."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get_shell() if callable(get_shell) else None
    names = getattr(shell, "user_ns", None)
    outputs = names.get("Out") if isinstance(names, Mapping) else None
    return outputs if isinstance(outputs, Mapping) else None


def what_keeps(is_lease: Callable[[object], bool]) -> str | None:
    """What may keep leases in a notebook, and how to let go of them; None outside one."""
    outputs = _outputs()
    if outputs is None:
        return None
    found = [f"Out[{number}]" for number, value in list(outputs.items()) if _holds(value, is_lease)]
    is_sure = bool(found)
    kept = " and ".join(found or ["Out[...]"])
    if getattr(sys, "last_traceback", None) is not None:
        is_sure, kept = False, f"{kept} or the last traceback (sys.last_traceback)"
    keep = "may keep" if not is_sure else "keeps" if len(found) == 1 else "keep"
    return f"this is a notebook: {kept} {keep} a lease; `with` releases it at the end of its block"


def _holds(value: object, is_lease: Callable[[object], bool]) -> bool:
    if is_lease(value):
        return True
    if type(value) is dict:  # not any Mapping: its methods are the user's code
        value = list(value.values())
    return type(value) in (list, tuple, set) and any(map(is_lease, list(cast("list[object]", value))))


__all__ = ["what_keeps"]

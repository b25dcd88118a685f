"""What a cell of a notebook means for pools and leases: what a cell run again replaces, and what cells keep.

A cell is run again and again while it is written. So a pool that a run of it makes takes the place of what an
earlier run made at that line, or by that name, and what the top level of a cell has acquired is given back
when the cell is run again. Several pools made in one run all stay.

Reads `sys.modules`, and never imports IPython: all of this works without `%load_ext jetsocket`.
"""

from __future__ import annotations

import linecache
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, cast

from jetsocket.interrupts import is_alarm

if TYPE_CHECKING:
    from jetsocket.borrower import Borrower

_PREDECESSOR_PATIENCE = 1.0  # s for the closing handshakes of a pool that is replaced


class Made(Protocol):
    """What is seen of a pool here."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""

    def close(self, timeout: float | None = None) -> None:
        """Close it."""

    def _borrowers(self) -> list[Borrower]:
        """Who holds its connections."""


class Cells:
    """The runs of one shell's cells, and what they made. Used by the shell's thread, and those it starts.

    Attributes:
        run: Counts them.
    """

    def __init__(self, shell: Any) -> None:
        """Look at the runs of that shell from now on, in the middle of one."""
        self.run = 0
        self._shell = shell
        self._source = _last_input(shell)  # of the run that is under way, or was last
        self._pools: dict[object, list[tuple[int, weakref.ref[Made]]]] = {}
        self._acquired_by: weakref.WeakKeyDictionary[Borrower, str | None] = weakref.WeakKeyDictionary()
        shell.events.register("pre_run_cell", self._begin)

    def _begin(self, info: Any = None) -> None:
        """A cell is about to be run: what its top level acquired when it was run before comes back."""
        source = getattr(info, "raw_cell", None)
        borrowers = [each for pool in self.pools() for each in pool._borrowers() if _is_top_level(each)]
        cells = {
            each: _cell_of(each) or self._acquired_by.setdefault(each, self._source) for each in borrowers
        }
        self.run += 1
        self._source = source
        if not cells or not isinstance(source, str):
            return
        again = {source, _cell_named(_name_of(self._shell, source))} - {None}
        for borrower, cell in cells.items():
            lease = None if borrower.lease is None else borrower.lease()
            if cell in again and lease is not None:
                cast("Any", lease).release()

    def pools(self) -> list[Made]:
        """All that were made and are referred to, the first one first."""
        made = [ref() for refs in list(self._pools.values()) for _run, ref in list(refs)]
        return [pool for pool in made if pool is not None]

    def note(self, pool: Made, key: object) -> list[Made]:
        """A pool is made; returns its predecessors, which earlier runs have made."""
        refs = self._pools.setdefault(key, [])
        earlier = [made for run, ref in refs if run < self.run and (made := ref()) is not None]
        refs[:] = [(run, ref) for run, ref in refs if run == self.run and ref() is not None]
        refs.append((self.run, weakref.ref(pool)))
        return [made for made in earlier if not made.is_closed]


_cells: weakref.WeakKeyDictionary[Any, Cells] = weakref.WeakKeyDictionary()


def note_made(pool: Made, *, is_named: bool) -> None:
    """A pool is made: in a notebook, it takes the place of what an earlier run made there, or by that name.

    Args:
        pool: That one.
        is_named: Whether it has a name of the user's.
    """
    shell = _shell()
    if shell is None or not hasattr(shell, "events"):
        return
    cells = _cells.get(shell)
    if cells is None:
        cells = _cells.setdefault(shell, Cells(shell))
    frame = _frame_of_a_cell(shell)
    if is_named:
        key: object = pool.name
    elif frame is None:
        key = object()  # a module's: it is made once
    else:
        key = _cell_named(frame.f_code.co_filename), frame.f_lineno
    for made in cells.note(pool, key):
        made.close(_PREDECESSOR_PATIENCE)
        which = f"by the name {pool.name!r}" if is_named else "at this line"
        warnings.warn(
            f"the pool {made.name!r} that an earlier run made {which} is closed, as this one takes its place",
            stacklevel=_depth_of(frame),
        )


def pools() -> list[Made]:
    """All pools of this notebook that are referred to; none elsewhere."""
    shell = _shell()
    cells = None if shell is None else _cells.get(shell)
    return [] if cells is None else cells.pools()


# --- which cell it is ----------------------------------------------------------------------------------


def _shell() -> Any:
    """The shell of IPython, or None outside of one."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_shell() if callable(get_shell) else None


def _last_input(shell: Any) -> str | None:
    """The source of the cell that is being run, as far as IPython keeps it."""
    inputs = getattr(shell, "user_ns", {}).get("In")
    return inputs[-1] if isinstance(inputs, list) and inputs and isinstance(inputs[-1], str) else None


def _name_of(shell: Any, source: str) -> str:
    """The file name that the code of a cell will have; "" if this IPython does not tell."""
    try:
        name = shell.compile.get_code_name(source, shell.transform_cell(source), shell.execution_count)
    except Exception as error:  # what the user's transformers raise is raised again when it is run
        if is_alarm(error, users_code=True):
            raise
        return ""
    return name if isinstance(name, str) else ""


def _cell_named(file: str) -> str | None:
    """What tells the code of a cell from that of others, by its file name; None if it is no cell's."""
    if file.startswith("<ipython-input-"):  # <ipython-input-3-0123456789ab>: the run, and a hash of the code
        return file.rpartition("-")[2]
    known = linecache.cache.get(file)  # IPython puts its cells there, without a time
    return file if known is not None and len(known) > 1 and known[1] is None else None


def _cell_of(borrower: Borrower) -> str | None:
    return None if borrower.site is None else _cell_named(borrower.site[0].co_filename)


def _frame_of_a_cell(shell: Any) -> FrameType | None:
    """The outermost frame on this thread's stack whose code is a cell's: that of the one that is run.

    A function that another cell has defined makes pools for whichever calls it.
    """
    names, frame = getattr(shell, "user_ns", None), sys._getframe(2)
    found: FrameType | None = None
    above: FrameType | None = frame
    while above is not None:
        if above.f_globals is names and _cell_named(above.f_code.co_filename) is not None:
            found = above
        above = above.f_back
    return found


def _depth_of(frame: FrameType | None) -> int:
    """How far up that frame is from the caller of this function, as `warnings.warn` counts; 1: nowhere."""
    above, depth = sys._getframe(1), 1
    while above is not frame:
        if above.f_back is None:
            return 1
        above, depth = above.f_back, depth + 1
    return depth


def _is_top_level(borrower: Borrower) -> bool:
    """Whether the top level of a cell acquired: code of a module, but of no file."""
    code = None if borrower.site is None else borrower.site[0]
    return code is not None and code.co_name == "<module>" and not os.path.exists(code.co_filename)


# --- what cells keep -----------------------------------------------------------------------------------


def _outputs() -> Mapping[int, Any] | None:
    """The values of the cells that were run, by number; None outside a notebook and IPython."""
    names = getattr(_shell(), "user_ns", None)
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


__all__ = ["Made", "note_made", "pools", "what_keeps"]

"""Which process this is, without a system call."""

from __future__ import annotations

import os
import sys

import pytest

from jetsocket.process_id import PID, System, getpid
from tests import scripts

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def test_it_is_this_process() -> None:
    assert PID[0] == getpid() == os.getpid()


def test_where_no_page_tells_the_system_does() -> None:
    assert System()[0] == os.getpid()
    assert isinstance(PID, System) == (sys.platform != "linux")


def in_a_child(depth: int) -> int:
    """Whether a child, or its child, knows itself: 0."""
    child = os.fork()
    if not child:
        known = PID[0] in (0, os.getpid()) and getpid() == os.getpid() == PID[0]
        os._exit((in_a_child(depth - 1) if depth else 0) if known else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@needs_fork
def test_a_forked_child_knows_itself_and_so_does_its_child() -> None:
    before = PID[0]
    assert in_a_child(depth=2) == 0
    assert PID[0] == before


@needs_fork
@pytest.mark.skipif(sys.platform != "linux", reason="the C library is found by its name")
def test_a_fork_that_runs_no_hooks_is_noticed() -> None:
    """As uWSGI's, which calls the C function.

    In a process without other threads: one that wants the interpreter's lock at the fork is not there in the
    child, which hands the lock to it, and waits for ever.
    """
    script = """
    import ctypes, os
    from jetsocket.process_id import PID, getpid
    child = ctypes.PyDLL(None).fork()  # holding the interpreter's lock
    if not child:
        os._exit(PID[0] == os.getppid() or getpid() != os.getpid())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """
    scripts.run(script).check()

"""`FileLimiter`: the processes of one host share its slots, which are files.

Also tests: `slot_files`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.limits import FileLimiter, slot_files
from tests import scripts
from tests.awake import awake
from tests.servers import EchoServer, wait_until

ANOTHER = """
import os, sys, signal, threading, time, warnings
from jetsocket.limits import FileLimiter
from tests.watchdog import die_if_stuck
warnings.filterwarnings("ignore", "This process", DeprecationWarning)
path, yes = sys.argv[1], lambda: True

def take(limiter, count):
    tokens = [limiter.acquire(10, yes) for _ in range(count)]
    assert None not in tokens
    return tokens
"""


def yes() -> bool:
    return True


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "slots")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def waiting(limiter: FileLimiter) -> int:
    return int(limiter.stats()["waiting"])


def test_it_has_so_many_slots_however_many_limiters_there_are(path: str) -> None:
    one, two = FileLimiter(path, 3), FileLimiter(path, 3)
    tokens = [one.acquire(0, yes), two.acquire(0, yes), one.acquire(0, yes)]
    assert None not in tokens
    assert one.acquire(0, yes) is None
    assert two.acquire(0, yes) is None
    assert two.stats() == {"limit": 3, "held": 3, "others": 0, "waiting": 0, "errors": 0, "lost": 0}
    one.release(tokens.pop())
    assert two.acquire(0, yes) is not None


def test_it_says_what_it_is(path: str) -> None:
    limiter = FileLimiter(path, 3)
    assert (limiter.limit, limiter.name, repr(limiter)) == (3, path, f"FileLimiter({path!r}, 3)")


def test_spellings_of_a_path_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    first = FileLimiter(tmp_path / "there" / "slots", 2)
    (tmp_path / "other").symlink_to(tmp_path / "there" / "slots")
    monkeypatch.chdir(tmp_path)
    spelled = [FileLimiter(each, 2) for each in ("there/../there/slots", "link/slots", "other")]
    monkeypatch.chdir("/")  # as who becomes a daemon
    token = first.acquire(0, yes)
    assert spelled[0].acquire(0, yes) is not None
    assert [each.acquire(0, yes) for each in spelled] == [None] * 3
    assert {each.name for each in spelled} == {first.name}
    with ThreadPoolExecutor(1) as waits:  # and one line
        future = waits.submit(spelled[1].acquire, 30, yes)
        wait_until(lambda: waiting(first) == 1)
        first.release(token)
        assert future.result(5) is not None


def test_other_processes_share_the_slots(path: str) -> None:
    script = """
    limiter = FileLimiter(path, 3)
    tokens = take(limiter, 2)
    print("has 2"); sys.stdin.readline()
    limiter.release(tokens.pop())
    print("has 1"); sys.stdin.readline()
    """
    mine = FileLimiter(path, 3)
    with scripts.Script(ANOTHER + scripts.dedent(script), path) as other:
        assert other.line() == "has 2"
        assert mine.acquire(0, yes) is not None
        assert mine.acquire(0, yes) is None
        assert mine.stats()["others"] == 2
        other.say("go on")
        assert other.line() == "has 1"
        assert mine.acquire(0, yes) is not None
        assert mine.acquire(0.1, yes) is None
        assert mine.stats()["others"] == 1
        other.say("end")
    assert mine.acquire(5, yes) is not None


def test_a_killed_process_leaves_its_slots_at_once(path: str, threads: ThreadPoolExecutor) -> None:
    mine = FileLimiter(path, 2)
    with scripts.Script(
        ANOTHER + "take(FileLimiter(path, 2), 2); print('has'); time.sleep(60)", path
    ) as other:
        assert other.line() == "has"
        future = threads.submit(mine.acquire, 30, yes)
        wait_until(lambda: waiting(mine) == 1)
        began = awake()
        os.kill(other._child.pid, signal.SIGKILL)
        assert future.result(10) is not None
        assert awake() - began < 2.0
        assert mine.acquire(5, yes) is not None


FORK = """
parent = FileLimiter(path, 2)
tokens = take(parent, 2)
FileLimiter(path, 2)                            # there may be more than one
hears, tell = os.pipe()
sys.setswitchinterval(100)                      # see test_fork
pid = FORK()
sys.setswitchinterval(0.005)
if pid == 0:
    die_if_stuck(40)
    os.close(tell)
    if USED:
        parent.stats()
    os.read(hears, 1)                           # the end of the parent
    time.sleep(20)
    os._exit(0)
print(pid); sys.stdin.readline()
if RELEASED:
    for token in tokens:
        parent.release(token)
    print("released"); sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("fork", "used", "released"),
    [
        ("os.fork", False, False),
        ("__import__('ctypes').PyDLL(None).fork", True, False),
        ("__import__('ctypes').PyDLL(None).fork", False, True),
    ],
)
def test_a_forked_child_keeps_no_slot_of_its_parents(
    path: str, fork: str, used: bool, released: bool
) -> None:
    """Of a fork that runs no hooks, once it uses one itself; what the parent releases is free anyway."""
    script = FORK.replace("FORK", fork).replace("USED", str(used)).replace("RELEASED", str(released))
    mine = FileLimiter(path, 2)
    with scripts.Script(ANOTHER + script, path) as parent:
        child = int(parent.line())
        try:
            assert mine.acquire(0.2, yes) is None  # the child has not freed what its parent holds
            parent.say("go on")
            if released:
                assert parent.line() == "released"
                tokens = [mine.acquire(5, yes) for _ in range(2)]
                assert None not in tokens
                parent.say("die")
            else:
                assert mine.acquire(10, yes) is not None
                assert mine.acquire(10, yes) is not None
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.slow
def test_a_child_that_is_forked_while_others_open_files_keeps_none(path: str) -> None:
    script = """
    limiter, over = FileLimiter(path, 4), threading.Event()

    def open_and_close():
        while not over.is_set():
            token = limiter.acquire(0, yes)
            if token is not None:
                limiter.release(token)

    for _ in range(3):
        threading.Thread(target=open_and_close).start()
    for _ in range(40):
        pid = os.fork()
        if pid == 0:
            files = {os.stat(os.path.join(os.path.dirname(path), each)).st_ino
                     for each in os.listdir(os.path.dirname(path))}
            kept = []
            for fd in map(int, os.listdir("/dev/fd")):
                try:
                    kept += [fd] if os.fstat(fd).st_ino in files else []
                except OSError:
                    pass                       # that of the listing
            os._exit(len(kept))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    over.set()
    """
    scripts.run(ANOTHER + scripts.dedent(script), path).check()


def test_a_child_uses_it_as_any_other_process(path: str) -> None:
    script = """
    limiter = FileLimiter(path, 2)
    token, = take(limiter, 1)
    waits = threading.Thread(target=lambda: limiter.acquire(0.5, yes))
    pid = os.fork()
    if pid == 0:
        die_if_stuck(20)
        status = 3
        try:
            assert limiter.stats()["held"] == 0
            mine, = take(limiter, 1)
            assert limiter.acquire(0.1, yes) is None
            try:
                limiter.release(token)
            except ValueError:
                pass
            else:
                raise AssertionError("the parent's token")
            assert limiter.acquire(0.1, yes) is None
            limiter.release(mine)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    take(limiter, 1)
    assert limiter.acquire(0.1, yes) is None
    """
    scripts.run(ANOTHER + scripts.dedent(script), path).check()


def test_no_program_that_is_started_inherits_a_slot(path: str) -> None:
    limiter = FileLimiter(path, 1)
    token = limiter.acquire(0, yes)
    command = [sys.executable, "-c", "import sys; print('runs', flush=True); sys.stdin.readline()"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, close_fds=False
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "runs\n"
        if sys.platform == "linux":
            theirs = Path(f"/proc/{program.pid}/fd")
            assert not [each for each in theirs.iterdir() if os.readlink(each).startswith(path)]
        limiter.release(token)
        assert limiter.acquire(0, yes) is not None
        program.communicate("\n")


# --- waiting


@pytest.mark.parametrize("timeout", [0.0, -1.0, 0.01, 0.3])
def test_timeouts_are_kept(path: str, timeout: float) -> None:
    limiter = FileLimiter(path, 1)
    limiter.acquire(0, yes)
    began, clock = awake(), monotonic()
    assert limiter.acquire(timeout, yes) is None
    assert monotonic() - clock >= timeout
    assert awake() - began < max(0.0, timeout) + 0.5
    assert waiting(limiter) == 0


def test_it_is_asked_whether_one_is_wanted_still(path: str, threads: ThreadPoolExecutor) -> None:
    limiter = FileLimiter(path, 1)
    token = limiter.acquire(0, yes)
    wanted = [True]
    future = threads.submit(limiter.acquire, 30, lambda: wanted[0])
    wait_until(lambda: waiting(limiter) == 1)
    began = awake()
    wanted[0] = False
    assert future.result(5) is None
    assert awake() - began < 1.0
    limiter.release(token)
    assert limiter.acquire(0, yes) is not None


def test_a_release_wakes_who_waits_in_this_process_at_once(
    path: str, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetsocket.limits.file._SHORTEST_PAUSE", 20.0)
    monkeypatch.setattr("jetsocket.limits.file._LONGEST_PAUSE", 20.0)
    one, two = FileLimiter(path, 1), FileLimiter(path, 1)
    token = one.acquire(0, yes)
    future = threads.submit(two.acquire, 30, yes)
    wait_until(lambda: waiting(two) == 1)
    one.release(token)
    assert future.result(5) is not None


@pytest.mark.slow
def test_a_process_that_takes_again_what_it_frees_leaves_others_their_turn(path: str) -> None:
    """While another process waits, no call gets a slot at once."""
    script = """
    limiter, turns = FileLimiter(path, 1), 0
    print("begins")
    until = time.monotonic() + 3
    while time.monotonic() < until:
        token = limiter.acquire(1, yes)        # and takes it again as soon as it has freed it
        if token is not None:
            turns += 1
            time.sleep(0.01)
            limiter.release(token)
    print(turns)
    """
    mine, turns = FileLimiter(path, 1), 0
    with scripts.Script(ANOTHER + scripts.dedent(script), path) as other:
        assert other.line() == "begins"
        until = monotonic() + 2
        while monotonic() < until:
            token = mine.acquire(1, yes)
            if token is not None:
                turns += 1
                mine.release(token)
        theirs = int(other.line())
    assert turns > 5
    assert theirs > 5


def test_who_waits_in_a_process_that_is_stopped_holds_up_nobody(path: str) -> None:
    script = "limiter = FileLimiter(path, 1); print('waits'); limiter.acquire(60, yes)"
    mine = FileLimiter(path, 1)
    token = mine.acquire(0, yes)
    with scripts.Script(ANOTHER + script, path) as other:
        assert other.line() == "waits"
        wait_until(lambda: mine._line.others_wait())
        os.kill(other._child.pid, signal.SIGSTOP)
        mine.release(token)
        for _ in range(3):
            token = mine.acquire(5, yes)
            assert token is not None
            mine.release(token)
        os.kill(other._child.pid, signal.SIGKILL)


def test_a_smaller_limit_uses_the_first_slots_only(path: str) -> None:
    small, large = FileLimiter(path, 2), FileLimiter(path, 4)
    tokens = [large.acquire(0, yes) for _ in range(3)]
    assert [getattr(each, "number", None) for each in tokens] == [0, 1, 2]
    assert small.acquire(0, yes) is None
    assert large.acquire(0, yes) is not None
    large.release(tokens[1])
    assert small.acquire(0, yes) is not None


@pytest.mark.slow
def test_a_pool_that_is_never_idle_leaves_others_what_ends(echo: EchoServer, path: str) -> None:
    """A connection that ends, by max_lifetime as here, gives its slot back, though its own pool wants it."""
    over = threading.Event()
    hungry_config = ConnectionPoolConfig(max_lifetime=0.2, acquire_timeout=20)

    def borrow(pool: ConnectionPool[Any]) -> None:
        while not over.is_set():
            pool.request("/", 1)

    with (
        ConnectionPool[Any](hungry_config, base_uri=echo.uri, limiter=FileLimiter(path, 1)) as hungry,
        ConnectionPool[Any](base_uri=echo.uri, limiter=FileLimiter(path, 1)) as late,
        ThreadPoolExecutor(4) as crowd,
    ):
        borrowing = [crowd.submit(borrow, hungry) for _ in range(4)]
        try:
            wait_until(lambda: hungry.stats().acquires > 20)
            for number in range(3):
                assert late.request("/", number, 10) == number
                late.clear()
        finally:
            over.set()
        for each in borrowing:
            each.result(30)
    assert echo.most_open == 1


# --- what goes wrong


def test_a_token_that_is_not_out_is_refused(path: str) -> None:
    limiter, other = FileLimiter(path, 2), FileLimiter(path + "-other", 2)
    sibling = FileLimiter(path, 2)
    token, theirs, siblings = limiter.acquire(0, yes), other.acquire(0, yes), sibling.acquire(0, yes)
    limiter.release(token)
    for each in (token, theirs, siblings, object(), ["unhashable"]):
        with pytest.raises(ValueError, match="is not out: it was released before, or FileLimiter"):
            limiter.release(each)  # type: ignore[arg-type]  # what is no token
    assert repr(token) == "<slot 0>"
    assert other.acquire(0, yes) is not None
    assert other.acquire(0, yes) is None
    assert limiter.stats()["held"] == 1
    sibling.release(siblings)
    assert limiter.stats()["held"] == 0


@pytest.mark.parametrize(
    ("given", "limit", "error", "told"),
    [
        ("{}/missing/slots", 1, FileNotFoundError, "a FileLimiter cannot keep its slots there: No such file"),
        ("{}/file/slots", 1, NotADirectoryError, "a FileLimiter cannot keep its slots there: Not a dir"),
        ("{}", 1, IsADirectoryError, "a FileLimiter cannot keep its slots there: Is a directory"),
        ("{}/sealed/slots", 1, PermissionError, "cannot keep its slots there: Permission denied: .*/sealed"),
        ("{}/pipe", 1, ValueError, "path must be a file's, and '.*/pipe' is something else"),
        ("", 1, ValueError, "path must not be empty"),
        (b"slots", 1, TypeError, "path must be a str or a path, not b'slots'"),
        (7, 1, TypeError, "path must be a str or a path, not 7"),
        ("{}/new", 0, ValueError, "limit must be 1 or more, not 0"),
        ("{}/new", True, TypeError, "limit must be an int, not True"),
        ("{}/new", "1", TypeError, "limit must be an int, not '1'"),
    ],
)
def test_arguments_are_checked_when_it_is_made(
    tmp_path: Path, given: Any, limit: Any, error: type[Exception], told: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "sealed").mkdir(mode=0o500)
    os.mkfifo(tmp_path / "pipe")
    me = os.geteuid()
    if error is PermissionError and me == 0:
        os.seteuid(65534)  # for root may write anywhere
    try:
        with pytest.raises(error, match=told):
            FileLimiter(given.format(tmp_path) if isinstance(given, str) else given, limit)
    finally:
        os.seteuid(me)
    assert not (tmp_path / "new").exists()


def test_where_locks_are_not_to_be_had_is_told_when_it_is_made(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, how: int) -> None:
        if how != fcntl.LOCK_UN:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="a FileLimiter cannot keep its slots there: No locks available"):
        FileLimiter(path, 1)


def test_what_fails_later_is_raised_and_counted(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = FileLimiter(path, 1)
    os.remove(f"{path}.0")
    os.mkdir(f"{path}.0")
    for timeout in (0, 1):
        with pytest.raises(IsADirectoryError):
            limiter.acquire(timeout, yes)
    assert (limiter.stats()["errors"], waiting(limiter)) == (2, 0)
    os.rmdir(f"{path}.0")
    assert limiter.acquire(0, yes) is not None


def test_a_file_that_was_removed_is_no_slot(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between being opened and being locked: another process would make it again, and lock that."""
    limiter, lock, removed = FileLimiter(path, 1), slot_files.lock_at_once, [1]

    def lock_late(fd: int, how: int) -> bool:
        if how == fcntl.LOCK_EX and removed and slot_files.file_of(fd) == slot_files.file_of(f"{path}.0"):
            removed.pop()
            os.remove(f"{path}.0")
        return lock(fd, how)

    monkeypatch.setattr(slot_files, "lock_at_once", lock_late)
    assert limiter.acquire(0, yes) is not None
    assert removed == []
    monkeypatch.undo()
    script = "assert FileLimiter(path, 1).acquire(0.2, yes) is None"
    scripts.run(ANOTHER + script, path).check()


def test_files_that_are_always_removed_are_told_of(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter, lock = FileLimiter(path, 1), slot_files.lock_at_once

    def lock_late(fd: int, how: int) -> bool:
        if slot_files.file_of(fd) == slot_files.file_of(f"{path}.0"):
            os.remove(f"{path}.0")
        return lock(fd, how)

    monkeypatch.setattr(slot_files, "lock_at_once", lock_late)
    with pytest.raises(OSError, match=r"something removes the files of a FileLimiter.*slots\.0"):
        limiter.acquire(0, yes)
    assert limiter.stats()["held"] == 0


def test_other_codes_descriptors_are_left_alone(path: str) -> None:
    """Who becomes a daemon closes all descriptors; their numbers are other files' then."""
    limiter = FileLimiter(path, 2)
    token = limiter.acquire(0, yes)
    assert isinstance(token, slot_files.FileSlot)
    os.close(token.fd)
    reused = os.open(os.devnull, os.O_RDONLY)
    try:
        assert reused == token.fd
        with pytest.raises(
            OSError, match="other code has closed the file of slot 0, which has been free since"
        ):
            limiter.release(token)
        os.fstat(reused)
    finally:
        os.close(reused)
    assert limiter.stats()["held"] == 0


def test_nothing_stays_open(path: str) -> None:
    limiter = FileLimiter(path, 3)
    before = set(os.listdir("/dev/fd"))
    tokens = [limiter.acquire(0, yes) for _ in range(3)]
    assert limiter.acquire(0.1, yes) is None
    for token in tokens:
        limiter.release(token)
    assert set(os.listdir("/dev/fd")) == before


class Struck(Exception):
    pass


@pytest.mark.parametrize("when", ["wanted", "looking", "opening"])
def test_what_strikes_a_call_costs_no_slot(path: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = FileLimiter(path, 1)
    token = limiter.acquire(0, yes)
    asked = threading.Event()

    def struck(*_: object, **__: object) -> Any:
        monkeypatch.undo()
        raise Struck

    def wanted() -> bool:
        if asked.is_set():
            limiter.release(token)
            if when == "wanted":
                raise Struck
            if when == "opening":
                monkeypatch.setattr(slot_files, "file_of", struck)
            if when == "looking":
                look = slot_files.Line.look

                def look_and_be_struck(*args: Any) -> None:
                    assert look(*args) is not None
                    raise Struck

                monkeypatch.setattr(slot_files.Line, "look", look_and_be_struck)
        asked.set()
        return True

    before = set(os.listdir("/dev/fd"))
    with pytest.raises(Struck):
        limiter.acquire(30, wanted)
    monkeypatch.undo()
    assert (limiter.stats()["held"], waiting(limiter)) == (0, 0)
    assert len(os.listdir("/dev/fd")) < len(before)  # without the slot's
    assert limiter.acquire(0, yes) is not None


def test_it_is_not_for_windows(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(NotImplementedError, match="FileLimiter needs flock, which Windows does not have"):
        FileLimiter(path, 1)

"""A directory that workers share: each has a file there, which says what its pools do, and reads the others'.

Files are written atomically. Of a process that is gone, the next who reads removes the file. What is not such
a file, or not of this user or of the directory's owner, is left alone and ignored.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import secrets
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jetsocket.contrib.status.reports import Report, checked, shown
from jetsocket.interrupts import is_alarm, suppress

_log = logging.getLogger("jetsocket.status")

_LATE = 5.0  # s without being written, after which it is said
_FORGOTTEN = 60.0  # s, after which a process that can't be looked at from here is taken for dead
_LARGEST = 4 * 1024 * 1024  # B of a file
_MOST_NAMES = 10_000  # entries of the directory that are looked at
_MOST_FILES = 500
_FILE = re.compile(r"jetsocket-(\d{1,10})-[0-9a-f]{16}\.json")
_HALF = re.compile(r"\.jetsocket-\d{1,10}-[0-9a-f]{16}\.json\.[0-9a-f]+\.new")
_CLEAR = "jetsocket-clear.request"


def _space() -> str:
    """What process ids are unique in: this boot of this machine, and this container."""
    if sys.platform == "linux":
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            return f"{boot} {os.readlink('/proc/self/ns/pid')}"
        except OSError as error:  # no /proc
            if is_alarm(error):
                raise
            _log.debug("no /proc to tell processes by: %s", error)
    return socket.gethostname()


def _start_of(pid: int) -> int | None:
    """When that process began, in the system's ticks; 0 where that is not told; None: there is none."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError as error:
        if is_alarm(error):
            raise
        return None
    except OSError as error:  # it is another user's
        if is_alarm(error):
            raise
        _log.debug("process %d lives, but is out of reach: %s", pid, error)
    if sys.platform != "linux":
        return 0
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError) as error:
        if is_alarm(error):
            raise
        return None if Path("/proc/self/stat").exists() else 0
    except OSError as error:  # proc is mounted with hidepid
        if is_alarm(error):
            raise
        _log.debug("process %d is not shown: %s", pid, error)
        return 0
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def this_process() -> dict[str, Any]:
    """What tells this process from others: `worker` for readers, the rest for `read`."""
    pid = os.getpid()
    host = socket.gethostname()
    return {
        "worker": f"{pid} on {host}",
        "pid": pid,
        "host": host,
        "space": _space(),
        "start": _start_of(pid) or 0,
    }


class Directory:
    """The directory, as one process uses it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Use that one; it is made when something is written."""
        self.path = Path(path).absolute()
        self._token = secrets.token_hex(8)
        self._pid = 0
        self._mode = 0o600
        self._cleared: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The name of this process's file."""
        return f"jetsocket-{os.getpid()}-{self._token}.json"

    def write(self, report: Mapping[str, Any]) -> None:
        """Say what this process does, in place of what it said before.

        Raises:
            OSError: It can't be written there.
        """
        self._begin()
        content = json.dumps(report, separators=(",", ":")).encode()
        try:
            self._put(self.name, content)
        except FileNotFoundError as error:  # the directory was taken away: /tmp is cleaned, say
            if is_alarm(error):
                raise
            self._make()
            self._put(self.name, content)

    def _make(self) -> None:
        """Make the directory, if it is not there."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._mode = stat.S_IMODE(self.path.stat().st_mode) & 0o666  # who may read one may read the other

    def _begin(self) -> None:
        """Once in a process: a forked child has a file of its own."""
        if self._pid == os.getpid():
            return
        self._make()
        self._cleared = self._request()
        self._pid = os.getpid()
        atexit.register(self.remove)

    def _put(self, name: str, content: bytes) -> None:
        half = self.path / f".{self.name}.{threading.get_ident():x}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        file = os.fdopen(os.open(half, flags, self._mode), "wb")
        try:
            with file:
                file.write(content)
            half.replace(self.path / name)
        except BaseException:  # the disk is full, say
            half.unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """This process ends: take its file away."""
        if self._pid == os.getpid():
            with suppress(OSError):  # the next reader removes it
                (self.path / self.name).unlink()

    # --- a wish to all workers -------------------------------------------------------------------------

    def ask_to_clear(self, pool: str) -> None:
        """Have all other workers clear their pools of that name."""
        self._begin()
        self._put(_CLEAR, pool.encode())
        self._cleared = self._request()

    def is_asked_to_clear(self) -> str | None:
        """The name of the pool that another worker wants cleared, once for each time; None: none."""
        self._begin()
        now = self._request()
        if now is None or now == self._cleared:
            return None
        self._cleared = now
        content = _content(self.path / _CLEAR, _owners(self.path))
        return None if content is None else content[0].decode("utf-8", "replace")

    def _request(self) -> tuple[int, int] | None:
        try:
            told = (self.path / _CLEAR).lstat()
        except FileNotFoundError as error:
            if is_alarm(error):
                raise
            return None
        return told.st_ino, told.st_mtime_ns


def read(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What the workers say that share a directory: a report each, as `/status.json` shows them.

    Removes the files of processes that are gone. Of one that lives and has not written for some seconds, for
    it is stopped or hangs, `late` says for how long.

    Args:
        directory: What `app` or `publish` was given. One that is not there yet has no workers.

    Raises:
        OSError: The directory can't be read.
    """
    return [shown(report) for report in workers(Path(directory))]


def workers(path: Path) -> list[Report]:
    """`read`, with what tells processes apart."""
    reports = []
    try:
        owners = _owners(path)
        names = sorted(_names(path))
    except FileNotFoundError as error:
        if is_alarm(error):
            raise
        return []
    for name in names[:_MOST_FILES]:
        if _HALF.fullmatch(name):
            _remove_half(path / name, owners)
            continue
        report = _report(path / name, owners)
        if report is not None:
            reports.append(report)
    return sorted(reports, key=lambda each: (each["host"], each["pid"]))


def _names(path: Path) -> Iterator[str]:
    with os.scandir(path) as entries:
        for count, entry in enumerate(entries):
            if count >= _MOST_NAMES:
                return
            if _FILE.fullmatch(entry.name) or _HALF.fullmatch(entry.name):
                yield entry.name


def _owners(path: Path) -> tuple[int, int]:
    return os.geteuid(), path.stat().st_uid


def _content(path: Path, owners: tuple[int, int]) -> tuple[bytes, float] | None:
    """What is in a file, and when it was written; None if it is none of ours."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        file = os.fdopen(os.open(path, flags), "rb")
    except OSError as error:  # it is gone, a link, or another user's
        if is_alarm(error):
            raise
        _log.debug("%s is left alone: %s", path, error)
        return None
    with file:
        told = os.fstat(file.fileno())
        if not stat.S_ISREG(told.st_mode) or told.st_uid not in owners or told.st_size > _LARGEST:
            return None
        return file.read(_LARGEST + 1), told.st_mtime


def _report(path: Path, owners: tuple[int, int]) -> Report | None:
    """What a file says of a process that lives."""
    found = _content(path, owners)
    if found is None:
        return None
    content, written = found
    try:
        report = checked(json.loads(content))
        if str(report["pid"]) != path.name.split("-")[1]:
            raise ValueError("of another process")
    except (ValueError, RecursionError) as error:
        if is_alarm(error):
            raise
        _log.debug("%s is no report: %s", path, error)
        return None
    age = max(0.0, time.time() - written)
    if _is_gone(report, age):
        with suppress(OSError):  # another was faster, or it is not ours to remove
            path.unlink()
        return None
    return {**report, "late": round(age, 1) if age > _LATE else 0.0}


def _is_gone(report: Report, age: float) -> bool:
    if report["space"] != _space():
        return age > _FORGOTTEN
    start = _start_of(report["pid"])
    return start is None or (0 not in (start, report["start"]) and start != report["start"])


def _remove_half(path: Path, owners: tuple[int, int]) -> None:
    """Remove what a process has left that was killed as it wrote."""
    with suppress(OSError):
        told = path.lstat()
        if told.st_uid in owners and time.time() - told.st_mtime > _FORGOTTEN:
            path.unlink()

"""A Python that forks one for each script that tests run, once it has imported what scripts stand on.

A new Python spends nine tenths of a short script on imports of other people's packages. Those are here
already; jetsocket and the tests' modules each script imports itself, so that what they do at import (hooks at
exit, hooks at forks, a process's name) they do in the script's process, in the script's order. Such a process
ends as any other: the interpreter winds up and runs its hooks. Nothing is running in here when it forks.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import struct
import sys
import threading
from pathlib import Path
from types import CodeType
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
HEAD = struct.Struct("<cq")  # what is to be done, and with how many bytes or which process
ANSWER = struct.Struct("<q")
START, ENDED, REAP = b"s", b"e", b"r"
AVAILABLE = all(hasattr(where, name) for where, name in ((os, "fork"), (os, "waitid"), (socket, "recv_fds")))

# They register nothing that is to run at a fork or at the end, except logging, and start no thread.
OTHERS = [
    *("ctypes", "dataclasses", "email.message", "hashlib", "inspect", "logging", "random", "ssl", "typing"),
    *("urllib.request", "websocket", "python_socks.sync", "websockets.sync.server"),
]


# --- in the nursery


def next_script() -> CodeType:
    """Wait for scripts, and fork for each; returns in such a child, with what that is to run."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in OTHERS:
        with contextlib.suppress(ImportError):  # an extra, or gone from the standard library
            importlib.import_module(name)
    gc.freeze()  # or each child's collector would copy all pages
    while True:
        head, streams, _, _ = socket.recv_fds(channel, HEAD.size, 3)
        if not head:
            os._exit(0)
        what, number = HEAD.unpack(head + _exactly(channel, HEAD.size - len(head)))
        if what == ENDED:
            os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)  # it stays, to be looked at
            channel.sendall(ANSWER.pack(0))
        elif what == REAP:
            channel.sendall(ANSWER.pack(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])))
        else:
            script, arguments, environment = json.loads(_exactly(channel, number))
            child = os.fork()
            if child == 0:
                channel.close()
                return _born(script, arguments, environment, streams)
            for stream in streams:
                os.close(stream)
            channel.sendall(ANSWER.pack(child))


def _born(script: str, arguments: list[str], environment: dict[str, str], streams: list[int]) -> CodeType:
    for own, stream in enumerate(streams):
        os.dup2(stream, own)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return compile(script, "<string>", "exec", dont_inherit=True)


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = channel.recv(size - len(data))
        if not more:
            raise EOFError("the other side has gone")
        data += more
    return data


# --- in the tests


class Child:
    """A script that runs, with as much of Popen's interface as `scripts` needs."""

    def __init__(self, script: str, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        ours: list[IO[str]] = []
        theirs: list[int] = []
        try:
            for mode in ("w", "r", "r"):
                read, write = os.pipe()
                theirs.append(read if mode == "w" else write)
                ours.append(open(write if mode == "w" else read, mode, encoding="utf-8"))  # noqa: SIM115 (kept)
            self.pid = _nursery.start(script, arguments, environment, theirs)
        except BaseException:
            for stream in ours:
                stream.close()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self.stdin, self.stdout, self.stderr = ours
        self._status: int | None = None

    def await_end(self) -> None:
        """Wait until it has ended; it is there still, for `/proc`."""
        if self._status is None:
            _nursery.ask(ENDED, self.pid)

    def wait(self) -> int:
        """Wait until it has ended; its status as Popen's."""
        if self._status is None:
            self._status = _nursery.ask(REAP, self.pid)
        return self._status

    def kill(self) -> None:
        """End it, unless it has ended."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close this end of its pipes."""
        with contextlib.suppress(BrokenPipeError):  # what it never read
            self.stdin.close()
        self.stdout.close()
        self.stderr.close()


class _Nursery:
    """The nursery of this process, begun when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None

    def start(
        self, script: str, arguments: tuple[str, ...], environment: dict[str, str], streams: list[int]
    ) -> int:
        """Start a script; its process."""
        request = json.dumps([script, arguments, environment]).encode()
        return self._do(HEAD.pack(START, len(request)), streams, request)

    def ask(self, what: bytes, pid: int) -> int:
        """Ask about a process."""
        return self._do(HEAD.pack(what, pid))

    def _do(self, head: bytes, streams: list[int] | None = None, request: bytes = b"") -> int:
        with self._lock:
            if self._channel is None:
                self._begin()
            channel = self._channel
            assert channel is not None
            try:
                if streams:
                    socket.send_fds(channel, [head], streams)
                    channel.sendall(request)
                else:
                    channel.sendall(head)
                return int(ANSWER.unpack(_exactly(channel, ANSWER.size))[0])
            except BaseException:  # a timeout, say: whose answer would come next?
                self._end()
                raise

    def _begin(self) -> None:
        import subprocess

        self._owner = os.getpid()
        ours, theirs = socket.socketpair()
        with theirs:
            main = "exec(__import__('tests.nursery').nursery.next_script())"
            self._process = subprocess.Popen(
                [sys.executable, "-c", main, str(theirs.fileno())],
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._channel = ours
        atexit.register(self._end)

    def _end(self) -> None:
        if self._channel is not None and self._owner == os.getpid():  # a forked child has it, too
            self._channel.close()
            self._channel = None
            self._process.kill()
            self._process.wait()
            atexit.unregister(self._end)


_nursery = _Nursery()

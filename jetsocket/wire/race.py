"""Connecting to the first of several addresses that answers (RFC 8305), without a thread more."""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
from collections import deque
from collections.abc import Collection, Sequence
from typing import TypeAlias

from jetsocket.clock import monotonic
from jetsocket.interrupts import is_alarm, suppress
from jetsocket.wire.dns import Address
from jetsocket.wire.sockets import Option, Socket, set_options
from jetsocket.wire.source_address import Source, bind, explained
from jetsocket.wire.stream import Stream

_HEAD_START = 0.25  # s before the next address is tried beside the last: RFC 8305 §5
_AGAIN = 0.02  # s before an address is tried again whose backlog is full (a Unix socket's says so)
_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)  # saves a system call, where there is such a thing
_LONGEST_WAIT = 3600.0  # s; system calls take their timeouts as a C int, which far deadlines overflow
_UNDER_WAY = {0, errno.EINPROGRESS, getattr(errno, "WSAEWOULDBLOCK", 0)}  # a connect that goes well

Failure: TypeAlias = "tuple[Address, OSError]"
"""An address, and why there was no connecting to it."""


class Race:
    """Attempts to connect, side by side: each has a head start on the next, and the first to connect wins.

    RFC 8305 §5 in spirit: an address that swallows packets costs 250 ms, not the deadline.
    """

    def __init__(
        self, addresses: Collection[Address], options: Sequence[Option], source: Source | None
    ) -> None:
        self._addresses = interleaved(addresses)
        self._waiting = deque(self._addresses)
        self._options = options
        self._source = source
        self._woken: Stream | None = None
        self._start_next = monotonic()
        self._flying: dict[socket.socket, Address] = {}
        self.failures: list[Failure] = []
        self.winner: socket.socket | None = None

    @property
    def places(self) -> str:
        """All the addresses, for messages."""
        return ", ".join(map(str, self._addresses))

    @property
    def lost(self) -> bool:
        """Whether every attempt has failed."""
        return not self._waiting and not self._flying

    @property
    def has_to_wait(self) -> bool:
        """Whether no attempt can be started now."""
        return not self._waiting or self._start_next > monotonic()

    @property
    def is_watched(self) -> bool:
        """Whether `watch` was called."""
        return self._woken is not None

    def watch(self, woken: Stream) -> None:
        """Make ready to wait, also for ``woken``, which becomes readable when another thread cancels."""
        self._woken = woken

    def begin(self) -> None:
        """Start the first attempt, which may be over at once."""
        if self._waiting:
            self._start(self._waiting.popleft())

    def go_on(self, longest: float) -> None:
        """Start the next attempt if its time has come; else wait for news, ``longest`` seconds at most."""
        pause = min(longest, _LONGEST_WAIT)
        if self._waiting:
            pause = min(pause, self._start_next - monotonic())
            if pause <= 0:
                self._start(self._waiting.popleft())
                return
        for sock in self._wait(pause):
            if self.winner is None:
                self._end(sock, _outcome(sock))

    def close(self) -> None:
        """Close everything but the winner, and let go of that."""
        self.winner = None
        for sock in self._flying:
            sock.close()
        if self._woken is not None:
            self._woken.close()

    def disown(self) -> None:
        """In a forked child, where the other thread does not exist that would close all this."""
        for sock in (*self._flying, self.winner):
            if sock is not None:
                sock.close()
        if self._woken is not None:
            self._woken.disown()

    def _wait(self, seconds: float) -> list[socket.socket]:
        """Wait for news, and return whose there are."""
        assert self._woken is not None, "not watched"
        # Not with `selectors`: they swallow the InterruptedError of a signal handler.
        flying = {sock.fileno(): sock for sock in self._flying}
        make_poll = getattr(select, "poll", None)
        if make_poll is None:  # Windows
            _, ready, failed = select.select([self._woken], flying, flying, seconds)
            return [flying[fd] for fd in {*ready, *failed}]
        poll = make_poll()
        poll.register(self._woken.fileno(), select.POLLIN)
        for fd in flying:
            poll.register(fd, select.POLLOUT)
        return [flying[fd] for fd, _ in poll.poll(seconds * 1000) if fd in flying]

    def _start(self, address: Address) -> None:
        self._start_next = monotonic() + _HEAD_START
        try:
            sock = Socket(address.family, address.type | _NONBLOCK, address.proto)
        except OSError as error:
            if is_alarm(error):
                raise
            # No IPv6 on this machine, or no descriptors left.
            self._fail(address, error)
            return
        self._flying[sock] = address
        try:
            if sock.gettimeout() != 0.0:
                sock.setblocking(False)
            set_options(sock, address.family, self._options)
            if self._source is not None:
                bind(sock, address.family, self._source)
            code = sock.connect_ex(address.sockaddr)
        except OSError as error:
            if is_alarm(error):
                raise
            # An option, an address or a path that the system refuses.
            self._fail(self._flying.pop(sock), error)
            sock.close()
            return
        if code in _UNDER_WAY:
            outcome = _outcome(sock)
            if outcome is None or outcome.errno != errno.ENOTCONN:  # over at once, as within one machine
                self._end(sock, outcome)
            return
        del self._flying[sock]
        sock.close()
        if code == errno.EAGAIN:
            self._waiting.append(address)
            self._start_next = monotonic() + _AGAIN
        else:
            self._fail(address, _os_error(code))

    def _end(self, sock: socket.socket, error: OSError | None) -> None:
        address = self._flying.pop(sock)
        if error is None:
            self.winner = sock
        else:
            self._fail(address, error)
            sock.close()

    def _fail(self, address: Address, error: OSError) -> None:
        error = explained(self._source, error.with_traceback(None))  # its frames lead back to us
        self.failures.append((address, error))
        self._start_next = monotonic()


def interleaved(addresses: Collection[Address]) -> list[Address]:
    """The addresses with their families taking turns, each family in the order given (RFC 8305 §4)."""
    if len(addresses) == 1:
        return [*addresses]
    families: dict[int, list[Address]] = {}
    for address in dict.fromkeys(addresses):
        families.setdefault(address.family, []).append(address)
    turns = itertools.zip_longest(*families.values())
    return [address for turn in turns for address in turn if address is not None]


def _outcome(sock: socket.socket) -> OSError | None:
    """How an attempt to connect ended; None: well."""
    try:
        met_itself = sock.getsockname() == sock.getpeername()
    except OSError as error:
        if is_alarm(error):
            raise
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code in (errno.EPIPE, errno.ECONNRESET) and _has_input(sock):
            return None  # it was connected: a server that is too busy said so and hung up
        # Without the frames of the error, which lead back to it and to the socket: a cycle.
        return _os_error(code) if code else error.with_traceback(None)
    # With no server on the port dialled, the kernel may pick it as ours: a socket connected to itself.
    return _os_error(errno.ECONNREFUSED) if met_itself else None


def _has_input(sock: socket.socket) -> bool:
    with suppress(OSError):
        return bool(sock.recv(1, socket.MSG_PEEK))
    return False


def _os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))

"""The way to a host or a socket on this machine: DNS and TCP, within one deadline, cancellable all along."""

from __future__ import annotations

import errno
import queue
import socket
import ssl
from collections.abc import Iterable, Sequence

from jetsocket import exceptions, uris
from jetsocket.clock import monotonic
from jetsocket.interrupts import is_alarm
from jetsocket.wire.dns import Address, Answer, Mailbox, Question, read_address, resolve
from jetsocket.wire.proxy_url import DIRECTLY
from jetsocket.wire.race import Failure, Race
from jetsocket.wire.sockets import Option
from jetsocket.wire.source_address import Source, SourceError, reachable_from
from jetsocket.wire.stream import Stream


class Reach:
    """The opening of one connection, as far as TCP; what `cancel` wakes, and what is said when it fails."""

    _stage: object = "starting"  # for messages, and made a string there
    # What `cancel` has to wake. Each is set first and the flag looked at after it, and `cancel` does these in
    # the other order: so one of the two sees the other, without a lock.
    _cancelled: bool = False
    _mailbox: Mailbox | None = None
    _waker: Stream | None = None
    _stream: Stream | None = None
    _running: Race | None = None

    def __init__(
        self,
        target: uris.Target,
        *,
        deadline: float,
        ssl_context: ssl.SSLContext | None = None,
        proxy: bool | str | None = True,
        unix: str | None = None,
        socket_options: Sequence[Option] = (),
        server_hostname: str | None = None,
        source_address: Source | None = None,
        instead: tuple[str, int] | None = None,
    ) -> None:
        """Say what to connect to; `open` does it.

        Args:
            target: Where to.
            deadline: When to give up, as `time.monotonic` counts, in seconds.
            ssl_context: What to trust with wss://; None: `default_ssl_context`.
            proxy: True: as the environment says; None or False: none; or a proxy's URL.
            unix: The path of a Unix socket to dial in place of the target's host and port.
            socket_options: Set before connecting, after TCP_NODELAY and SO_KEEPALIVE.
            server_hostname: What the certificate has to be for, and what SNI says; None: the target's host.
            source_address: Where to connect from, an IP address and a port; also to a proxy.
            instead: An IP address and port to dial in place of all these, without proxy and TLS.
        """
        self._target = target
        self._deadline = deadline
        self._timeout = max(0.0, deadline - monotonic())
        self._ssl_context = ssl_context
        self._proxy = proxy
        self._unix = unix
        self._socket_options = socket_options
        self._server_hostname = server_hostname
        self._source_address = source_address if instead is None else None
        self._instead = instead

    def cancel(self) -> None:
        """Make `open` raise ConnectionError at once. For any thread, and signal handlers.

        A stream that `open` has returned is left alone.
        """
        self._cancelled = True
        if (mailbox := self._mailbox) is not None:
            mailbox.put(None)
        if (waker := self._waker) is not None:
            waker.abort()
        if (stream := self._stream) is not None:
            stream.abort()

    def disown(self) -> None:
        """In a forked child: close this process's descriptors of what the parent is opening."""
        self._cancelled = True
        for mine in (self._stream, self._waker, self._running):
            if mine is not None:
                mine.disown()

    # ---- the stages

    def _look_up(
        self, host: str, port: int, family: int = socket.AF_UNSPEC, *, whom: str = ""
    ) -> list[Address]:
        """The addresses of ``host``; ``whom`` is for messages, if not the target."""
        self._stage = f"resolving host {host!r} of {whom}" if whom else f"resolving host {host!r}"
        question = Question(host, port, family)
        answer = read_address(question) if uris.is_ip(host) else self._ask(question)
        if not isinstance(answer, list):
            advice = "check the name, and this machine's DNS"
            raise self._failed(
                answer, f"{advice}; to connect directly pass {DIRECTLY}" if whom else advice
            ) from answer
        return answer

    def _ask(self, question: Question) -> Answer | None:
        mailbox = self._open_mailbox()
        try:
            answer = resolve(question, mailbox, self._deadline)
        except queue.Empty as error:
            if is_alarm(error):
                raise
            raise self._timed_out() from None
        self._refuse_if_cancelled()
        if self._remaining() <= 0:
            raise self._timed_out()
        return answer

    def _race(self, addresses: Sequence[Address], whom: str = "") -> Stream:
        """Connect to the first address that answers; ``whom`` is for messages, if not the target."""
        source = self._source_address
        self._running = race = Race(reachable_from(source, addresses), self._socket_options, source)
        self._stage = _Connecting(whom, race)
        try:
            self._refuse_if_cancelled()
            if self._remaining() <= 0:
                raise self._timed_out()
            race.begin()
            while race.winner is None:
                self._refuse_if_cancelled()
                if race.lost:
                    self._stage = f"connecting to {whom}" if whom else "connecting"
                    last = race.failures[-1][1]
                    advice = _advice(last) + (f" to connect directly pass {DIRECTLY}" if whom else "")
                    raise self._failed(_listed(race.failures), advice) from last
                if self._remaining() <= 0:
                    raise self._timed_out(race.failures)
                if race.has_to_wait and not race.is_watched:  # on this machine, hardly ever
                    woken, self._waker = map(Stream, socket.socketpair())
                    race.watch(woken)
                else:
                    race.go_on(self._remaining())
            self._stream = stream = Stream(race.winner)
        finally:
            self._running = None
            race.close()
        self._refuse_if_cancelled()
        return stream

    # ---- the clock, and what to say

    def _remaining(self) -> float:
        return self._deadline - monotonic()

    def _open_mailbox(self) -> Mailbox:
        mailbox: Mailbox = queue.SimpleQueue()
        self._mailbox = mailbox
        self._refuse_if_cancelled()
        return mailbox

    def _refuse_if_cancelled(self) -> None:
        if self._cancelled:
            raise self._cancellation()

    def _cancellation(self) -> exceptions.ConnectionError:
        return exceptions.ConnectionError(
            f"connecting to {self._target.redacted} was cancelled while {self._stage}"
        )

    def _failed(self, why: object, advice: str, *, is_final: bool = False) -> exceptions.ConnectionError:
        failure = exceptions.ConnectionError(
            f"cannot connect to {self._target.redacted}: {self._stage} failed: {why}; {advice}"
        )
        if is_final:
            failure._is_final = True
        return failure

    def _timed_out(self, failures: Sequence[Failure] = ()) -> exceptions.TimeoutError:
        so_far = f" (failed so far: {_listed(failures)})" if failures else ""
        return exceptions.TimeoutError(
            f"cannot connect to {self._target.redacted} within {self._timeout:.3g} s: the time ran out while "
            f"{self._stage}{so_far}; see whether it can be reached from here, or allow more time",
            operation="connect",
            timeout=self._timeout,
        )


class _Connecting:
    """What is said of a race, if anything has to be."""

    def __init__(self, whom: str, race: Race) -> None:
        self._whom = whom
        self._race = race

    def __str__(self) -> str:
        where = self._race.places
        return f"connecting to {self._whom} at {where}" if self._whom else f"connecting to {where}"


def unix_address(path: str) -> Address:
    """The address of a Unix socket."""
    family = getattr(socket, "AF_UNIX", -1)  # not on Windows: then making the socket fails, and says so
    return Address(family, socket.SOCK_STREAM, 0, "", path)


def _advice(error: OSError) -> str:
    if isinstance(error, SourceError):
        return "give one of this machine's addresses, of the server's family, and port 0 for any"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "is this process short of descriptors?"
    return "is the server running, and reachable from here?"


def _listed(failures: Iterable[Failure]) -> str:
    return ", ".join(f"{address}: {error.strerror or error}" for address, error in failures)

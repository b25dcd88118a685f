"""URI → connected stream: DNS, TCP, TLS, proxy, within one deadline and cancellable in each stage."""

from __future__ import annotations

import errno
import itertools
import os
import queue
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterable, Sequence

from jetsocket import exceptions, uris
from jetsocket.clock import monotonic
from jetsocket.interrupts import is_alarm, raise_alarm_behind, suppress
from jetsocket.wire import tunnel
from jetsocket.wire.certificates import explain
from jetsocket.wire.dns import Address, Answer, Mailbox, Question, ask, read_address
from jetsocket.wire.environment import Choice, is_loopback, proxy_for
from jetsocket.wire.proxies import DIRECTLY, Proxy, import_python_socks, redact_proxy
from jetsocket.wire.redaction import raise_alone
from jetsocket.wire.source import Source, SourceError, bind, explained, reachable_from
from jetsocket.wire.stream import Socket, Stream, take

_HEAD_START = 0.25  # s before the next address is tried beside the last: RFC 8305 §5
_AGAIN = 0.02  # s before an address is tried again whose backlog is full (a Unix socket's says so)
_LONGEST_WAIT = 3600.0  # s; system calls take their timeouts as a C int, which far deadlines overflow
_UNDER_WAY = {0, errno.EINPROGRESS, getattr(errno, "WSAEWOULDBLOCK", 0)}  # a connect that goes well

_Option = tuple[int, int, "int | bytes"]  # level, name, value, as for `socket.setsockopt`
_Failure = tuple[Address, OSError]


class Dialing:
    """The opening of one connection, which another thread can cancel, also while DNS hangs."""

    def __init__(
        self,
        target: uris.Target,
        *,
        deadline: float,
        ssl_context: ssl.SSLContext | None = None,
        proxy: bool | str | None = True,
        unix: str | None = None,
        socket_options: Sequence[_Option] = (),
        server_hostname: str | None = None,
        source_address: Source | None = None,
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
        """
        self._target = target
        self._deadline = deadline
        self._timeout = max(0.0, deadline - monotonic())
        self._ssl_context = ssl_context
        self._proxy = proxy
        self._unix = unix
        self._socket_options = socket_options
        self._server_name = server_hostname or uris.tls_name(target.host)
        self._source_address = source_address
        self._stage = "starting"  # for messages
        # What `cancel` has to wake. Each is set first and the flag looked at after it, and `cancel` does
        # these in the other order: so one of the two sees the other, without a lock.
        self._cancelled = False
        self._mailbox: Mailbox | None = None
        self._waker: Stream | None = None
        self._stream: Stream | None = None
        self._running: _Race | None = None

    def open(self) -> Stream:
        """Connect.

        Returns:
            A stream to the server, encrypted if the target is secure; the caller's from now on.

        Raises:
            TimeoutError: The deadline passed.
            ConnectionError: It failed, or was cancelled. The system's or TLS's error is the `__cause__`, an
                `ssl.SSLCertVerificationError` if the certificate was refused.
            ImportError: `proxy` is the URL of a SOCKS proxy, and the extra `proxy` is not installed.
        """
        try:
            stream = self._connect()
        except BaseException as error:
            if self._stream is not None:
                self._stream.close()
            if not isinstance(error, Exception):
                raise
            raise_alarm_behind(error)  # also what the codec of host names has made an error of its own of
            if self._cancelled:
                raise self._cancellation() from None
            if isinstance(error, OSError) and not isinstance(error, exceptions.JetSocketError):
                raise self._failed(error, "is this process short of descriptors?") from error
            raise
        finally:
            self._stream = self._waker = None
        return stream

    def cancel(self) -> None:
        """Make `open` and `pause` raise ConnectionError at once. For any thread, and signal handlers.

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

    def pause(self, seconds: float) -> None:
        """Wait between two attempts, not beyond the deadline.

        Raises:
            ConnectionError: `cancel` was called.
        """
        self._stage = "waiting for the next attempt"
        mailbox = self._open_mailbox()
        with suppress(queue.Empty):  # nobody cancelled
            take(mailbox, min(seconds, self._remaining()))
        self._refuse_if_cancelled()

    # ---- the stages

    def _connect(self) -> Stream:
        self._refuse_if_cancelled()
        if self._unix is not None:
            stream = self._race([_unix_address(self._unix)])
        elif (choice := proxy_for(self._target, self._proxy)) is not None:
            stream = self._tunnel(choice)
        else:
            stream = self._race(self._look_up(self._target.host, self._target.port))
        if self._target.secure:
            self._start_tls(stream)
        self._refuse_if_cancelled()
        return stream

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
            ask(question, mailbox)
        except RuntimeError as error:
            if is_alarm(error):
                raise
            raise self._failed(error, "this process can start no more threads") from error
        try:
            answer = take(mailbox, min(self._remaining(), threading.TIMEOUT_MAX))
        except queue.Empty as error:
            if is_alarm(error):
                raise
            raise self._timed_out() from None
        self._refuse_if_cancelled()
        return answer

    def _race(self, addresses: Sequence[Address], whom: str = "") -> Stream:
        """Connect to the first address that answers; ``whom`` is for messages, if not the target."""
        source = self._source_address
        self._running = race = _Race(reachable_from(source, addresses), self._socket_options, source)
        self._stage = f"connecting to {whom} at {race.places}" if whom else f"connecting to {race.places}"
        try:
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

    def _tunnel(self, choice: Choice) -> Stream:
        """Have a proxy connect to the target."""
        proxy, shown = self._usable(choice)
        host, port = self._target.host.partition("%")[0], self._target.port  # a zone says nothing elsewhere
        hosts = [host]
        if proxy.wants_address and not uris.is_ip(host):
            family = socket.AF_INET if proxy.scheme == "socks4" else socket.AF_UNSPEC
            hosts = [address.sockaddr[0] for address in _interleaved(self._look_up(host, port, family))]
        places = self._look_up(proxy.host, proxy.port, whom=shown)
        refusals: list[tunnel.Refusal] = []
        for host in hosts:
            stream = self._race(places, shown)
            self._stage = f"asking {shown} for {uris.bracketed(host)}:{port}"
            refusal = self._ask_proxy(stream, proxy, host, len(hosts) - len(refusals))
            if refusal is None:
                return stream
            stream.close()
            refusals.append(refusal)
            if not refusal.of_address:
                break
        told = [f"{host}: {each.why}" for host, each in zip(hosts, refusals, strict=False)]
        last = refusals[-1]
        why = ", ".join(told) if told[1:] else last.why
        raise self._failed(why, self._advised(last.advice, choice), is_final=last.is_final) from last.cause

    def _ask_proxy(self, stream: Stream, proxy: Proxy, host: str, left: int) -> tunnel.Refusal | None:
        """Ask for one of so many addresses that are left; each has its share of the time."""
        until = self._deadline if left == 1 else monotonic() + self._remaining() / left
        try:
            return tunnel.ask(stream, proxy, host, self._target.port, until)
        except OSError as error:
            if is_alarm(error):
                raise
            if isinstance(error, TimeoutError):
                if left == 1 or self._remaining() <= 0:
                    raise_alone(self._timed_out())
                return tunnel.Refusal("the proxy took too long", tunnel.CHECK, of_address=True)
            why, cause = error.strerror or str(error), error.with_traceback(None)
            return tunnel.Refusal(why, tunnel.CHECK, of_address=True, cause=cause)

    def _usable(self, choice: Choice) -> tuple[Proxy, str]:
        """The proxy, and how to call it in messages."""
        shown = f"the proxy {redact_proxy(choice.url)}"
        advice = "correct the proxy's URL"
        if choice.variable is not None:
            shown += f" ({choice.variable})"
            advice = f"correct {choice.variable}, or pass {DIRECTLY} to connect directly"
        self._stage = f"using {shown}"
        try:
            proxy = Proxy.parse(choice.url)
        except ValueError as error:
            if is_alarm(error):
                raise
            raise_alone(self._failed(error, advice, is_final=True))
        if proxy.scheme != "http":
            try:
                import_python_socks()  # before anything is opened, for it may be missing
            except ImportError as error:
                if choice.variable is None:
                    raise
                why = f"{choice.variable} names a SOCKS proxy"
                raise_alone(self._failed(why, str(error), is_final=True), error.with_traceback(None))
        return proxy, shown

    def _advised(self, advice: str, choice: Choice) -> str:
        """What to do, where a proxy has refused."""
        host = self._target.host
        if not is_loopback(host):
            return advice
        instead = f"list it in NO_PROXY, or pass {DIRECTLY}"
        if choice.variable is None:  # then nothing of the environment counts
            instead = f"pass {DIRECTLY}, or True in place of its URL and list it in NO_PROXY"
        return f"{advice}; {host} is this machine, and its own to the proxy: {instead}"

    def _start_tls(self, stream: Stream) -> None:
        self._stage = f"doing the TLS handshake with {self._target.host_header}"
        if self._server_name != uris.tls_name(self._target.host):
            self._stage += f" as {self._server_name}"
        context = self._ssl_context or default_ssl_context()
        try:
            stream.start_tls(context, self._server_name, self._deadline)
        except (OSError, ValueError) as error:
            raise_alarm_behind(error)
            if isinstance(error, TimeoutError):
                if not stream.bytes_in:  # a server that waits for a line end does so at a TLS hello
                    self._stage += " (no byte came: does it want ws://?)"
                raise self._timed_out() from None
            raise self._failed(*explain(error, self._server_name, stream.certificate_names)) from error

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

    def _timed_out(self, failures: Sequence[_Failure] = ()) -> exceptions.TimeoutError:
        so_far = f" (failed so far: {_listed(failures)})" if failures else ""
        return exceptions.TimeoutError(
            f"cannot connect to {self._target.redacted} within {self._timeout:.3g} s: the time ran out while "
            f"{self._stage}{so_far}; see whether it can be reached from here, or allow more time",
            operation="connect",
            timeout=self._timeout,
        )


class _Race:
    """Attempts to connect, side by side: each has a head start on the next, and the first to connect wins.

    RFC 8305 §5 in spirit: an address that swallows packets costs 250 ms, not the deadline.
    """

    def __init__(
        self, addresses: Iterable[Address], options: Sequence[_Option], source: Source | None
    ) -> None:
        self._waiting = deque(_interleaved(addresses))
        self._options = options
        self._source = source
        self._woken: Stream | None = None
        self._start_next = monotonic()
        self._flying: dict[socket.socket, Address] = {}
        self.places = ", ".join(map(str, self._waiting))
        self.failures: list[_Failure] = []
        self.winner: socket.socket | None = None

    @property
    def lost(self) -> bool:
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
        """Make ready to wait, also for ``woken``, which becomes readable when somebody cancels."""
        self._woken = woken

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
            sock = Socket(address.family, address.type, address.proto)
        except OSError as error:
            if is_alarm(error):
                raise
            # No IPv6 on this machine, or no descriptors left.
            self._fail(address, error)
            return
        self._flying[sock] = address
        try:
            sock.setblocking(False)
            _set_options(sock, address.family, self._options)
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
            self._look_whether_over(sock)
            return
        del self._flying[sock]
        sock.close()
        if code == errno.EAGAIN:
            self._waiting.append(address)
            self._start_next = monotonic() + _AGAIN
        else:
            self._fail(address, _os_error(code))

    def _look_whether_over(self, sock: socket.socket) -> None:
        """End an attempt that is over as soon as it has begun, as those within one machine are."""
        error = _outcome(sock)
        if error is None or error.errno != errno.ENOTCONN:
            self._end(sock, error)

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


# ---- TCP


def _unix_address(path: str) -> Address:
    family = getattr(socket, "AF_UNIX", -1)  # not on Windows: then making the socket fails, and says so
    return Address(family, socket.SOCK_STREAM, 0, "", path)


def _interleaved(addresses: Iterable[Address]) -> list[Address]:
    """The addresses with their families taking turns, each family in the order given (RFC 8305 §4)."""
    families: dict[int, list[Address]] = {}
    for address in dict.fromkeys(addresses):
        families.setdefault(address.family, []).append(address)
    turns = itertools.zip_longest(*families.values())
    return [address for turn in turns for address in turn if address is not None]


def _set_options(sock: socket.socket, family: int, options: Iterable[_Option]) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if family in (socket.AF_INET, socket.AF_INET6):  # to ask the socket, Python makes an enum, in a `try`
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for level, name, value in options:
        try:
            sock.setsockopt(level, name, value)
        except OSError as error:
            if is_alarm(error):
                raise
            raise OSError(
                error.errno, f"socket_options ({level}, {name}, {value!r}): {error.strerror}"
            ) from error


def _outcome(sock: socket.socket) -> OSError | None:
    """How an attempt to connect ended; None: well."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code in (errno.EPIPE, errno.ECONNRESET) and _has_input(sock):
        return None  # it was connected: a server that is too busy said so and hung up
    if code:
        return _os_error(code)
    try:
        met_itself = sock.getsockname() == sock.getpeername()
    except OSError as error:
        if is_alarm(error):
            raise
        return error.with_traceback(None)  # whose frames lead back to it and to the socket: a cycle
    # With nobody listening on the port dialled, the kernel may pick it as ours: a socket connected to itself.
    return _os_error(errno.ECONNREFUSED) if met_itself else None


def _has_input(sock: socket.socket) -> bool:
    with suppress(OSError):
        return bool(sock.recv(1, socket.MSG_PEEK))
    return False


def _os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _advice(error: OSError) -> str:
    if isinstance(error, SourceError):
        return "give one of this machine's addresses, of the server's family, and port 0 for any"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "is this process short of descriptors?"
    return "is the server running, and reachable from here?"


def _listed(failures: Iterable[_Failure]) -> str:
    return ", ".join(f"{address}: {error.strerror or error}" for address, error in failures)


# ---- TLS


_default_contexts: list[ssl.SSLContext] = []  # one, once it is good


def default_ssl_context() -> ssl.SSLContext:
    """What wss:// trusts unless told otherwise: the system's authorities, and names are checked.

    Made at first use, as loading the authorities takes milliseconds; one per process.
    """
    if _default_contexts:
        return _default_contexts[0]
    context = ssl.create_default_context()
    # With no descriptor free, OpenSSL can't open the file of authorities, and does not say so. A directory of
    # them is only looked into when a certificate is there.
    if context.cert_store_stats()["x509"] or ssl.get_default_verify_paths().cafile is None:
        _default_contexts[:] = [context]
    return context

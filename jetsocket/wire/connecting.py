"""How a connection is opened: dialled, upgraded by websocket-client, redirected, all within one deadline."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import websocket
from websocket import WebSocketException

from jetsocket.clock import deadline_in, monotonic
from jetsocket.exceptions import (
    HandshakeError,
    InvalidStateError,
)
from jetsocket.interrupts import is_alarm, raise_alarm_behind
from jetsocket.uris import Target, parse
from jetsocket.wire import deflate
from jetsocket.wire.channel import Channel
from jetsocket.wire.dial import Dialing
from jetsocket.wire.frames import mask_fast
from jetsocket.wire.headers import NO_HEADERS
from jetsocket.wire.link import takes
from jetsocket.wire.redaction import as_cause, censored, hide, raise_alone, secrets_of
from jetsocket.wire.redirects import fault_of, follow, keeps_credentials
from jetsocket.wire.upgrade import Upgrade
from jetsocket.wire.upgrade_answer import STRANGE, Redirected
from jetsocket.wire.upgrade_request import Requests, Shape, header_fields, offer, request_headers

DEFAULT_MAX_MESSAGE_SIZE = 64 * 1024 * 1024
DEFAULT_COMPRESSION_THRESHOLD = 128
DEFAULT_CONNECT_TIMEOUT = 10.0
DEFAULT_CLOSE_TIMEOUT = 5.0

# websocket-client must not find a cookie for the host it is told of: its jar is one for the process.
_SHOWN_URL = "ws://handshake.invalid/"

# create_connection() gives all options to both, the class and connect().
_FOR_THE_CLASS = frozenset({"max_message_size", "max_frame_size", "compression_threshold"})


class Connecting(Channel, websocket.WebSocket):
    """One connection, once and for all opened by `connect`.

    Attributes:
        response_headers: Of the server's upgrade response.
        requests: Those that may be sent again; None: websocket-client is to write each.
    """

    # What all begin with.
    requests: Requests | None = None
    response_headers: Mapping[str, str] = NO_HEADERS
    _dialing: Dialing | None = None
    _aborted: bool = False
    _subprotocol: str | None = None
    _dialing_type: Callable[..., Dialing] = Dialing  # a subclass may want to watch it

    def __init__(
        self,
        *args: Any,
        max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE,
        max_frame_size: int | None = None,
        compression_threshold: int = DEFAULT_COMPRESSION_THRESHOLD,
        **kwargs: Any,
    ) -> None:
        """Prepare a connection that takes messages of at most `max_message_size` B.

        Args:
            *args: As websocket-client's class takes them.
            max_message_size: Limit of one incoming message, decompressed (B).
            max_frame_size: Longer messages (B, compressed) are sent in several frames; None: in one.
            compression_threshold: Messages of less than this (B) are sent as they are.
            **kwargs: As websocket-client's class takes them.
        """
        websocket.WebSocket.__init__(self, *args, **kwargs)
        if self.sock_opt.sslopt:
            raise TypeError("sslopt is not used; pass ssl_context to connect() or create_connection()")
        # Its own buffers are not used, and frame_buffer would make a reference cycle.
        del self.frame_buffer, self.cont_frame
        # After it, for real locks also with enable_multithread=False: others than the borrower use them.
        Channel.__init__(self, max_message_size, compression_threshold, max_frame_size)

    # --- connecting ------------------------------------------------------------------------------------

    def connect(
        self,
        url: str | Target,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        header: Mapping[str, str] | Iterable[str | tuple[str, str]] | None = (),
        cookie: str | None = None,
        origin: str | None = None,
        subprotocols: Sequence[str] | None = (),
        compress: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        proxy: bool | str | None = True,
        unix: str | None = None,
        socket_options: Sequence[tuple[int, int, int | bytes]] = (),
        server_hostname: str | None = None,
        source_address: tuple[str, int] | None = None,
        max_redirects: int = 3,
        meanwhile: Callable[[], object] | None = None,
        tokens: Sequence[str] = (),
        secrets: Iterable[str] = (),
        dialled_at: Callable[[Target], tuple[str, int] | None] | None = None,
        **others: Any,
    ) -> None:
        """Connect and upgrade, all within one deadline.

        Args:
            url: ws:// or wss:// URI; userinfo becomes Basic authorization.
            timeout: s for DNS, TCP, proxy, TLS and the upgrade together; what `settimeout` was told by
                default, or 10.
            deadline: The same as a monotonic time; wins over `timeout`.
            header: Additional request headers: (name, value) pairs, a mapping, or "name: value" lines.
            cookie: Value of the Cookie header. The cookies of websocket-client's process-wide jar are
                never sent, and none a server sets gets into it.
            origin: Value of the Origin header; none is sent by default.
            subprotocols: Offered, in order of preference (RFC 6455 §1.9).
            compress: Offer permessage-deflate (RFC 7692).
            ssl_context: For wss://; by default one that verifies.
            proxy: True for the environment's, a URL, or None for none.
            unix: Path of a Unix socket to dial in place of TCP.
            socket_options: (level, name, value) for setsockopt.
            server_hostname: The name or address that the server's certificate has to be for, and that SNI
                says, in place of the URI's host; the Host header stays the URI's.
            source_address: (IP address, port) to connect from; port 0 for any.
            max_redirects: How many redirects to follow, to the same origin, or from ws:// to wss:// on the
                same host; there with header, cookie and userinfo only from port 80 to 443.
            meanwhile: Called when a request has been sent and the server has yet to answer; to be short.
            tokens: Subprotocols that are credentials, offered after the others and where those may go.
            secrets: What no message is to show though it is part of the URI's path.
            dialled_at: Asked of the target, and of where it redirects to: an IP address and port to dial
                in its place, without DNS, proxy and TLS; None: none. For tests.
            **others: None: an option of websocket-client's that has no meaning here is not ignored.

        Raises:
            HandshakeError: The server did not upgrade.
            ConnectionError: There was no connecting to it.
            TimeoutError: Not in time.
            InvalidStateError: Connected before.
            ValueError: The URI is not one, or a header has what no header may have.
            TypeError: An unknown option.
            ImportError: `proxy` is the URL of a SOCKS proxy, and the extra `proxy` is not installed.
        """
        if others and (unknown := others.keys() - _FOR_THE_CLASS):
            raise TypeError(f"connect() takes no option {', '.join(sorted(unknown))}; see its documentation")
        if self.target is not None:
            raise InvalidStateError(
                "a WebSocket is connected once; make a new one", current_state="connected"
            )
        if deadline is None:
            limit = self.gettimeout() if timeout is None else timeout
            deadline = deadline_in(DEFAULT_CONNECT_TIMEOUT if limit is None else limit)
        fields, offered = header_fields(header) if header else [], (*(subprotocols or ()), *tokens)
        if cookie or origin or offered:
            header_fields([("Cookie", cookie or ""), ("Origin", origin or ""), *offer(offered)])
        self._sent_before = frozenset(secrets)
        self.target = parse(url) if isinstance(url, str) else url
        mask_fast()
        for hop in itertools.count():
            dialing = self._dialing_type(
                self.target,
                deadline=deadline,
                ssl_context=ssl_context,
                proxy=proxy,
                unix=unix,
                socket_options=[*self.sock_opt.sockopt, *socket_options],
                server_hostname=server_hostname,
                source_address=source_address,
                instead=None if dialled_at is None else dialled_at(self.target),
            )
            try:
                self._shake_hands(
                    dialing,
                    deadline,
                    header=fields,
                    subprotocols=offered,
                    compress=compress,
                    cookie=cookie,
                    origin=origin,
                    meanwhile=meanwhile,
                )
            except Redirected as error:
                if is_alarm(error):
                    raise
                self._sent_before |= error.secrets
                new = self._follow(error, hop < max_redirects)
                if not keeps_credentials(self.target, new):
                    fields, cookie, offered = [], None, tuple(subprotocols or ())
                self.target = new
            else:
                self.last_heard = monotonic()
                return

    def _follow(self, error: Redirected, may_go: bool) -> Target:
        assert self.target is not None
        try:
            if not may_go:
                raise ValueError("more redirects than max_redirects allows; do they lead in a circle?")
            new = follow(self.target, error.location)
            return new.but(redacted=hide(new.redacted, self._sent_before))
        except ValueError as why:
            if is_alarm(why):
                raise
            # Of a URI that is none, only what is wrong: it is shown already, without what was sent to it.
            shown = hide(error.shown, self._sent_before)
            told = f"no WebSocket at {self.target.redacted}: redirected to {shown}: {fault_of(why)}"
            raise_alone(
                HandshakeError(
                    told, error.status_code, error.retry_after, headers=error.headers, body=error.body
                )
            )

    @takes("readlock")
    def _shake_hands(
        self,
        dialing: Dialing,
        deadline: float,
        *,
        header: list[tuple[str, str]],
        subprotocols: Sequence[str],
        compress: bool,
        cookie: str | None,
        origin: str | None,
        meanwhile: Callable[[], object] | None,
    ) -> None:
        assert self.target is not None
        self._dialing = dialing
        if self._aborted:
            dialing.cancel()
        left = max(0.0, deadline - monotonic())
        upgrade = Upgrade(
            self.target,
            subprotocols=subprotocols,
            compress=compress,
            deadline=deadline,
            timeout=left,
            sent_before=self._sent_before,
            meanwhile=meanwhile,
        )
        offers = offer(subprotocols) + deflate.offer(compress)
        write_request = partial(self._write_request, upgrade, header, offers, cookie, origin)
        self._stream = dialing.open(write_request)
        try:
            if self._aborted:  # between the dialing and here no one could have told us
                self._stream.abort()
            if not upgrade.request:  # no TLS
                upgrade.stream = self._stream
                write_request()
            upgrade.finish(self._stream)
        except (WebSocketException, OSError) as error:
            self._stream.close()
            self._request = upgrade.request  # what it has of secrets may be in the refusal, too
            raise_alarm_behind(error)
            _fail_handshake(upgrade, error, self.target)
        except BaseException:
            self._stream.close()
            raise
        self._dialing = None
        self.handshake_response, self.connected = upgrade.granted, True
        self._request = upgrade.request
        self.response_headers, self._subprotocol = upgrade.headers, upgrade.subprotocol
        if upgrade.agreement is not None:
            self._deflater = deflate.Deflater(upgrade.agreement, self._compression_threshold)
            self.reader.inflater = deflate.Inflater(upgrade.agreement, self._max_message_size)
        if upgrade.leftover:
            with self.readlock:
                self._feed(upgrade.leftover)

    def _write_request(
        self,
        upgrade: Upgrade,
        header: list[tuple[str, str]],
        offers: list[tuple[str, str]],
        cookie: str | None,
        origin: str | None,
    ) -> None:
        """Have websocket-client write its request; it takes for granted what the server has yet to answer.

        Once it has written such a one, that is sent again with another key.
        """
        assert self.target is not None
        host, lines = request_headers(self.target, header, offers)
        shape: Shape = (host, tuple(lines), cookie, origin)
        if self.requests is not None and (written := self.requests.find(shape)) is not None:
            upgrade.write(written.fields())
            upgrade.granted = written.granted_for(upgrade.accept)
            return
        super().connect(  # type: ignore[no-untyped-call]  # websocket-client annotates only part of itself
            _SHOWN_URL,
            socket=upgrade,
            host=host,
            header=lines,
            cookie=cookie,
            origin=origin,
            suppress_origin=origin is None,
        )
        self.connected, self.sock = False, None  # all I/O goes through the stream
        upgrade.granted, self.handshake_response = self.handshake_response, None
        if self.requests is not None:
            self.requests.keep(shape, upgrade.request, upgrade.granted)

    # --- ending ----------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Wake every thread that is in `connect`, `recv` or `send` on this connection; it is over then."""
        self._aborted = True
        if (dialing := self._dialing) is not None:
            dialing.cancel()
        super().abort()

    def disown(self) -> None:
        """In a forked child: forget the parent's connection without touching it."""
        self._aborted = True
        super().disown()
        if self._dialing is not None:
            self._dialing.disown()


def _fail_handshake(upgrade: Upgrade, error: Exception, target: Target) -> NoReturn:
    failure, upgrade.failure = upgrade.failure, None
    if failure is None and isinstance(error, HandshakeError):
        failure = error
    if failure is not None:
        try:
            raise_alone(failure, failure.__cause__)
        finally:
            del failure, error, upgrade  # this frame is in its traceback: a cycle
    secrets = secrets_of(upgrade.request)
    why = f"the server's upgrade is not valid: {censored(str(error), secrets)}; {STRANGE}"
    told = f"no WebSocket at {target.redacted}: {why}"
    raise_alone(HandshakeError(told, 101, headers=upgrade.headers), as_cause(error, secrets))

"""WebSocket: websocket-client's class with one deadline, bounded memory and honest errors.

Here is how it connects, and websocket-client's interface; what it does once it is open stands in channel.py.
Usable alone (`WebSocket().connect("wss://…")`); knows nothing of pools. What is done differently from
websocket-client, and why, stands in the table in docs/how-it-works.md.
"""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import websocket
from websocket import ABNF, WebSocketException

from jetsocket.clock import deadline_in, monotonic
from jetsocket.exceptions import (
    ConnectionClosedError,
    HandshakeError,
    InvalidStateError,
    ProtocolError,
)
from jetsocket.interrupts import is_alarm, raise_alarm_behind
from jetsocket.uris import Target, parse
from jetsocket.wire import deflate
from jetsocket.wire.channel import Channel
from jetsocket.wire.dial import Dialing
from jetsocket.wire.frames import (
    BINARY,
    CLOSE,
    MAX_CONTROL_PAYLOAD,
    NO_STATUS,
    TEXT,
    encode_close,
    parse_close,
)
from jetsocket.wire.redaction import as_cause, censored, hide, raise_alone, secrets_of
from jetsocket.wire.redirects import follow, keeps_credentials
from jetsocket.wire.upgrade import Headers, Redirected, Upgrade, header_fields

DEFAULT_MAX_MESSAGE_SIZE = 64 * 1024 * 1024
DEFAULT_COMPRESSION_THRESHOLD = 128
DEFAULT_CONNECT_TIMEOUT = 10.0
DEFAULT_CLOSE_TIMEOUT = 5.0

# websocket-client must not find a cookie for the host it is told of: its jar is one for the process.
_SHOWN_URL = "ws://handshake.invalid/"

# create_connection() gives all options to both, the class and connect().
_FOR_THE_CLASS = frozenset({"max_message_size", "max_frame_size", "compression_threshold"})


class WebSocket(Channel, websocket.WebSocket):
    """A client connection over which every operation has one deadline.

    Safe with one thread sending, one receiving and one looking after it, over TLS too. One object is one
    connection: it is never connected twice.

    Attributes:
        response_headers: Of the server's upgrade response.
    """

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
        self.response_headers: Mapping[str, str] = Headers()
        self._dialing: Dialing | None = None
        self._aborted = False
        self._subprotocol: str | None = None

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
        unknown = others.keys() - _FOR_THE_CLASS
        if unknown:
            raise TypeError(f"connect() takes no option {', '.join(sorted(unknown))}; see its documentation")
        if self.target is not None:
            raise InvalidStateError(
                "a WebSocket is connected once; make a new one", current_state="connected"
            )
        limit = self.gettimeout() if timeout is None else timeout
        limit = DEFAULT_CONNECT_TIMEOUT if limit is None else limit
        until = deadline_in(limit) if deadline is None else deadline
        fields, offered = header_fields(header or ()), tuple(subprotocols or ())
        if cookie or origin or offered:
            header_fields([("Cookie", cookie or ""), ("Origin", origin or ""), *_offer(offered)])
        self.target = parse(url) if isinstance(url, str) else url
        for hop in itertools.count():
            dialing = Dialing(
                self.target,
                deadline=until,
                ssl_context=ssl_context,
                proxy=proxy,
                unix=unix,
                socket_options=[*self.sock_opt.sockopt, *socket_options],
                server_hostname=server_hostname,
                source_address=source_address,
            )
            try:
                options = {"cookie": cookie, "origin": origin, "suppress_origin": origin is None}
                self._shake_hands(
                    dialing,
                    until,
                    header=fields,
                    subprotocols=offered,
                    compress=compress,
                    options=options,
                )
            except Redirected as error:
                if is_alarm(error):
                    raise
                self._sent_before |= error.secrets
                new = self._follow(error, hop < max_redirects)
                if not keeps_credentials(self.target, new):
                    fields, cookie = [], None
                self.target = new
            else:
                self.last_heard = monotonic()
                return

    def _follow(self, error: Redirected, may_go: bool) -> Target:
        assert self.target is not None
        try:
            if not may_go:
                raise ValueError("more redirects than max_redirects allows")
            new = follow(self.target, error.location)
            return replace(new, redacted=hide(new.redacted, self._sent_before))
        except ValueError as why:
            if is_alarm(why):
                raise
            # Of a URI that is none, only what is wrong: it is shown already, without what was sent to it.
            fault = str(why).rpartition(": ")[2]
            shown = hide(error.shown, self._sent_before)
            told = f"no WebSocket at {self.target.redacted}: redirected to {shown}: {fault}"
            raise_alone(
                HandshakeError(
                    told, error.status_code, error.retry_after, headers=error.headers, body=error.body
                )
            )

    def _shake_hands(
        self,
        dialing: Dialing,
        deadline: float,
        *,
        header: list[tuple[str, str]],
        subprotocols: Sequence[str],
        compress: bool,
        options: dict[str, Any],
    ) -> None:
        assert self.target is not None
        self._dialing = dialing
        if self._aborted:
            dialing.cancel()
        self._stream = dialing.open()
        left = max(0.0, deadline - monotonic())
        upgrade = Upgrade(
            self._stream,
            self.target,
            subprotocols=subprotocols,
            compress=compress,
            deadline=deadline,
            timeout=left,
            sent_before=self._sent_before,
        )
        host, lines = _request_headers(self.target, header, _offer(subprotocols) + deflate.offer(compress))
        try:
            if self._aborted:  # between the dialing and here nobody could have told us
                self._stream.abort()
            super().connect(  # type: ignore[no-untyped-call]  # websocket-client annotates only part of itself
                _SHOWN_URL,
                socket=upgrade,
                host=host,
                header=lines,
                **options,
            )
        except (WebSocketException, OSError) as error:
            self._stream.close()
            raise_alarm_behind(error)
            _fail_handshake(upgrade, error, self.target)
        except BaseException:
            self._stream.close()
            raise
        self._dialing = None
        self.sock = None  # all I/O goes through the stream from here
        self._request = upgrade.request
        self.response_headers, self._subprotocol = upgrade.headers, upgrade.subprotocol
        if upgrade.agreement is not None:
            self._deflater = deflate.Deflater(upgrade.agreement, self._compression_threshold)
            self.reader.inflater = deflate.Inflater(upgrade.agreement, self._max_message_size)
        if upgrade.leftover:
            with self.readlock:
                self._feed(upgrade.leftover)

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

    # --- websocket-client's interface over the same machinery -------------------------------------------

    def getsubprotocol(self) -> str | None:
        """The subprotocol that the server chose, None for none."""
        return self._subprotocol

    subprotocol = property(getsubprotocol)

    def getheaders(self) -> Any:
        """The upgrade response's headers, a mapping with case-insensitive names."""
        return self.response_headers

    headers = property(getheaders)

    def is_ssl(self) -> bool:
        """Whether the connection is encrypted."""
        return self.target is not None and self.target.secure

    def settimeout(self, timeout: float | None) -> None:
        """Set the time (s) that each `send` and `recv` of this class's own interface may take."""
        self.sock_opt.timeout = timeout

    timeout = property(websocket.WebSocket.gettimeout, settimeout)

    def close(
        self, status: int = 1000, reason: str | bytes = b"", timeout: float | None = DEFAULT_CLOSE_TIMEOUT
    ) -> None:
        """Close: send a close frame, wait up to `timeout` (s) for the server's, let go of the socket.

        Args:
            status: Close code (RFC 6455 §7.4).
            reason: Text of at most 123 B of UTF-8.
            timeout: s for all of it; None means 5.

        Raises:
            ValueError: A code that must not be sent.
        """
        self.send_close(status, reason)
        self.finish_close(deadline_in(DEFAULT_CLOSE_TIMEOUT if timeout is None else timeout))

    def _until(self) -> float | None:
        timeout = self.gettimeout()
        return None if timeout is None else deadline_in(timeout)

    def send(self, payload: str | bytes, opcode: int = TEXT) -> int:
        """Send a frame as websocket-client does; return the length of the payload (B).

        Raises:
            ValueError: A control frame of more than 125 B.
        """
        data = payload.encode("utf-8") if isinstance(payload, str) else bytes(payload)
        if opcode >= CLOSE and len(data) > MAX_CONTROL_PAYLOAD:
            raise ValueError(f"a control frame carries at most {MAX_CONTROL_PAYLOAD} B (RFC 6455 §5.5)")
        if opcode == CLOSE:
            self.send_close(*_split_close(data))
        else:
            self._send_frame(opcode, data, self._until(), self.holder)
        return len(data)

    def send_frame(self, frame: ABNF) -> int:
        """Send a prepared frame; only whole messages and control frames, not fragments.

        Raises:
            ValueError: The frame is a fragment.
        """
        if not frame.fin or frame.opcode == ABNF.OPCODE_CONT:
            raise ValueError("fragments are not sent; send the whole message in one frame")
        return self.send(frame.data, frame.opcode)

    def send_close(self, status: int = 1000, reason: str | bytes = b"") -> None:
        """Send a close frame and do not wait.

        Raises:
            ValueError: A code that must not be sent.
        """
        try:
            told = reason.encode() if isinstance(reason, str) else reason
            code, text = parse_close(status.to_bytes(2, "big") + told)
        except (OverflowError, ProtocolError) as error:
            if is_alarm(error):
                raise
            raise ValueError(f"a close frame can't say {status} {reason!r}: RFC 6455 §7.4") from error
        self.start_close(code, text)

    def recv(self) -> str | bytes:
        """Receive one message; raises ConnectionClosedError at a close (websocket-client returns "")."""
        return self.recv_message(self._until(), self.holder)

    def recv_frame(self) -> ABNF:
        """Receive one whole message as a frame."""
        message = self.recv()
        if isinstance(message, str):
            return ABNF(1, 0, 0, 0, TEXT, 0, message.encode("utf-8"))
        return ABNF(1, 0, 0, 0, BINARY, 0, message)

    def recv_data_frame(self, control_frame: bool = False) -> tuple[int, ABNF]:
        """Receive one message, or the server's close frame, as (opcode, frame)."""
        try:
            frame = self.recv_frame()
        except ConnectionClosedError as error:
            if self.reader.close is None or is_alarm(error):
                raise
            code, reason = self.reader.close
            return CLOSE, ABNF(1, 0, 0, 0, CLOSE, 0, b"" if code == NO_STATUS else encode_close(code, reason))
        return frame.opcode, frame


def _split_close(data: bytes) -> tuple[int, str]:
    return (int.from_bytes(data[:2], "big"), data[2:].decode("utf-8")) if len(data) >= 2 else (1000, "")


def _offer(subprotocols: Sequence[str]) -> list[tuple[str, str]]:
    return [("Sec-WebSocket-Protocol", ", ".join(subprotocols))] if subprotocols else []


def _request_headers(
    target: Target, header: list[tuple[str, str]], offers: list[tuple[str, str]]
) -> tuple[str, list[str]]:
    """The Host value, and the lines that follow websocket-client's own."""
    given = {name.lower(): value for name, value in header}
    lines = [f"{name}: {value}" for name, value in header if name.lower() != "host"]
    if target.authorization is not None and "authorization" not in given:
        lines.append(f"Authorization: {target.authorization}")
    # Not through websocket-client's option: it lower-cases the answer and insists on one.
    lines += [f"{name}: {value}" for name, value in offers]
    return given.get("host", target.host_header), lines


def _fail_handshake(upgrade: Upgrade, error: Exception, target: Target) -> NoReturn:
    if upgrade.failure is not None:
        raise_alone(upgrade.failure, upgrade.failure.__cause__)
    if isinstance(error, HandshakeError):
        raise_alone(error, error.__cause__)
    secrets = secrets_of(upgrade.request)
    why = f"the server's upgrade is not valid: {censored(str(error), secrets)}"
    told = f"no WebSocket at {target.redacted}: {why}"
    raise_alone(HandshakeError(told, 101, headers=upgrade.headers), as_cause(error, secrets))

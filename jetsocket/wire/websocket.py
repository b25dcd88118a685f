"""WebSocket: websocket-client's class with one deadline, bounded memory and honest errors.

Here is websocket-client's interface; how it connects stands in `connecting`, what it does once it is open in
`channel`. Usable alone (`WebSocket().connect("wss://…")`); knows nothing of pools. What is done differently
from websocket-client, and why, stands in the table in docs/how-it-works.md.
"""

from __future__ import annotations

from typing import Any

import websocket
from websocket import ABNF

from jetsocket.clock import deadline_in
from jetsocket.exceptions import (
    ConnectionClosedError,
    ProtocolError,
)
from jetsocket.interrupts import is_alarm
from jetsocket.wire.close_codes import NO_STATUS, encode_close, parse_close
from jetsocket.wire.connecting import DEFAULT_CLOSE_TIMEOUT, Connecting
from jetsocket.wire.frames import (
    BINARY,
    CLOSE,
    MAX_CONTROL_PAYLOAD,
    TEXT,
)


class WebSocket(Connecting, websocket.WebSocket):
    """A client connection over which every operation has one deadline.

    Safe with one thread sending, one receiving and one looking after it, over TLS too. One object is one
    connection: it is never connected twice.

    Attributes:
        response_headers: Of the server's upgrade response.
    """

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
            self.send_data(opcode, data, self._until(), self.holder)
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

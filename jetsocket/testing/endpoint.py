"""The server's side of one connection: the protocol is that of `websockets`, without its I/O, over asyncio.

Imported when a server is started: it needs the extra `testing`. All of it runs in the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import socket
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from websockets.datastructures import Headers
from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from jetsocket.clock import monotonic
from jetsocket.testing.payloads import Payload

_ABORT_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a reset
_FLUSH_PATIENCE = 1.0  # s that what was sent before a drop has to leave
_CLOSE_PATIENCE = 2.0  # s that a client has to answer a close frame
_UNHEARD = logging.Logger("fake-server", logging.CRITICAL)
"""Each frame would be logged, at DEBUG: credentials, too, among the records of the code under test."""


class Host(Protocol):
    """Who decides what a connection is told."""

    async def _upgrade(self, endpoint: Endpoint) -> Response | None:
        """The answer to the upgrade; None: accept it."""

    def _choose(self, offered: list[str], endpoint: Endpoint) -> str | None:
        """The subprotocol, of those that were offered."""

    def _opened(self, endpoint: Endpoint) -> None:
        """The connection is open."""

    def _received(self, endpoint: Endpoint, payload: Payload) -> None:
        """A message has come."""

    def _closing(self, endpoint: Endpoint) -> None:
        """One side has sent a close frame: `close_code` is known."""

    def _ended(self, endpoint: Endpoint) -> None:
        """The connection is over."""


class Endpoint(asyncio.Protocol):
    """One connection, from TCP to its end."""

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for the upgrade."""
        self._host = host
        self.loop = loop
        self.request: Request | None = None
        self.transport: Any = None
        self.status: int | None = None
        self.close_code: int | None = None
        self.note: Any = None  # the host's
        self.extra_headers: Iterable[tuple[str, str]] = ()
        self.tasks: set[asyncio.Task[Any]] = set()
        self._pieces: list[bytes] = []
        self._kind: Opcode | None = None

        def choose(protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
            chosen = host._choose(list(offered), self)
            return None if chosen is None else Subprotocol(chosen)

        self._protocol = ServerProtocol(max_size=None, select_subprotocol=choose, logger=_UNHEARD)

    # --- what it is ------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The path that was asked for, without the query."""
        return self.target.partition("?")[0]

    @property
    def target(self) -> str:
        """The request target, as it came."""
        return "" if self.request is None else self.request.path

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the upgrade request; names are case-insensitive."""
        return Headers() if self.request is None else self.request.headers

    @property
    def subprotocol(self) -> str | None:
        """The one that was agreed on."""
        return self._protocol.subprotocol

    @property
    def is_open(self) -> bool:
        """Whether messages may be sent."""
        return self._protocol.state is State.OPEN

    @property
    def descriptor(self) -> int:
        """Of the socket; -1 if nothing more is read from it."""
        if self.transport is None or self.transport.is_closing():
            return -1
        sock = self.transport.get_extra_info("socket")
        return -1 if sock is None else int(sock.fileno())

    # --- asyncio's calls -------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """TCP, and TLS, stand."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self._protocol.receive_data(data)
        self._take_events()

    def eof_received(self) -> None:
        """The client has ended its side."""
        self._protocol.receive_eof()
        self._take_events()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._protocol.receive_eof()
        if self.status == http.HTTPStatus.SWITCHING_PROTOCOLS and self.close_code is None:
            self.close_code = 1006
        self._host._ended(self)  # what was begun goes on: a callback may have something to say

    def _take_events(self) -> None:
        events = self._protocol.events_received()
        closed = next(
            (each for each in events if isinstance(each, Frame) and each.opcode is Opcode.CLOSE), None
        )
        if closed is not None and self.close_code is None:
            received = self._protocol.close_rcvd
            self.close_code = 1005 if received is None else int(received.code)
            self._host._closing(self)
        self.write()
        for event in events:
            if isinstance(event, Request):
                self.request = event
                self.spawn(self._answer_upgrade(event))
            elif isinstance(event, Frame):
                self._take_frame(event)

    def _take_frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._kind, self._pieces = frame.opcode, []
        elif frame.opcode is not Opcode.CONT:
            return
        self._pieces.append(bytes(frame.data))
        if frame.fin:
            whole = b"".join(self._pieces)
            if self._kind is Opcode.BINARY:
                self._host._received(self, whole)
                return
            try:
                text = whole.decode()
            except UnicodeDecodeError:
                self.close(1007, "text that is not UTF-8")
            else:
                self._host._received(self, text)

    async def _answer_upgrade(self, request: Request) -> None:
        response = await self._host._upgrade(self)
        if self._protocol.state is not State.CONNECTING or self.transport.is_closing():
            return  # the client did not wait
        if response is None:
            response = self._protocol.accept(request)
            if response.status_code == http.HTTPStatus.SWITCHING_PROTOCOLS:
                for name, value in self.extra_headers:
                    response.headers[name] = value
        self.status = int(response.status_code)
        is_accepted = self.status == http.HTTPStatus.SWITCHING_PROTOCOLS
        self._protocol.send_response(response)
        if is_accepted:
            # First: the client that reads the answer is to find itself among the connections.
            self._host._opened(self)
        self.write()

    # --- what the host does with it --------------------------------------------------------------------

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run something beside; it ends with the connection."""
        task = self.loop.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.loop.call_exception_handler({"message": "a fake server failed", "exception": error})

    def write(self) -> None:
        """Send what the protocol has to send."""
        for data in self._protocol.data_to_send():
            if self.transport.is_closing():
                return
            if data:
                self.transport.write(data)
            else:
                self.transport.close()

    def send(self, payload: Payload) -> bool:
        """Send a message; False: the connection is over."""
        if not self.is_open or self.transport.is_closing():
            return False
        if isinstance(payload, str):
            self._protocol.send_text(payload.encode("utf-8", "surrogatepass"))
        else:
            self._protocol.send_binary(payload)
        self.write()
        return True

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame; TCP ends when the client has answered it, or doesn't in time."""
        if not self.is_open:
            return
        with contextlib.suppress(InvalidState):
            self._protocol.send_close(code, reason)
        if self.close_code is None:
            self.close_code = code
            self._host._closing(self)
        self.write()
        self.loop.call_later(_CLOSE_PATIENCE, self.abort)

    async def drop(self) -> None:
        """Reset TCP, after what was sent before."""
        until = monotonic() + _FLUSH_PATIENCE
        sock = self.transport.get_extra_info("socket")
        while (self.transport.get_write_buffer_size() or _is_unsent(sock)) and monotonic() < until:
            await asyncio.sleep(0.001)
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT_AT_ONCE)
        self.abort()

    def abort(self) -> None:
        """Let go of the socket."""
        if self.transport is not None:
            self.transport.abort()

    def leave(self) -> None:
        """The server ends: say so, and go."""
        if self.transport is None:
            return
        self.close(1001, "the fake server has ended")
        self.transport.close()


def _is_unsent(sock: Any) -> bool:
    """Whether the kernel still has something to send, which a reset would throw away; where it tells."""
    if sys.platform != "linux" or sock is None or sock.fileno() < 0:
        return False
    import fcntl
    import termios

    left = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(left, sys.byteorder) > 0


def refusal(status: int, body: str | bytes, headers: Mapping[str, str]) -> Response:
    """An answer to the upgrade that is no 101."""
    content = body.encode() if isinstance(body, str) else body
    fields = Headers({"Connection": "close", "Content-Length": str(len(content))})
    if content and not any(name.lower() == "content-type" for name in headers):
        fields["Content-Type"] = "text/plain; charset=utf-8"
    for name, value in headers.items():
        if name.lower() in fields:
            del fields[name]
        fields[name] = value
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = "Refused"
    return Response(status, phrase, fields, content)


__all__ = ["Endpoint", "Host", "refusal"]

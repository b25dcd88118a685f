"""What an answer to an upgrade is (RFC 6455 §4.1): what a 101 has to say, and may choose; a redirect."""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Iterator, Sequence, Set

from jetsocket.exceptions import HandshakeError
from jetsocket.wire.headers import Headers, location_of, retry_after

STRANGE = "is it a WebSocket server, or does something on the way change what it says?"
"""What to ask where an answer breaks the rules."""

CUT_OFF = "it, or something on the way to it, gave up; its log may say why"
"""What to say where a connection ends within the handshake."""

_COMPRESSION = 'it does not compress as it should; manager_kwargs["compress"] = False leaves that out'
_SUBPROTOCOL = 'offer one that it knows in manager_kwargs["subprotocols"]'
_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Redirected(HandshakeError):
    """The server answered with a redirect; raised inside the wire only.

    Attributes:
        location: The Location header as it came.
        shown: The same, fit for a message.
        secrets: Of the request, which the location may repeat.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        headers: Headers,
        body: bytes,
        shown: str = "",
        secrets: Set[str] = frozenset(),
    ) -> None:
        """See HandshakeError."""
        super().__init__(message, status_code, retry_after(headers), headers=headers, body=body)
        self.location = location_of(headers) or ""
        self.shown = shown
        self.secrets = secrets


class _Line(bytes):
    """A whole line of the head, given to websocket-client for the byte that it asks for.

    It asks until it gets one that equals a line feed, and joins what it got.
    """

    __eq__ = bytes.endswith  # type: ignore[assignment]  # to be said of line feeds only
    __hash__ = bytes.__hash__


_EXPECTED = tuple(map(_Line, (b"HTTP/1.1 101\n", b"upgrade:websocket\n", b"connection:upgrade\n")))
_END = _Line(b"\n")


def expected(accept: str) -> Iterator[bytes]:
    """What websocket-client has to see of an answer, piece by piece: no more than every good one has.

    Cookies above all must not get to it: its jar is one for the whole process.
    """
    return iter((*_EXPECTED, _Line(f"sec-websocket-accept:{accept}\n".encode("ascii")), _END))


def accept_for(key: bytes) -> str:
    """The Sec-WebSocket-Accept that proves a server has understood this key (RFC 6455 §4.2.2)."""
    digest = hashlib.sha1(key + _ACCEPT_GUID, usedforsecurity=False).digest()
    return binascii.b2a_base64(digest, newline=False).decode()


def check_upgrade(
    headers: Headers, accept: str, offered: Sequence[str], *, compress: bool = False
) -> str | None:
    """The subprotocol that the server chose, None for none (RFC 6455 §4.1, steps 4 to 6).

    Args:
        headers: Of the response.
        accept: What proves that the server has understood the key that was sent; see `accept_for`.
        offered: The subprotocols that were offered.
        compress: Whether an extension was offered; `deflate.agree` reads the answer.

    Raises:
        ValueError: The server proved a wrong key, or chose what was not offered.
    """
    if headers.get("sec-websocket-accept") != accept:
        raise ValueError("its Sec-WebSocket-Accept does not fit the key that was sent")
    if chosen_of(headers, "sec-websocket-extensions") is not None and not compress:
        raise ValueError("it chose an extension that was not offered")
    chosen = chosen_of(headers, "sec-websocket-protocol")
    if chosen is not None and chosen not in offered:
        # Neither is shown: tokens travel as subprotocols, too, and a server may echo them.
        raise ValueError(f"it chose a subprotocol that is none of the {len(offered)} that were offered")
    return chosen


def check_switch(headers: Headers) -> None:
    """Check that a 101 switches to WebSocket and to nothing else (RFC 6455 §4.1, steps 2 and 3).

    Raises:
        ValueError: It does not. websocket-client would be content with one of several protocols.
    """
    upgrade, connection = headers.get("upgrade", ""), headers.get("connection", "")
    if upgrade.lower() == "websocket" and connection.lower() == "upgrade":
        return  # nearly always
    for name, wanted in (("upgrade", {"websocket"}), ("connection", {"upgrade"})):
        told = {part.strip().lower() for part in headers.get(name, "").split(",")} - {""}
        if told != wanted if name == "upgrade" else not wanted <= told:
            raise ValueError(f"it switches to something else than WebSocket, by its header {name.title()}")


def remedy_of(fault: str, *, compress: bool) -> str:
    """What to do about what a 101 chose, or does not prove.

    Args:
        fault: What is wrong with it.
        compress: Whether compression was offered.
    """
    if "subprotocol" in fault:
        return _SUBPROTOCOL
    if compress and any(word in fault for word in ("xtensions", "parameter", "permessage-deflate")):
        return _COMPRESSION
    return STRANGE


def chosen_of(headers: Headers, name: str) -> str | None:
    """What a server chose of the subprotocols or extensions; None for nothing, however that is written.

    There are servers that send the header in any case, its value empty (a list without elements:
    RFC 9110 §5.6.1).
    """
    value = headers.get(name)
    return None if value is None else value.strip(" \t,") or None

"""The code and the reason of a close frame (RFC 6455 §5.5.1, §7.4): which may be sent, which may come."""

from __future__ import annotations

import struct

from websocket import ABNF, WebSocketProtocolException

from jetsocket.exceptions import ProtocolError
from jetsocket.interrupts import is_alarm, raise_alarm_behind
from jetsocket.text import printable, short_repr
from jetsocket.wire.redaction import as_cause, raise_alone

NO_STATUS = 1005
"""Stands for a close frame without a code (RFC 6455 §7.4.1); never sent."""

ABNORMAL = 1006
"""Stands for a connection that ended without a close frame (RFC 6455 §7.4.1); never sent."""

_MAX_REASON = 123  # B, beside the code (RFC 6455 §5.5)
_CODE = struct.Struct("!H")


def check_sendable(code: object, reason: object) -> None:
    """Check what a caller wants the server to be told.

    Raises:
        TypeError: `code` is not an int, or `reason` not a str.
        ValueError: Neither 1000 nor one for libraries and applications (RFC 6455 §7.4.2), or too long a
            reason.
    """
    if isinstance(code, bool) or not isinstance(code, int):
        raise TypeError(f"code must be an int, not {short_repr(code)}")
    if not isinstance(reason, str):
        raise TypeError(f"reason must be a str, not {type(reason).__name__}")
    if code != 1000 and not 3000 <= code <= 4999:
        raise ValueError(f"code must be 1000, or 3000 to 4999, not {short_repr(code)} (RFC 6455 §7.4)")
    try:
        size = len(reason.encode("utf-8"))
    except UnicodeEncodeError as error:
        if is_alarm(error):
            raise
        raise ValueError(f"reason must have a form in UTF-8: {error.reason}") from None
    if size > _MAX_REASON:
        raise ValueError(f"reason must be at most {_MAX_REASON} B of UTF-8, not {size} (RFC 6455 §5.5)")


def encode_close(code: int, reason: str = "") -> bytes:
    """The payload of a close frame; the reason is cut at 123 B, between characters (RFC 6455 §5.5.1)."""
    return _CODE.pack(code) + reason.encode("utf-8")[:_MAX_REASON].decode("utf-8", "ignore").encode("utf-8")


def parse_close(payload: bytes) -> tuple[int, str]:
    """The code and reason of a close frame; (1005, "") when it carries none.

    Raises:
        ProtocolError: A code that must not be sent, one lone byte, or a reason that is not UTF-8
            (RFC 6455 §5.5.1, §7.4), by websocket-client's own rules.
    """
    try:
        # Its check of UTF-8 lets a reason pass that ends within a character.
        ABNF(1, 0, 0, 0, ABNF.OPCODE_CLOSE, 0, payload).validate(skip_utf8_validation=True)
    except WebSocketProtocolException as error:
        raise_alarm_behind(error)
        said = printable(str(error))
        raise_alone(ProtocolError(f"the server sent an invalid close frame: {said}", code=1002))
    if not payload:
        return NO_STATUS, ""
    try:
        return _CODE.unpack_from(payload)[0], payload[2:].decode("utf-8")
    except UnicodeDecodeError as error:
        if is_alarm(error):
            raise
        fault = "the server sent a close reason that is not UTF-8 (RFC 6455 §8.1)"
        raise_alone(ProtocolError(fault, code=1007), as_cause(error))

"""What answers in place of an HTTP server, guessed by its first bytes."""

from __future__ import annotations

import re

from jetsocket.interrupts import is_alarm
from jetsocket.patterns import pattern

__all__ = ["MOST_LOOKED_AT", "can_be_http", "first_line", "guess", "has_line"]

MOST_LOOKED_AT = 64
"""B of a strange answer that are enough for a guess."""

_BEGIN = b"HTTP/1."
_WRONG_PORT = "check host and port"
_NEEDS_HTTP1 = "WebSocket needs HTTP/1.1, which TLS servers speak to those that offer ALPN http/1.1"
_OFFER_ALPN = (
    'offer ALPN http/1.1: pass an SSLContext as manager_kwargs["ssl_context"] after '
    'context.set_alpn_protocols(["http/1.1"])'
)

# What it is, and what to do about it. The first that fits counts.
_KINDS: tuple[tuple[re.Pattern[bytes], str, str], ...] = tuple(
    (pattern(b"(?s)" + begin), kind, remedy)
    for begin, kind, remedy in (
        (rb"[\x14-\x17]\x03[\x00-\x04]", "TLS", "does it want wss://?"),
        (rb"\x00\x00.[\x04\x07][\x00\x01]\x00{4}", "HTTP/2", ""),  # SETTINGS, GOAWAY: RFC 9113 §4.1
        (rb"HTTP/[023]", "another version of HTTP", _NEEDS_HTTP1),
        (rb"(?i:http/)", "something like HTTP", _NEEDS_HTTP1),
        (rb"ICY ", "Shoutcast", _WRONG_PORT),
        (rb"RTSP/", "RTSP", _WRONG_PORT),
        (rb"SIP/", "SIP", _WRONG_PORT),
        (rb"SSH-", "SSH", _WRONG_PORT),
        (rb"220[ -][^\n]*(?i:ftp)", "FTP", _WRONG_PORT),
        (rb"[2-5][0-9]{2}[ -][^\n]*(?i:smtp|mail|postfix|exim)", "SMTP", _WRONG_PORT),
        (rb"[2-5][0-9]{2}[ -]", "SMTP, FTP or the like", _WRONG_PORT),
        (rb"-[A-Z]+ |\+PONG", "Redis", _WRONG_PORT),
        (rb"\+OK", "POP3", _WRONG_PORT),
        (rb"\* (?:OK|BYE|PREAUTH)", "IMAP", _WRONG_PORT),
        (rb"..\x00\x00\x0a[0-9]|..\x00[\x00\x01]\xff", "MySQL", _WRONG_PORT),
        (rb"[ER]\x00\x00|EFATAL", "PostgreSQL", _WRONG_PORT),
        (rb"AMQP", "AMQP", _WRONG_PORT),
        (rb"RFB [0-9]", "VNC", _WRONG_PORT),
        (rb"INFO \{", "NATS", _WRONG_PORT),
        (rb"ERROR\r?\n", "memcached", _WRONG_PORT),
    )
)


def can_be_http(data: bytes | bytearray) -> bool:
    """Whether so begins an answer in HTTP/1.x, as far as it has come."""
    return data.startswith(_BEGIN) or _BEGIN.startswith(data)


def guess(data: bytes, *, secure: bool) -> tuple[str, str]:
    """What speaks there, "" if there is no telling, and what to do.

    Args:
        data: The first bytes.
        secure: Whether they came through TLS.
    """
    for begin, kind, remedy in _KINDS:
        if begin.match(data):
            return kind, remedy or (_OFFER_ALPN if secure else _NEEDS_HTTP1)
    return "", _WRONG_PORT


def has_line(data: bytes | bytearray) -> bool:
    """Whether a whole line of text has come: in what is no text, a line feed is a byte like others."""
    line, end, _ = data.partition(b"\n")
    return bool(end) and (not line.strip() or bool(first_line(bytes(line))))


def first_line(data: bytes) -> str:
    """The first line of a greeting; "" if it is no text."""
    line = data.partition(b"\n")[0].rstrip(b"\r")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        if is_alarm(error):
            raise
        text = line.decode("latin-1")
    strange = sum(not char.isprintable() for char in text)
    return "" if strange * 4 > len(text) else text

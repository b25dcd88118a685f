"""How a URI may be shown: without userinfo and the values of its query."""

from __future__ import annotations

from jetsocket.patterns import pattern

__all__ = ["ABSOLUTE", "DIGITS", "HOST_AND_PORT", "redact"]

ABSOLUTE = pattern(r"(?s)(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?]*)(?P<resource>.*)")
HOST_AND_PORT = pattern(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>[^:]*))?")
DIGITS = pattern("[0-9]*")

_MOST_SHOWN = 1000  # characters of a URI that go into a message
_NESTED_USERINFO = pattern(r"//[^/:]*:[^/]*@")  # a URI in the path of another: wss://wss://user:pw@host


def redact(text_uri: object) -> str:
    """Make a URI, or what was meant to be one, fit for a message: without userinfo and query values.

    Never raises. When the text is so broken that a password cannot be told from a port, more is hidden,
    never less.
    """
    if not isinstance(text_uri, str):
        return f"<{type(text_uri).__name__}>"
    head, fragment_mark, _ = text_uri.partition("#")
    head, query_mark, query = head.partition("?")
    shown = _NESTED_USERINFO.sub("//***@", _redact_head(head))
    if query_mark:
        shown += "?" + "&".join(map(_redact_pair, query.split("&")))
    if fragment_mark:
        shown += "#***"
    # A server that redirects may write 64 KiB, and the URI is in every message about the connection.
    shown = shown if len(shown) <= _MOST_SHOWN else shown[:_MOST_SHOWN] + "…"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)


def _redact_head(head: str) -> str:
    """Hide userinfo in what stands before the query."""
    absolute = ABSOLUTE.fullmatch(head)
    if absolute is not None:
        return f"{absolute['scheme']}://" + _redact_authority(absolute["authority"], absolute["resource"])
    if head.startswith("//"):
        authority, slash, path = head[2:].partition("/")
        return "//" + _redact_authority(authority, slash + path)
    before_at, at, rest = head.rpartition("@")
    # "user:password@host", the scheme forgotten; "btcusdt@trade" is a mere path.
    return f"***@{rest}" if at and ":" in before_at else head


def _redact_authority(authority: str, path: str) -> str:
    host_and_port = authority.rpartition("@")[2]
    match = HOST_AND_PORT.fullmatch(host_and_port)
    if match is None or not DIGITS.fullmatch(match["port"] or ""):
        return "***"  # this "port", and the path behind it, may be parts of a password
    return host_and_port + path


def _redact_pair(pair: str) -> str:
    key, equals, _ = pair.partition("=")
    return f"{key}=***" if equals else "***" if pair else ""

"""Asking a proxy to connect to a host: with CONNECT (RFC 9110 §9.3.6), or SOCKS through python-socks."""

from __future__ import annotations

import errno

from jetsocket import uris
from jetsocket.interrupts import raise_alarm_behind
from jetsocket.patterns import pattern
from jetsocket.wire.not_http import MOST_LOOKED_AT, can_be_http, first_line, guess
from jetsocket.wire.proxy_url import Proxy, import_python_socks
from jetsocket.wire.redaction import as_cause, censored
from jetsocket.wire.stream import Stream

_MAX_HEAD = 65536  # bytes of a proxy's answer to CONNECT, interim answers included
_HEAD_END = pattern(rb"\n\r?\n")
_STATUS_LINE = pattern(rb"(?s)HTTP/1\.[0-9] ([0-9]{3})(?: (.*))?")
_AUTHENTICATE = pattern(rb"(?i)\n(?:proxy|www)-authenticate[ \t]*:([^\n]*)")
# Several may be in one header; what is behind a scheme's name is no "=" (RFC 9110 §11.6.1).
_CHALLENGE = pattern(rb"(?:^|,)[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]{1,20})(?=[ \t\r]*(?:,|$)|[ \t]+[^ \t=,])")
_SCHEMES = ("Basic", "Bearer", "Digest", "Kerberos", "Negotiate", "NTLM")  # that may be shown
_CLOSED = "it closed the connection before it had answered"
_EARLY = "it sent data behind its answer"
_IS_THIS_IT = "check that this is the proxy's address"
CHECK = "check its URL, its credentials, and what it lets through"


class Refusal:
    """Why a proxy opened no tunnel.

    Attributes:
        why: What it did or said, censored and short.
        advice: What to do.
        of_address: Whether another address of the same host may do.
        is_final: Whether another attempt would end the same way; with a login, it might lock an account.
        cause: What is to be the `__cause__`.
    """

    def __init__(
        self,
        why: str,
        advice: str,
        *,
        of_address: bool = False,
        is_final: bool = False,
        cause: BaseException | None = None,
    ) -> None:
        """Neither of an address nor final, unless that is said."""
        self.why, self.advice = why, advice
        self.of_address, self.is_final, self.cause = of_address, is_final, cause


def ask(stream: Stream, proxy: Proxy, host: str, port: int, deadline: float) -> Refusal | None:
    """Have the proxy at the other end of ``stream`` connect to ``host``.

    Returns:
        None: from now on the other end of the stream is the host.

    Raises:
        TimeoutError: The deadline passed.
        OSError: The connection to the proxy was lost.
        ImportError: It speaks SOCKS, and the extra `proxy` is not installed.
    """
    if proxy.scheme == "http":
        return _connect(stream, proxy, host, port, deadline)
    return _socks(stream, proxy, host, port, deadline)


# ---- HTTP


def _connect(stream: Stream, proxy: Proxy, host: str, port: int, deadline: float) -> Refusal | None:
    place = f"{uris.bracketed(host)}:{port}"
    lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    stream.write("\r\n".join([*lines, "", ""]).encode("ascii"), deadline)
    data, left = bytearray(), _MAX_HEAD
    while True:
        end = _read_head(stream, data, left, deadline)
        if end is None and data and not can_be_http(data):
            return _no_http(data, proxy)
        if end is None:
            return Refusal(f"{_CLOSED}: {_shown(data, proxy)!r}" if data else _CLOSED, CHECK)
        if end > left:
            return Refusal(f"its answer is longer than {_MAX_HEAD} bytes", _IS_THIS_IT)
        head = bytes(data[:end])
        del data[:end]
        left -= end
        found = _STATUS_LINE.fullmatch(head.partition(b"\n")[0].rstrip(b"\r"))
        if found is None:
            return _no_http(head, proxy)
        status = int(found[1])
        if 200 <= status < 300:  # whatever it says of a body: there is none (RFC 9110 §9.3.6)
            return Refusal(_EARLY, _IS_THIS_IT) if data else None
        if not 100 <= status < 200 or status == 101:
            return _refused(status, found[2] or b"", head, proxy)
        # A 100 or 103, say: any number may come before the answer (RFC 9110 §15.2).


def _read_head(stream: Stream, data: bytearray, most: int, deadline: float) -> int | None:
    """Read on until there is a whole head, or too much; where it ends, or None as soon as it can be none."""
    seen = 0
    while (end := _HEAD_END.search(data, max(0, seen - 2))) is None and len(data) <= most:
        if not can_be_http(data):
            return None
        seen = len(data)
        more = _read(stream, deadline)
        if not more:
            return None
        data += more
    return len(data) if end is None else end.end()


def _no_http(data: bytes | bytearray, proxy: Proxy) -> Refusal:
    kind = "" if can_be_http(data) else guess(bytes(data[:MOST_LOOKED_AT]), secure=False)[0]
    said = censored(first_line(bytes(data)), proxy.secrets)
    why = (
        "it did not answer in HTTP/1.1"
        + (f", but in {kind}" if kind else "")
        + (f": {said!r}" if said else "")
    )
    advice = _IS_THIS_IT
    if kind == "TLS":
        advice = "it wants TLS itself (https://), which is not supported"
    elif data.startswith((b"\x05", b"\x04\x00", b"\x00Z", b"\x00[")):
        advice = "does it speak SOCKS? then say socks5h://"
    return Refusal(why, advice)


def _refused(status: int, reason: bytes, head: bytes, proxy: Proxy) -> Refusal:
    why = f"it answered {status} {_shown(reason, proxy)}".rstrip()
    if status not in (401, 407):  # tinyproxy answers 401 to a wrong password
        return Refusal(why, _ADVICE.get(status, CHECK), is_final=status in (403, 405, 501))
    asked = b",".join(_AUTHENTICATE.findall(head))
    wanted = {scheme.decode().title() for scheme in _CHALLENGE.findall(asked)}
    schemes = [scheme for scheme in _SCHEMES if scheme.title() in wanted]
    if schemes and "Basic" not in schemes:
        return Refusal(why, f"it wants {' or '.join(schemes)}, and only Basic is supported", is_final=True)
    if proxy.has_login:
        advice = "check its URL, its credentials: it does not take those that it got"
        return Refusal(why, advice, is_final=True)
    return Refusal(why, "it wants credentials: say http://user:password@host:port", is_final=True)


_ADVICE = {
    403: "see whether it lets anything through to this host and port",
    405: "see whether it allows CONNECT at all, and to this port",
    500: "see whether the target can be reached from the proxy",
    501: "see whether it allows CONNECT at all, and to this port",
    502: "see whether the target can be reached from the proxy",
    503: "see whether the target can be reached from the proxy",
    504: "see whether the target can be reached from the proxy",
}


def _shown(said: bytes | bytearray, proxy: Proxy) -> str:
    """The first line of what a proxy says, fit for a message."""
    line = said.decode("utf-8", "replace").partition("\n")[0].rstrip("\r")
    return censored(line, proxy.secrets)


# ---- SOCKS


class _Given(str):
    """What python-socks sends though it is empty: else it would leave out the whole login, silently."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


def _socks(stream: Stream, proxy: Proxy, host: str, port: int, deadline: float) -> Refusal | None:
    if proxy.scheme == "socks4" and ":" in host:  # python-socks would send it as a name
        return Refusal("SOCKS 4 carries no IPv6 addresses", "say socks5:// or socks5h://", is_final=True)
    python_socks = import_python_socks()
    login = (_Given(proxy.username), _Given(proxy.password)) if proxy.has_login else (None, None)
    kind = getattr(python_socks.ProxyType, proxy.scheme[:6].upper())
    hop = _Hop(stream, deadline)
    try:
        python_socks.sync.Proxy(kind, proxy.host, proxy.port, *login, rdns=True, forward=hop).connect(
            host, port
        )
    except (python_socks.ProxyError, OSError, ValueError) as error:
        raise_alarm_behind(error)
        if isinstance(error, OSError) and not isinstance(error, python_socks.ProxyError):
            raise
        cause = as_cause(error, proxy.secrets)
        why = censored(str(error), proxy.secrets)
        code = getattr(error, "error_code", None)  # it is there where the proxy said that it cannot connect
        return Refusal(
            why, CHECK, of_address=code is not None, is_final="authentication" in why.lower(), cause=cause
        )
    return Refusal(_EARLY, _IS_THIS_IT) if hop.has_more else None


class _Hop:
    """What python-socks asks of the proxy to go through and of its socket, over a stream and its deadline."""

    def __init__(self, stream: Stream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline
        self._unread = b""

    @property
    def has_more(self) -> bool:
        """Whether the proxy has sent more than its answer."""
        return bool(self._unread)

    def connect(self, dest_host: str, dest_port: int, timeout: float) -> _Hop:
        """Itself: it leads to the proxy already."""
        return self

    def sendall(self, data: bytes) -> None:
        """Send all of it by the deadline; raises TimeoutError or OSError."""
        self._stream.write(bytes(data), self._deadline)

    def recv(self, size: int) -> bytes:
        """Receive by the deadline; raises TimeoutError or OSError."""
        if not self._unread:
            self._unread = _read(self._stream, self._deadline)
            if not self._unread:
                raise ConnectionResetError(errno.ECONNRESET, _CLOSED)
        answer, self._unread = self._unread[:size], self._unread[size:]
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()


def _read(stream: Stream, deadline: float) -> bytes:
    """Some bytes, or b"" at the end of the stream."""
    while True:
        if not stream.wait_readable(deadline):
            raise TimeoutError("the deadline passed before the proxy had answered")
        if (data := stream.read_now()) is not None:
            return data

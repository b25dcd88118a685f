"""A proxy's URL: what it means, and how it may be shown.

The splitting is done here and not by ``urllib.parse``: that one puts passwords into its error messages.
"""

from __future__ import annotations

import base64
import re
from typing import Any
from urllib.parse import unquote_to_bytes

from jetsocket.interrupts import is_alarm
from jetsocket.patterns import pattern
from jetsocket.text import printable
from jetsocket.wire.redaction import raise_alone, secrets_of_login

DIRECTLY = "proxy=None in manager_kwargs"  # for messages: what to say to connect without a proxy

_MOST_LOGIN = 255  # characters of a user name, and of a password, RFC 1929 §2
_PORTS = {"http": 80, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}
_SAY_INSTEAD = {
    "https": "it means TLS to the proxy itself, and most proxies take http:// on the same port",
    "socks": "say socks5h://",
}
_URL = pattern(
    r"(?s)(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,19})://"
    r"(?:(?P<login>[^/?#]*)@)?"
    r"(?:\[(?P<address>[^\[\]]*)\]|(?P<name>[^:\[\]/?#@\s\x00-\x1f\x7f]*))"
    r"(?::(?P<port>[^:/?#@]*))?"
    r"(?:[/?#][^@]*)?"  # of no meaning; an @ in it is the end of a login, whose / has to be percent-encoded
)
_ADDRESS = pattern(r"[0-9A-Fa-f:.]+(?:%[0-9A-Za-z._~-]{1,40})?")
_PORT = pattern("[0-9]{1,5}")
_CONTROLS = pattern("[\x00-\x1f\x7f]")


class Proxy:
    """A proxy's URL, taken apart.

    Attributes:
        scheme: ``http``, ``socks4``, ``socks4a``, ``socks5`` or ``socks5h``.
        host: Name or address (IPv6 without brackets).
        port: TCP port.
        username: Percent-decoded; what is no UTF-8 in it as surrogates (PEP 383).
        password: The same.
    """

    def __init__(self, scheme: str, host: str, port: int, *, username: str, password: str) -> None:
        """Made by `parse`."""
        self.scheme, self.host, self.port = scheme, host, port
        self.username, self.password = username, password

    def __repr__(self) -> str:
        return f"Proxy({self.scheme!r}, {self.host!r}, {self.port!r})"  # without the login

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Take a URL apart; without a scheme it is ``http``.

        Raises:
            ValueError: It names no proxy that can be used; the text shows no credentials.
        """
        match = _split(url)
        if match is None:
            raise ValueError(
                "its URL is none; what is in a user name or a password has to be percent-encoded, and an "
                "IPv6 address to be in brackets"
            )
        scheme = match["scheme"].lower()
        if scheme not in _PORTS:
            hint = f"; {_SAY_INSTEAD[scheme]}" if scheme in _SAY_INSTEAD else ""
            raise ValueError(f"{scheme}:// proxies are not supported, only {', '.join(_PORTS)}{hint}")
        host = match["name"] or (match["address"] or "").replace("%25", "%", 1)
        if not host or (match["address"] is not None and not _ADDRESS.fullmatch(host)):
            raise ValueError("its URL names no host")
        given = match["port"] or str(_PORTS[scheme])
        if not _PORT.fullmatch(given) or not 1 <= int(given) <= 65535:
            raise ValueError("the port in its URL is not a number from 1 to 65535")
        username, _, password = map(_unquoted, (match["login"] or "").partition(":"))
        check = _check_basic if scheme == "http" else _check_socks
        check(username, password)
        return cls(scheme, host, int(given), username=username, password=password)

    @property
    def wants_address(self) -> bool:
        """Whether we resolve the target's host; socks4a and socks5h leave it to the proxy, as HTTP does."""
        return self.scheme in ("socks4", "socks5")

    @property
    def has_login(self) -> bool:
        """Whether its URL has a user name, a password or both."""
        return bool(self.username or self.password)

    @property
    def secrets(self) -> set[str]:
        """What is not to be shown of what the proxy says."""
        return secrets_of_login(self.username, self.password)

    @property
    def authorization(self) -> str | None:
        """Value of the ``Proxy-Authorization`` header: Basic, in UTF-8 (RFC 7617 §2); None: no login."""
        if not self.has_login:
            return None
        login = f"{self.username}:{self.password}".encode("utf-8", "surrogateescape")
        return "Basic " + base64.b64encode(login).decode("ascii")


def redact_proxy(url: str) -> str:
    """A proxy's URL for messages: scheme, host and port, and *** for credentials. Never raises."""
    match = _split(url)
    # Where a password has a slash in it, say, nothing is what it seems.
    if match is None or not _PORT.fullmatch(match["port"] or "0"):
        return "***"
    if match["address"] is not None and not _ADDRESS.fullmatch(match["address"]):
        return "***"
    credentials = "" if match["login"] is None else "***@"
    host = match["name"] if match["address"] is None else f"[{match['address']}]"
    port = f":{match['port']}" if match["port"] else ""
    return printable(f"{match['scheme'].lower()}://{credentials}{host}{port}")


def import_python_socks() -> Any:
    """The package of the extra `proxy`, which speaks SOCKS.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import python_socks.sync
    except ImportError as error:
        raise ImportError(
            'to connect through a SOCKS proxy install the extra "proxy": pip install "jetsocket[proxy]"; '
            f"to connect directly pass {DIRECTLY}"
        ) from error
    return python_socks


def _split(url: str) -> re.Match[str] | None:
    url = url.strip()
    return _URL.fullmatch(url if "://" in url else f"http://{url}")


def _unquoted(text: str) -> str:
    try:
        raw = text.encode("utf-8", "surrogateescape")  # as the environment has what is no UTF-8
    except UnicodeEncodeError as error:  # which holds the password
        if is_alarm(error):
            raise
        raise_alone(ValueError("the user name or the password in its URL has a lone surrogate"))
    return unquote_to_bytes(raw).decode("utf-8", "surrogateescape")


def _check_basic(username: str, password: str) -> None:
    """Refuse what Basic authorization cannot carry, and what would forge header lines."""
    if ":" in username:
        raise ValueError("a user name with a colon cannot be sent (RFC 7617 §2)")
    if _CONTROLS.search(username + password):
        raise ValueError("the user name or the password has a control character (RFC 7617 §2)")


def _check_socks(*texts: str) -> None:
    """Refuse what python-socks cannot send, RFC 1929 §2; it would show what is not ASCII in its error."""
    if not all(text.isascii() and len(text) <= _MOST_LOGIN for text in texts) or _CONTROLS.search(
        "".join(texts)
    ):
        raise ValueError(
            "a SOCKS user name or password is ASCII, without NUL and other control characters, "
            "of at most 255 characters"
        )

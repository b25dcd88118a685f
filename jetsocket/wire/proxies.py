"""Proxies: which one to use, as requests does, and what to say to it through python-socks."""

from __future__ import annotations

import errno
import ipaddress
import os
import sys
import urllib.parse
import urllib.request
from typing import Any, NamedTuple

from jetsocket import uris
from jetsocket.wire.stream import Stream

_MAX_HEAD = 65536  # bytes of a proxy's answer to CONNECT
_MOST_LOGIN = 255  # characters of a user name, and of a password, RFC 1929 §2
_SHOWN_REPLY = 200  # characters of what a proxy says that go into a message
_VARIABLES = {
    "http": ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"),
    "https": ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
}
_ASKS_SYSTEM = sys.platform in ("darwin", "win32")  # where the environment says nothing
_PORTS = {"http": 80, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}


class Proxy(NamedTuple):
    """A proxy's URL, taken apart."""

    scheme: str
    host: str
    port: int
    username: str
    password: str

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Take a URL apart.

        Raises:
            ValueError: It names no proxy that can be used; the text shows no credentials.
        """
        parts = _split_proxy(url)
        if parts.scheme not in _PORTS:
            raise ValueError(f"{parts.scheme}:// proxies are not supported, only {', '.join(_PORTS)}")
        if not parts.hostname:
            raise ValueError("its URL names no host")
        try:
            port = parts.port or _PORTS[parts.scheme]
        except ValueError:
            raise ValueError("the port in its URL is not a number from 1 to 65535") from None
        username, password = (urllib.parse.unquote(text or "") for text in (parts.username, parts.password))
        if parts.scheme != "http" and not _fits_socks(username, password):
            raise ValueError("a SOCKS user name or password is ASCII, without NUL, of at most 255 characters")
        return cls(parts.scheme, parts.hostname, port, username, password)

    @property
    def wants_address(self) -> bool:
        """Whether we resolve the target's host; socks4a and socks5h leave it to the proxy, as HTTP does."""
        return self.scheme in ("socks4", "socks5")

    def client(self, python_socks: Any, hop: Hop) -> Any:
        """python-socks' side of the conversation, over a connection of ours in place of its own."""
        kind = getattr(python_socks.ProxyType, self.scheme[:6].upper())
        return python_socks.sync.Proxy(
            kind, self.host, self.port, self.username, self.password, rdns=True, forward=hop
        )


class Hop:
    """What python-socks asks of the proxy to go through and of its socket, over a stream and its deadline."""

    def __init__(self, stream: Stream, deadline: float, *, whole_head: bool) -> None:
        self._stream = stream
        self._deadline = deadline
        self._whole_head = whole_head  # python-socks takes the first piece of HTTP for all of it
        self._unread = b""

    @property
    def has_more(self) -> bool:
        """Whether the proxy has sent more than its answer."""
        return bool(self._unread)

    def connect(self, dest_host: str, dest_port: int, timeout: float) -> Hop:
        """Itself: it leads to the proxy already."""
        return self

    def sendall(self, data: bytes) -> None:
        """Send all of it by the deadline; raises TimeoutError or OSError."""
        self._stream.write(data, self._deadline)

    def recv(self, size: int) -> bytes:
        """Receive by the deadline; raises TimeoutError or OSError."""
        while not self._unread or (self._whole_head and b"\r\n\r\n" not in self._unread):
            if len(self._unread) > _MAX_HEAD:
                raise OSError(errno.EMSGSIZE, f"its answer is longer than {_MAX_HEAD} bytes")
            self._unread += self._read()
        end = self._unread.index(b"\r\n\r\n") + 4 if self._whole_head else size
        answer, self._unread = self._unread[:end], self._unread[end:]
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def _read(self) -> bytes:
        while True:
            if not self._stream.wait_readable(self._deadline):
                raise TimeoutError("the deadline passed before the proxy had answered")
            if (data := self._stream.read_now()) is not None:
                break
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "it closed the connection before it had answered")
        return data


def proxy_for(target: uris.Target, setting: bool | str | None) -> str | None:
    """Choose the proxy for ``target``, as requests does.

    Args:
        target: Where to connect to.
        setting: None or False: no proxy. A URL: that proxy. True: as the environment says, which is
            HTTP_PROXY for ws://, HTTPS_PROXY for wss://, ALL_PROXY for both, unless NO_PROXY names the host
            (suffixes, ports, networks such as 10.0.0.0/8, or * for all), or the system's settings
            where the environment has none (macOS, Windows).

    Returns:
        The proxy's URL; None: connect directly.
    """
    if not isinstance(setting, bool):
        return setting or None
    scheme = "https" if target.secure else "http"
    proxies = _configured(scheme) if setting else {}
    url = proxies.get(scheme) or proxies.get("all")
    if not url or _no_proxy(target) or urllib.request.proxy_bypass(target.host):
        return None
    return url


def _configured(scheme: str) -> dict[str, str]:
    """Proxies by scheme, as urllib finds them."""
    # urllib looks at every variable that there is; that would be a fifth of all that connecting costs.
    if not _ASKS_SYSTEM and not any(map(os.environ.get, _VARIABLES[scheme])):
        return {}
    return urllib.request.getproxies()


def _no_proxy(target: uris.Target) -> bool:
    setting = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    host = uris.bracketed(target.host)
    names = [target.host, host, f"{host}:{target.port}"]
    return any(_matches(entry, names) for entry in setting.lower().replace(" ", "").split(",") if entry)


def _matches(entry: str, names: list[str]) -> bool:
    if "/" in entry:
        return _in_network(names[0], entry)
    entry = entry.lstrip(".")
    return any(name == entry or name.endswith("." + entry) for name in names)


def _in_network(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:  # the host is a name, or the entry not a network: it names nobody
        return False


def redact_proxy(url: str) -> str:
    """A proxy's URL for messages: scheme, host and port, and *** for credentials. Never raises."""
    try:
        parts = _split_proxy(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "***"
    if (
        "@" in url and "@" not in parts.netloc
    ):  # a password with a slash in it, say: nothing here is what it seems
        return "***"
    credentials = "***@" if "@" in parts.netloc else ""
    return f"{parts.scheme}://{credentials}{uris.bracketed(parts.hostname or '')}{port}"


def _fits_socks(*texts: str) -> bool:
    """Whether python-socks can send them, RFC 1929 §2; it would show what is not ASCII in its error."""
    return all(text.isascii() and "\0" not in text and len(text) <= _MOST_LOGIN for text in texts)


def _split_proxy(url: str) -> urllib.parse.SplitResult:
    return urllib.parse.urlsplit(url if "://" in url else f"http://{url}")


def tame(text: str) -> str:
    """What a stranger says, fit for a message: not long, and no control characters."""
    return "".join(char if char.isprintable() else "?" for char in text[:_SHOWN_REPLY])


def import_python_socks() -> Any:
    """The package of the extra `proxy`.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import python_socks.sync
    except ImportError as error:
        raise ImportError(
            'to connect through a proxy install the extra "proxy": pip install "jetsocket[proxy]"; '
            "to connect directly pass manager_kwargs['proxy'] = None"
        ) from error
    return python_socks

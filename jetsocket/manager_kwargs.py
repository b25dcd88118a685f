"""How the connections of a pool are made: its ``manager_kwargs``, checked.

Values that may be secret (headers, cookies, proxy passwords) are not quoted in errors nor shown in a repr.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

from jetsocket import uris
from jetsocket.argument_checks import (
    Check,
    boolean,
    check_callable,
    int_from,
    nearest,
    optional_int_from,
    optional_seconds,
    out_of_range,
    seconds,
    wrong_type,
)
from jetsocket.header_fields import TOKEN, field_value, header_pairs
from jetsocket.interrupts import is_alarm, raise_alarm_behind
from jetsocket.patterns import pattern
from jetsocket.redacted_uris import redact
from jetsocket.text import with_rule

if TYPE_CHECKING:
    from jetsocket.auth.base import Auth

__all__ = ["HeaderPairs", "HeaderSource", "Options", "check_option_name"]

HeaderPairs: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]]
HeaderSource: TypeAlias = HeaderPairs | Callable[[], HeaderPairs]

_MIB = 1024 * 1024

_PROXY_SCHEMES = ("http", "socks4", "socks4a", "socks5", "socks5h")
_PROXY_URL = pattern(
    r"(?P<scheme>[A-Za-z0-9]+)://(?:[^@/?#\s]*@)?"
    r"(?:\[[0-9A-Fa-f:.]+\]|[^:@/?#\[\]\s]+):(?P<port>[0-9]{1,5})/?"
)


def _ssl_context(name: str, value: object) -> ssl.SSLContext | None:
    if value is not None and not isinstance(value, ssl.SSLContext):
        raise wrong_type(name, value, "an ssl.SSLContext or None")
    return value


def _extra_headers(name: str, value: Any) -> HeaderSource | None:
    if value is None or callable(value):
        return check_callable(name, value)
    return header_pairs(name, value)


def _optional_field_value(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str or None, not {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} must not be empty; leave it out")
    return field_value(name, value)


def _subprotocols(name: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    # None of them is shown: browsers' clients send tokens this way, and so do others.
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list or tuple of str, not {type(value).__name__}")
    for item in value:
        if not isinstance(item, str):
            raise TypeError(f"{name} must be a list or tuple of str, without {type(item).__name__}")
        if not TOKEN.fullmatch(item):
            raise ValueError(f"{name} must be made of tokens (RFC 6455 §4.1)")
    if len(set(value)) < len(value):
        raise ValueError(f"{name} must be without repetitions (RFC 6455 §4.1)")
    return tuple(value)


def _proxy(name: str, value: object) -> bool | str | None:
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise wrong_type(name, value, "True, False, None or a URL")
    from jetsocket.wire.proxy_url import Proxy, import_python_socks, redact_proxy

    url = _PROXY_URL.fullmatch(value)
    if url is None or url["scheme"].lower() not in _PROXY_SCHEMES or not 1 <= int(url["port"]) <= 65535:
        rule = (
            f"{name} must be a URL with a port, such as http://host:3128 or socks5h://user:pw@host:1080, "
            f"its scheme one of {', '.join(_PROXY_SCHEMES)}"
        )
        raise with_rule(ValueError(f"{rule}, not {redact_proxy(value)}"), rule)
    try:
        proxy = Proxy.parse(value)
    except ValueError as fault:
        if is_alarm(fault):
            raise
        rule = f"{name}: {fault}"
        raise with_rule(ValueError(f"{rule}; it is {redact_proxy(value)}"), rule) from None
    if proxy.scheme != "http":
        import_python_socks()  # now, and not at the first acquire
    return value


def _server_hostname(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise wrong_type(name, value, "a host name, an IP address or None")
    try:
        return uris.server_name(value)
    except ValueError as error:
        if is_alarm(error):
            raise
        raise ValueError(f"{name} must be a host name or an IP address, without a port: {error}") from None


def _source_address(name: str, value: Any) -> tuple[str, int] | None:
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) or [*map(type, value)] != [str, int]:
        raise wrong_type(name, value, "(str host, int port) or None")
    host, port = value
    try:
        ipaddress.ip_address(host or "::")
    except ValueError as error:
        raise_alarm_behind(error)
        raise out_of_range(name, value, 'an IP address ("" for any) and a port') from None
    if not 0 <= port <= 65535:
        raise out_of_range(name, value, "an IP address and a port from 0 (any) to 65535")
    return host, port


def _socket_options(name: str, value: Any) -> tuple[tuple[int, int, int | bytes], ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise wrong_type(name, value, "a list of (level, option, value)")
    for item in value:
        if not (
            isinstance(item, (tuple, list))
            and len(item) == 3
            and all(isinstance(part, int) for part in item[:2])
            and isinstance(item[2], (int, bytes))
        ):
            raise wrong_type(name, value, "a list of (int level, int option, int or bytes value)")
    return tuple((level, option, setting) for level, option, setting in value)


def _unix(name: str, value: Any) -> str | None:
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise wrong_type(name, value, "the path of a Unix socket or None")
    path = path.removeprefix("unix:")
    if not path or "\0" in path:
        raise out_of_range(name, value, "a path, not empty and without NUL")
    return path


def _anything(_name: str, value: object) -> object:
    return value


def _auth(name: str, value: object) -> Auth | None:
    if value is None:
        return None
    from jetsocket.auth.accepted import accepted  # not loaded by pools without

    return accepted(name, value)


_OPTION_CHECKS: Mapping[str, Check] = {
    "ssl_context": _ssl_context,
    "extra_headers": _extra_headers,
    "auth": _auth,
    "resolve": check_callable,
    "subprotocols": _subprotocols,
    "compress": boolean,
    "compression_threshold": int_from(0),
    "connect_timeout": seconds,
    "send_timeout": optional_seconds,
    "recv_timeout": optional_seconds,
    "close_timeout": seconds,
    "max_message_size": int_from(1),
    "max_frame_size": optional_int_from(1),
    "serializer": check_callable,
    "deserializer": check_callable,
    "message_type": _anything,  # the codec knows what it can read
    "origin": _optional_field_value,
    "cookie": _optional_field_value,
    "proxy": _proxy,
    "server_hostname": _server_hostname,
    "source_address": _source_address,
    "socket_options": _socket_options,
    "max_redirects": int_from(0),
    "connect_attempts": int_from(1),
    "cross_origin_headers": boolean,
    "unix": _unix,
}

# Names that connections of the asyncio original took, and that are the pool's business here.
_MOVED_OPTIONS = {
    "heartbeat": "set ConnectionPoolConfig(health_check_interval=…, health_check_timeout=…)",
    "max_connection_age": "set ConnectionPoolConfig(max_lifetime=…)",
    "reconnect": 'set manager_kwargs["connect_attempts"]; the next acquire opens a new connection by itself',
    "backoff": 'set manager_kwargs["connect_attempts"]; the backoff between attempts is built in',
    "buffer": 'not supported; ConnectionPoolConfig(reuse="always") hands unread messages on',
    "replay": "not supported; the pool never sends a message twice, and there is nothing to set",
}


# What other libraries call them, where the nearest name would be another one.
_CALLED_ELSEWHERE = {"max_size": "max_message_size", "local_addr": "source_address", "sni": "server_hostname"}


@dataclass(init=False, repr=False, eq=False)
class Options:
    """The options of a pool's connections: its ``manager_kwargs``, checked. Never changed.

    To have the rest written by `dataclass` would take as long to import as three files.

    Attributes:
        ssl_context: For ``wss``; None: certificates are verified against the system's authorities.
        extra_headers: Header fields of the handshake: a mapping, pairs, or a callable asked at each connect.
        auth: User name and password, or what says where to dial and what to show there; see `jetsocket.auth`.
        resolve: ``(uri, timeout) -> uri``, asked at each connect: the address that is dialled for a URI.
        subprotocols: Subprotocols to offer, best first (RFC 6455 §1.9).
        compress: Offer permessage-deflate (RFC 7692).
        compression_threshold: Messages smaller than this go out uncompressed, bytes.
        connect_timeout: Limit of one attempt to connect, s.
        send_timeout: Limit of one send, s; None: no limit.
        recv_timeout: Limit of one receive, s; None: no limit.
        close_timeout: Limit of the closing handshake, s.
        max_message_size: Largest message accepted, bytes.
        max_frame_size: Payload of a frame that is sent, bytes; longer messages are sent in several (RFC 6455
            §5.4). None: each message is one frame.
        serializer: Makes ``str`` (text) or ``bytes`` (binary) of what is sent; None: JSON.
        deserializer: Makes a value of the ``str`` or ``bytes`` that came; None: JSON.
        message_type: Type to read messages as, in place of a deserializer.
        origin: Value of the ``Origin`` header.
        cookie: Value of the ``Cookie`` header.
        proxy: True: as the environment says; None or False: none; or a URL (``http``, ``socks4``,
            ``socks4a``, ``socks5``, ``socks5h``) with a port. SOCKS needs the extra ``proxy``.
        server_hostname: Name or IP address that the server's certificate has to be for, and that SNI says;
            None: the URI's host. Only for the pool's own origin. The ``Host`` header stays the URI's.
        source_address: ``(IP address, port)`` to connect from, ``""`` and 0 for any.
        socket_options: ``(level, option, value)`` for ``setsockopt``, before connecting.
        max_redirects: Redirects followed: within the origin, or from ws to wss on the same host.
        connect_attempts: Attempts to connect within an acquire.
        cross_origin_headers: Send headers, cookie and credentials to other origins than the pool's own, too.
        unix: Path of a Unix socket to connect to in place of TCP; ``unix:/path`` is accepted.

    Raises:
        TypeError: A value of the wrong type, or two that exclude each other by their meaning.
        ValueError: A value out of range. The message names the key; it quotes no header, cookie or password.
        ImportError: A SOCKS proxy, and the extra ``proxy`` is not installed.
    """

    ssl_context: ssl.SSLContext | None = None
    extra_headers: HeaderSource | None = None
    auth: Auth | None = None
    resolve: Callable[[str, float], str] | None = None
    subprotocols: Sequence[str] = ()
    compress: bool = True
    compression_threshold: int = 128
    connect_timeout: float = 10.0
    send_timeout: float | None = None
    recv_timeout: float | None = None
    close_timeout: float = 5.0
    max_message_size: int = 64 * _MIB
    max_frame_size: int | None = None
    serializer: Callable[[Any], str | bytes] | None = None
    deserializer: Callable[[str | bytes], Any] | None = None
    message_type: Any | None = None
    origin: str | None = None
    cookie: str | None = None
    proxy: bool | str | None = True
    server_hostname: str | None = None
    source_address: tuple[str, int] | None = None
    socket_options: Sequence[tuple[int, int, int | bytes]] = ()
    max_redirects: int = 3
    connect_attempts: int = 1
    cross_origin_headers: bool = False
    unix: str | None = None

    def __init__(self, **given: Any) -> None:
        """Check what is given, then what excludes each other; all else are the defaults."""
        for name, value in given.items():
            check_option_name(name)
            setattr(self, name, _OPTION_CHECKS[name](f'manager_kwargs["{name}"]', value))
        if self.deserializer is not None and self.message_type is not None:
            raise TypeError('manager_kwargs: give "deserializer" or "message_type", not both')
        if self.unix is not None and isinstance(self.proxy, str):
            raise ValueError('manager_kwargs: give "unix" or a "proxy" URL, not both')
        if self.unix is not None and self.source_address is not None:
            raise ValueError('manager_kwargs: give "unix" or "source_address", not both')
        if not callable(self.extra_headers):
            self.headers()

    @classmethod
    def from_kwargs(cls, manager_kwargs: Mapping[str, Any] | None) -> Options:
        """Read ``manager_kwargs``. Nothing is silently ignored.

        Args:
            manager_kwargs: Options by name; None: all defaults.

        Returns:
            The options.

        Raises:
            TypeError: No mapping, an unknown key (with the nearest known one), or a value of the wrong type.
            ValueError: A value out of range.
        """
        if manager_kwargs is None:
            return cls()
        if not isinstance(manager_kwargs, Mapping):
            raise TypeError(f"manager_kwargs must be a mapping or None, not {type(manager_kwargs).__name__}")
        for name in manager_kwargs:  # before they are unpacked, which has an error of its own for other keys
            check_option_name(name)
        return cls(**manager_kwargs)

    def headers(self) -> list[tuple[str, str]]:
        """Return the extra header fields for one handshake; a callable is asked afresh.

        Returns:
            As `checked_headers`.

        Raises:
            TypeError: As `checked_headers`, and so is ValueError. What the callable raises passes.
        """
        source = self.extra_headers
        return self.checked_headers(source() if callable(source) else source)

    def checked_headers(self, given: Any) -> list[tuple[str, str]]:
        """Check the extra header fields for one handshake.

        Args:
            given: What `extra_headers` is, or has returned if it is a callable.

        Returns:
            Names and values, in the order given.

        Raises:
            TypeError: Neither a mapping nor pairs of ``str``.
            ValueError: A name or value that may not be in a header, or one the handshake owns.
        """
        if given is None and not callable(self.extra_headers):
            return []
        label = 'manager_kwargs["extra_headers"]'
        pairs = header_pairs(f"{label}()" if callable(self.extra_headers) else label, given)
        names = {field.lower() for field, _ in pairs}
        for name, value in (("origin", self.origin), ("cookie", self.cookie)):
            if value is not None and name in names:
                raise ValueError(
                    f'{label}: header {name.title()} is also given by manager_kwargs["{name}"]; give it once'
                )
        return list(pairs)

    def __repr__(self) -> str:
        """Show what differs from the defaults, without header values, cookie and proxy credentials."""
        given = ((field.name, getattr(self, field.name), field.default) for field in fields(self))
        shown = (f"{name}={_shown(name, value)}" for name, value, default in given if value != default)
        return f"Options({', '.join(shown)})"


def check_option_name(name: object) -> None:
    """Refuse what is the name of no option."""
    if not isinstance(name, str):
        raise TypeError(f"manager_kwargs: a key must be a str, not {name!r}")
    if name in _MOVED_OPTIONS:
        raise TypeError(f'manager_kwargs["{name}"] is no option: {_MOVED_OPTIONS[name]}')
    if name not in _OPTION_CHECKS:
        hint = (
            nearest(_CALLED_ELSEWHERE.get(name, name), _OPTION_CHECKS)
            or f"; known are {', '.join(_OPTION_CHECKS)}"
        )
        raise TypeError(f'manager_kwargs["{name}"] is unknown{hint}')


def _shown(name: str, value: Any) -> str:
    """Return the repr of an option, without what may be secret in it."""
    if callable(value) and not isinstance(value, type):  # a partial's own repr shows its arguments
        return f"<{getattr(value, '__qualname__', type(value).__qualname__)}>"
    if name == "extra_headers":
        return f"<{', '.join(field for field, _ in value)}>"
    if name == "cookie":
        return "'***'"
    if name in ("subprotocols", "auth"):
        return f"<{len(value)}>" if name == "subprotocols" else f"<{type(value).__name__}>"
    return repr(redact(value)) if name == "proxy" and isinstance(value, str) else repr(value)

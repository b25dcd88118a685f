"""What a pool is told when it is made: its own figures, and the options of its connections.

All of it is checked here. A wrong type is a ``TypeError``, a value out of range a ``ValueError``; each names
the field, the value and what is allowed. Values that may be secret (headers, cookies, proxy passwords) are
neither quoted in errors nor shown in a repr.
"""

from __future__ import annotations

import difflib
import inspect
import ipaddress
import os
import re
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from jetsocket import uris
from jetsocket.interrupts import is_alarm, raise_alarm_behind
from jetsocket.text import short_repr
from jetsocket.wire.proxies import Proxy, import_python_socks, redact_proxy

__all__ = ["ConnectionPoolConfig", "HeaderPairs", "HeaderSource", "Options", "Reuse", "runs_later"]

Reuse: TypeAlias = Literal["balanced", "quiet", "always"]
HeaderPairs: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]]
HeaderSource: TypeAlias = HeaderPairs | Callable[[], HeaderPairs]

_MAX_SECONDS = threading.TIMEOUT_MAX  # locks accept no more; some 292 years on Linux, 49 days on Windows
_MIB = 1024 * 1024


# --- checks of single values: each takes a field's name and value, and returns the value as it is stored


def _wrong_type(name: str, value: object, allowed: str) -> TypeError:
    return TypeError(f"{name} must be {allowed}, not {short_repr(value)} ({type(value).__name__})")


def _out_of_range(name: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"{name} must be {allowed}, not {short_repr(value)}")


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong_type(name, value, "a number of seconds")
    if not 0 < value <= _MAX_SECONDS:  # False for NaN as well
        raise _out_of_range(name, value, f"more than 0 and at most {_MAX_SECONDS:.0f} seconds")
    return float(value)


def _seconds_from_0(name: str, value: object) -> float:
    return 0.0 if value == 0 and not isinstance(value, bool) else _seconds(name, value)


def _optional_seconds_from_0(name: str, value: object) -> float | None:
    return None if value is None else _seconds_from_0(name, value)


def _optional_seconds(name: str, value: object) -> float | None:
    return None if value is None else _seconds(name, value)


def _int_from(least: int) -> Callable[[str, object], int]:
    def check(name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(name, value, "an int")
        if value < least:
            raise _out_of_range(name, value, f"{least} or more")
        return value

    return check


def _optional_int_from(least: int) -> Callable[[str, object], int | None]:
    check = _int_from(least)
    return lambda name, value: None if value is None else check(name, value)


def _bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(name, value, "True or False")
    return value


def _reuse(name: str, value: object) -> str:
    allowed = get_args(Reuse)
    if not isinstance(value, str):
        raise _wrong_type(name, value, f"one of {', '.join(map(repr, allowed))}")
    if value not in allowed:
        raise _out_of_range(name, value, f"one of {', '.join(map(repr, allowed))}{_nearest(value, allowed)}")
    return value


def _nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name most like ``name``, or nothing if none is like it."""
    matches = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.4)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


# --- checks of the options of a connection


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 §5.5: no CR, LF, NUL or other control
_PROXY_SCHEMES = ("http", "socks4", "socks4a", "socks5", "socks5h")
_PROXY_URL = re.compile(
    r"(?P<scheme>[A-Za-z0-9]+)://(?:[^@/?#\s]*@)?"
    r"(?:\[[0-9A-Fa-f:.]+\]|[^:@/?#\[\]\s]+):(?P<port>[0-9]{1,5})/?"
)

# Header fields that the handshake writes itself, and the key to use instead where there is one.
_OWNED_HEADERS = {
    "upgrade": "",
    "connection": "",
    "sec-websocket-key": "",
    "sec-websocket-version": "",
    "sec-websocket-accept": "",
    "sec-websocket-extensions": '; set manager_kwargs["compress"]',
    "sec-websocket-protocol": '; set manager_kwargs["subprotocols"]',
    "content-length": " (an upgrade has no body)",
    "transfer-encoding": " (an upgrade has no body)",
}
_SINGLE_HEADERS = ("host", "origin", "authorization")  # twice: servers refuse, or each reads another one


def _ssl_context(name: str, value: object) -> ssl.SSLContext | None:
    if value is not None and not isinstance(value, ssl.SSLContext):
        raise _wrong_type(name, value, "an ssl.SSLContext or None")
    return value


def _callable(name: str, value: object) -> Callable[..., Any] | None:
    if value is not None and not callable(value):
        raise _wrong_type(name, value, "a callable or None")
    if runs_later(value):
        raise _wrong_type(name, value, "an ordinary function, not an async one or a generator")
    return value


def runs_later(function: object) -> bool:
    """Whether a call runs nothing yet: of an async function or a generator, or what is called as one."""
    called = (function, type(function).__call__) if callable(function) else ()
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    return any(kind(each) for kind in kinds for each in called)


def _extra_headers(name: str, value: Any) -> HeaderSource | None:
    if value is None or callable(value):
        return _callable(name, value)
    return _header_pairs(name, value)


def _header_pairs(name: str, value: Any) -> tuple[tuple[str, str], ...]:
    """Check header fields given as a mapping or as pairs; values are never quoted, they may be secret."""
    items = tuple(value.items()) if isinstance(value, Mapping) else value
    if isinstance(items, (str, bytes)) or not isinstance(items, Sequence):
        raise TypeError(
            f"{name} must be a mapping or a list of (name, value) pairs, not {type(value).__name__}"
        )
    pairs = tuple(_header_pair(name, item) for item in items)
    counts = Counter(field.lower() for field, _ in pairs)
    for field in _SINGLE_HEADERS:
        if counts[field] > 1:
            raise ValueError(f"{name}: header {field.title()} is given {counts[field]} times; give it once")
    return pairs


def _header_pair(name: str, item: Any) -> tuple[str, str]:
    if not (
        isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(part, str) for part in item)
    ):
        raise TypeError(f"{name} must hold (name, value) pairs of two str each; one is {type(item).__name__}")
    field, text = item
    if not _TOKEN.fullmatch(field):
        raise ValueError(f"{name}: header name {field!r} is not a token (RFC 9110 §5.6.2)")
    if field.lower() in _OWNED_HEADERS:
        raise ValueError(f"{name}: header {field} belongs to the handshake{_OWNED_HEADERS[field.lower()]}")
    return field, _field_value(f"{name}: the value of header {field}", text)


def _field_value(name: str, text: str) -> str:
    if not _FIELD_VALUE.fullmatch(text):
        raise ValueError(f"{name} must be Latin-1 without CR, LF, NUL or other control characters")
    return text


def _optional_field_value(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str or None, not {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} must not be empty; leave it out")
    return _field_value(name, value)


def _subprotocols(name: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    # None of them is shown: browsers' clients send tokens this way, and so do others.
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list or tuple of str, not {type(value).__name__}")
    for item in value:
        if not isinstance(item, str):
            raise TypeError(f"{name} must be a list or tuple of str, without {type(item).__name__}")
        if not _TOKEN.fullmatch(item):
            raise ValueError(f"{name} must be made of tokens (RFC 6455 §4.1)")
    if len(set(value)) < len(value):
        raise ValueError(f"{name} must be without repetitions (RFC 6455 §4.1)")
    return tuple(value)


def _proxy(name: str, value: object) -> bool | str | None:
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise _wrong_type(name, value, "True, False, None or a URL")
    url = _PROXY_URL.fullmatch(value)
    if url is None or url["scheme"].lower() not in _PROXY_SCHEMES or not 1 <= int(url["port"]) <= 65535:
        raise ValueError(
            f"{name} must be a URL with a port, such as http://host:3128 or socks5h://user:pw@host:1080, "
            f"its scheme one of {', '.join(_PROXY_SCHEMES)}, not {redact_proxy(value)}"
        )
    try:
        proxy = Proxy.parse(value)
    except ValueError as fault:
        if is_alarm(fault):
            raise
        raise ValueError(f"{name}: {fault}; it is {redact_proxy(value)}") from None
    if proxy.scheme != "http":
        import_python_socks()  # now, and not at the first acquire
    return value


def _server_hostname(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise _wrong_type(name, value, "a host name, an IP address or None")
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
        raise _wrong_type(name, value, "(str host, int port) or None")
    host, port = value
    try:
        ipaddress.ip_address(host or "::")
    except ValueError as error:
        raise_alarm_behind(error)
        raise _out_of_range(name, value, 'an IP address ("" for any) and a port') from None
    if not 0 <= port <= 65535:
        raise _out_of_range(name, value, "an IP address and a port from 0 (any) to 65535")
    return host, port


def _socket_options(name: str, value: Any) -> tuple[tuple[int, int, int | bytes], ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise _wrong_type(name, value, "a list of (level, option, value)")
    for item in value:
        if not (
            isinstance(item, (tuple, list))
            and len(item) == 3
            and all(isinstance(part, int) for part in item[:2])
            and isinstance(item[2], (int, bytes))
        ):
            raise _wrong_type(name, value, "a list of (int level, int option, int or bytes value)")
    return tuple((level, option, setting) for level, option, setting in value)


def _unix(name: str, value: Any) -> str | None:
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise _wrong_type(name, value, "the path of a Unix socket or None")
    path = path.removeprefix("unix:")
    if not path or "\0" in path:
        raise _out_of_range(name, value, "a path, not empty and without NUL")
    return path


def _anything(_name: str, value: object) -> object:
    return value


# --- what the checks are put together to


_CONFIG_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "max_connections": _int_from(1),
    "max_idle_time": _seconds,
    "health_check_interval": _seconds,
    "acquire_timeout": _seconds,
    "health_check_timeout": _seconds,
    "max_lifetime": _optional_seconds,
    "max_waiting": _optional_int_from(0),
    "reuse": _reuse,
    "leak_threshold": _optional_seconds,
    "match_ids": _bool,
    "max_connecting": _int_from(1),
    "max_per_uri": _optional_int_from(1),
    "connect_cooldown": _seconds_from_0,
    "ping_after_idle": _optional_seconds_from_0,
}

_OPTION_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "ssl_context": _ssl_context,
    "extra_headers": _extra_headers,
    "subprotocols": _subprotocols,
    "compress": _bool,
    "compression_threshold": _int_from(0),
    "connect_timeout": _seconds,
    "send_timeout": _optional_seconds,
    "recv_timeout": _optional_seconds,
    "close_timeout": _seconds,
    "max_message_size": _int_from(1),
    "max_frame_size": _optional_int_from(1),
    "serializer": _callable,
    "deserializer": _callable,
    "message_type": _anything,  # the codec knows what it can read
    "origin": _optional_field_value,
    "cookie": _optional_field_value,
    "proxy": _proxy,
    "server_hostname": _server_hostname,
    "source_address": _source_address,
    "socket_options": _socket_options,
    "max_redirects": _int_from(0),
    "connect_attempts": _int_from(1),
    "cross_origin_headers": _bool,
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


def _store_checked(instance: object, label: str, checks: Mapping[str, Callable[[str, Any], Any]]) -> None:
    for name, check in checks.items():
        # Frozen dataclasses are written this way in __post_init__.
        object.__setattr__(instance, name, check(label.format(name), getattr(instance, name)))


@dataclass(frozen=True, slots=True)
class ConnectionPoolConfig:
    """The figures of a pool. Times are in seconds, an ``int`` will do; every field is checked.

    Attributes:
        max_connections: Open connections, idle and lent together: a hard cap. At least 1.
        max_idle_time: An idle connection is closed after this, s.
        health_check_interval: Time without traffic before a ping, s.
        acquire_timeout: One deadline over waiting and connecting, s.
        health_check_timeout: Time for the pong, s; a connection that takes longer is dead.
        max_lifetime: Age at which a connection is closed, s, less up to 10 % at random so that they don't all
            end at once; None: no limit.
        max_waiting: Callers in line before the next one is refused at once; 0: nobody waits; None: no limit.
        reuse: When a returned connection is clean: ``"balanced"`` each id that was sent came back, of
            messages without one as many came as went, and nothing is unread; ``"quiet"`` nothing is unread;
            ``"always"`` the next borrower gets what is unread.
        leak_threshold: Time lent before a warning with the borrower's stack, s; None: no warning.
        match_ids: Tell replies by the ``id`` of the JSON objects they answer: a request returns the message
            with its id, and a connection is kept if each id came back. False for services that do not send
            back the id that they are sent.
        max_connecting: Connections that are being opened at once, to one URI.
        max_per_uri: Open connections to one URI, of ``max_connections``; None: no limit of its own.
        connect_cooldown: For how long acquires of a URI fail at once after its last dial failed and none is
            open, s; doubled at each further failure up to 60 s, with jitter, never shorter than the server's
            ``Retry-After``. 0: the next acquire dials at once.
        ping_after_idle: A connection that was idle for longer must answer a ping before it is lent, s; None:
            the socket is looked at, which costs nothing.

    Raises:
        TypeError: A value of the wrong type; a bool is no number.
        ValueError: A value out of range, NaN and infinity included. The message names field and value.
    """

    max_connections: int = 10
    max_idle_time: float = 300.0
    health_check_interval: float = 30.0
    acquire_timeout: float = 10.0
    health_check_timeout: float = 10.0
    max_lifetime: float | None = None
    max_waiting: int | None = None
    reuse: Reuse = "balanced"
    leak_threshold: float | None = None
    match_ids: bool = True
    max_connecting: int = 8
    max_per_uri: int | None = None
    connect_cooldown: float = 0.0
    ping_after_idle: float | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        _store_checked(self, "ConnectionPoolConfig.{}", _CONFIG_CHECKS)


@dataclass(frozen=True, slots=True, repr=False)
class Options:
    """The options of a pool's connections: its ``manager_kwargs``, checked.

    Attributes:
        ssl_context: For ``wss``; None: certificates are verified against the system's authorities.
        extra_headers: Header fields of the handshake: a mapping, pairs, or a callable asked at each connect.
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

    def __post_init__(self) -> None:
        """Check every field, then those that exclude each other."""
        _store_checked(self, 'manager_kwargs["{}"]', _OPTION_CHECKS)
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
        for name in manager_kwargs:
            _check_option_name(name)
        return cls(**manager_kwargs)

    def headers(self, given: Any = None) -> list[tuple[str, str]]:
        """Return the extra header fields for one handshake.

        Args:
            given: What the callable has returned, if `extra_headers` is one.

        Returns:
            Names and values, checked, in the order given.

        Raises:
            TypeError: The callable returned neither a mapping nor pairs of ``str``.
            ValueError: It returned a name or value that may not be in a header, or one the handshake owns.
        """
        label = 'manager_kwargs["extra_headers"]'
        source = self.extra_headers
        if source is None:
            return []
        pairs = _header_pairs(f"{label}()", given) if callable(source) else _header_pairs(label, source)
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


def _check_option_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"manager_kwargs: a key must be a str, not {name!r}")
    if name in _MOVED_OPTIONS:
        raise TypeError(f'manager_kwargs["{name}"] is no option: {_MOVED_OPTIONS[name]}')
    if name not in _OPTION_CHECKS:
        hint = (
            _nearest(_CALLED_ELSEWHERE.get(name, name), _OPTION_CHECKS)
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
    if name == "subprotocols":
        return f"<{len(value)}>"
    return repr(uris.redact(value)) if name == "proxy" and isinstance(value, str) else repr(value)

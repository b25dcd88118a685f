"""What a WebSocket URI means, and how a path joins a base (RFC 6455 §3, RFC 3986).

The splitting is done here and not by ``urllib.parse``: that one drops control characters silently, and puts
passwords into its error messages; and its ``urljoin`` drops empty segments and an empty query.
"""

from __future__ import annotations

import base64
import copy
import ipaddress
import socket
import string
from urllib.parse import quote, unquote_to_bytes

from jetsocket.interrupts import is_alarm, raise_alarm_behind
from jetsocket.patterns import pattern
from jetsocket.redacted_uris import ABSOLUTE, HOST_AND_PORT, redact
from jetsocket.relative_paths import joined
from jetsocket.text import with_rule

__all__ = ["Target", "parse", "resolve", "same_origin"]

INVALID = "invalid WebSocket URI: "
"""What is said before a fault of a URI that is not shown."""

_DEFAULT_PORTS = {"ws": 80, "wss": 443}
_SAY_INSTEAD = {"http": "ws://", "https": "wss://"}

_SCHEME = pattern(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HOST_NAME = pattern(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?")
_PLACE = pattern(r"((?:\[[0-9A-Fa-f:.]+\]|[^:/?@\[\]]+):[0-9]{1,5})(?:[/?][^@]*)?")  # host and port, bare
_ADDRESSES = "an IPv6 address is written [::1], a name without brackets"
_OTHERWISE = 'send an Authorization header of your own, manager_kwargs["extra_headers"]'
_MAX_HOST_NAME = 253  # RFC 1035 §2.3.4, without the lengths' own bytes

# Blanks and controls (CR and LF would forge header lines), and lone surrogates, which have no UTF-8.
_FORBIDDEN = pattern(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROL_BYTES = pattern(rb"[\x00-\x1f\x7f]")
# IDNA 2003 (the codec of the standard library) and IDNA 2008 map these to different hosts: nobody may guess.
_IDNA_AMBIGUOUS = pattern("[ßẞς\u200c\u200d]")


class Target:
    """What one URI means. Two targets are equal when a connection to one serves the other. Never changed.

    Attributes:
        uri: The canonical absolute URI: scheme and host in lower case, no default port, no userinfo.
        secure: True for ``wss``.
        host: Name (IDNA-encoded) or IP address (IPv6 without brackets) to connect to.
        port: TCP port.
        resource: The request target as sent: path, ``;params`` and ``?query``; non-ASCII percent-encoded.
        authorization: Value of the ``Authorization`` header made of the userinfo (RFC 7617), or None.
        redacted: The URI for messages: no userinfo, each query value replaced by ``***``.
    """

    def __init__(self, uri: str, host: str, port: int, resource: str, authorization: str | None) -> None:
        """Made by `parse` and `resolve`."""
        self.uri, self.secure, self.host, self.port = uri, uri.startswith("wss:"), host, port
        self.resource, self.authorization, self.redacted = resource, authorization, redact(uri)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Target) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.uri)

    def __repr__(self) -> str:
        return f"Target({self.redacted!r})"  # what else it has may be secret

    def but(self, **changes: str | None) -> Target:
        """The same, but for these attributes."""
        vars(other := copy.copy(self)).update(changes)
        return other

    @property
    def scheme(self) -> str:
        """``"ws"`` or ``"wss"``."""
        return "wss" if self.secure else "ws"

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: what credentials are bound to (RFC 6454 §4)."""
        return self.scheme, self.host, self.port

    @property
    def host_header(self) -> str:
        """Value of the ``Host`` header: a default port is left out, IPv6 is in brackets without its zone."""
        return _netloc(self.scheme, self.host.partition("%")[0], self.port)


def same_origin(a: Target, b: Target) -> bool:
    """Tell whether credentials given for ``a`` may go to ``b`` (RFC 6454 §5)."""
    return a.host == b.host and a.port == b.port and a.secure == b.secure


def parse(uri: str) -> Target:
    """Read an absolute ``ws://`` or ``wss://`` URI.

    Args:
        uri: The URI. Userinfo becomes Basic authorization; what is not ASCII is encoded, in the host by
            IDNA 2003 and behind it as percent-encoded UTF-8. The request target is otherwise kept as given.

    Returns:
        What the URI means.

    Raises:
        TypeError: ``uri`` is no string.
        ValueError: It is no valid WebSocket URI (RFC 6455 §3). The message names the fault, no credentials.
    """
    try:
        return _parse(_checked(uri))
    except _Fault as fault:
        raise _value_error(uri, fault) from fault.__cause__


def resolve(uri_or_path: str, base: Target | str | None) -> Target:
    """Read an absolute URI, or join a path to a base (RFC 3986 §5.2).

    Args:
        uri_or_path: ``wss://host/path``, ``//host/path`` (with the base's scheme), ``/path``, ``path``,
            ``?query``, or an empty string for the base itself.
        base: What to join to. Its userinfo is kept for targets of its own origin only.

    Returns:
        What the joined URI means.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A relative path and no base, or no valid WebSocket URI. The message names the fault.
    """
    if isinstance(base, str):
        base = parse(base)
    try:
        target = _resolve(_checked(uri_or_path), base)
    except _Fault as fault:
        note = "; a path with a colon in front is written ./like:this" * isinstance(fault, _NoScheme)
        raise _value_error(uri_or_path, fault, note) from fault.__cause__
    if base is None or base.authorization is None or target.authorization or not same_origin(base, target):
        return target
    return target.but(authorization=base.authorization)


# --- parsing


class _Fault(Exception):
    """What is wrong with a URI, before it is put beside the redacted URI; `rule` shows no part of it."""

    def __init__(self, text: str, rule: str = "") -> None:
        super().__init__(text)
        self.rule = rule or text


class _NoScheme(_Fault):
    """It begins with a name and a colon, which are no scheme of WebSocket."""


def _value_error(uri: str, fault: _Fault, note: str = "") -> ValueError:
    return with_rule(
        ValueError(f"invalid WebSocket URI {redact(uri)}: {fault}{note}"), INVALID + fault.rule + note
    )


def _checked(uri: str) -> str:
    """Refuse what may be nowhere in a URI."""
    if not isinstance(uri, str):
        raise TypeError(f"a URI must be a str, not {type(uri).__name__}")
    if bad := _FORBIDDEN.search(uri):
        raise _Fault(_forbidden(uri, bad[0], bad.start()))
    if "#" in uri:
        raise _Fault("a WebSocket URI has no fragment (RFC 6455 §3); write '#' as %23")
    return uri


def _forbidden(uri: str, char: str, at: int) -> str:
    """What to say of a character that may be nowhere."""
    if not uri.strip():
        return "the URI is blank; write ws://host/path or wss://host/path"
    if uri != uri.strip():
        at, where = (0, "beginning") if uri != uri.lstrip() else (-1, "end")
        return f"character {uri[at]!a} at the {where} is not allowed; remove it"
    absolute = ABSOLUTE.fullmatch(uri)
    if absolute and uri.rfind("@", 0, absolute.end("authority")) < at < absolute.start("resource"):
        return f"character {char!a} at index {at} is in the host, where none can stand; remove it"
    return f"character {char!a} at index {at} is not allowed; percent-encode it"


def _resolve(text: str, base: Target | None) -> Target:
    if _SCHEME.match(text):
        return _parse(text)
    if base is None:
        raise _Fault("a relative path needs base_uri; give the pool one, or write wss://host/path")
    if text.startswith("//"):
        return _parse(f"{base.scheme}:{text}")
    return _parse(base.uri.removesuffix(base.resource) + joined(base.resource, text))


def _parse(uri: str) -> Target:
    scheme, authority, resource = _split(uri)
    userinfo, _, host_and_port = authority.rpartition("@")
    host, port = _host_and_port(host_and_port, scheme)
    resource = _resource(resource)
    canonical = f"{scheme}://{_netloc(scheme, host.replace('%', '%25'), port)}{resource}"
    return Target(canonical, host, port, resource, _authorization(userinfo))


def _split(uri: str) -> tuple[str, str, str]:
    """Return scheme, authority and the rest; the scheme is a WebSocket one."""
    scheme = _SCHEME.match(uri)
    if place := _PLACE.fullmatch(uri):
        rule = "no scheme; write ws://host:port/path or wss://host:port/path"
        raise _NoScheme(f"no scheme; write ws://{place[1]} (or wss://)", rule)
    if scheme is None:
        raise _Fault("no scheme; write ws://host/path or wss://host/path")
    name = scheme[1].lower()
    if name in _SAY_INSTEAD:
        raise _Fault(f"the scheme {name} is HTTP's; say {_SAY_INSTEAD[name]}")
    if name not in _DEFAULT_PORTS:
        raise _NoScheme("the scheme must be ws or wss; write ws://host/path or wss://host/path")
    absolute = ABSOLUTE.fullmatch(uri)
    if absolute is None:
        raise _Fault(f"no host; write {name}://host/path")
    return name, absolute["authority"], absolute["resource"]


def _host_and_port(text: str, scheme: str) -> tuple[str, int]:
    match = HOST_AND_PORT.fullmatch(text)
    if match is None:
        raise _Fault("host and port cannot be told apart; an IPv6 address is written [::1], with brackets")
    host, port = match["host"], match["port"]
    if not host:
        raise _Fault("the host is empty; write it behind //")
    return _host(host), _port(port) if port else _DEFAULT_PORTS[scheme]


def _host(text: str) -> str:
    if text.startswith("["):
        return _ipv6(text[1:-1])
    name = (text if text.isascii() else _idna(text)).lower()
    if len(name.removesuffix(".")) > _MAX_HOST_NAME or not _HOST_NAME.fullmatch(name):
        raise _Fault(
            "the host is no valid name; letters, digits, '-', '_' in parts of 1 to 63 are allowed, 253 in all"
        )
    return name


def _ipv6(text: str) -> str:
    address, mark, zone = text.partition("%")
    if not text.isascii():
        raise _Fault(f"what is in the brackets is not ASCII; {_ADDRESSES}")
    zone = zone.removeprefix("25")  # RFC 6874 §2 writes the mark itself percent-encoded
    try:
        return str(ipaddress.IPv6Address(f"{address}%{zone}" if mark else address))
    except ValueError as error:
        raise_alarm_behind(error)
        raise _Fault(f"what is in the brackets is no IPv6 address; {_ADDRESSES}") from error


def _idna(text: str) -> str:
    if _IDNA_AMBIGUOUS.search(text):
        raise _Fault("IDNA 2003 and IDNA 2008 encode this host differently; write its xn-- form")
    if len(text) > _MAX_HOST_NAME:  # the codec's time grows with the square of the length
        raise _Fault(f"the host is longer than {_MAX_HOST_NAME} characters; no name is")
    try:
        return text.encode("idna").decode("ascii")
    except Exception as error:
        raise_alarm_behind(error)  # of any kind the codec makes an error of its own
        if not isinstance(error, UnicodeError):
            raise
        raise _Fault("the host cannot be encoded by IDNA; write its xn-- form, if it has one") from error


def _port(text: str) -> int:
    # The text is not quoted back: behind an unencoded '/' in a password, it is half of that password.
    if not (text.isascii() and text.isdigit()):
        raise _Fault("the port is not a number; in userinfo, '/' and '?' must be percent-encoded")
    port = int(text.lstrip("0")[:6] or 0)  # six digits tell as much as a million
    if not 1 <= port <= 65535:
        raise _Fault("the port is out of range; 1 to 65535 is allowed")
    return port


def _netloc(scheme: str, host: str, port: int) -> str:
    shown = bracketed(host)
    return shown if port == _DEFAULT_PORTS[scheme] else f"{shown}:{port}"


def _resource(text: str) -> str:
    path, mark, query = text.partition("?")
    return quote(f"{path or '/'}{mark}{query}", safe=string.punctuation)


def _authorization(userinfo: str) -> str | None:
    """Make Basic authorization of userinfo (RFC 7617 §2): no colon in the user, no controls anywhere."""
    user, _, password = map(unquote_to_bytes, userinfo.partition(":"))
    if not user and not password:
        return None
    if b":" in user:
        raise _Fault(f"the user name has a colon, which Basic cannot carry (RFC 7617 §2); {_OTHERWISE}")
    if _CONTROL_BYTES.search(user + password):
        raise _Fault(f"user name or password has a control character (RFC 7617 §2); {_OTHERWISE}")
    return "Basic " + base64.b64encode(user + b":" + password).decode("ascii")


def is_ip(host: str) -> bool:
    """Whether a host, as a Target has it, is written as an address. It would not be a name with a colon."""
    if ":" in host:
        return True
    if not host[-1:].isdigit():
        return False
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError as error:
        if is_alarm(error):
            raise
        return False
    return True


def tls_name(host: str) -> str:
    """A host, as a Target has it, as certificates and SNI name it (RFC 6066 §3).

    Without the dot that ends an absolute name, and without the zone of an IPv6 address, which means something
    on this machine only.
    """
    return host.partition("%")[0].removesuffix(".")


def server_name(text: str) -> str:
    """Read a host name or IP address without a port, as `tls_name` gives it back.

    Raises:
        ValueError: It is neither; the message says why.
    """
    try:
        if bad := _FORBIDDEN.search(text):
            raise _Fault(f"character {bad[0]!a} is not allowed; remove it")
        address = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return tls_name(_ipv6(address) if ":" in address else _host(text))
    except _Fault as fault:
        raise ValueError(str(fault)) from None


def bracketed(host: str) -> str:
    """A host as it stands before a port: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host

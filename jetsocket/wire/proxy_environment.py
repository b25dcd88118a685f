"""Which proxy to use, and for which hosts none: what HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say."""

from __future__ import annotations

import ipaddress
import os
import sys
from typing import NamedTuple, TypeAlias

from jetsocket import uris
from jetsocket.interrupts import raise_alarm_behind
from jetsocket.patterns import pattern
from jetsocket.wire.proxy_url import redact_proxy

_SYSTEM = "the system's settings"
_ASKS_SYSTEM = sys.platform in ("darwin", "win32")  # where the environment says nothing
if _ASKS_SYSTEM:  # elsewhere nothing of HTTP's is loaded
    import urllib.request

_LISTED = pattern(r"[^\s,]+")
_ENTRY = pattern(r"(?:\[(?P<address>[^\[\]]*)\]|(?P<host>[^:\[\]]*))(?::(?P<port>[0-9]+))?")
_NUMBERS_AND_STARS = pattern(r"[0-9.*]+")

_PROXY_VARIABLES = frozenset(
    os.environ.encodekey(name)
    for scheme in ("http", "https", "all")
    for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper())
)

_Ip: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"


class Choice(NamedTuple):
    """A proxy's URL, and where it comes from.

    Attributes:
        url: As it was given; it may hold a password.
        variable: The environment variable that names it, or "the system's settings"; None: the caller does.
    """

    url: str
    variable: str | None = None

    def __repr__(self) -> str:
        return f"Choice({redact_proxy(self.url)!r}, {self.variable!r})"


def proxy_for(target: uris.Target, setting: bool | str | None) -> Choice | None:
    """Choose the proxy for ``target``.

    Args:
        target: Where to connect to.
        setting: None or False: no proxy. A URL: that proxy. True: as the environment says, which is
            HTTP_PROXY for ws://, HTTPS_PROXY for wss://, ALL_PROXY for both, unless NO_PROXY names the host,
            or the system's settings where the environment has none (macOS, Windows).

    Returns:
        The proxy; None: connect directly.
    """
    if not isinstance(setting, bool):
        return Choice(setting) if setting else None
    if not setting or (_names_no_proxy() and not _ASKS_SYSTEM):
        return None
    scheme = "https" if target.secure else "http"
    choice = _from_environment(scheme) or (_from_system(target, scheme) if _ASKS_SYSTEM else None)
    return None if choice is None or is_exempt(target) else choice


def is_exempt(target: uris.Target) -> bool:
    """Whether NO_PROXY names the target. Entries are separated by commas or spaces; case does not count.

    ``*`` is every host. ``example.com`` and ``.example.com`` are that name and all below it, as for requests;
    ``*.example.com`` is what is below it, as for Go. ``192.168.0.*`` is every address written so, and
    ``10.0.0.0/8`` and ``fd00::/8`` are networks. A name or an address may have a port: ``example.com:8080``,
    ``[::1]:8080``.
    """
    listed = _variable("no_proxy") or _variable("NO_PROXY")
    if not listed:
        return False
    host = target.host.partition("%")[0].rstrip(".")
    address = _address(host)
    return any(_names(entry, host, address, target.port) for entry in _LISTED.findall(listed.lower()))


def is_loopback(host: str) -> bool:
    """Whether a host, as a Target has it, is this machine itself."""
    name = host.rstrip(".")
    address = _address(host)
    return name == "localhost" or name.endswith(".localhost") or (address is not None and address.is_loopback)


def _from_environment(scheme: str) -> Choice | None:
    for name in (f"{scheme}_proxy", "all_proxy"):
        # As urllib and curl do: the small letters win, also to say that there is none. And where a server
        # runs this as a CGI script, HTTP_PROXY is a header of the client's (CVE-2016-1000110).
        may_be_forged = name == "http_proxy" and _variable("REQUEST_METHOD") is not None
        variable = name if _variable(name) is not None or may_be_forged else name.upper()
        if url := (_variable(variable) or "").strip():
            return Choice(url, variable)
    return None


def _names_no_proxy() -> bool:
    """Whether the environment certainly names none, which is nearly always so: one look for all names.

    Five that are not there would cost a tenth of a connect, each being two exceptions of `os.environ`'s.
    """
    behind = getattr(os.environ, "_data", None)  # where CPython keeps it, under the names as encoded
    return type(behind) is dict and behind.keys().isdisjoint(_PROXY_VARIABLES)


def _variable(name: str) -> str | None:
    """A variable of the environment; None if there is none.

    Not `os.environ.get`, which takes for its own what a signal handler raises, if that is a KeyError.
    """
    try:
        return os.environ[name]
    except KeyError as error:
        # Looking for alarms behind what is just not there would cost more than all the rest.
        if not _tells_of(error, name):
            raise_alarm_behind(error)
        return None


def _tells_of(error: KeyError, name: str) -> bool:
    """Whether `os.environ` says that there is no such variable."""
    within = error.__context__  # in a frame of its own, which that one's traceback does not lead to: no cycle
    return error.args == (name,) and within is not None and within.args == (os.fsencode(name),)


def _from_system(target: uris.Target, scheme: str) -> Choice | None:
    proxies = urllib.request.getproxies()
    url = proxies.get(scheme) or proxies.get("all")
    return None if not url or urllib.request.proxy_bypass(target.host) else Choice(url, _SYSTEM)


def _names(entry: str, host: str, address: _Ip | None, port: int) -> bool:
    """Whether an entry of NO_PROXY names a host, which is ``address`` if it is one."""
    if "/" in entry:
        return address is not None and _is_in_network(address, entry)
    match = _ENTRY.fullmatch(entry)
    if match is None:  # an IPv6 address without brackets, or nonsense
        return address is not None and address == _address(entry)
    if match["port"] is not None and int(match["port"][-6:]) != port:
        return False
    listed = match["host"] if match["address"] is None else match["address"]
    if listed == "*":
        return True
    if address is not None:
        return address == _address(listed) or (
            "*" in listed and bool(_NUMBERS_AND_STARS.fullmatch(listed)) and _matches(listed, str(address))
        )
    if _NUMBERS_AND_STARS.fullmatch(listed):
        return False  # 192.168.0.* is no name such as 192.168.0.example.com
    listed = _encoded(listed)
    if "*" in listed:
        return _matches(listed, host)
    listed = listed.strip(".")
    return bool(listed) and (host == listed or host.endswith(f".{listed}"))


def _matches(pattern: str, text: str) -> bool:
    """Whether `text` is `pattern`, in which each ``*`` stands for anything; in one pass, unlike a regexp."""
    first, *middle, last = pattern.split("*")
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def _is_in_network(address: _Ip, entry: str) -> bool:
    network, _, size = entry.partition("/")
    try:
        kind = ipaddress.IPv6Network if ":" in network else ipaddress.IPv4Network
        return address in kind(f"{network.strip('[]')}/{size}", strict=False)
    except ValueError as error:  # it is not a network: it names no host
        raise_alarm_behind(error)
        return False


def _address(host: str) -> _Ip | None:
    # Not ipaddress.ip_address, which tries the one after the other and forgets what it has caught.
    kind = ipaddress.IPv6Address if ":" in host else ipaddress.IPv4Address
    try:
        address = kind(host.partition("%")[0])
    except ValueError as error:
        raise_alarm_behind(error)
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _encoded(name: str) -> str:
    """A name of NO_PROXY as a Target has it: with what is not ASCII encoded by IDNA."""
    if name.isascii():
        return name
    try:
        return ".".join(part.encode("idna").decode("ascii") if part else "" for part in name.split("."))
    except Exception as error:
        raise_alarm_behind(error)  # of any kind the codec makes an error of its own
        if not isinstance(error, UnicodeError):
            raise
        return ""

"""Where a redirect of the upgrade leads, and what may go there (RFC 9110 §10.2.2, §15.4)."""

from __future__ import annotations

import string
from urllib.parse import quote

from jetsocket.interrupts import is_alarm
from jetsocket.patterns import pattern
from jetsocket.text import rule_of
from jetsocket.uris import INVALID, Target, resolve, same_origin

_DIAL_IT = "if it is to be trusted, dial it yourself"
_CONTROL = pattern(rb"[\x00-\x1f\x7f]")
_AUTHORITY = pattern(rb"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//[^/?]*")


def follow(target: Target, location: str) -> Target:
    """Where a redirect leads: within the origin, or from ws to wss on the same host.

    Args:
        target: Who answered with it.
        location: Its Location header as it came, decoded as Latin-1.

    Returns:
        The new target; with the userinfo of the old one, if `keeps_credentials`.

    Raises:
        ValueError: To another host or port, or to ws from wss (credentials and TLS would be lost there), or
            nowhere.
    """
    location = _readable(location)
    for http, ws in (("http:", "ws:"), ("https:", "wss:")):
        if location.lower().startswith(http):
            location = ws + location[len(http) :]
    new = resolve(location, target)
    if target.secure and not new.secure:
        raise ValueError(f"another origin, where nothing is encrypted any more; {_DIAL_IT}")
    if not same_origin(target, new) and (target.secure or not new.secure or target.host != new.host):
        raise ValueError(f"another origin, where neither headers nor credentials must go; {_DIAL_IT}")
    if new.authorization is None and keeps_credentials(target, new):
        new = new.but(authorization=target.authorization)
    return new


def fault_of(error: ValueError) -> str:
    """What is wrong with a redirect, and what to do; without the URI, which is shown beside it."""
    fault = rule_of(error).removeprefix(INVALID)
    if fault.endswith(("?", _DIAL_IT)):
        return fault
    # What is to be done about a URI of one's own is nothing that can be done about a server's.
    return f"{fault.partition('; ')[0]}; whoever runs the server has to mend that"


def keeps_credentials(old: Target, new: Target) -> bool:
    """Whether headers, cookie and userinfo that were given for `old` may go to `new`, too.

    Beyond the same origin, only from port 80 to 443: another port may be another program's.
    """
    same_host = old.host == new.host
    return same_origin(old, new) or (same_host and new.secure and (old.port, new.port) == (80, 443))


def _readable(location: str) -> str:
    """A Location as a URI: without its fragment, and with what no URI may have percent-encoded.

    Servers write blanks and raw UTF-8, and browsers follow them. Bytes that are no UTF-8 are encoded as they
    are, except in a host.
    """
    raw = location.encode("latin-1").partition(b"#")[0]
    if _CONTROL.search(raw):
        raise ValueError("there is a control character in it")
    found = _AUTHORITY.match(raw)
    authority = found[0] if found else b""
    try:
        host = authority.decode("utf-8")  # its IDNA form is `resolve`'s business
    except UnicodeDecodeError as error:
        if is_alarm(error):
            raise
        raise ValueError("the host is no UTF-8") from None
    return host + quote(raw[len(authority) :], safe=string.punctuation)

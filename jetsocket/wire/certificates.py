"""Why a TLS handshake failed, and what to do about it."""

from __future__ import annotations

import ssl
from typing import Any

from jetsocket.interrupts import is_alarm
from jetsocket.text import printable
from jetsocket.uris import is_ip

__all__ = ["explain", "late_remedy", "names_of"]

_MOST_NAMES = 8
_NAMES = ("DNS", "IP Address")
_COMMON = "commonName"
_AS_NAME = "entered as a name, which does not count for an address"
# Of X509_verify_cert (openssl/x509_vfy.h).
_NOT_YET_VALID, _EXPIRED, _HOSTNAME_MISMATCH, _IP_MISMATCH = 9, 10, 62, 64
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})

_WANTS_PLAIN = "does it want ws://?"
_SPEAKS_TLS = "does the server speak TLS (wss://) on this port, or does it want ws://?"
_NOT_YOURS = "it does not take the certificate that your SSLContext shows it"
# By what OpenSSL says, in lower case; the first that fits counts. Python leaves the `reason` out of some.
_REMEDIES = (
    ("wrong version number", _WANTS_PLAIN),
    ("http request", _WANTS_PLAIN),
    ("packet length too long", _WANTS_PLAIN),
    ("record layer failure", _WANTS_PLAIN),
    ("unknown protocol", _WANTS_PLAIN),
    ("unrecognized name", 'it serves other names; set manager_kwargs["server_hostname"] to one of them'),
    ("no application protocol", "it speaks none of the protocols that your SSLContext offers by ALPN"),
    ("protocol version", "it wants another version of TLS than your SSLContext allows"),
    ("certificate required", "it wants a certificate of yours: load one into your SSLContext"),
    ("alert unknown ca", _NOT_YOURS),
    ("alert bad certificate", _NOT_YOURS),
    ("alert certificate", _NOT_YOURS),
    (
        "alert",
        "the server refused the handshake; does your SSLContext fit its versions and ciphers?",
    ),
)


def names_of(session: ssl.SSLObject) -> list[str] | None:
    """The names that the peer's certificate is for, trusted or not; None where Python does not tell.

    No second connection is made for it, and the context is left as it is.
    """
    inner: Any = getattr(session, "_sslobj", None)  # SSLObject itself has bytes only, and not before 3.13
    try:
        chain = inner.get_unverified_chain()
        info = chain[0].get_info()
    except (AttributeError, TypeError, IndexError, ssl.SSLError, ValueError) as error:
        if is_alarm(error):
            raise
        return None
    listed = [
        (kind, str(value)) for kind, value in info.get("subjectAltName", ()) if kind in _NAMES and value
    ]
    names = [f"{name} ({_AS_NAME})" if kind == "DNS" and is_ip(name) else name for kind, name in listed]
    by_common_name = not is_ip(session.server_hostname or "") and session.context.hostname_checks_common_name
    if by_common_name and all(kind != "DNS" for kind, _ in listed):
        names += [str(value) for part in info.get("subject", ()) for kind, value in part if kind == _COMMON]
    return names


def late_remedy(error: Exception) -> str:
    """What to do about a refusal that comes behind the handshake; "" if the error is none.

    In TLS 1.3, there the server says what it thinks of the client's certificate.
    """
    said = _said(error)
    return _remedy(said) if "alert" in said else ""


def _said(error: Exception) -> str:
    return str(error).lower().replace("_", " ") if isinstance(error, ssl.SSLError) else ""


def _remedy(said: str) -> str:
    return next((remedy for fragment, remedy in _REMEDIES if fragment in said), "")


def explain(error: Exception, host: str, names: list[str] | None) -> tuple[str, str]:
    """What is wrong, and what to do.

    Args:
        error: What the handshake raised.
        host: What the certificate had to be for.
        names: What it is for; None: not known.
    """
    if not isinstance(error, ssl.SSLCertVerificationError):
        remedy = _remedy(_said(error)) or _SPEAKS_TLS
        return f"{'the server does not speak TLS: ' * (remedy == _WANTS_PLAIN)}{error}", remedy
    code = error.verify_code
    if code in (_HOSTNAME_MISMATCH, _IP_MISMATCH):
        return (
            f"the server's certificate is for {_listed(names)}, not for {host}",
            'dial one of its names, or set manager_kwargs["server_hostname"] to the one that you expect',
        )
    why = f"the server's certificate could not be verified: {error.verify_message}"
    if code == _EXPIRED:
        return why, "the server needs a new one, unless this machine's clock is wrong"
    if code == _NOT_YET_VALID:
        return why, "is this machine's clock right?"
    if code in _UNKNOWN_AUTHORITY:
        return (
            why,
            "to trust another authority, pass an SSLContext that does as manager_kwargs['ssl_context']",
        )
    return why, "the server needs another one; what is asked of it, manager_kwargs['ssl_context'] says"


def _listed(names: list[str] | None) -> str:
    if names is None:
        return "another name"
    if not names:
        return "no host name at all (a common name does not count, RFC 9525)"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return printable(", ".join(names[:_MOST_NAMES])) + more

"""What a TLS session tells of itself and of the server's certificate, trusted or not."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any

__all__ = ["TlsFacts", "days_left", "facts_of"]

_DAY = 86400.0


@dataclass(frozen=True)
class TlsFacts:
    """A session, as far as it came.

    Attributes:
        protocol: Such as TLSv1.3; None: the handshake did not get that far.
        alpn: The protocol chosen by ALPN; None for none.
        names: What the certificate is for.
        chain: Who it was issued to, by whom that was, and so on.
        expires: When the certificate ends (s, Unix time); None: not known.
    """

    protocol: str | None
    alpn: str | None
    names: list[str]
    chain: list[str]
    expires: float | None

    def shown(self, now: float) -> str:
        """In one line."""
        told = [self.protocol] if self.protocol else []  # none: the certificate was rejected
        if self.names:
            told.append(f"certificate for {', '.join(self.names[:4])}{' …' if self.names[4:] else ''}")
        if self.chain:
            told.append(f"chain {' < '.join(self.chain)}")
        if self.expires is not None:
            told.append(_left(self.expires, now))
        if self.alpn:
            told.append(f"ALPN {self.alpn}")
        return ", ".join(told)

    def record(self, now: float) -> dict[str, Any]:
        """For `--json`."""
        return {
            "protocol": self.protocol,
            "alpn": self.alpn,
            "names": self.names,
            "chain": self.chain,
            "days_left": None if self.expires is None else days_left(self.expires, now),
        }


def days_left(expires: float, now: float) -> int:
    """Whole days; negative: it has expired, -1 also for less than two days ago."""
    days = int((expires - now) / _DAY)
    return days if expires >= now else min(days, -1)


def _left(expires: float, now: float) -> str:
    days = days_left(expires, now)
    if now - expires > 0:
        ago = f"{-days} day{'s' if days < -1 else ''} ago"
        return f"expired {ago if now - expires >= _DAY else 'less than a day ago'}"
    return f"{days} day{'' if days == 1 else 's'} left"


def facts_of(session: ssl.SSLObject) -> TlsFacts:
    """What a session tells."""
    infos = _chain(session)
    leaf = infos[0] if infos else {}
    try:
        expires = ssl.cert_time_to_seconds(leaf["notAfter"])
    except (KeyError, ValueError):
        expires = None
    names = [str(value) for kind, value in leaf.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    chain = [_name(info.get("subject", ())) for info in infos]
    if infos and (root := _name(infos[-1].get("issuer", ()))) != chain[-1]:
        chain.append(root)
    return TlsFacts(session.version(), session.selected_alpn_protocol(), names, chain, expires)


def _chain(session: ssl.SSLObject) -> list[dict[str, Any]]:
    """The certificates, decoded; none where Python does not tell."""
    inner: Any = getattr(session, "_sslobj", None)  # SSLObject's own has bytes only, and not before 3.13
    for ask in ("get_verified_chain", "get_unverified_chain"):
        try:
            found = [each.get_info() for each in getattr(inner, ask)() or ()]
        except (AttributeError, TypeError, ssl.SSLError, ValueError):
            found = []
        if found:
            return found
    return []


def _name(parts: Any) -> str:
    """What people call a subject or issuer: its common name, or what comes last."""
    pairs = [(str(key), str(value)) for part in parts for key, value in part]
    by_key = dict(pairs)
    for key in ("commonName", "organizationName"):
        if key in by_key:
            return by_key[key]
    return pairs[-1][1] if pairs else "no name"

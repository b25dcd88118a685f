"""What an `auth` is asked, and what it answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jetsocket.header_fields import TOKEN, header_pairs
from jetsocket.redacted_uris import redact

__all__ = ["Auth", "Prepared", "origin_shown"]

_BEHIND = re.compile("[/?#]")


@dataclass(frozen=True, slots=True, repr=False)
class Prepared:
    """Where to dial, and what to send there and nowhere else. The repr shows no secret.

    Attributes:
        uri: The absolute ws or wss URI to dial.
        headers: Header fields, a mapping or pairs; in place of others of the same name.
        subprotocols: Offered after those of the pool: where services take a token this way.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: A header or subprotocol that no request may have; the message shows no value.
    """

    uri: str
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = ()
    subprotocols: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check what is given, and keep it as pairs and a tuple."""
        uri: Any = self.uri
        given: Any = self.subprotocols
        if not isinstance(uri, str):
            raise TypeError(f"Prepared.uri must be a str, not {type(uri).__name__}")
        if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
            raise TypeError(f"Prepared.subprotocols must be a list or tuple, not {type(given).__name__}")
        if not all(isinstance(each, str) and TOKEN.fullmatch(each) for each in given):
            raise ValueError("Prepared.subprotocols must be made of tokens (RFC 6455 §4.1)")
        # Frozen dataclasses are written this way in __post_init__.
        object.__setattr__(self, "headers", header_pairs("Prepared.headers", self.headers))
        object.__setattr__(self, "subprotocols", tuple(given))

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The header fields as pairs."""
        assert isinstance(self.headers, tuple)
        return self.headers

    def __repr__(self) -> str:
        names = ", ".join(name for name, _ in self.pairs())
        where = origin_shown(self.uri)
        return f"Prepared({where!r}, headers=<{names}>, subprotocols=<{len(self.subprotocols)}>)"


def origin_shown(uri: str) -> str:
    """Scheme, host and port of a URI, for messages: a path, too, may be a secret."""
    scheme, mark, rest = uri.partition("://")
    return redact(f"{scheme}://{_BEHIND.split(rest, maxsplit=1)[0]}") if mark else "***"


@runtime_checkable
class Auth(Protocol):
    """What `manager_kwargs["auth"]` takes. One object serves all connections of a pool, in many threads."""

    def prepare(self, uri: str, timeout: float) -> Prepared:
        """Say where to dial, and with what.

        Called by an opener before each connect, with no lock held; may do I/O.

        Args:
            uri: What is to be dialled, absolute and without userinfo: the URI that a caller asked for, or
                what `resolve` has made of it.
            timeout: s that are left for it and for the connect.

        Returns:
            The address and what to send there.
        """
        ...

    def refused(self, prepared: Prepared) -> bool:
        """The server has refused the upgrade with 401 or 403; called in the opener, too.

        Args:
            prepared: What it was dialled with, the very object.

        Returns:
            Whether to prepare and dial once more, at once.
        """
        return False

"""What of a recording is secret: fields by their names, and their values wherever else they stand. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jetsocket.wire.redaction import secrets_of

HIDDEN = "***"
"""Stands for a value that is not kept, and matches any."""

_EXACT = frozenset({
    "accesskey", "apikey", "auth", "authorization", "bearer", "cookie", "cookies", "credential",
    "credentials", "csrf", "jwt", "otp", "passphrase", "passwd", "password", "pin", "privatekey", "pwd",
    "secret", "secretkey", "sessionid", "setcookie", "sig", "sign", "signature", "token",
})  # fmt: skip
_PARTS = ("password", "passphrase", "secret", "token", "apikey", "signature", "credential", "privatekey")
_HEADERS = ("authorization", "cookie", "proxy-authorization")
_SHORTEST = 6  # characters of a secret that is looked for elsewhere: shorter ones stand in many a word


class Redactor:
    """Hides what is secret in the messages of one recording."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Hide also fields of these names.

        Raises:
            TypeError: A name is no str.
        """
        if isinstance(names, str):
            raise TypeError(f"redact takes several names, such as a tuple, not {names!r}")
        self._names = set()
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"redact takes names of fields, not {name!r}")
            self._names.add(_plain(name))
        self._secrets: set[str] = set()

    def learn_head(self, request: bytes) -> None:
        """The same of the head of that request; b"": none was sent."""
        first, *lines = request.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        self.learn_request(
            first.partition(" ")[2].rpartition(" ")[0],
            {name: value.strip() for name, _, value in pairs},
        )

    def learn_request(self, target: str, headers: Mapping[str, str]) -> None:
        """Keep what was secret in the upgrade request from being told in messages."""
        secret = [(name, value) for name, value in headers.items() if self._is_secret_header(name, value)]
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in secret)]
        for found in secrets_of("\r\n".join(lines).encode("latin-1", "replace")):
            self._learn(found)

    def _is_secret_header(self, name: str, value: str) -> bool:
        return name.lower() in _HEADERS or self._is_secret(name, value)

    def learn(self, value: Any) -> None:
        """Note what is secret in a message, to hide it in others, too."""
        for secret in self._secrets_in(value):
            self._learn(secret)

    def _learn(self, value: Any) -> None:
        if isinstance(value, str) and len(value) >= _SHORTEST and value != HIDDEN:
            self._secrets.add(value)

    def _secrets_in(self, value: Any) -> Iterator[Any]:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                if self._is_secret(name, inner):
                    yield inner
                else:
                    yield from self._secrets_in(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from self._secrets_in(inner)

    def hidden(self, value: Any) -> Any:
        """A copy of a message without what is secret."""
        if isinstance(value, Mapping):
            return {
                name: HIDDEN if self._is_secret(name, inner) else self.hidden(inner)
                for name, inner in value.items()
            }
        if isinstance(value, list):
            return [self.hidden(inner) for inner in value]
        return self._without(value) if isinstance(value, str) else value

    def _without(self, text: str) -> str:
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return text

    def _is_secret(self, name: Any, value: Any) -> bool:
        plain = _plain(str(name))
        if plain in self._names:
            return True
        if value is None or isinstance(value, bool):
            return False  # it says whether there is one
        # `max_tokens` is a number; what is called so and is a text is none.
        return plain in _EXACT or (isinstance(value, str) and any(part in plain for part in _PARTS))


def _plain(name: str) -> str:
    return re.sub(r"[^0-9a-z]", "", name.lower())


def target_without_values(target: str) -> str:
    """A request target with *** in place of each value of its query."""
    path, mark, query = target.partition("?")
    pairs = (f"{pair.partition('=')[0]}={HIDDEN}" if "=" in pair else HIDDEN for pair in query.split("&"))
    return f"{path}?{'&'.join(pairs)}" if mark else path


def same(recorded: Any, came: Any) -> bool:
    """Whether a message is the recorded one; what was hidden there may be anything."""
    if recorded == HIDDEN:
        return True
    if isinstance(recorded, Mapping):
        return (
            isinstance(came, Mapping)
            and recorded.keys() == came.keys()
            and all(same(value, came[name]) for name, value in recorded.items())
        )
    if isinstance(recorded, list):
        return isinstance(came, list) and len(recorded) == len(came) and all(map(same, recorded, came))
    if isinstance(recorded, str) and isinstance(came, str) and HIDDEN in recorded:
        pattern = ".*".join(map(re.escape, recorded.split(HIDDEN)))
        return re.fullmatch(pattern, came, re.DOTALL) is not None
    return type(recorded) is type(came) and bool(recorded == came)


__all__ = ["HIDDEN", "Redactor", "same", "target_without_values"]

"""Credentials that are sent as they are: a user name and a password, or a token."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

from jetsocket.argument_checks import runs_later
from jetsocket.auth.base import Auth, Prepared
from jetsocket.interrupts import is_alarm
from jetsocket.user_errors import Misuse, raise_as_cause

__all__ = ["BasicAuth", "BearerAuth"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TOKEN = re.compile(r"[\x21-\x7e]+")  # wider than RFC 6750's b64token: services have their own ideas


class BasicAuth(Auth):
    """A user name and a password (RFC 7617), in UTF-8. `manager_kwargs["auth"]` takes the mere pair, too."""

    def __init__(self, user: str, password: str) -> None:
        """Keep them.

        Args:
            user: Without a colon, which Basic authorization can't carry.
            password: Any text without control characters.

        Raises:
            TypeError: They are not both str.
            ValueError: They can't be sent; the message shows neither.
        """
        login = _login(user, password)
        self._header = (("Authorization", "Basic " + base64.b64encode(login).decode("ascii")),)

    def prepare(self, uri: str, timeout: float) -> Prepared:
        """The header."""
        return Prepared(uri, self._header)

    def __repr__(self) -> str:
        return "BasicAuth('***', '***')"


class BearerAuth(Auth):
    """A token in the `Authorization` header (RFC 6750), or what gives one at each connect."""

    def __init__(self, token: str | Callable[[], str]) -> None:
        """Keep it.

        Args:
            token: The token; or a function that returns it, called in the opener before each connect, and
                once more when the server has refused it: if it returns another one then, that is tried.

        Raises:
            TypeError: Neither a str nor an ordinary function.
            ValueError: It can't be sent; the message does not show it.
        """
        if not callable(token) and not isinstance(token, str):
            raise TypeError(f"token must be a str or a callable, not {type(token).__name__}")
        if runs_later(token):
            raise TypeError("token must be an ordinary function, not an async one or a generator")
        self._token = token if callable(token) else _header_of(token, ValueError)

    def prepare(self, uri: str, timeout: float) -> Prepared:
        """The header."""
        return Prepared(uri, (("Authorization", self._header()),))

    def refused(self, prepared: Prepared) -> bool:
        """Whether there is another token by now."""
        return callable(self._token) and prepared.pairs() != (("Authorization", self._header()),)

    def _header(self) -> str:
        if not callable(self._token):
            return self._token
        try:
            token = self._token()
        except Exception as error:  # whatever the user's code raises
            if is_alarm(error, users_code=True):
                raise
            raise_as_cause(error, "the token() of BearerAuth")
        return _header_of(token)

    def __repr__(self) -> str:
        return f"BearerAuth({'<callable>' if callable(self._token) else repr('***')})"


def _login(user: object, password: object) -> bytes:
    if not isinstance(user, str) or not isinstance(password, str):
        raise TypeError(
            f"user and password must be str, not {type(user).__name__} and {type(password).__name__}"
        )
    if ":" in user:
        raise ValueError("a user name with a colon is none for Basic authorization (RFC 7617 §2)")
    if _CONTROL.search(user + password):
        raise ValueError("user name or password has a control character (RFC 7617 §2)")
    return f"{user}:{password}".encode()


def _header_of(token: object, error: type[Exception] = Misuse) -> str:
    if not isinstance(token, str):
        raise Misuse(f"token() must return a str, not {type(token).__name__}")
    if not _TOKEN.fullmatch(token):
        raise error("token must be printable ASCII without blanks, and not empty; without 'Bearer'")
    return f"Bearer {token}"

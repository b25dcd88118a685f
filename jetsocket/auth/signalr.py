"""ASP.NET Core SignalR: `negotiate` tells the id of each connection, or that another service has the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from jetsocket.auth.base import Auth, Prepared
from jetsocket.auth.http import ask, json_of, no_ticket, refuse
from jetsocket.auth.static import BearerAuth
from jetsocket.auth.tickets import asked_headers, check_headers, check_session, check_url, member
from jetsocket.clock import monotonic
from jetsocket.exceptions import ConnectionError, TimeoutError
from jetsocket.interrupts import is_alarm
from jetsocket.redacted_uris import redact

__all__ = ["SignalR"]

_AS_HTTP = re.compile("^ws(s?)(?=://)", re.IGNORECASE)
_MOST_REDIRECTS = 100  # as Microsoft's clients have it


class SignalR(Auth):
    r"""`base_uri` is any name of yours for the hub.

    The handshake that follows is `configure`'s: send ``{"protocol": "json", "version": 1}\x1e`` and swallow
    the answer.
    """

    def __init__(
        self,
        hub_url: str,
        *,
        token: str | Callable[[], str] | None = None,
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        session: Any = None,
    ) -> None:
        """Say where the hub is.

        Args:
            hub_url: Its URL, of http or https, as other clients take it, or of ws or wss; with a query, if it
                wants one.
            token: A bearer token for `negotiate` and the connection, or a function that returns one. Where
                `negotiate` gives another one, that is sent instead.
            headers: Of `negotiate`, or a function that is asked for them each time.
            session: As `TicketAuth` takes it.

        Raises:
            TypeError: An argument of the wrong type.
            ValueError: `hub_url` is none, or `token` can't be sent.
            ImportError: There is no `session`, and the extra `http` is not installed.
        """
        self._url = check_url(
            "hub_url", _AS_HTTP.sub(r"http\1", hub_url) if isinstance(hub_url, str) else hub_url
        )
        check_session(session)
        self._session = session
        self._headers = check_headers("headers", headers)
        self._token = None if token is None else BearerAuth(token)

    def prepare(self, uri: str, timeout: float) -> Prepared:
        """The address of one connection.

        Raises:
            HandshakeError: The hub refused to negotiate, or has no WebSockets.
            TimeoutError: It did not answer in time.
            ConnectionError: It did not answer.
        """
        deadline = monotonic() + timeout
        url = self._url
        sent = dict(self._token.prepare(url, timeout).pairs()) if self._token is not None else {}
        for _ in range(_MOST_REDIRECTS):
            left = deadline - monotonic()
            if left <= 0:
                text = no_ticket(url, f"{timeout:.3g} s were not enough; allow more time")
                raise TimeoutError(text, operation="connect", timeout=timeout)
            where = _with(url, "/negotiate", "negotiateVersion=1")
            # The user's go to the hub they were given for, and not to where it says that its connections are.
            headers = asked_headers(self._headers, "the headers() of SignalR") if url == self._url else {}
            answer = ask("POST", where, left, session=self._session, headers=headers | sent)
            said = json_of(answer, where)
            if fault := member(said, "error"):
                refuse(answer, where, said=str(fault))
            moved, token = member(said, "url"), member(said, "accessToken")
            if token is not None or moved is not None:  # what was sent was for this service
                sent = {} if token is None else {"Authorization": f"Bearer {token}"}
            if moved is None:
                return Prepared(_address(answer, url, where, said), sent | _cookies(answer))
            try:
                url = check_url("url", moved)
            except (TypeError, ValueError) as error:
                if is_alarm(error):
                    raise
                refuse(answer, where, lacks="a valid 'url'")
        raise ConnectionError(no_ticket(self._url, f"{_MOST_REDIRECTS} times it named another service"))

    def refused(self, prepared: Prepared) -> bool:
        """Negotiate once more."""
        return True

    def __repr__(self) -> str:
        return f"SignalR({redact(self._url)!r})"


def _address(answer: Any, url: str, where: str, said: Any) -> str:
    offered = member(said, "availableTransports")
    names = [member(each, "transport") for each in offered] if isinstance(offered, list) else []
    if "WebSockets" not in names:
        refuse(answer, where, lacks="'WebSockets' among its 'availableTransports'")
    # From version 1 on, what identifies the connection to others is no secret, and the token is another.
    has_token = member(said, "negotiateVersion") not in (None, 0)
    name = "connectionToken" if has_token else "connectionId"
    found = member(said, name)
    if not isinstance(found, str):
        refuse(answer, where, lacks=repr(name))
    return "ws" + _with(url, "", f"id={quote(found, safe='')}")[len("http") :]


def _cookies(answer: Any) -> dict[str, str]:
    """The cookies of `negotiate`: a balancer may tell by them where the connection's id is known."""
    sent = str(answer.request.headers.get("Cookie") or "")
    cookies = dict(each.strip().partition("=")[::2] for each in sent.split(";") if each.strip())
    cookies.update(answer.cookies)
    return {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())} if cookies else {}


def _with(url: str, path: str, parameter: str) -> str:
    """A URL with more of a path and one more query parameter."""
    before, _, query = url.partition("#")[0].partition("?")
    before = before.rstrip("/") + path if path else before
    return f"{before}?{query}{'&' if query else ''}{parameter}"

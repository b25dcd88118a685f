"""Tickets: what a service gives out by HTTP, to be shown at the upgrade."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

from jetsocket.argument_checks import out_of_range, runs_later, seconds, wrong_type
from jetsocket.auth.base import Auth, Prepared
from jetsocket.auth.flights import Flights
from jetsocket.auth.http import ask, import_requests, json_of, no_ticket, refuse, told
from jetsocket.clock import monotonic
from jetsocket.exceptions import ConnectionError
from jetsocket.header_fields import header_pairs
from jetsocket.interrupts import is_alarm
from jetsocket.redacted_uris import redact
from jetsocket.user_errors import Misuse, raise_as_cause

__all__ = ["TicketAuth", "asked_headers", "check_headers", "check_session", "check_url", "member", "place_of"]

_PLACES = '"query:NAME", "header:NAME", "subprotocol" or "uri"'
_URL = re.compile(r"(?i:https?)://[^\s/?#]+[^\s]*")


class Place(NamedTuple):
    """Where a ticket goes.

    Attributes:
        kind: "query", "header", "subprotocol" or "uri".
        name: Of the query parameter or header; "" for the others.
    """

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind

    def put(self, ticket: str, uri: str) -> Prepared:
        """The address and what to send there.

        Raises:
            ValueError: The ticket can't be sent there.
        """
        if self.kind == "query":
            return Prepared(f"{uri}{'&' if '?' in uri else '?'}{quote(self.name)}={quote(ticket, safe='')}")
        if self.kind == "header":
            return Prepared(uri, ((self.name, ticket),))
        return Prepared(uri, subprotocols=(ticket,)) if self.kind == "subprotocol" else Prepared(ticket)


class Ticket:
    """One that was given out.

    Attributes:
        value: It.
        until: When it is over (monotonic, s).
        is_refused: Whether a server would not have it.
    """

    __slots__ = ("is_refused", "until", "value")

    def __init__(self, value: str, until: float) -> None:
        """Not refused yet."""
        self.value = value
        self.until = until
        self.is_refused = False

    def is_good(self) -> bool:
        """Whether it may be shown again."""
        return not self.is_refused and monotonic() < self.until


@dataclass(frozen=True, slots=True, repr=False)
class _Shown(Prepared):
    """What was prepared with a ticket."""

    ticket: Ticket | None = None


class TicketAuth(Auth):
    """A ticket that a service gives out by HTTP: one for each connection, or one for all."""

    def __init__(  # noqa: PLR0917  # mostly given by name
        self,
        url: str,
        session: Any = None,
        method: str = "POST",
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        json: Any = None,
        data: Any = None,
        ticket: str | Callable[[Any], str] = "ticket",
        place: str = "query:ticket",
        lifetime: float | None = None,
        uses: int | None = 1,
    ) -> None:
        """Say how a ticket is got, and where it goes. Nothing is asked yet.

        Args:
            url: Who gives them out.
            session: A `requests.Session`, for cookies, certificates, proxies or retries of its own, used by
                several threads at once; or anything with its `request` method that returns such an answer,
                as an `httpx.Client`. None: one for each request, which follows no redirect.
            method: Of the request.
            headers: Of the request, or a function that is asked for them each time.
            json: Its body, as JSON.
            data: Its body, as a form (a dict) or as it is.
            ticket: Where the ticket is in the JSON of the answer, a path with dots ("data.ticket"; numbers
                count in lists), or a function that gets the answer (a `requests.Response`) and returns it.
            place: Where it goes: "query:NAME", "header:NAME", "subprotocol", or "uri" if it is the address.
            lifetime: s that a ticket is good for, from when it was asked for; None: until it is refused.
            uses: 1: a ticket for each connection. None: the same for all, which one thread gets for all that
                wait; a failure is told to them all.

        Raises:
            TypeError: An argument of the wrong type; its message shows no value.
            ValueError: `url`, `place`, `lifetime` or `uses` can't be what they are.
            ImportError: There is no `session`, and the extra `http` is not installed.
        """
        self._url = check_url("url", url)
        check_session(session)
        self._session = session
        self._method = method
        self._headers = check_headers("headers", headers)
        self._body = {name: value for name, value in (("json", json), ("data", data)) if value is not None}
        if not isinstance(ticket, str) and not callable(ticket):
            raise TypeError(
                f"ticket must be a path as 'data.ticket' or a callable, not {type(ticket).__name__}"
            )
        if runs_later(ticket):
            raise TypeError("ticket must be an ordinary function, not an async one or a generator")
        self._ticket = ticket
        self._place = place_of(place)
        self._lifetime = float("inf") if lifetime is None else seconds("lifetime", lifetime)
        if uses is not None and (isinstance(uses, bool) or uses != 1):
            raise out_of_range("uses", uses, "1 (each connection has its own ticket) or None (all share one)")
        self._uses = uses
        self._flights = Flights[Ticket]()

    def prepare(self, uri: str, timeout: float) -> Prepared:
        """The address, or what to send there, with a ticket.

        Raises:
            HandshakeError: It was not given out; `status_code` has the status of that answer.
            TimeoutError: It did not come in time.
            ConnectionError: There was no answer, none in it, or it can't be sent.
        """
        ticket = self._one(timeout)
        try:
            prepared = self._put(ticket.value, uri)
        except (TypeError, ValueError) as error:
            if is_alarm(error):
                raise
            why = f"what it gave can't go there (place={str(self._place)!r}): {error}"
            raise ConnectionError(no_ticket(self._url, why)) from None
        return _Shown(prepared.uri, prepared.headers, prepared.subprotocols, ticket)

    def refused(self, prepared: Prepared) -> bool:
        """The next one is another."""
        if isinstance(prepared, _Shown) and prepared.ticket is not None:
            prepared.ticket.is_refused = True
        return True

    def _one(self, timeout: float) -> Ticket:
        if self._uses is not None:
            return self._fetch(timeout)
        return self._flights.get(Ticket.is_good, lambda: self._fetch(timeout), timeout)

    def _fetch(self, timeout: float) -> Ticket:
        asked_at = monotonic()
        headers = asked_headers(self._headers, f"the headers() of {type(self).__name__}")
        answer = ask(self._method, self._url, timeout, session=self._session, headers=headers, **self._body)
        value = self._read(answer)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value:
            what = "an empty text" if value == "" else f"a value of type {type(value).__name__}"
            raise ConnectionError(
                no_ticket(self._url, f"it answered {told(answer)}, with {what} in its place")
            )
        return Ticket(value, asked_at + self._lifetime)

    def _put(self, ticket: str, uri: str) -> Prepared:
        return self._place.put(ticket, uri)

    def _read(self, answer: Any) -> object:
        """The ticket in an answer."""
        if callable(self._ticket):
            try:
                return self._ticket(answer)
            except Exception as error:  # whatever the user's code raises
                if is_alarm(error, users_code=True):
                    raise
                raise_as_cause(error, no_ticket(self._url, f"it answered {told(answer)}, and ticket()"))
        found = member(json_of(answer, self._url), self._ticket) if answer.status_code < 300 else None
        if found is None:
            refuse(answer, self._url, lacks=repr(self._ticket))
        return found

    def __repr__(self) -> str:
        uses = "" if self._uses == 1 else f", uses={self._uses}"
        return f"{type(self).__name__}({redact(self._url)!r}, place={str(self._place)!r}{uses})"


def place_of(text: object) -> Place:
    """Read a place.

    Raises:
        TypeError: It is no str.
        ValueError: It is none.
    """
    if not isinstance(text, str):
        raise wrong_type("place", text, _PLACES)
    kind, _, name = text.partition(":")
    if kind not in ("query", "header", "subprotocol", "uri") or bool(name) != (kind in ("query", "header")):
        raise out_of_range("place", text, _PLACES)
    if kind == "header":
        header_pairs("place", [(name, "")])  # is it a name, and not one of the handshake's?
    return Place(kind, name)


def check_url(name: str, url: object) -> str:
    """Check the URL of a service; it may hold a secret, and is not shown.

    Raises:
        TypeError: It is no str.
        ValueError: It is no absolute URL of HTTP.
    """
    if not isinstance(url, str):
        raise TypeError(f"{name} must be a str, not {type(url).__name__}")
    if not _URL.fullmatch(url):
        raise ValueError(f"{name} must be an absolute http or https URL without blanks")
    return url


def check_session(session: Any) -> None:
    """Check what is to ask.

    Raises:
        TypeError: It can't.
        ImportError: It is None, and the extra `http` is not installed.
    """
    if session is None:
        import_requests()  # now, and not at the first connect
    elif not callable(getattr(session, "request", None)):
        raise TypeError(f"session must be a requests.Session or None, not {type(session).__name__}")


def check_headers(name: str, headers: Any) -> Any:
    """Check header fields, or the function that gives them.

    Raises:
        TypeError: They are neither.
        ValueError: A name or value that no header may have.
    """
    if headers is None:
        return {}
    if not callable(headers):
        return dict(header_pairs(name, headers))
    if runs_later(headers):
        raise TypeError(f"{name} must be an ordinary function, not an async one or a generator")
    return headers


def asked_headers(headers: Any, what: str) -> dict[str, str]:
    """Header fields, asked for where they come from a function.

    Raises:
        ConnectionError: It raised.
        Misuse: It returned what can't be sent.
    """
    if not callable(headers):
        return dict(headers)
    try:
        given = headers()
    except Exception as error:  # whatever the user's code raises
        if is_alarm(error, users_code=True):
            raise
        raise_as_cause(error, what)
    try:
        return dict(header_pairs(what, given))
    except (TypeError, ValueError) as error:
        if is_alarm(error):
            raise
        raise Misuse(str(error)) from None


def member(value: Any, path: str) -> Any:
    """What is at a path with dots in JSON; None: nothing."""
    for step in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step[:6]) < len(value):
            value = value[int(step)]
        else:
            return None
    return value

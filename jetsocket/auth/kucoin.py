"""KuCoin: the address and a token for it are given out together, and the token is good for a day."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from jetsocket.auth.base import Prepared
from jetsocket.auth.http import json_of, refuse
from jetsocket.auth.tickets import TicketAuth, member

__all__ = ["KuCoin"]

_URL = "https://api.kucoin.com/api/v1/bullet-public"
_LIFETIME = 23 * 3600.0  # s; KuCoin says 24 h


class KuCoin(TicketAuth):
    """`base_uri` is any name of yours for it. Let `configure` swallow the welcome that comes first."""

    def __init__(
        self,
        *,
        url: str = _URL,
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        session: Any = None,
    ) -> None:
        """Ask for the public feed, unless told otherwise.

        Args:
            url: Who gives out the address and the token: `bullet-private` with signed `headers`, or the
                futures' one.
            headers: As `TicketAuth` takes them: signatures have the time in them, so give a function.
            session: As `TicketAuth` takes it.

        Raises:
            TypeError: An argument of the wrong type.
            ValueError: `url` is none.
            ImportError: There is no `session`, and the extra `http` is not installed.
        """
        super().__init__(url, session, headers=headers, place="uri", lifetime=_LIFETIME, uses=None)

    def _read(self, answer: Any) -> object:
        said = json_of(answer, self._url)
        if member(said, "code") != "200000":
            why = str(member(said, "msg") or member(said, "code") or "")
            refuse(answer, self._url, lacks="" if why else "'code'", said=why)
        endpoint, token = member(said, "data.instanceServers.0.endpoint"), member(said, "data.token")
        if not isinstance(endpoint, str) or not isinstance(token, str):
            refuse(answer, self._url, lacks="'data.token' and 'data.instanceServers.0.endpoint'")
        return f"{endpoint}{'&' if '?' in endpoint else '?'}token={quote(token, safe='')}"

    def _put(self, ticket: str, uri: str) -> Prepared:
        return Prepared(f"{ticket}&connectId={uuid.uuid4().hex}")

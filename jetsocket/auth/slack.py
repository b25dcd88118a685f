"""Slack's Socket Mode: each connection has an address of its own, which `apps.connections.open` gives out."""

from __future__ import annotations

from typing import Any

from jetsocket.auth.http import json_of, refuse
from jetsocket.auth.tickets import TicketAuth, member

__all__ = ["SlackSocketMode"]

_URL = "https://slack.com/api/apps.connections.open"


class SlackSocketMode(TicketAuth):
    """`base_uri` is any name of yours for it, such as "wss://slack". Each event wants to be acknowledged."""

    def __init__(self, app_token: str, *, session: Any = None, url: str = _URL) -> None:
        """Keep the token.

        Args:
            app_token: The app's, with `connections:write`; it begins with "xapp-".
            session: As `TicketAuth` takes it.
            url: Who gives out the addresses.

        Raises:
            TypeError: The token is no str.
            ValueError: It can't be sent; the message does not show it.
            ImportError: There is no `session`, and the extra `http` is not installed.
        """
        if not isinstance(app_token, str):
            raise TypeError(f"app_token must be a str, not {type(app_token).__name__}")
        super().__init__(
            url, session, headers={"Authorization": f"Bearer {app_token}"}, ticket="url", place="uri"
        )

    def _read(self, answer: Any) -> object:
        said = json_of(answer, self._url)
        if member(said, "ok") is not True:  # its status is 200 then, too
            why = str(member(said, "error") or "")
            refuse(answer, self._url, lacks="" if why else "'ok'", said=why)
        return super()._read(answer)

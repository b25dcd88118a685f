"""The application: who may see the page, what is answered where, and with which headers."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qs, quote

from jetsocket.contrib.status import clearing, page, style
from jetsocket.contrib.status.board import Given, Source, board_for
from jetsocket.contrib.status.directory import workers
from jetsocket.contrib.status.reports import Report, shown
from jetsocket.interrupts import is_alarm

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

_log = logging.getLogger("jetsocket.status")

Permission: TypeAlias = Callable[[dict[str, Any]], bool]

_PATHS = ("/", "/status.json")
_POLICY = "; ".join((
    "default-src 'none'",
    f"style-src {style.HASH_OF_CSS}",
    f"script-src {style.HASH_OF_SCRIPT}",
    "connect-src 'self'",
    "form-action 'self'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
))  # fmt: skip
_HEADERS = [
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]


def app(
    pools: Given,
    *,
    permission: Permission | None = None,
    clear: bool = False,
    directory: str | os.PathLike[str] | None = None,
) -> WSGIApplication:
    """Make a WSGI application that shows what pools do: a page at `/`, the same as JSON at `/status.json`.

    It is closed (403) unless `permission` says yes. The pools are sampled once a second by a thread, which
    begins at the first request in this process; with a `directory`, at the first acquire of one of the pools.

    Args:
        pools: A mapping of names to pools, which is kept and read again each time, so it may grow; or pools,
            by their own names, which are not kept: one that nothing else refers to closes itself.
        permission: Is given the WSGI environ of each request; only True lets it in. What it raises, or
            returns instead, is logged, and closes; an async function never says True.
        clear: Have buttons that close the idle connections of a pool, and the lent ones when they come back.
        directory: Show all workers that were given the same one, instead of the one that answers.

    Returns:
        The application, to be mounted anywhere.

    Raises:
        TypeError: They are no pools, `permission` is not callable, or `clear` is no bool.
    """
    if permission is not None and not callable(permission):
        raise TypeError(f"permission must be callable, not {type(permission).__name__}")
    if not isinstance(clear, bool):
        raise TypeError(f"clear must be True or False, not {clear!r}")
    return _Application(Source(pools), permission, clear=clear, directory=directory)


class _Application:
    """What `app` returns. Keeps its source, and so the pools of a mapping."""

    def __init__(
        self,
        source: Source,
        permission: Permission | None,
        *,
        clear: bool,
        directory: str | os.PathLike[str] | None,
    ) -> None:
        self._source = source
        self._permission = permission
        self._clears = clear
        self._board = board_for(directory)
        self._board.add(source, keep=False)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        if not self._lets_in(environ):
            return _answer(start_response, "403 Forbidden", b"", "text/plain")
        if method == "POST" and path == "/clear" and self._clears:
            return self._clear(environ, start_response)
        if method not in ("GET", "HEAD"):
            return _answer(start_response, "405 Method Not Allowed", b"", "text/plain", Allow="GET, HEAD")
        if path == "":
            where = quote(environ.get("SCRIPT_NAME", "").strip("/"), encoding="latin-1")
            there = f"/{where}/" if where else "/"  # two slashes would lead to another host
            return _answer(start_response, "302 Found", b"", "text/plain", Location=there)
        if path == "/clear" and self._clears:
            return _answer(start_response, "405 Method Not Allowed", b"", "text/plain", Allow="POST")
        if path not in _PATHS:
            return _answer(start_response, "404 Not Found", b"Not here.\n", "text/plain")
        return self._show(environ, start_response, path)

    def _lets_in(self, environ: dict[str, Any]) -> bool:
        if self._permission is None:
            return False
        try:
            answer: object = self._permission(environ)
        except Exception as error:  # the user's code
            if is_alarm(error, users_code=True):
                raise
            _log.exception("permission to see the pools has raised: closed")
            return False
        if answer is True or answer is False:
            return answer
        close = getattr(answer, "close", None)
        if callable(close) and hasattr(answer, "__await__"):
            close()  # or Python warns that it was never awaited
        _log.error("permission to see the pools must be True or False, not %s: closed", type(answer).__name__)
        return False

    def _show(self, environ: dict[str, Any], start_response: StartResponse, path: str) -> Iterable[bytes]:
        mine, others, trouble = self._reports()
        headers: dict[str, str] = {}
        if path == "/status.json":
            told = {"worker": mine["worker"], "workers": [shown(mine), *map(shown, others)]}
            content, kind = json.dumps(told, allow_nan=False).encode(), "application/json"
        else:
            token = ""
            if self._clears:
                token, headers["Set-Cookie"] = clearing.token(environ)
            query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
            view = page.View(
                mine=mine,
                others=others,
                token=token,
                is_paused="pause" in query,
                is_shared=self._board.directory is not None,
                trouble=trouble,
            )
            content, kind = page.render(view).encode(), "text/html; charset=utf-8"
        size = str(len(content))
        if environ["REQUEST_METHOD"] == "HEAD":
            content = b""
        return _answer(start_response, "200 OK", content, kind, **{"Content-Length": size}, **headers)

    def _reports(self) -> tuple[Report, list[Report], str]:
        """What this worker says, what the others do, and why these can't be read."""
        mine = self._board.show()
        if self._board.directory is None:
            return mine, [], ""
        try:
            others = workers(self._board.directory.path)
        except OSError as error:
            if is_alarm(error):
                raise
            _log.error("what other workers say can't be read: %s", error)
            return mine, [], f"What other workers say can’t be read: {error.strerror}."
        return mine, [each for each in others if not _is_same(each, mine)], ""

    def _clear(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        name = clearing.wanted(environ)
        if name is None:
            told = (
                "This was not sent by the page, or the page is an old one. Go back, reload it, try again.\n"
            )
            return _answer(start_response, "403 Forbidden", told.encode(), "text/plain")
        pool = self._board.pools().get(name)
        if pool is not None:
            pool.clear()
        if self._board.directory is not None:
            self._board.directory.ask_to_clear(name)
        return _answer(start_response, "303 See Other", b"", "text/plain", Location="./")


def _is_same(one: Report, other: Report) -> bool:
    return all(one[each] == other[each] for each in ("space", "pid", "start"))


def _answer(
    start_response: StartResponse, status: str, content: bytes, kind: str, **headers: str
) -> Iterable[bytes]:
    """Headers first; of names that are no words, Python lets keyword arguments have them, too."""
    headers.setdefault("Content-Length", str(len(content)))
    start_response(status, [("Content-Type", kind), *_HEADERS, *headers.items()])
    return [content]

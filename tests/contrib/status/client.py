"""A browser, as far as a WSGI application can tell."""

from __future__ import annotations

import io
import json
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

from jetsocket.contrib import status

SITE = "status.example:8080"


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(app: Any, path: str = "/", method: str = "GET", body: bytes = b"", **environ: str) -> Answer:
    """Ask it, and insist that both sides keep to PEP 3333."""
    given: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path.partition("?")[0],
        "QUERY_STRING": path.partition("?")[2],
        "SCRIPT_NAME": "" if path else "/pools",
        "HTTP_HOST": SITE,
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        **environ,
    }
    setup_testing_defaults(given)
    seen: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        assert exc_info is None
        seen[:] = [int(status[:3]), dict(headers)]
        return lambda data: None

    parts = validator(app)(given, start_response)
    try:
        content = b"".join(parts)
    finally:
        parts.close()
    assert method == "HEAD" or int(seen[1]["Content-Length"]) == len(content)
    return Answer(seen[0], seen[1], content.decode())


def shown(pools: Any, **options: Any) -> Any:
    """An application that anybody may see."""
    return status.app(pools, permission=lambda environ: True, **options)


def told(pools: Any) -> dict[str, Any]:
    """What is told of the first pool."""
    pool: dict[str, Any] = ask(shown(pools), "/status.json").json["workers"][0]["pools"][0]
    return pool

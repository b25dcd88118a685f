"""The status page as a view, closed unless ``settings.JETSOCKET_STATUS_PERMISSION`` says yes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils.module_loading import import_string
from django.views.decorators.csrf import csrf_exempt

from jetsocket import ConnectionPool
from jetsocket.contrib.django.pools import pools
from jetsocket.contrib.status import app

__all__ = ["status"]

_REQUEST = "jetsocket.request"  # in the environ that the page gets


class _Made(Mapping[str, ConnectionPool[Any]]):
    """The pools of the settings that are in use: looking at the page makes none."""

    def __getitem__(self, alias: str) -> ConnectionPool[Any]:
        return pools.made()[alias]

    def __iter__(self) -> Iterator[str]:
        return iter(pools.made())

    def __len__(self) -> int:
        return len(pools.made())


def _may_see(environ: dict[str, Any]) -> bool:
    """Ask the project's own function, at each request."""
    given = getattr(settings, "JETSOCKET_STATUS_PERMISSION", None)
    if given is None:
        return False
    permission: Callable[[HttpRequest], bool] = import_string(given) if isinstance(given, str) else given
    return permission(environ[_REQUEST])


@cache
def _page(directory: str | None) -> Any:
    return app(_Made(), permission=_may_see, directory=directory)


@csrf_exempt  # type: ignore[untyped-decorator]  # Django has no types; the page changes nothing
def status(request: HttpRequest, path: str = "") -> HttpResponse:
    """Show what the pools do; see `jetsocket.contrib.status`.

    Args:
        request: 403 unless ``JETSOCKET_STATUS_PERMISSION``, a function or its dotted path, returns True.
        path: What follows where the page is mounted.
    """
    response = HttpResponse()
    directory = getattr(settings, "JETSOCKET_STATUS_DIR", None)
    mounted = request.path[: len(request.path) - len(path)] if path else request.path
    environ = {
        "REQUEST_METHOD": request.method,
        "QUERY_STRING": request.META.get("QUERY_STRING", ""),
        "SCRIPT_NAME": mounted.rstrip("/"),
        "PATH_INFO": f"/{path}",
        "wsgi.url_scheme": request.scheme,
        "wsgi.input": io.BytesIO(b""),
        _REQUEST: request,
    }

    def begin(told: str, headers: list[tuple[str, str]], _exc_info: object = None) -> None:
        code, _, reason = told.partition(" ")
        response.status_code, response.reason_phrase = int(code), reason
        for name, value in headers:
            response[name] = value

    response.content = b"".join(_page(None if directory is None else str(directory))(environ, begin))
    return response

"""What these tests share: HTTP that is mocked, and a server that admits whoever shows what it wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import pytest
import responses
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from tests.servers import Connection, EchoServer

Admits = Callable[[Request], bool]


class Door:
    """Refuses the upgrade unless `admits` says otherwise.

    Attributes:
        admits: Asked of each request.
        status: Of a refusal.
        refused: The requests that were refused.
    """

    def __init__(self) -> None:
        self.admits: Admits = lambda _: True
        self.status = HTTPStatus.UNAUTHORIZED
        self.refused: list[Request] = []

    def __call__(self, conn: Connection, request: Request) -> Response | None:
        if self.admits(request):
            return None
        self.refused.append(request)
        return Response(self.status, self.status.phrase, Headers({"Content-Length": "0"}), b"")


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def server(door: Door) -> Iterator[EchoServer]:
    """An EchoServer behind that door."""
    with EchoServer(process_request=door) as running:
        yield running


@pytest.fixture
def http() -> Iterator[responses.RequestsMock]:
    """HTTP, of which nothing leaves this process."""
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


def call(pool: Any, path: str = "/") -> Any:
    """One request and its reply."""
    with pool.acquire(path, 5) as conn:
        return conn.request({"hello": 1}, 5)

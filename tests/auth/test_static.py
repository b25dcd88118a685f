"""A user name and a password, a token, and a token that is asked for."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from jetsocket import ConnectionError, HandshakeError
from jetsocket.auth import BasicAuth, BearerAuth
from tests.auth.conftest import Door, call
from tests.servers import EchoServer

MakePool = Callable[..., Any]
SECRET = "s3cr3t-token"


def shown_to(server: EchoServer) -> list[str | None]:
    return [request.headers.get("Authorization") for request in server.requests]


def test_a_pair_is_basic_authorization_in_utf_8(server: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(server, manager_kwargs={"auth": ("jürgen", "pä:ß")})
    assert call(pool) == {"hello": 1}
    assert shown_to(server) == ["Basic " + base64.b64encode("jürgen:pä:ß".encode()).decode()]


def test_a_token_goes_with_each_upgrade(server: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(server, manager_kwargs={"auth": BearerAuth(SECRET)})
    call(pool)
    pool.clear()
    call(pool)
    assert shown_to(server) == [f"Bearer {SECRET}"] * 2


def test_what_gives_tokens_is_asked_at_each_connect(server: EchoServer, make_pool: MakePool) -> None:
    tokens = iter(["first", "second"])
    pool = make_pool(server, manager_kwargs={"auth": BearerAuth(lambda: next(tokens))})
    call(pool)
    call(pool)  # the same connection
    pool.clear()
    call(pool)
    assert shown_to(server) == ["Bearer first", "Bearer second"]


def test_a_token_that_was_renewed_meanwhile_is_tried_at_once(
    server: EchoServer, door: Door, make_pool: MakePool
) -> None:
    door.admits = lambda request: request.headers["Authorization"] == "Bearer new"
    tokens = iter(["old", "new", "new"])
    pool = make_pool(server, manager_kwargs={"auth": BearerAuth(lambda: next(tokens))})
    assert call(pool) == {"hello": 1}
    assert [request.headers["Authorization"] for request in door.refused] == ["Bearer old"]
    assert shown_to(server) == ["Bearer new"]


@pytest.mark.parametrize("token", [SECRET, lambda: SECRET], ids=["a text", "a function"])
def test_the_same_token_is_not_refused_twice(
    server: EchoServer, door: Door, make_pool: MakePool, token: Any
) -> None:
    door.admits = lambda _: False
    pool = make_pool(server, manager_kwargs={"auth": BearerAuth(token), "connect_attempts": 3})
    with pytest.raises(HandshakeError, match="401") as caught:
        call(pool)
    assert caught.value.status_code == 401
    assert len(door.refused) == 1
    assert SECRET not in str(caught.value)


def test_what_it_raises_is_the_cause_as_it_is(server: EchoServer, make_pool: MakePool) -> None:
    raised = KeyError(f"no {SECRET}")

    def token() -> str:
        raise raised

    pool = make_pool(server, manager_kwargs={"auth": BearerAuth(token)})
    with pytest.raises(ConnectionError, match=r"token\(\) of BearerAuth raised KeyError in token") as caught:
        call(pool)
    assert caught.value.__cause__ is raised
    assert SECRET not in str(caught.value)
    assert str(caught.value).startswith(f"cannot connect to {server.uri}/: ")


@pytest.mark.parametrize(
    ("token", "told"), [(None, "not NoneType"), (f"Bearer {SECRET}", "without 'Bearer'")]
)
def test_what_is_no_token_is_told(server: EchoServer, make_pool: MakePool, token: Any, told: str) -> None:
    pool = make_pool(server, manager_kwargs={"auth": BearerAuth(lambda: token)})
    with pytest.raises(ConnectionError, match=told) as caught:
        call(pool)
    assert SECRET not in str(caught.value)
    assert server.requests == []


async def later() -> str:
    return SECRET


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: BearerAuth(f"{SECRET}\r\n"), ValueError),
        (lambda: BearerAuth(""), ValueError),
        (lambda: BearerAuth(b"x"), TypeError),  # type: ignore[arg-type]  # the mistake
        (lambda: BearerAuth(later), TypeError),  # type: ignore[arg-type]  # the mistake
        (lambda: BasicAuth(f"{SECRET}:", "x"), ValueError),
        (lambda: BasicAuth("x", f"{SECRET}\n"), ValueError),
        (lambda: BasicAuth("x", None), TypeError),  # type: ignore[arg-type]  # the mistake
    ],
)
def test_what_can_not_be_sent_is_refused_unseen(make: Callable[[], Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        make()
    assert SECRET not in str(caught.value)


def test_their_reprs_show_nothing() -> None:
    assert repr(BasicAuth("me", SECRET)) == "BasicAuth('***', '***')"
    assert repr(BearerAuth(SECRET)) == "BearerAuth('***')"
    assert repr(BearerAuth(lambda: SECRET)) == "BearerAuth(<callable>)"

"""The next wire is made while an opener waits for the server, and each is dialled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jetsocket import ConnectionPool
from jetsocket.manager_kwargs import Options
from jetsocket.new_wires import NewWires
from jetsocket.wire.channel import Channel
from tests.servers import EchoServer

MakePool = Callable[..., ConnectionPool[Any]]
MakeServer = Callable[..., EchoServer]


def new_wires(unfinished: set[Channel]) -> NewWires:
    return NewWires(Options(max_message_size=1000), unfinished, print)


def test_one_is_ahead_and_each_is_given_once() -> None:
    unfinished: set[Channel] = set()
    wires = new_wires(unfinished)
    first = wires.take()
    wires.make_ahead()
    wires.make_ahead()
    taken = [wires.take() for _ in range(3)]
    assert len({first, *taken}) == 4
    for wire in taken:
        assert wire.unfinished is unfinished
        assert wire.tell_end is print
        assert wire.reader._limit == 1000


def test_a_pool_dials_with_the_one_that_it_has_made_ahead(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    pool = make_pool(echo_server(), max_connections=2)
    with pool.acquire("/a") as first:
        (ahead,) = pool._lending.opening._wires._ahead
        with pool.acquire("/a") as second:
            assert second._told().wire is ahead
            assert first._told().wire is not ahead
            assert second.request(1, 5) == 1

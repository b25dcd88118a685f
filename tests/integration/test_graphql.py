"""graphql-ws, the first server of graphql-transport-ws: queries, subscriptions, errors, pings of its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import pytest

from jetsocket import ConnectionPool, HandshakeError, ReplyError, TimeoutError
from jetsocket.correlation import GraphQLTransportWs
from jetsocket.exceptions import ConnectionError
from tests.crowds import crowd, errors
from tests.faults import conftest
from tests.integration.running import NODE_MODULES, PATIENCE, node_module, program
from tests.servers import LOCALHOST, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]

report = conftest.report

PoolFactory = Callable[..., ConnectionPool[Any]]

SERVER = Path(__file__).parent / "apps" / "graphql_server.js"
CONNECTIONS, THREADS, ROUNDS, LENGTH = 4, 16, 4, 20
SEEN = "{ seen { connections refused pings pongs wrongPongs counting behind } }"


@pytest.fixture
def uri(tmp_path: Path) -> Iterator[str]:
    """Where the server runs, in a process of its own."""
    for name in ("ws", "graphql", "graphql-ws"):
        node_module(name)
    log = tmp_path / "stderr"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [program("node", package="nodejs"), str(SERVER)],
            env={**os.environ, "NODE_PATH": str(NODE_MODULES)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            assert port, f"it did not start:\n{log.read_text()}"
            yield f"ws://{LOCALHOST}:{int(port)}"
        finally:
            process.stdin.close()  # it ends with its input
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def data_of(message: Any) -> Any:
    return message["payload"]["data"]


def ask(pool: ConnectionPool[Any], query: str, **variables: Any) -> Any:
    return pool.request("/graphql", {"query": query, "variables": variables}, timeout=PATIENCE)


def seen(pool: ConnectionPool[Any]) -> dict[str, Any]:
    found: dict[str, Any] = data_of(ask(pool, SEEN))["seen"]
    return found


def counting(start: int, **more: int) -> dict[str, Any]:
    query = "subscription ($from: Int!, $to: Int, $breakAt: Int)"
    query += " { count(from: $from, to: $to, breakAt: $breakAt) }"
    return {"query": query, "variables": {"from": start, **more}}


@pytest.mark.parametrize("max_in_flight", [1, 8])
def test_many_threads_ask_and_subscribe(
    uri: str, max_in_flight: int, make_pool: PoolFactory, report: conftest.Report
) -> None:
    unasked: list[Any] = []
    pool = make_pool(
        uri,
        correlation=GraphQLTransportWs({"token": "right"}),
        on_push=lambda uri, message: unasked.append(message),
        max_connections=CONNECTIONS,
        max_in_flight=max_in_flight,
    )

    def one(number: int) -> tuple[int, int]:
        """Queries answered right, and pushes that came to their subscription."""
        right = pushes = 0
        for each in range(ROUNDS):
            n = (number * ROUNDS + each) * 100
            right += data_of(ask(pool, "query ($n: Int!) { double(n: $n) }", n=n)) == {"double": 2 * n}
            odd = ask(pool, "query ($n: Int!) { half(n: $n) }", n=n + 1)["payload"]
            right += odd["data"] == {"half": None} and odd["errors"][0]["message"] == f"{n + 1} is odd"
            with pytest.raises(ReplyError, match=f'Cannot query field "no{n}"') as refused:
                ask(pool, f"{{ no{n} }}")
            right += len(refused.value.data) == 1
            with pool.subscribe("/graphql", counting(n, to=n + LENGTH), timeout=PATIENCE) as numbers:
                got = [data_of(message)["count"] for message in numbers]
            assert got == list(range(n, n + LENGTH))
            pushes += len(got)
        return right, pushes

    begun = time.monotonic()
    outcomes = crowd(THREADS, one)
    took = time.monotonic() - begun
    assert errors(outcomes) == []
    right, pushes = (sum(outcome.value[place] for outcome in outcomes) for place in (0, 1))
    assert (right, pushes) == (THREADS * ROUNDS * 3, THREADS * ROUNDS * LENGTH)
    stats, at_server = pool.stats(), seen(pool)
    assert unasked == [] and (stats.unasked_messages, stats.late_replies, stats.in_flight) == (0, 0, 0)
    assert at_server["connections"] == stats.total_connections <= CONNECTIONS
    wait_until(lambda: seen(pool)["pongs"] >= at_server["pings"] > 0, PATIENCE, "every ping has its pong")
    at_server = seen(pool)
    assert at_server["wrongPongs"] == at_server["counting"] == 0
    report(
        f"graphql-ws, {max_in_flight} in flight",
        queries=right,
        pushes=pushes,
        pongs=at_server["pongs"],
        connections=stats.total_connections,
        messages_per_s=round((right + pushes) / took),
    )


def test_a_subscription_that_is_left_ends_at_the_server(uri: str, make_pool: PoolFactory) -> None:
    unasked: list[Any] = []
    pool = make_pool(
        uri,
        correlation=GraphQLTransportWs(lambda: {"token": "right"}),
        on_push=lambda uri, message: unasked.append(message),
        max_connections=1,
        max_in_flight=4,
    )
    with pool.subscribe("/graphql", counting(0), timeout=PATIENCE) as numbers:
        got = [*takewhile(lambda n: n < 50, (data_of(message)["count"] for message in numbers))]
        assert seen(pool)["counting"] == 1
    assert got == list(range(50))
    wait_until(lambda: seen(pool)["counting"] == 0, PATIENCE, "it has ended at the server")
    with pool.subscribe("/graphql", counting(0, breakAt=7), timeout=PATIENCE) as numbers:
        received = []
        with pytest.raises(ReplyError, match="broken at 7"):
            received += (data_of(numbers.get(PATIENCE))["count"] for _ in count())
        assert received == list(range(7))
    assert pool.stats().total_connections == 1
    assert unasked == [] and pool.stats().unasked_messages == 0


def test_what_is_given_up_is_ended_at_the_server(uri: str, make_pool: PoolFactory) -> None:
    graphql = GraphQLTransportWs({"token": "right"})
    pool = make_pool(uri, correlation=graphql, max_connections=1, max_in_flight=4)
    with pool.acquire("/graphql") as conn:
        got = [*takewhile(lambda n: n < 5, (data_of(each)["count"] for each in conn.stream(counting(0))))]
        assert got == list(range(5))
        ask_what_it_saw = {"query": SEEN}
        wait_until(
            lambda: data_of(conn.request(ask_what_it_saw, PATIENCE))["seen"]["counting"] == 0,
            PATIENCE,
            "it has ended at the server",
        )
    with pytest.raises(TimeoutError):
        pool.request("/graphql", counting(0), 0.3)
    wait_until(lambda: seen(pool)["counting"] == 0, PATIENCE, "it has ended at the server")
    assert pool.stats().total_connections == 1


def test_its_pings_are_answered_where_nobody_reads(uri: str, make_pool: PoolFactory) -> None:
    graphql = GraphQLTransportWs({"token": "right"})
    pool, other = (make_pool(uri, correlation=graphql, max_connections=1) for _ in range(2))
    with pool.acquire("/graphql"):
        seen(other)
        found = []

        def have_waited_and_were_answered() -> bool:
            found.append(seen(other)["behind"][0])  # of the first connection
            return max(found) > 10 and found[-1] < 5

        wait_until(have_waited_and_were_answered, PATIENCE, "a lent connection's pings are answered")
    time.sleep(0.5)  # no borrower has it: unanswered, it would be 25 pings behind
    wait_until(lambda: seen(other)["behind"][0] < 25, PATIENCE, "an idle connection's pings are answered")
    assert seen(other)["connections"] == 2


def test_a_wrong_token_is_refused(uri: str, make_pool: PoolFactory) -> None:
    pool = make_pool(uri, correlation=GraphQLTransportWs({"token": "wrong"}), max_connections=1)
    with pytest.raises(ConnectionError, match="4403") as refused:
        ask(pool, SEEN)
    assert "Forbidden" in str(refused.value) and not isinstance(refused.value, HandshakeError)
    pool = make_pool(uri, correlation=GraphQLTransportWs({"token": "right"}), max_connections=1)
    assert (seen(pool)["connections"], seen(pool)["refused"]) == (1, 1)

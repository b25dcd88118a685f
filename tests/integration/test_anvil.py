"""anvil, an Ethereum node for development: many threads ask it, and one follows its chain meanwhile."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from jetsocket import ConnectionPool, ReplyError, Subscription
from jetsocket.correlation import JsonRpc
from tests.crowds import crowd, errors
from tests.faults import conftest
from tests.faults.proxy import FaultProxy
from tests.integration.running import PATIENCE, free_port, node_module, running, wait_for_port
from tests.servers import LOCALHOST, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]

report = conftest.report

PoolFactory = Callable[..., ConnectionPool[Any]]
Start = Callable[[int], contextlib.AbstractContextManager[None]]

CONNECTIONS, THREADS, ROUNDS = 4, 16, 10
BLOCKS = THREADS * ROUNDS
HEADS = {"method": "eth_subscribe", "params": ["newHeads"]}
MINE = {"method": "evm_mine", "params": []}
BLOCK_NUMBER = {"method": "eth_blockNumber", "params": []}


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """A factory of running nodes, each with a chain of its own: `start(port)`."""
    scope = node_module("@foundry-rs/anvil").parent
    found = [*scope.glob("anvil-*/bin/anvil")]
    if not found:
        pytest.skip("@foundry-rs/anvil from npm has no program for this machine")

    @contextlib.contextmanager
    def at(port: int) -> Iterator[None]:
        command = [str(found[0]), "--port", str(port), "--silent", "--accounts", "1", "--host", LOCALHOST]
        with running(command, tmp_path / "anvil.log", HOME=str(tmp_path)) as process:
            wait_for_port(port, process)
            yield

    return at


@pytest.fixture
def node(start: Start) -> Iterator[FaultProxy]:
    """A running node, through a proxy that counts connections."""
    port = free_port()
    with start(port), FaultProxy(LOCALHOST, port) as proxy:
        yield proxy


def number_of(head: Any) -> int:
    return int(head["params"]["result"]["number"], 16)


@pytest.mark.parametrize("max_in_flight", [1, 8])
def test_many_threads_ask_and_mine_while_one_follows_the_chain(
    node: FaultProxy, max_in_flight: int, make_pool: PoolFactory, report: conftest.Report
) -> None:
    unasked: list[Any] = []
    pool = make_pool(
        node.uri(),
        correlation=JsonRpc(),
        on_push=lambda uri, message: unasked.append(message),
        max_connections=CONNECTIONS,
        max_in_flight=max_in_flight,
    )

    def ask(method: str, *params: Any, message_id: Any = None) -> Any:
        message = {"method": method, "params": list(params)} | ({"id": message_id} if message_id else {})
        reply = pool.request("/", message, timeout=PATIENCE)
        assert message_id is None or reply["id"] == message_id
        return reply["result"]

    def one(number: int) -> int:
        """Set balances and look at them, mine, and ask for what there is not; how much was right."""
        right = 0
        for count in range(ROUNDS):
            account, balance = f"0x{0xABC000 + number:040x}", hex(number << 32 | count + 1)
            right += ask("anvil_setBalance", account, balance) is None
            right += ask("eth_getBalance", account, "latest", message_id=1) == balance
            right += ask("evm_mine", message_id=f"{number}.{count}") in ("0x0", "0", None)
            with pytest.raises(ReplyError) as refused:
                ask("eth_getBalance", f"no address {number}")
            right += refused.value.code == -32602
        return right

    with pool.subscribe("/", HEADS, timeout=PATIENCE) as heads:
        begun = monotonic()
        outcomes = crowd(THREADS, one)
        took = monotonic() - begun
        assert errors(outcomes) == []
        seen = [number_of(heads.get(PATIENCE)) for _ in range(BLOCKS)]
        with pytest.raises(TimeoutError):
            heads.get(0)
    assert pool.request("/", MINE, timeout=PATIENCE)["result"] is not None  # of which no event tells
    assert int(pool.request("/", BLOCK_NUMBER, timeout=PATIENCE)["result"], 16) == BLOCKS + 1
    right, stats = sum(outcome.value for outcome in outcomes), pool.stats()
    assert right == THREADS * ROUNDS * 4
    assert seen == list(range(1, BLOCKS + 1))
    assert unasked == [] and (stats.unasked_messages, stats.late_replies, stats.in_flight) == (0, 0, 0)
    assert node.connections == stats.total_connections <= CONNECTIONS
    report(
        f"anvil, {max_in_flight} in flight",
        calls=right,
        blocks=len(seen),
        connections=node.connections,
        calls_per_s=round(right / took),
    )


def test_subscriptions_share_a_connection_and_each_gets_its_own(
    node: FaultProxy, make_pool: PoolFactory
) -> None:
    pool = make_pool(node.uri(), correlation=JsonRpc(), max_connections=1, max_in_flight=4)
    transactions = {"method": "eth_subscribe", "params": ["newPendingTransactions"]}
    (account,) = pool.request("/", {"method": "eth_accounts"}, timeout=PATIENCE)["result"]
    sends = {"method": "eth_sendTransaction", "params": [{"from": account, "to": account, "value": "0x1"}]}
    with pool.subscribe("/", HEADS) as heads, pool.subscribe("/", HEADS) as same:
        with pool.subscribe("/", transactions) as pending:
            sent = [pool.request("/", sends, timeout=PATIENCE)["result"] for _ in range(5)]
            assert [pending.get(PATIENCE)["params"]["result"] for _ in sent] == sent
        assert [number_of(heads.get(PATIENCE)) for _ in sent] == [1, 2, 3, 4, 5]
        assert [number_of(same.get(PATIENCE)) for _ in sent] == [1, 2, 3, 4, 5]
        same.unsubscribe()
        pool.request("/", MINE, timeout=PATIENCE)
        assert number_of(heads.get(PATIENCE)) == 6
    assert pool.stats().total_connections == node.connections == 1
    assert pool.stats().unasked_messages == 0


def test_the_chain_is_followed_over_a_restart_of_the_node(start: Start, make_pool: PoolFactory) -> None:
    port, gaps = free_port(), Counter[str]()

    def note(heads: Subscription[Any]) -> None:
        gaps["told"] += 1

    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        first.enter_context(start(port))
        pool = make_pool(f"ws://{LOCALHOST}:{port}", correlation=JsonRpc(), max_in_flight=4)
        heads = pool.subscribe("/", HEADS, timeout=PATIENCE, reconnect=True, on_reconnect=note)
        with heads:
            pool.request("/", MINE, timeout=PATIENCE)
            assert number_of(heads.get(PATIENCE)) == 1
            first.close()
            stack.enter_context(start(port))

            def is_told() -> bool:
                with pytest.raises(TimeoutError):
                    heads.get(0.2)  # subscribes anew, at a node that has mined nothing
                return gaps["told"] > 0

            wait_until(is_told, PATIENCE)
            pool.request("/", MINE, timeout=PATIENCE)
            assert number_of(heads.get(PATIENCE)) == 1
            assert gaps["told"] == heads.reconnects == 1

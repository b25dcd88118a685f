"""Two network namespaces with a cable between them, for connections whose other end really goes silent.

Run as `unshare --net python -m tests.integration.link SCENARIO [SECONDS SEED]`: this process is the client;
it starts the server in a namespace of its own, and prints what it has seen as one line of JSON. The
namespaces end with the two processes. Nothing of it can reach, or be reached from, any other network.
"""

from __future__ import annotations

import contextlib
import json
import random
import select
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Any

from jetsocket import ConnectionPool, ConnectionPoolConfig, PooledConnection
from jetsocket.exceptions import JetSocketError
from tests import servers
from tests.books import faults
from tests.servers import RawServer, frame, wait_until
from tests.watchdog import die_if_stuck

NEAR, FAR = "10.77.0.1", "10.77.0.2"  # in these namespaces only
ENOUGH = 15.0  # s, for what is to succeed
INTERVAL, TIMEOUT = 0.5, 1.0  # s, of the health checks
SIZE = 2  # connections of a pool

Pool = ConnectionPool[Any]
Facts = dict[str, Any]


def ip(*words: str) -> None:
    """Run `ip` in the namespace of this process."""
    subprocess.run(["ip", *words], check=True, stdout=sys.stderr)


# --- the far side


def serve() -> None:
    """Serve in this namespace; each line of input is a thing to do."""
    wait_for_cable()
    ip("addr", "add", f"{FAR}/30", "dev", "far")
    ip("link", "set", "far", "up")
    servers.LOCALHOST = FAR
    forget = threading.Event()
    with RawServer(lambda sock: echo(sock, forget)) as server:
        print(server.uri, flush=True)
        for line in sys.stdin:
            if line == "forget\n":
                forget.set()
                wait_until(lambda: server.open_now == 0)
                forget.clear()
            else:
                ip("link", "set", "far", line.strip())
            print("done", flush=True)


def wait_for_cable() -> None:
    print("ready", flush=True)
    assert sys.stdin.readline() == "plugged\n"


def echo(sock: socket.socket, forget: threading.Event) -> None:
    """Echo, on /drain only read; when told to forget, end without the client's hearing of it."""
    path = servers.upgrade(sock).target
    while not forget.is_set():
        if not select.select([sock], [], [], 0.05)[0]:
            continue
        if path == "/drain":
            if not sock.recv(65536):
                return
            continue
        got = servers.read_client_frame(sock)
        sock.sendall(frame(10 if got.opcode == 9 else got.opcode, got.payload))
        if got.opcode == 8:
            return
    servers.reset(sock)


# --- the near side


class Cable:
    """The cable, and the server at its other end."""

    def __init__(self, far: subprocess.Popen[str]) -> None:
        self.far = far
        assert far.stdin is not None and far.stdout is not None
        self.stdin, self.stdout = far.stdin, far.stdout
        assert self.stdout.readline() == "ready\n"
        ip("link", "set", "lo", "up")
        ip("link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(far.pid))
        ip("addr", "add", f"{NEAR}/30", "dev", "near")
        ip("link", "set", "near", "up")
        self.uri = self.tell("plugged")

    def tell(self, what: str) -> str:
        """Have the far side do something; its answer."""
        self.stdin.write(what + "\n")
        self.stdin.flush()
        return self.stdout.readline().strip()

    def pull(self) -> None:
        """From now on packets vanish in both directions, and nobody is told."""
        assert self.tell("down") == "done"

    def plug(self) -> None:
        """Packets go through again."""
        assert self.tell("up") == "done"


@contextlib.contextmanager
def cable() -> Iterator[Cable]:
    command = ["unshare", "--net", sys.executable, "-m", "tests.integration.link", "serve", *sys.argv[2:3]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as far:
        try:
            yield Cable(far)
        finally:
            far.kill()


def pool_to(cable: Cable, **config: Any) -> Pool:
    config = {"max_connections": SIZE, "health_check_interval": 60, "acquire_timeout": ENOUGH, **config}
    kwargs = {"close_timeout": 0.5}
    return ConnectionPool(ConnectionPoolConfig(**config), base_uri=cable.uri, manager_kwargs=kwargs)


def checked(cable: Cable) -> Pool:
    return pool_to(cable, health_check_interval=INTERVAL, health_check_timeout=TIMEOUT)


def outcome(work: Callable[[], object], since: float | None = None) -> Facts:
    """How it ended, and how soon (s) after `since`."""
    start = monotonic() if since is None else since
    try:
        work()
    except JetSocketError as error:
        operation = getattr(error, "operation", None)
        facts = {"error": type(error).__name__, "operation": operation, "cause": repr(error.__cause__)}
        return {**facts, "after": monotonic() - start, "told": str(error)}
    return {"error": None, "after": monotonic() - start}


def whole(pool: Pool) -> bool:
    """Whether all permits are there and all connections work."""
    with contextlib.ExitStack() as stack:
        size = pool.config.max_connections
        leases = [stack.enter_context(pool.acquire("/", timeout=ENOUGH)) for _ in range(size)]
        answers = [lease.request([number], ENOUGH) for number, lease in enumerate(leases)]
    stats = pool.stats()
    counts = (stats.active_connections, stats.idle_connections)
    return answers == [[number] for number in range(size)] and counts == (0, size) and faults(pool) == []


def send_for_ever(conn: PooledConnection[Any]) -> None:
    while True:
        conn.send(bytes(1 << 20))


def silence() -> Facts:
    """The cable is pulled while somebody waits for a message, sends, connects, or nobody does anything."""
    facts: Facts = {}
    with contextlib.ExitStack() as stack:
        between = stack.enter_context(cable())
        before = servers.open_sockets()
        makers = dict.fromkeys(("reader", "writer", "idle"), checked)
        makers.update(dict.fromkeys(("timed reader", "borrower", "opener"), pool_to))
        pools = {name: stack.enter_context(make(between)) for name, make in makers.items()}
        leases = {name: pools[name].acquire("/") for name in ("reader", "timed reader")}
        leases["writer"] = pools["writer"].acquire("/drain")
        assert pools["idle"].prewarm("/", SIZE) == pools["borrower"].prewarm("/", SIZE) == SIZE

        sending = threading.Thread(target=lambda: do("writer", lambda: send_for_ever(leases["writer"])))
        pulled_at = 0.0

        def do(name: str, work: Callable[[], object]) -> None:
            seen = outcome(work)
            facts[name] = {**seen, "after": monotonic() - pulled_at}

        sending.start()
        wait_until(lambda: pools["writer"].stats().bytes_sent > 4 << 20, ENOUGH)
        between.pull()
        pulled_at = monotonic()
        works: dict[str, Callable[[], object]] = {
            "reader": leases["reader"].recv_raw,
            "timed reader": lambda: leases["timed reader"].recv_raw(0.7),
            "borrower": lambda: pools["borrower"].request("/", [1], timeout=0.7),
            "opener": lambda: pools["opener"].acquire("/", timeout=0.7),
            "idle": lambda: wait_until(lambda: sum(pools["idle"].stats().discards.values()) == SIZE, ENOUGH),
        }
        threads = [sending, *(threading.Thread(target=do, args=given) for given in works.items())]
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join(ENOUGH)
        facts["stuck"] = sum(thread.is_alive() for thread in threads)
        facts["discards"] = pools["idle"].stats().discards
        for lease in leases.values():
            start = monotonic()
            lease.release()
            facts["slowest release"] = max(facts.get("slowest release", 0.0), monotonic() - start)
        between.plug()
        facts["whole"] = {name: whole(pool) for name, pool in pools.items()}
        for pool in pools.values():
            pool.close()
        facts["sockets_kept"] = kept(before)
    return facts


def kept(before: int) -> int:
    """How many sockets there are too many; a thread on its way out may hold one for an instant."""
    with contextlib.suppress(AssertionError):
        servers.wait_until(lambda: servers.open_sockets() <= before, 5)
    return servers.open_sockets() - before


def moment() -> Facts:
    """The cable is out for a moment: TCP sends again what got lost, and nobody notices."""
    with cable() as between, checked(between) as pool, pool.acquire("/") as conn:
        assert conn.request([1], ENOUGH) == [1]
        before = conn.id
        between.pull()
        conn.send([2])
        sleep(0.3)
        between.plug()
        answer = conn.recv(ENOUGH)
        return {"answer": answer, "same": conn.id == before, "opened": pool.stats().total_connections}


def forgotten() -> Facts:
    """While the cable is out the server forgets its connections; its resets are lost: half-open TCP."""
    facts: Facts = {}
    with cable() as between, pool_to(between) as pool, checked(between) as pinged:
        pools = {"plain": pool, "pinged": pinged}
        for each in pools.values():
            assert each.prewarm("/", SIZE) == SIZE
        lent = pool.acquire("/")
        between.pull()
        assert between.tell("forget") == "done"
        between.plug()
        wait_until(lambda: pinged.stats().idle_connections == 0, ENOUGH)
        facts["pinged"] = outcome(lambda: pinged.request("/", [1], timeout=ENOUGH))
        facts["lent"] = outcome(lambda: lent.request([1], ENOUGH))
        lent.release()
        facts["idempotent"] = outcome(lambda: pool.request("/", [1], timeout=ENOUGH, idempotent=True))
        facts["whole"] = {name: whole(each) for name, each in pools.items()}
    return facts


def unplugged_here() -> Facts:
    """The near end goes down: the kernel knows, and says so at once."""
    with cable() as between, pool_to(between, max_connections=SIZE) as pool:
        assert whole(pool)
        ip("link", "set", "near", "down")
        facts: Facts = {"opener": outcome(lambda: pool.acquire("/other", timeout=ENOUGH))}
        ip("link", "set", "near", "up")
        facts["whole"] = whole(pool)
    return facts


def flapping() -> Facts:
    """The cable goes in and out at random while 16 threads call through 4 connections."""
    seconds, seed = float(sys.argv[2]), int(sys.argv[3])
    dice, ended, over = random.Random(seed), Counter[str](), threading.Event()
    answered = [0]
    facts: Facts = {"slowest": 0.0, "wrong": []}
    config = {"health_check_interval": INTERVAL, "health_check_timeout": TIMEOUT, "max_connections": 4}

    def call(name: str) -> None:
        number = 0
        while not over.is_set():
            number += 1
            message = {"from": name, "number": number}
            seen = outcome(lambda message=message: check_answer(pool, message, facts["wrong"]))
            facts["slowest"] = max(facts["slowest"], seen["after"])
            if seen["error"] is None:
                answered[0] += 1
            else:
                ended[seen["error"]] += 1

    with cable() as between, pool_to(between, **config) as pool:
        threads = [threading.Thread(target=call, args=(str(n),)) for n in range(16)]
        for thread in threads:
            thread.start()
        until = monotonic() + seconds
        pulled = 0
        while monotonic() < until:
            over.wait(dice.uniform(0.05, 0.5))
            between.pull()
            pulled += 1
            over.wait(dice.choice([0.05, 0.2, 0.5, 2.5]))
            between.plug()
        over.set()
        for thread in threads:
            thread.join(ENOUGH)
        facts["stuck"] = sum(thread.is_alive() for thread in threads)
        facts.update(answered=answered[0], pulled=pulled, errors=dict(ended), whole=whole(pool))
        facts["opened"] = pool.stats().total_connections
    return facts


def check_answer(pool: Pool, message: Any, wrong: list[Any]) -> None:
    answer = pool.request("/", message, timeout=1.0)
    if answer != message:
        wrong.append([message, answer])


SCENARIOS: dict[str, Callable[[], Facts]] = {
    scenario.__name__: scenario for scenario in (silence, moment, forgotten, unplugged_here, flapping)
}

if __name__ == "__main__":
    die_if_stuck(50 + (float(sys.argv[2]) if sys.argv[2:] else 0))
    if sys.argv[1] == "serve":
        serve()
    else:
        print(json.dumps(SCENARIOS[sys.argv[1]]()))

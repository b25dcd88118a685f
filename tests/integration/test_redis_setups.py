"""RedisLimiter on each kind of Redis: rights, TLS, a Unix socket, a cluster, Sentinel; seen from outside."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

import pytest

pytest.importorskip("redis")

from jetsocket import ConnectionError
from jetsocket.contrib.redis import RedisLimiter, forget, status
from tests.awake import awake
from tests.conftest import Tls
from tests.contrib.redis.test_limiter import always
from tests.integration.redises import HAS_REDIS, RedisServer, redis_server
from tests.integration.running import PATIENCE, ROOT, free_port, running
from tests.integration.test_redis_limiter import LEASE, Bound, get
from tests.servers import LOCALHOST, wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not HAS_REDIS, reason="needs redis-server"),
    pytest.mark.timeout(120),
]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


def acl_line() -> list[str]:
    """The line of docs/fleet.md."""
    page = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")
    found = re.search(r"ACL SETUSER limiter (.+?)\n```", page, re.DOTALL)
    assert found is not None
    return found[1].split()


def use(one: Bound, two: Bound) -> None:
    """All that a limiter does: grants, waiting, inboxes, giving up, renewing, leaving."""
    tokens = [get(one.limiter), get(one.limiter), get(one.limiter)]
    assert two.limiter.acquire(0.2, always) is None
    wait_until(lambda: (1, True) in one.owner.asked, 5)
    one.limiter.release(tokens.pop())
    get(two.limiter)
    sleep(LEASE)
    assert not one.owner.lost_tokens
    assert not two.owner.lost_tokens
    assert one.limiter.stats()["errors"] == two.limiter.stats()["errors"] == 0


# --- rights


def test_the_least_rights_that_the_docs_name_are_enough(redis: RedisServer) -> None:
    with redis.client() as client:
        client.flushall()
        client.execute_command("ACL", "SETUSER", "limiter", *acl_line())
        client.execute_command("ACL", "LOG", "RESET")
        url = f"redis://limiter:password@{LOCALHOST}:{redis.port}"
        with contextlib.ExitStack() as stack:
            one, two = (stack.enter_context(_named(url)) for _ in range(2))
            use(one, two)
        denied = client.execute_command("ACL", "LOG")
        assert denied == []
        other = RedisLimiter(url, "another", limit=3)
        with pytest.raises(ConnectionError, match=r"(?i)no.*permission|access"):
            other.acquire(0, always)


@contextlib.contextmanager
def _named(url: Any, **options: Any) -> Iterator[Bound]:
    """A limiter of the group that the docs name."""
    bound = Bound(url, **options)
    bound.__exit__()
    bound.limiter = RedisLimiter(url, "binance", limit=3, lease=LEASE)
    bound.limiter.bind(bound.owner)
    with bound:
        yield bound


@pytest.mark.parametrize("left_out", ["+blpop", "+evalsha", "+zrangebyscore", "+hincrby"])
def test_fewer_rights_are_not(redis: RedisServer, left_out: str) -> None:
    with redis.client() as client:
        client.flushall()
        fewer = [each for each in acl_line() if each != left_out]
        client.execute_command("ACL", "SETUSER", "limiter", "reset", *fewer)
        url = f"redis://limiter:password@{LOCALHOST}:{redis.port}"
        client.execute_command("ACL", "LOG", "RESET")
        limiter = RedisLimiter(url, "binance", limit=3, lease=LEASE)
        with contextlib.suppress(ConnectionError):
            limiter.acquire(1.5, always)
        del limiter
        wait_until(lambda: client.execute_command("ACL", "LOG"), 5)


def test_a_wrong_password_is_told_and_not_shown(redis: RedisServer) -> None:
    limiter = RedisLimiter(f"redis://:swordfish1@{LOCALHOST}:{redis.port}", "n", limit=3)
    with pytest.raises(ConnectionError, match=r"(?i)auth|password") as failed:
        limiter.acquire(0, always)
    assert "swordfish1" not in str(failed.value)


# --- where it is


def test_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis_server(tmp_path, "--unixsocket", str(path)), contextlib.ExitStack() as stack:
        use(*(stack.enter_context(Bound(f"unix://{path}")) for _ in range(2)))


def test_over_tls(tmp_path: Path, tls: Tls) -> None:
    import trustme

    authority = trustme.CA()
    own = authority.issue_cert(LOCALHOST)
    for name, blob in (
        ("ca", authority.cert_pem),
        ("key", own.private_key_pem),
        ("cert", own.cert_chain_pems[0]),
    ):
        blob.write_to_path(tmp_path / f"{name}.pem")
    port = free_port()
    options = [
        "--tls-port",
        str(port),
        "--tls-auth-clients",
        "no",
        "--tls-ca-cert-file",
        str(tmp_path / "ca.pem"),
    ]
    options += ["--tls-cert-file", str(tmp_path / "cert.pem"), "--tls-key-file", str(tmp_path / "key.pem")]
    with redis_server(tmp_path, *options), contextlib.ExitStack() as stack:
        url = f"rediss://{LOCALHOST}:{port}?ssl_ca_certs={tmp_path / 'ca.pem'}"
        use(*(stack.enter_context(Bound(url)) for _ in range(2)))
        with pytest.raises(ConnectionError, match=r"(?i)certificate"):
            RedisLimiter(f"rediss://{LOCALHOST}:{port}", "n", limit=1).acquire(0, always)


def test_of_a_client_the_database_and_the_credentials_are_taken_over(redis: RedisServer) -> None:
    from redis import Redis

    client = Redis(port=redis.port, db=5, decode_responses=True, protocol=3)
    with client, Bound(client) as one:
        get(one.limiter)
        assert client.zcard("{js:fleet}:leases") == 1
    with redis.client() as other:
        assert not other.exists("{js:fleet}:leases")


def test_in_a_cluster_it_finds_the_node_also_after_the_slot_has_moved(tmp_path: Path) -> None:
    from redis import RedisCluster

    with contextlib.ExitStack() as stack:
        nodes, buses = [], []
        for number in range(2):
            folder = tmp_path / str(number)
            folder.mkdir()
            options = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"]
            buses.append(free_port())
            options += ["--cluster-port", str(buses[-1])]
            nodes.append(stack.enter_context(redis_server(folder, *options)))
        clients = [stack.enter_context(node.client()) for node in nodes]
        clients[0].execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
        clients[1].execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
        clients[0].execute_command("CLUSTER MEET", LOCALHOST, nodes[1].port, buses[1])
        wait_until(lambda: all(each.cluster("info")["cluster_state"] == "ok" for each in clients), PATIENCE)
        cluster = stack.enter_context(RedisCluster(host=LOCALHOST, port=nodes[0].port))
        one, two = (stack.enter_context(Bound(cluster)) for _ in range(2))
        use(one, two)
        slot = clients[0].execute_command("CLUSTER KEYSLOT", "{js:fleet}:")
        source, target = clients if slot < 8192 else clients[::-1]
        assert source.exists("{js:fleet}:leases")
        ids = [each.execute_command("CLUSTER MYID") for each in (source, target)]
        target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
        source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
        port = target.connection_pool.connection_kwargs["port"]
        while keys := source.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
            source.execute_command("MIGRATE", LOCALHOST, port, "", 0, 1000, "KEYS", *keys)
        for each in (target, source):
            each.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[1])
        wait_until(lambda: one.limiter.stats()["away"] is False and target.exists("{js:fleet}:leases"), 10)
        sleep(LEASE)  # all have renewed there
        assert (
            target.zcard("{js:fleet}:leases")
            == one.limiter.stats()["held"] + two.limiter.stats()["held"]
            == 3
        )
        assert not one.owner.lost_tokens
        assert not two.owner.lost_tokens


def test_sentinel_s_fail_over_is_followed(tmp_path: Path) -> None:
    from redis.sentinel import Sentinel

    with contextlib.ExitStack() as stack:
        (tmp_path / "one").mkdir()
        (tmp_path / "two").mkdir()
        master = stack.enter_context(redis_server(tmp_path / "one"))
        replica = stack.enter_context(
            redis_server(tmp_path / "two", "--replicaof", f"{LOCALHOST} {master.port}")
        )
        port, conf = free_port(), tmp_path / "sentinel.conf"
        conf.write_text(
            f"port {port}\ndir {tmp_path}\nsentinel monitor fleet {LOCALHOST} {master.port} 1\n"
            "sentinel down-after-milliseconds fleet 1000\nsentinel failover-timeout fleet 3000\n"
        )
        stack.enter_context(running(["redis-server", str(conf), "--sentinel"], tmp_path / "sentinel.log"))
        sentinel = Sentinel([(LOCALHOST, port)], socket_timeout=0.5)

        def knows_both() -> bool:
            with contextlib.suppress(Exception):  # it has only begun
                return bool(sentinel.discover_slaves("fleet"))
            return False

        wait_until(knows_both, PATIENCE)
        one, two = (stack.enter_context(Bound(sentinel.master_for("fleet"), lease=6.0)) for _ in range(2))
        for bound in (one, one, two):
            get(bound.limiter)
        with replica.client() as client:
            wait_until(lambda: client.zcard("{js:fleet}:leases") == 3, PATIENCE)
            master.stop()
            wait_until(lambda: client.info("replication")["role"] == "master", PATIENCE)
            wait_until(lambda: not (one.limiter.stats()["away"] or two.limiter.stats()["away"]), 20)
            assert client.zcard("{js:fleet}:leases") <= 3
            for bound in (one, two):
                for token, _ in bound.owner.lost_tokens:
                    bound.limiter.release(token)
            lost = len(one.owner.lost_tokens) + len(two.owner.lost_tokens)
            wait_until(lambda: client.zcard("{js:fleet}:leases") == 3 - lost, 10)
            if lost:
                get(two.limiter, 10)


# --- from outside


def test_a_group_is_shown_process_by_process(redis: RedisServer) -> None:
    with redis.client() as client:
        client.flushall()
    assert status(redis.url, "fleet").processes == ()
    with Bound(redis.url) as one, Bound(redis.url, limit=5) as two:
        tokens = [get(one.limiter), get(one.limiter), get(two.limiter)]
        assert two.limiter.acquire(0.1, always) is None
        seen = status(redis.url, "fleet")
        assert (seen.name, seen.limit, seen.held, seen.waiting) == ("fleet", 3, 3, 1)
        assert seen.fence == max(token.fence for token in tokens)
        assert [each.held for each in seen.processes] == [2, 1]
        assert [each.limit for each in seen.processes] == [3, 5]
        assert [each.is_waiting for each in seen.processes] == [False, True]
        assert all(0 <= each.seen < LEASE and each.lease == LEASE for each in seen.processes)
        assert all(each.label.endswith(f":{os.getpid()}") for each in seen.processes)
        wait_until(lambda: status(redis.url, "fleet").waiting == 0, 5)
        assert forget(redis.url, "fleet", seen.processes[0].id) == 2
        with redis.client() as client:
            wait_until(lambda: client.zcard("{js:fleet}:leases") == 3, 5)  # it lives, and there was room
    wait_until(lambda: status(redis.url, "fleet").held == 0, 3)  # what was open, after a second
    assert forget(redis.url, "fleet", "nobody") == 0


def test_the_slots_of_one_that_is_forgotten_go_to_who_waits(redis: RedisServer) -> None:
    with redis.client() as client:
        client.flushall()
    with Bound(redis.url, limit=1) as one, Bound(redis.url, limit=1) as two:
        get(one.limiter)
        start = awake()
        (seen,) = status(redis.url, "fleet").processes
        assert two.limiter.acquire(0.1, always) is None
        assert forget(redis.url, "fleet", seen.id) == 1
        get(two.limiter)
        assert awake() - start < LEASE / 2 + 1
        wait_until(lambda: len(one.owner.lost_tokens) == 1, 5)


def test_the_example_fleet_keeps_its_cap(redis: RedisServer) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/examples/fleet/fleet.py")],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "REDIS": redis.url, "SECONDS": "5", "PYTHONPATH": str(ROOT)},
    )
    assert "the service had at most 3 connections at a time" in done.stdout
    assert len(re.findall(r"process \d+ has asked \d{2,} times", done.stdout)) == 3

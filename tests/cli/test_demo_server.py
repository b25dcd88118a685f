"""The demo's server: what it answers, and that its counts are right."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.sync.client import ClientConnection, connect

from jetsocket import ConnectionPool
from jetsocket.cli.demo_server import HOST, Counts, listen


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def plain(counts: Counts) -> Iterator[str]:
    server = listen(0, counts)
    yield f"ws://{HOST}:{server.socket.getsockname()[1]}"
    server.shutdown()


@pytest.fixture
def secure(counts: Counts, tmp_path: Path) -> Iterator[tuple[str, ssl.SSLContext]]:
    authority, context = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(context)
    certificate = tmp_path / "server.pem"
    authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(certificate))
    server = listen(0, counts, str(certificate))
    yield f"wss://{HOST}:{server.socket.getsockname()[1]}", context
    server.shutdown()


def call(conn: ClientConnection, number: int) -> dict[str, object]:
    conn.send(json.dumps({"id": number, "text": "hello"}))
    reply: dict[str, object] = json.loads(conn.recv(timeout=5))
    return reply


def test_a_reply_has_the_id_of_its_call_and_the_path_it_came_by(plain: str, counts: Counts) -> None:
    with connect(f"{plain}/news", proxy=None) as conn:
        assert call(conn, 7) == {"id": 7, "text": "hello", "path": "/news"}
    assert counts.report()["calls"] == 1


def test_most_open_is_what_was_open_at_one_moment(plain: str, counts: Counts) -> None:
    for _ in range(3):
        with connect(plain, proxy=None) as conn:
            call(conn, 1)
    with connect(plain, proxy=None) as one, connect(plain, proxy=None) as two:
        call(one, 1)
        call(two, 2)
    assert counts.report() == {"opened": 5, "most_open": 2, "calls": 5}


def test_a_connection_that_broke_is_not_open(plain: str, counts: Counts) -> None:
    with connect(plain, proxy=None) as first:
        call(first, 1)
        first.socket.shutdown(socket.SHUT_RDWR)
        with connect(plain, proxy=None) as second:
            call(second, 2)
    assert counts.report() == {"opened": 2, "most_open": 1, "calls": 2}


def test_it_reads_and_sends_at_once_over_tls(secure: tuple[str, ssl.SSLContext], counts: Counts) -> None:
    """Calls are sent without waiting for replies."""
    uri, context = secure
    with (
        ConnectionPool[Any](manager_kwargs={"ssl_context": context}) as pool,
        ThreadPoolExecutor() as executor,
        pool.acquire(uri) as conn,
    ):
        sender = executor.submit(lambda: [conn.send({"id": number}) for number in range(60)])
        assert [conn.recv(timeout=5)["id"] for _ in range(60)] == list(range(60))
        sender.result(5)
    assert counts.report() == {"opened": 1, "most_open": 1, "calls": 60}

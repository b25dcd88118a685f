"""Measures the figures of docs/coming-from.md, and prints its table.

    PYTHONPATH=. taskset -c 0 python docs/coming_from.py

It needs websocket-client, websockets, httpx2[ws] and niquests[ws] beside jetsocket. The server is a
process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Any, Protocol

MESSAGE = "x" * 64
ROUNDS, ECHOES, CONNECTS, IDLE = 5, 1000, 50, 50


class Client(Protocol):
    """One open connection."""

    def send(self, text: str) -> None: ...
    def recv(self) -> str | bytes: ...


Open = Callable[[str], AbstractContextManager[Client]]


# --- the server


async def _serve() -> None:
    logging.disable(logging.CRITICAL)  # niquests ends with a close frame of status 0, which is none
    from websockets.asyncio.server import serve

    async def answer(conn: Any) -> None:
        if conn.request.path == "/pings":  # it says in the end whether the client has answered a ping in 2 s
            await conn.recv()
            pong = await conn.ping()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(pong, 2)
            await conn.send("answered" if pong.done() and not pong.cancelled() else "not answered")
        else:
            async for text in conn:
                await conn.send(text)

    async with serve(answer, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()


# --- the clients


@contextlib.contextmanager
def by_websocket_client(uri: str) -> Iterator[Client]:
    import websocket

    conn = websocket.create_connection(uri, timeout=10)
    yield conn
    conn.close()


@contextlib.contextmanager
def by_websockets(uri: str) -> Iterator[Client]:
    from websockets.sync.client import connect

    with connect(uri, compression=None, legacy=True) as conn:
        yield conn


_kept: list[Any] = []


class _Httpx2:
    def __init__(self, session: Any) -> None:
        self.send, self.recv = session.send_text, session.receive_text


@contextlib.contextmanager
def by_httpx2(uri: str) -> Iterator[Client]:
    import httpx2

    if not _kept:
        _kept.append(httpx2.Client(trust_env=False))  # what is kept for all is not made for each connection
    with _kept[0].websocket(uri) as session:
        yield _Httpx2(session)


class _Niquests:
    def __init__(self, extension: Any) -> None:
        self.send, self.recv = extension.send_payload, extension.next_payload


@contextlib.contextmanager
def by_niquests(uri: str) -> Iterator[Client]:
    import niquests

    with niquests.Session() as session:
        extension = session.get(uri).extension
        yield _Niquests(extension)
        extension.close()


class _Jetsocket:
    def __init__(self, lease: Any) -> None:
        self.send, self.recv = lease.send_raw, lease.recv_raw


@contextlib.contextmanager
def by_jetsocket(uri: str) -> Iterator[Client]:
    from jetsocket import ConnectionPool

    with (
        ConnectionPool(manager_kwargs={"compress": False, "proxy": None}) as pool,
        pool.acquire(uri) as lease,
    ):
        yield _Jetsocket(lease)


CLIENTS: dict[str, Open] = {
    "jetsocket": by_jetsocket,
    "websocket-client": by_websocket_client,
    "websockets": by_websockets,
    "httpx2": by_httpx2,
    "niquests": by_niquests,
}


# --- the figures


def echo(open_: Open, uri: str) -> float:
    """Seconds of CPU time for one echo over an open connection, all threads of the client together."""
    with open_(uri) as conn:
        conn.send(MESSAGE)
        conn.recv()
        began = time.process_time()
        for _ in range(ECHOES):
            conn.send(MESSAGE)
            conn.recv()
        return (time.process_time() - began) / ECHOES


def one_call(open_: Open, uri: str) -> float:
    """Seconds of CPU time for a call with a connection of its own: connect, one echo, close."""
    began = time.process_time()
    for _ in range(CONNECTS):
        with open_(uri) as conn:
            conn.send(MESSAGE)
            conn.recv()
    return (time.process_time() - began) / CONNECTS


def pooled_call(uri: str) -> float:
    """Seconds of CPU time for a call with jetsocket's pool: borrow, one echo, give back."""
    from jetsocket import ConnectionPool

    with ConnectionPool(manager_kwargs={"compress": False, "proxy": None}) as pool:
        pool.request(uri, [MESSAGE])
        began = time.process_time()
        for _ in range(ECHOES):
            pool.request(uri, [MESSAGE])
        return (time.process_time() - began) / ECHOES


def threads(open_: Open, uri: str) -> int:
    """Threads for some open connections, beside the main one."""
    before = threading.active_count()
    if open_ is by_jetsocket:
        from jetsocket import ConnectionPool, ConnectionPoolConfig

        options = {"compress": False, "proxy": None}
        with ConnectionPool(ConnectionPoolConfig(max_connections=IDLE), manager_kwargs=options) as pool:
            pool.prewarm(uri, IDLE)
            time.sleep(6)  # the threads that open connections go after a few seconds
            return threading.active_count() - before
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(open_(uri))
        return threading.active_count() - before


def answers_pings(open_: Open, uri: str) -> str:
    """Whether a ping is answered while no thread receives."""
    with open_(uri + "pings") as conn:
        conn.send("go")
        time.sleep(3)
        return str(conn.recv())


def main() -> None:
    """Run it."""
    command = [sys.executable, __file__, "--serve"]
    if hasattr(os, "sched_getaffinity"):
        free = sorted(set(range(os.cpu_count() or 1)) - os.sched_getaffinity(0))
        command = ["taskset", "-c", str(free[0]), *command] if free else command
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        uri = f"ws://127.0.0.1:{int(server.stdout.readline())}/"
        found: dict[str, dict[str, list[float]]] = {name: {} for name in CLIENTS}
        for _ in range(ROUNDS):  # in turn, so that what else the machine does hits all
            for name, open_ in CLIENTS.items():
                for figure in (echo, one_call):
                    found[name].setdefault(figure.__name__, []).append(figure(open_, uri))
            found["jetsocket"].setdefault("pooled_call", []).append(pooled_call(uri))
        for name, open_ in CLIENTS.items():
            micro = {
                figure: f"{statistics.median(values) * 1e6:.0f} us" for figure, values in found[name].items()
            }
            release = "" if name == "jetsocket" else version(name)
            print(name, release, micro, threads(open_, uri), "threads; pings:", answers_pings(open_, uri))
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    if "--serve" in sys.argv:
        asyncio.run(_serve())
    else:
        main()

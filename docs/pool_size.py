"""Measures the figures of docs/pool-size.md, and draws its plots, in about a minute.

    PYTHONPATH=. python docs/pool_size.py           # measure, write docs/pool-size/results.json, draw
    PYTHONPATH=. python docs/pool_size.py --draw    # draw what was measured

It needs the extra `bench`, and trustme. The server is a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "pool-size"

RATE, LEASE = (
    200.0,
    0.04,
)  # calls a second, and s that the server takes for each: 8 connections on the average
SIZES, SECONDS = (7, 8, 9, 10, 12, 14, 16, 20), 4.0
MOST_CALLERS = 200  # at once
DISTANCES, TRIES = (0.0, 0.01, 0.02, 0.05), 12  # s there and back
HUNGRY, PERMITS, TURNS_FOR = 20, 4, 3.0

BLUE, ORANGE, GREY = "#3b82c4", "#d9772b", "#707b86"  # each is seen on white and on black


# --- the server


async def _serve(folder: Path) -> None:
    from websockets.asyncio.server import serve

    async def answer(conn: Any) -> None:
        took = float(conn.request.path.strip("/") or 0)
        async for text in conn:
            await asyncio.sleep(took)
            await conn.send(text)

    async def far(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, distance: float) -> None:
        """Hand on what comes, half of the distance later; to and fro."""
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", secure_port)
        await asyncio.gather(
            _hand_on(reader, behind_writer, distance / 2), _hand_on(behind_reader, writer, distance / 2)
        )

    options: dict[str, Any] = {"compression": None, "ping_interval": None}
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "server.pem")
    async with (
        serve(answer, "127.0.0.1", 0, **options) as plain,
        serve(answer, "127.0.0.1", 0, ssl=tls, **options) as secure,
    ):
        secure_port = secure.sockets[0].getsockname()[1]
        ports = [plain.sockets[0].getsockname()[1]]
        relays = []
        for distance in DISTANCES:

            async def relay(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, distance: float = distance
            ) -> None:
                await far(reader, writer, distance)

            relays.append(await asyncio.start_server(relay, "127.0.0.1", 0))
            ports.append(relays[-1].sockets[0].getsockname()[1])
        print(*ports, flush=True)
        await asyncio.Future()


async def _hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            loop.call_later(delay, writer.write, data)
    loop.call_later(delay, writer.close)


@contextlib.contextmanager
def servers() -> Iterator[tuple[list[int], Path]]:
    """Ports of the plain server, and of the secure one at each distance; the authority's certificate."""
    import trustme

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "authority.pem")
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
        command = [sys.executable, __file__, "--serve", name]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        try:
            yield [int(port) for port in server.stdout.readline().split()], folder / "authority.pem"
        finally:
            server.kill()
            server.wait()


# --- the figures


def percentile(values: list[float], percent: int) -> float:
    """The value that so many percent of them are not above."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def waits(uri: str, size: int) -> dict[str, float]:
    """How long callers wait for a connection of a pool of that size, at the fixed load.

    Calls begin when they are due, whatever became of those before: the wait is counted from then on.
    """
    from jetsocket import ConnectionPool, ConnectionPoolConfig

    chance = random.Random(1)  # the same load for each
    due: deque[float] = deque()
    at = 0.0
    while (at := at + chance.expovariate(RATE)) < SECONDS:
        due.append(at)
    waited: list[float] = []
    config = ConnectionPoolConfig(max_connections=size, acquire_timeout=60.0)
    with ConnectionPool(config, manager_kwargs={"compress": False, "proxy": None}) as pool:
        pool.prewarm(uri, size)
        began = time.monotonic() + 0.2

        def call() -> None:
            while True:
                try:
                    mine = began + due.popleft()
                except IndexError:
                    return
                time.sleep(max(0.0, mine - time.monotonic()))
                with pool.acquire(uri) as conn:
                    waited.append(time.monotonic() - mine)
                    conn.request({"id": 1})

        in_threads([call] * MOST_CALLERS)
    return {"p50": percentile(waited, 50), "p99": percentile(waited, 99), "calls": len(waited)}


def latencies(port: int, authority: Path) -> dict[str, float]:
    """Median seconds of a call over TLS, on an open connection and on one of its own."""
    from jetsocket import ConnectionPool

    options = {"ssl_context": ssl.create_default_context(cafile=str(authority)), "proxy": None}
    uri = f"wss://localhost:{port}/"
    found: dict[str, list[float]] = {"reused": [], "new": []}
    with ConnectionPool(manager_kwargs=options) as pool:
        pool.request(uri, {"id": 0})
        for _ in range(TRIES):
            began = time.monotonic()
            pool.request(uri, {"id": 1})
            found["reused"].append(time.monotonic() - began)
            began = time.monotonic()
            with ConnectionPool(manager_kwargs=options) as fresh:
                fresh.request(uri, {"id": 1})
                found["new"].append(time.monotonic() - began)
    return {name: percentile(values, 50) for name, values in found.items()}


def turns(uri: str, *, is_fair: bool) -> list[int]:
    """Turns of each of some threads that want a connection all the time."""
    from jetsocket import ConnectionPool, ConnectionPoolConfig

    config = ConnectionPoolConfig(max_connections=PERMITS)
    counts = [0] * HUNGRY
    with (
        ConnectionPool(config, manager_kwargs={"compress": False, "proxy": None}) as pool,
        contextlib.ExitStack() as kept,
    ):
        if is_fair:
            borrow: Callable[[], Any] = lambda: pool.acquire(uri)  # noqa: E731  # beside its like below
        else:
            free = threading.BoundedSemaphore(PERMITS)
            idle = deque(kept.enter_context(pool.acquire(uri)) for _ in range(PERMITS))

            @contextlib.contextmanager
            def borrow() -> Iterator[Any]:
                with free:
                    conn = idle.pop()
                    try:
                        yield conn
                    finally:
                        idle.append(conn)

        pool.prewarm(uri, PERMITS)
        ends = time.monotonic() + TURNS_FOR

        def hungry(place: int) -> None:
            while time.monotonic() < ends:
                with borrow() as conn:
                    conn.request({"id": 1})
                counts[place] += 1

        in_threads([lambda place=place: hungry(place) for place in range(HUNGRY)])  # type: ignore[misc]  # bound
    return sorted(counts, reverse=True)


def in_threads(tasks: list[Callable[[], None]]) -> None:
    """Run each in a thread of its own, and wait for all."""
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure() -> dict[str, Any]:
    """All figures."""
    with servers() as (ports, authority):
        plain = f"ws://127.0.0.1:{ports[0]}/"
        return {
            "machine": f"CPython {sys.version.split()[0]}, {os.cpu_count()} cores",
            "waits": {str(size): waits(f"{plain}{LEASE}", size) for size in SIZES},
            "latencies": {
                str(distance): latencies(port, authority)
                for distance, port in zip(DISTANCES, ports[1:], strict=True)
            },
            "turns": {
                "the pool": turns(plain, is_fair=True),
                "a semaphore and a stack": turns(plain, is_fair=False),
            },
        }


# --- the plots


def draw(found: dict[str, Any]) -> None:
    """Draw them, without a background and in colours that are seen on a light page and on a dark one."""
    import matplotlib

    matplotlib.use("svg")
    quiet = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), GREY)
    spines = {"axes.spines.top": False, "axes.spines.right": False}
    matplotlib.rcParams.update(
        {
            **quiet,
            **spines,
            "text.color": GREY,
            "axes.titlecolor": GREY,
            "axes.grid": True,
            "grid.color": GREY,
            "grid.alpha": 0.25,
            "font.size": 11,
            "legend.frameon": False,
            "svg.hashsalt": "jetsocket",  # the same figures make the same file
        }
    )
    axes, save = _new("wait-by-size")
    for name, colour in (("p99", ORANGE), ("p50", BLUE)):
        values = [found["waits"][str(size)][name] * 1e3 for size in SIZES]
        axes.plot(SIZES, values, marker="o", color=colour, label=name)
    axes.axvline(RATE * LEASE, color=GREY, linestyle="--", label="rate × lease time")
    axes.set(xlabel="max_connections", ylabel="wait for a connection (ms)", xticks=SIZES)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 2e3)
    axes.legend()
    save()
    axes, save = _new("call-by-distance")
    far = [distance * 1e3 for distance in DISTANCES]
    for name, label, colour in (
        ("new", "a connection of its own", ORANGE),
        ("reused", "one that is open", BLUE),
    ):
        values = [found["latencies"][str(distance)][name] * 1e3 for distance in DISTANCES]
        axes.plot(far, values, marker="o", color=colour, label=label)
    axes.set(xlabel="there and back (ms)", ylabel="a call over TLS (ms)", ylim=(0, None))
    axes.legend()
    save()
    axes, save = _new("turns-by-thread")
    for (name, counts), colour, shift in zip(
        found["turns"].items(), (BLUE, ORANGE), (-0.2, 0.2), strict=True
    ):
        places = [place + 1 + shift for place in range(HUNGRY)]
        axes.bar(places, counts, 0.4, color=colour, label=name)
    axes.set(xlabel="thread, the luckiest first", ylabel=f"turns in {TURNS_FOR:.0f} s")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_xticks(range(1, HUNGRY + 1, 2))
    axes.legend(loc="upper right", bbox_to_anchor=(1, 1.15), ncols=2)
    save()


def _new(name: str) -> tuple[Any, Callable[[], None]]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 3.8), layout="constrained")

    def save() -> None:
        figure.savefig(HERE / f"{name}.svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)

    return axes, save


def main() -> None:
    """Run it."""
    path = HERE / "results.json"
    if "--draw" not in sys.argv:
        HERE.mkdir(exist_ok=True)
        path.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    draw(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    if "--serve" in sys.argv:
        asyncio.run(_serve(Path(sys.argv[-1])))
    else:
        main()

"""What networks do to a pool: whatever happens, the named error in time, and the pool as good as before."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from time import monotonic

from jetsocket import ConnectionPool
from jetsocket.exceptions import ConnectionClosedError
from tests import servers
from tests.servers import RawServer

LATE = 5.0  # s, far beyond any deadline that is to run out
MIB = 1 << 20


def test_a_half_close_ends_a_writer_who_has_all_the_time(raw_server: Callable[..., RawServer]) -> None:
    """The server has said that nothing will come, and takes nothing: whoever sends must not wait for ever."""
    over = threading.Event()

    def script(sock: socket.socket) -> None:
        servers.upgrade(sock)
        servers.read_exactly(sock, 200_000)
        sock.shutdown(socket.SHUT_WR)
        over.wait(LATE + 5)

    server = raw_server(script)
    with ConnectionPool(base_uri=server.uri) as pool, pool.acquire("/") as conn:
        try:
            (error,) = at_once(lambda: conn.send(bytes(32 * MIB)))
        finally:
            over.set()
        assert isinstance(error, ConnectionClosedError)
        assert "without a close frame" in str(error)


def at_once(*works: Callable[[], object]) -> list[BaseException | None]:
    """Do these side by side; what each raised, in order. Fails if one is not over in time."""
    errors: list[BaseException | None] = [None] * len(works)

    def do(index: int) -> None:
        try:
            works[index]()
        except Exception as error:
            errors[index] = error

    threads = [threading.Thread(target=do, args=(index,), daemon=True) for index in range(len(works))]
    for thread in threads:
        thread.start()
    deadline = monotonic() + LATE
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))
    assert [thread.is_alive() for thread in threads] == [False] * len(works), "somebody still waits"
    return errors

"""web3.py's side of `ethereum`, in an environment of its own: `python web3_calls.py URI HOW SECONDS`.

Prints in JSON how long a call took over all threads, and how many of 100 were answered right.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any

THREADS, CALLS = 16, 100
ACCOUNT, BALANCE = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266", 10_000 * 10**18  # anvil's first
LOCK, EACH, NEITHER = "a lock", "each", "neither"


def asked_by_all(ask: Callable[[int, int], int]) -> tuple[float, int]:
    """100 calls of 16 threads, balances and block numbers by turns: how long (s), and how many were right.

    Args:
        ask: Gets the number of the thread, and that of the call: of an even one, it returns the balance.
    """
    right, start = [0] * THREADS, threading.Barrier(THREADS + 1)

    def work(thread: int) -> None:
        start.wait(60)
        for call in range(thread, CALLS, THREADS):
            wanted = 0 if call % 2 else BALANCE
            try:
                right[thread] += ask(thread, call) == wanted
            except Exception as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    start.wait(60)
    began = perf_counter()
    for thread in threads:
        thread.join()
    return perf_counter() - began, sum(right)


def asked_again_and_again(ask: Callable[[int, int], int], seconds: float) -> dict[str, float]:
    """The figures of that, over and over for so long."""
    asked_by_all(ask)
    times: list[float] = []
    rights: list[int] = []
    while sum(times) < seconds or len(times) < 3:
        took, right = asked_by_all(ask)
        times.append(took)
        rights.append(right)
    return {"time": sorted(times)[len(times) // 2] / CALLS, "right": sum(rights) / len(rights)}


def main(uri: str, how: str, seconds: str) -> None:
    """One provider for all threads, guarded by a lock or by nothing, or one for each."""
    from web3 import LegacyWebSocketProvider, Web3  # type: ignore[import-not-found]  # another environment

    one = Web3(LegacyWebSocketProvider(uri))
    clients: list[Any] = [Web3(LegacyWebSocketProvider(uri)) if how == EACH else one for _ in range(THREADS)]
    for client in clients:
        assert client.eth.block_number == 0  # and it is connected
    guard: AbstractContextManager[Any] = threading.Lock() if how == LOCK else nullcontext()

    def ask(thread: int, call: int) -> int:
        eth = clients[thread].eth
        with guard:
            return int(eth.block_number if call % 2 else eth.get_balance(ACCOUNT))

    print(json.dumps(asked_again_and_again(ask, float(seconds))), flush=True)


if __name__ == "__main__":
    import os

    main(*sys.argv[1:])
    os._exit(0)  # its event loop runs on

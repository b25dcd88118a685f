"""The peers that need an event loop, each at its best: on uvloop, with little Python around them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any

from tests.benchmarks.peers import PICOWS

BATCH = 1000  # messages between two looks at the clock


class Clock:
    """Time of one message (s), once `ends` has said so."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began: float | None = None  # not before the first batch, which warms up
        self.batches = 0
        self.time = 0.0

    def ends(self) -> bool:
        """A batch is over: whether it was the last one."""
        now = perf_counter()
        if self.began is None:
            self.began = now
            return False
        self.batches += 1
        self.time = (now - self.began) / (self.batches * BATCH)
        return now - self.began >= self.seconds


def stream(name: str, uri: str, seconds: float, decode: Callable[[str], Any] | None) -> float:
    """Time of one text message of a stream (s); `decode` makes its value."""
    import uvloop

    clock = Clock(seconds)
    uvloop.run((hear_picows if name == PICOWS else iterate_aiohttp)(uri, clock, decode))
    return clock.time


async def hear_picows(uri: str, clock: Clock, decode: Callable[[str], Any] | None) -> None:
    import picows

    over, left = asyncio.get_running_loop().create_future(), BATCH

    class Listener(picows.WSListener):  # type: ignore[misc]
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            nonlocal left
            text = frame.get_payload_as_utf8_text()
            if decode is not None:
                decode(text)
            left -= 1
            if not left:
                left = BATCH
                if clock.ends() and not over.done():
                    over.set_result(None)
                    transport.disconnect()

    await picows.ws_connect(Listener, uri)
    await over


async def iterate_aiohttp(uri: str, clock: Clock, decode: Callable[[str], Any] | None) -> None:
    import aiohttp

    session, left = aiohttp.ClientSession(), BATCH
    async for message in await session.ws_connect(uri):
        text = message.data
        if decode is not None:
            decode(text)
        left -= 1
        if not left:
            left = BATCH
            if clock.ends():
                break
    await session.close()  # without a closing handshake, which this server would not answer

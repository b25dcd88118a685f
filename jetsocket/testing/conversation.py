"""What a fake server does about what comes: finds the rule, runs its actions, and notes what is wrong.

All of it runs in the loop's thread. Imported when a server is started.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from jetsocket.testing.actions import Action, Callback, Close, Delay, Drop, Push, Reply
from jetsocket.testing.endpoint import Endpoint
from jetsocket.testing.payloads import Payload, payload_of, with_id
from jetsocket.testing.verdicts import Problem, raised

_NO_REQUEST = object()


class Conversation:
    """One connection's: what is done about each of its messages, in their order but for delays."""

    def __init__(
        self,
        endpoint: Endpoint,
        id_field: str | None,
        note: Callable[[Problem], None],
        under_way: set[asyncio.Future[None]],
    ) -> None:
        """Begin.

        Args:
            endpoint: The connection.
            id_field: Where requests carry their id.
            note: Called with what the test's own code raises.
            under_way: Where each message has a mark while its actions run, unless they are delayed.
        """
        self._endpoint = endpoint
        self._id_field = id_field
        self._note = note
        self._turn: asyncio.Future[None] | None = None
        self._under_way = under_way

    def perform(self, actions: list[Action], request: Any = _NO_REQUEST) -> None:
        """Begin to do something, after what was begun before."""
        if actions:
            previous, mine = self._turn, self._endpoint.loop.create_future()
            self._turn = mine
            self._under_way.add(mine)
            self._endpoint.spawn(self._perform(actions, request, previous, mine))

    async def _perform(
        self,
        actions: list[Action],
        request: Any,
        previous: asyncio.Future[None] | None,
        mine: asyncio.Future[None],
    ) -> None:
        def let_others_go() -> None:
            self._under_way.discard(mine)
            if not mine.done():
                mine.set_result(None)

        try:
            if previous is not None and not previous.done():
                await asyncio.shield(previous)
            for action in actions:
                await self._do(action, request, let_others_go)
        finally:
            let_others_go()

    async def _do(self, action: Action, request: Any, let_others_go: Callable[[], None]) -> None:
        endpoint = self._endpoint
        if isinstance(action, Reply):
            self._reply(action.value, request)
        elif isinstance(action, Callback):
            value = await self._called(action, request)
            if value is not None:
                self._reply(value, request)
        elif isinstance(action, Delay):
            let_others_go()
            await asyncio.sleep(action.seconds)
        elif isinstance(action, Push):
            await self._push(action, let_others_go)
        elif isinstance(action, Drop):
            await endpoint.drop()
        elif isinstance(action, Close):
            endpoint.close(action.code, action.reason)

    def _reply(self, value: Any, request: Any) -> None:
        self._endpoint.send(payload_of(with_id(value, request, self._id_field)))

    async def _push(self, action: Push, let_others_go: Callable[[], None]) -> None:
        payload = payload_of(action.value)
        if action.every is None:
            for _ in range(action.count or 1):
                self._endpoint.send(payload)
        elif action.count is None:  # what is chained after it does not wait for ever
            self._endpoint.spawn(self._repeat(payload, action.every, None))
        else:
            let_others_go()
            await self._repeat(payload, action.every, action.count)

    async def _repeat(self, payload: Payload, every: float, count: int | None) -> None:
        sent = 0
        while self._endpoint.send(payload):
            sent += 1
            if sent == count:
                return
            await asyncio.sleep(every)

    async def _called(self, action: Callback, request: Any) -> Any:
        """What the test's function returns; called in a thread, for it may wait and ask the server."""
        loop, result = self._endpoint.loop, self._endpoint.loop.create_future()

        def run() -> None:
            value, error = None, None
            try:
                value = action.function(request)
                if value is not None:
                    payload_of(value)
            except BaseException as raised_:  # noqa: BLE001  # whatever it is: the test is told
                error = raised_
            if not loop.is_closed():
                loop.call_soon_threadsafe(came_back, value, error)

        def came_back(value: Any, error: BaseException | None) -> None:
            if error is not None:
                self._note(raised("a callback", error, action.made_at))
                self._endpoint.close(1011, "a callback of the test raised")
            if not result.done():
                result.set_result(value if error is None else None)

        threading.Thread(target=run, name="fake-server-callback", daemon=True).start()
        return await result


__all__ = ["Conversation"]

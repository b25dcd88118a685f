"""What a fake server decides: which rule a message is for, who is let in, and what was wrong at the end."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jetsocket.clock import monotonic, sleep
from jetsocket.testing.payloads import Payload, decoded
from jetsocket.testing.places import caller
from jetsocket.testing.rules import Rule, Script
from jetsocket.testing.seen import SeenConnection
from jetsocket.testing.verdicts import Problem, raised, unexpected, unreached, verdict

if TYPE_CHECKING:
    from websockets.http11 import Response

    from jetsocket.testing.conversation import Conversation
    from jetsocket.testing.endpoint import Endpoint
    from jetsocket.testing.hub import Hub

_CALLBACK_PATIENCE = 1.0  # s that callbacks which still run have before the verdict
_PLUGIN = "jetsocket.testing.plugin"


@dataclass(frozen=True)
class Refusal:
    """An answer to the upgrade that refuses."""

    status: int
    body: str | bytes
    headers: Mapping[str, str]
    made_at: str


class Guest:
    """What the server knows of one connection."""

    def __init__(self, seen: SeenConnection, talk: Conversation, script: Script | None) -> None:
        """Note them."""
        self.seen = seen
        self.talk = talk
        self.script = script


class Judging:
    """The rules of a server, what it has seen, and the verdict.

    The loop's thread alone changes what rules and scripts have counted; the test's reads.
    """

    def __init__(self, id_field: str | None, assert_all_called: bool, assert_all_expected: bool) -> None:
        """Begin without rules."""
        self._id_field = id_field
        self._assert_all_called = assert_all_called
        self._assert_all_expected = assert_all_expected
        self._hub: Hub | None = None
        self._rules: list[Rule] = []
        self._scripts: list[Script] = []
        self._refusal: Refusal | None = None
        self._refusals: list[Refusal] = []
        self._accept_after = 0.0
        self._payloads: list[Payload] = []
        self._connections: list[SeenConnection] = []
        self._guests: dict[Endpoint, Guest] = {}
        self._problems: list[Problem] = []
        self._under_way: set[Any] = set()  # futures of the loop's
        self._is_told_unreached = False
        self.is_judged = False  # by pytest, at the end of the test
        self._news = threading.Condition()

    @property
    def _running(self) -> Hub:
        if self._hub is None:
            raise RuntimeError("the FakeServer is not started: write `with FakeServer() as server:`")
        self._refuse_if_over()
        return self._hub

    def _refuse_if_over(self) -> None:
        if self._hub is not None and self._hub.is_over:
            raise RuntimeError(
                "the FakeServer lives in the process that has started it; a fork can only look"
                if self._hub.is_elsewhere
                else "the FakeServer has ended; make a new one"
            )

    @property
    def _where(self) -> str:
        return "not started" if self._hub is None else f"at port {self._hub.port}"

    def _settle(self) -> None:
        if self._hub is not None:
            self._hub.settle()

    def _wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        if self.is_over:  # nothing more will come, and a fork may have the condition's lock
            return condition()
        until = monotonic() + timeout
        with self._news:
            while not condition():
                left = until - monotonic()
                if left <= 0:
                    return False
                self._news.wait(left)
        return True

    def _tell_pytest(self) -> None:
        """A server that runs is known to the plugin, if there is one."""
        if (plugin := sys.modules.get(_PLUGIN)) is not None:
            self.is_judged = plugin.server_started(self)

    @property
    def is_started(self) -> bool:
        """Whether it was started."""
        return self._hub is not None

    @property
    def is_over(self) -> bool:
        """Whether it was stopped, or lives in another process."""
        return self._hub is not None and self._hub.is_over

    # --- the endpoints' questions, in the loop's thread ------------------------------------------------

    async def _upgrade(self, endpoint: Endpoint) -> Response | None:
        """Whether a connection is let in."""
        import asyncio

        from jetsocket.testing.conversation import Conversation
        from jetsocket.testing.endpoint import refusal

        path, _, query = endpoint.target.partition("?")
        seen = SeenConnection(path, query, endpoint.headers, self._settle)
        talk = Conversation(endpoint, self._id_field, self._note, self._under_way)
        self._guests[endpoint] = Guest(seen, talk, None)
        self._connections.append(seen)
        given = self._refusals.pop(0) if self._refusals else self._refusal
        if given is not None:
            seen._status = given.status
            return refusal(given.status, given.body, given.headers)
        if self._accept_after:
            await asyncio.sleep(self._accept_after)
        return None

    def _choose(self, offered: list[str], endpoint: Endpoint) -> str | None:
        """The first subprotocol that the client offers."""
        return offered[0] if offered else None

    def _opened(self, endpoint: Endpoint) -> None:
        """A connection was let in, and takes the next script that is for it."""
        guest = self._guests[endpoint]
        guest.seen._status, guest.seen._subprotocol = endpoint.status, endpoint.subprotocol
        script = next((each for each in self._scripts if each.fits(endpoint.path)), None)
        if script is not None:
            script.has_begun = True
            guest.script = script
            guest.talk.perform(script.take())
        self._tell()

    def _ended(self, endpoint: Endpoint) -> None:
        """A connection is over."""
        guest = self._guests.pop(endpoint, None)
        if guest is not None:
            guest.seen._status = endpoint.status if guest.seen._status is None else guest.seen._status
            guest.seen._close_code = endpoint.close_code
        self._tell()

    def _closing(self, endpoint: Endpoint) -> None:
        """One side has sent a close frame."""
        self._guests[endpoint].seen._close_code = endpoint.close_code

    def _received(self, endpoint: Endpoint, payload: Payload) -> None:
        """Answer a message."""
        guest, message = self._guests[endpoint], decoded(payload)
        guest.seen._messages.append(message)
        self._payloads.append(payload)
        try:
            self._answer(endpoint, guest, message, payload)
        finally:
            self._tell()

    def _answer(self, endpoint: Endpoint, guest: Guest, message: Any, payload: Payload) -> None:
        script = guest.script
        if script is not None and script.awaited is not None:
            waits_for = Rule(script.awaited.matcher, None, script.told)
            if self._fits(waits_for, message, payload, script.told):
                script.advance()
                guest.talk.perform(script.take(), message)
                return
        for rule in self._rules:
            if (
                rule.fits(endpoint.path)
                and not rule.used_up
                and self._fits(rule, message, payload, rule.told)
            ):
                try:
                    actions = rule.take()
                except Exception as error:  # noqa: BLE001  # the test's iterator may raise anything
                    self._note(raised("reply_each", error, rule.told))
                    endpoint.close(1011, "an iterator of the test raised")
                    return
                guest.talk.perform(actions, message)
                return
        self._unmatched(endpoint, guest, message, payload)

    def _unmatched(self, endpoint: Endpoint, guest: Guest, message: Any, payload: Payload) -> None:
        """A message that no rule matches."""
        if self._assert_all_expected:
            self._note(unexpected(message, payload, endpoint.path, self._rules, guest.script))
            endpoint.close(1011, "no rule of the test matches this message")

    def _fits(self, rule: Rule, message: Any, payload: Payload, told: str) -> bool:
        try:
            return rule.matches(message, payload)
        except Exception as error:  # noqa: BLE001  # the test's callable may raise anything
            self._note(raised("a matcher", error, told))
            return False

    def _note(self, problem: Problem) -> None:
        self._problems.append(problem)

    def _tell(self) -> None:
        with self._news:
            self._news.notify_all()

    # --- the verdict -----------------------------------------------------------------------------------

    def verdict(self, *, final: bool = True) -> AssertionError | None:
        """What is wrong that has not been told yet; None: nothing.

        Reads what is still on its way first.

        Args:
            final: Whether rules and steps that were never reached count already.
        """
        if self._hub is not None:
            if self._hub.is_elsewhere:
                return None  # a fork's copy: what is wrong is told where the server lives
            self._settle()
            until = monotonic() + _CALLBACK_PATIENCE
            while self._under_way and not self.is_over and monotonic() < until:
                sleep(0.001)
            self._problems += [raised("the server", error, caller()) for error in self._hub.failures]
            self._hub.failures.clear()
        found, self._problems = self._problems, []
        if final and self._assert_all_called and not self._is_told_unreached:
            self._is_told_unreached = True
            found += self._unreached()
        return verdict(f"FakeServer {self._where}", found) if found else None

    def _unreached(self) -> list[Problem]:
        pending = [f"reject_once({each.status}), made at {each.made_at}" for each in self._refusals]
        return unreached(self._rules, self._scripts, pending)

    def excuse(self) -> None:
        """What was never reached is no fault any more: the test was broken off."""
        self._is_told_unreached = True


__all__ = ["Guest", "Judging", "Refusal"]

"""A fleet in one process: the books of many members, the real script on a real Redis, and a clock of its own.

Time goes on by moving back what Redis has written down, and forward the clocks of the members. So a minute of
a thousand processes takes as long as their calls.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from time import monotonic
from typing import Any

from jetsocket.contrib.redis.member import NO, NOW, WAIT, Member
from jetsocket.contrib.redis.script import SOURCE, Answer, Call, inbox_of, prefix_of
from jetsocket.contrib.redis.tokens import Outcome, Settings, Token

AGE = 2.0**-42  # see script.lua


class Clock:
    """Seconds, as all processes see them: what was skipped comes on top of what really went by."""

    def __init__(self) -> None:
        self.skipped = 1000.0

    @property
    def now(self) -> float:
        return self.skipped + monotonic()


class Process:
    """One process of the fleet: its books, its open connections, and what its thread would do."""

    def __init__(self, fleet: Fleet, **settings: Any) -> None:
        self.fleet = fleet
        self.member = Member(Settings(**{**fleet.settings, **settings}))
        self.open: list[Token] = []
        self.wants = 0  # connections more
        self.is_stopped = self.is_dead = False
        self.is_cut_off = False
        self.lost = 0

    @property
    def now(self) -> float:
        return self.fleet.clock.now

    def call(self, want: int | None = None, *, renew: bool = False, answer_is_lost: bool = False) -> None:
        """One call; or Redis is away."""
        if want is None:
            want = WAIT if self.wants else NO
        sent = self.now
        if want == NO:
            self.member.return_unwanted()
        call = self.member.call(sent, renew=renew, want=want, label="x")
        if self.is_cut_off:
            self.member.failed("cut off", self.now)
            return
        if self.fleet.late is not None:
            self.fleet.late.append(call)
            self.member.failed("no answer", self.now)
            return
        raw = self.fleet.run(call)
        if answer_is_lost:
            self.member.failed("lost", self.now)
            return
        self.do(self.member.answered(call, Answer.of(raw), sent, self.now))

    def do(self, outcome: Outcome) -> None:
        """What pools would do: close what is lost, open what is granted."""
        for token, _ in outcome.lost:
            self.lost += 1
            self.open.remove(token)
            self.member.release(token)
        while self.member.granted and self.wants:
            self.wants -= 1
            self.open.append(self.member.granted.popleft())

    def close(self, token: Token) -> None:
        """Close one connection."""
        self.open.remove(token)
        self.member.press.released()
        if self.member.release(token):
            self.call()

    def read_inbox(self) -> None:
        """All messages."""
        key = inbox_of(self.fleet.settings["name"], self.member.id)
        while not self.is_cut_off:
            text = self.fleet.redis.lpop(key)
            if text is None:
                return
            self.do(self.member.message(text.decode(), self.now))

    def tick(self) -> None:
        """What the thread does."""
        if self.is_stopped or self.is_dead:
            return
        self.do(self.member.end_leases(self.now))
        if self.member.is_call_due(self.now):
            self.call(renew=self.now >= self.member.renew_at)
        if self.member.away is None:
            self.read_inbox()
            if self.wants and not self.member.asking:
                self.call(WAIT)


class Fleet:
    """Processes, and the Redis they share."""

    def __init__(self, redis: Any, *, name: str = "fleet", limit: int = 10, lease: float = 10.0, **more: Any):
        self.redis = redis
        self.clock = Clock()
        self.settings: dict[str, Any] = {
            "name": name,
            "limit": limit,
            "lease": lease,
            "turn": 1.0,
            "on_error": "closed",
            "share": None,
            **more,
        }
        self.processes: list[Process] = []
        self.most_open = 0
        self.calls = 0
        self.late: list[Call] | None = None
        self._script = redis.register_script(SOURCE)

    def add(self, **settings: Any) -> Process:
        process = Process(self, **settings)
        self.processes.append(process)
        return process

    def run(self, call: Call) -> Any:
        """The script, on the real Redis."""
        self.calls += 1
        return self._script(keys=call.keys(), args=call.arguments())

    @property
    def open(self) -> int:
        """Connections that the service sees."""
        return sum(len(process.open) for process in self.processes if not process.is_dead)

    def kill(self, process: Process) -> None:
        """Its connections are closed by the kernel."""
        process.is_dead = True

    def pass_time(self, seconds: float, step: float = 0.1, check: Callable[[], None] | None = None) -> None:
        """All threads run meanwhile, each a few times."""
        for _ in range(max(1, round(seconds / step))):
            self.move(step)
            for process in self.processes:
                process.tick()
                self.most_open = max(self.most_open, self.open)
            if check is not None:
                check()

    def move(self, seconds: float) -> None:
        """The clock goes on, Redis's and all others."""
        self.clock.skipped += seconds
        self.move_redis(seconds)

    def move_redis(self, seconds: float) -> None:
        """Redis's clock goes on (or back) by so much, and no other."""
        gone = round(seconds * 1000)
        prefix = prefix_of(self.settings["name"])
        pipe = self.redis.pipeline()
        for key in ("leases", "members", "asked"):
            for each, score in self.redis.zrange(prefix + key, 0, -1, withscores=True):
                pipe.zadd(prefix + key, {each: score - gone})
        for each, score in self.redis.zrange(prefix + "held", 0, -1, withscores=True):
            pipe.zadd(prefix + "held", {each: score + gone * AGE})
        for field, value in self.redis.hgetall(prefix + "group").items():
            if field in (b"born", b"until", b"hold"):
                pipe.hset(prefix + "group", field, round(float(value)) - gone)
        pipe.execute()

    def stall(self) -> None:
        """Redis answers nothing, and runs later what it is sent now."""
        self.late = []

    def thaw(self) -> None:
        """It runs all that, for processes that wait for no answer any more."""
        late, self.late = self.late or [], None
        for call in late:
            self.run(call)

    def flush(self, *, breaks: bool) -> None:
        """Redis is empty; restarted, if connections break."""
        self.redis.flushall()
        for process in self.processes:
            if breaks:
                process.member.broke(self.clock.now)


def shuffle(fleet: Fleet, choice: random.Random) -> None:
    """Something happens."""
    alive = [each for each in fleet.processes if not (each.is_dead or each.is_stopped)]
    if not alive:
        return
    one = choice.choice(alive)
    what = choice.random()
    if what < 0.35:
        if not one.wants and one.member.away is None:
            one.wants += choice.randint(1, 3)
            one.call(choice.choice([NOW, WAIT]), answer_is_lost=choice.random() < 0.1)
    elif what < 0.75:
        if one.open:
            one.close(choice.choice(one.open))
    elif what < 0.8:
        one.wants = 0
        one.call(NO)
    elif what < 0.85:
        one.call(renew=True, answer_is_lost=True)
    elif what < 0.9:
        one.is_cut_off = not one.is_cut_off
    elif what < 0.92 and len(alive) > 2:
        fleet.kill(one)
        fleet.add()

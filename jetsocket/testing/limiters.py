"""`check_limiter`: whether a limiter keeps what `jetsocket.limits.Limiter` promises to pools.

Each call of the limiter is made in a thread of its own, so that one that never returns ends the check rather
than hangs it. How long a call takes is judged by the fastest of some, for a busy machine makes others late.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from random import choice, uniform
from time import monotonic, sleep
from typing import Any

from jetsocket.limits import Limiter

__all__ = ["check_limiter"]

_HANDLES = 4
_HANG = 10.0  # s after which a call hangs, or a slot does not come
_MOST = 60.0  # s for everything, and for each slot a little more
_EACH = 0.1
_LATE = 0.5  # s that a call may take beyond its time, in the fastest of some tries
_TRIES = 3
_SHORT = 0.3  # s: a timeout that is to be kept
_LONG = 600.0  # s: one that nothing is to wait for
_ASKED = 1.5  # s within which `wanted` is asked again; once a second is what is said
_CHURN = 1.0  # s
_SPARE = 2  # slots that change hands meanwhile
_PAUSE = 0.02  # s before a limiter that had none at once is asked again


def check_limiter(make: Callable[[], Limiter], *, limit: int) -> None:
    """Check that a limiter does what a pool relies on; takes a few seconds, and ends whatever it does.

    Args:
        make: Returns one more handle on the same slots, as another pool or process would have it; called four
            times. Of a limiter that pools share, it may return the same object each time.
        limit: How many slots there are, all of them free. With 2 or more it tells more than with 1.

    Raises:
        AssertionError: It does not; which rule is broken.
    """
    check = _Check(make, limit)
    try:
        check.run()
    except BaseException:
        check.give_back()
        raise


class _Call:
    """A call that is made in a thread of its own.

    Attributes:
        took: How long it took (s), once it is over.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._over = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self.took = 0.0
        threading.Thread(target=self._run, name="check_limiter", daemon=True).start()

    def _run(self) -> None:
        began = monotonic()
        try:
            self._value = self._function()
        except BaseException as error:  # noqa: BLE001  # `result` raises it
            self._error = error
        self.took = monotonic() - began
        self._over.set()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; False: it goes on."""
        return self._over.wait(seconds)

    def result(self, seconds: float, rule: str) -> Any:
        """What it returned; if it does not end in that time, a rule is broken."""
        if not self.wait(seconds):
            raise AssertionError(rule)
        if isinstance(self._error, AssertionError):
            raise self._error
        if self._error is not None:
            told = f"the limiter raises {type(self._error).__name__} ({self._error}) with nothing wrong"
            raise AssertionError(told) from self._error
        return self._value


class _Wanted:
    """What a pool passes as `wanted`.

    Attributes:
        owner: The pool.
        is_so: What is answered.
        asked: How often it was.
        most: How often, at most, the answer is yes.
    """

    def __init__(self, owner: _Handle, most: float = float("inf")) -> None:
        self.owner = owner
        self.is_so = True
        self.asked = 0
        self.most = most

    def __call__(self) -> bool:
        self.asked += 1
        return self.is_so and self.asked <= self.most


class _Handle:
    """A limiter, and the pool that uses it: its owner, and all that it holds.

    Attributes:
        limiter: The limiter.
        out: The tokens that it holds.
        told: Of which tokens the limiter has said that they are lost, and why.
    """

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.out: set[Hashable] = set()
        self.told: list[str] = []

    def lost(self, token: Hashable, reason: str) -> None:
        """See `Owner.lost`."""
        self.told.append(reason)

    def give_up(self, count: int = 1, *, returned: bool = False) -> None:
        """See `Owner.give_up`: all that it has is in use."""

    def take(self, token: Hashable) -> None:
        """It holds one more."""
        try:
            is_known = token in self.out
        except TypeError as error:
            raise AssertionError(f"its tokens are not hashable: {token!r}") from error
        if is_known:
            raise AssertionError(f"its tokens are not unique: {token!r} was given while it was out")
        self.out.add(token)


class _Check:
    def __init__(self, make: Callable[[], Limiter], limit: int) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"limit must be an int, 1 or more, not {limit!r}")
        self._limit = limit
        self._until = monotonic() + _MOST + _EACH * limit
        self._handles: list[_Handle] = []
        for _ in range(_HANDLES):
            limiter: Any = self._in_time(make, "make() does not return")
            if not isinstance(limiter, Limiter):
                raise AssertionError(f"make() returns no jetsocket.limits.Limiter but {limiter!r}")
            self._handles.append(_Handle(limiter))
        self._lock = threading.Lock()  # guards the two below
        self._busy, self._is_over = 0, False

    def run(self) -> None:
        """All rules, one after the other."""
        for handle in self._handles:
            self._in_time(partial(handle.limiter.bind, handle), "bind() does not return")
        first, second = self._handles[:2]
        for _ in range(self._limit):
            self._get(first)
        self._see_that_it_is_full()
        self._see_that_timeouts_are_kept(second)
        self._see_that_wanted_is_asked(second)
        for waits in (second, first):
            self._see_that_a_waiter_is_woken(waits, max((first, second), key=lambda each: len(each.out)))
        self._see_that_none_is_lost()
        self._see_that_many_at_once_are_no_trouble()
        self._see_that_none_is_lost()
        for handle in self._handles:
            while handle.out:
                self._release(handle)
            stats = self._in_time(handle.limiter.stats, "stats() does not return")
            if not isinstance(stats, Mapping):
                raise AssertionError(f"stats() returns no mapping but {stats!r}")
            self._in_time(partial(handle.limiter.unbind, handle, _LATE), "unbind() does not return")
            if handle.told:
                raise AssertionError(
                    f"it loses a slot: it told a pool so, with the reason {handle.told[0]!r}"
                )

    def give_back(self) -> None:
        """The check has failed: as far as it goes, leave nothing behind."""

        def leave() -> None:
            for handle in self._handles:
                for token in list(handle.out):
                    handle.limiter.release(token)
                handle.limiter.unbind(handle, _LATE)

        _Call(leave).wait(2 * _LATE)

    # --- the rules

    def _see_that_it_is_full(self) -> None:
        """None comes while all are out; and with a timeout of 0, that is said at once."""
        rule = "it blocks at timeout 0: acquire(0, wanted) takes {} while all slots are out"
        for handle in self._handles:
            self._see_that_it_takes(handle, 0, _LATE, rule)

    def _see_that_timeouts_are_kept(self, handle: _Handle) -> None:
        rule = f"it ignores its timeout: acquire({_SHORT}, wanted) takes {{}} while all slots are out"
        self._see_that_it_takes(handle, _SHORT, _SHORT + _LATE, rule)

    def _see_that_it_takes(self, handle: _Handle, timeout: float, most: float, rule: str) -> None:
        took = []
        for _ in range(_TRIES):
            call = self._acquiring(handle, timeout)
            self._see_that_none_came(self._result(call, rule.format(f"more than {_HANG:.3g} s")))
            took.append(call.took)
            if call.took <= most:
                return
        raise AssertionError(rule.format(f"{min(took):.3g} s"))

    def _see_that_wanted_is_asked(self, handle: _Handle) -> None:
        took = []
        for _ in range(_TRIES):
            wanted = _Wanted(handle)
            call = self._acquiring(handle, _LONG, wanted)
            call.wait(_SHORT)
            began = monotonic()
            wanted.is_so = False
            rule = "it ignores wanted: acquire() goes on waiting when that has said no"
            self._see_that_none_came(self._result(call, f"{rule}, for more than {_HANG:.3g} s"))
            took.append(monotonic() - began)
            if took[-1] <= _ASKED + _LATE:
                return
        raise AssertionError(f"{rule}, for {min(took):.3g} s: it is to be asked once a second")

    def _see_that_a_waiter_is_woken(self, waits: _Handle, gives: _Handle) -> None:
        wanted = _Wanted(waits)
        call = _Call(partial(self._wait_for_one, waits, wanted))
        until = monotonic() + _SHORT
        while not wanted.asked and monotonic() < until:
            sleep(_PAUSE)
        self._release(gives)
        rule = "it never wakes a waiter: acquire() goes on waiting when a slot is released"
        waits.take(self._result(call, f"{rule}, for more than {_HANG:.3g} s"))

    def _see_that_none_is_lost(self) -> None:
        """All slots are given anew to those who ask now, and not one more."""
        for handle in self._handles:
            while handle.out:
                self._release(handle)
        for number in range(self._limit):
            self._get(self._handles[number % _HANDLES])
        self._see_that_it_is_full()

    def _see_that_many_at_once_are_no_trouble(self) -> None:
        """Slots come back just when a time is over, or when no slot is wanted any more."""
        spare = 0
        for handle in self._handles:
            while handle.out and spare < min(_SPARE, self._limit):
                self._release(handle)
                spare += 1
        until = monotonic() + _CHURN
        calls = [
            _Call(partial(self._take_turns, handle, spare, until, waits=waits))
            for handle in self._handles
            for waits in (True, False)
        ]
        try:
            for call in calls:
                self._result(call, "it ignores its timeout: a short one, with others asking at the same time")
        finally:
            self._is_over = True

    def _take_turns(self, handle: _Handle, spare: int, until: float, *, waits: bool) -> None:
        """Have a slot for a moment, again and again. One thread of each pool waits, others ask at once."""
        mine: set[Hashable] = set()
        while monotonic() < until and not self._is_over:
            wanted = _Wanted(handle, choice((0, 1, 2, 1000)))
            token = handle.limiter.acquire(uniform(0, _PAUSE) if waits else 0, wanted)
            if token is None:
                sleep(uniform(0, _PAUSE / 10))
                continue
            with self._lock:
                handle.take(token)
                mine.add(token)
                self._busy += 1  # a slot is counted for less long than it is held
                if self._busy > spare:
                    self._see_that_none_came(token)
            sleep(uniform(0, _PAUSE / 5))
            with self._lock:
                self._busy -= 1
                handle.out.discard(token)
            handle.limiter.release(token)

    # --- what they are made of

    def _get(self, handle: _Handle) -> None:
        """Get one slot, of which there are free ones."""
        count = sum(len(each.out) for each in self._handles)
        rule = f"it loses a slot, or never had {self._limit}: with {count} out, no other came"
        call = _Call(partial(self._wait_for_one, handle, _Wanted(handle)))
        handle.take(self._result(call, f"{rule} in {_HANG:.3g} s"))

    def _wait_for_one(self, handle: _Handle, wanted: _Wanted) -> Hashable:
        """Ask until one comes, as a pool does."""
        until = monotonic() + 2 * _HANG
        while (left := until - monotonic()) > 0:
            token = handle.limiter.acquire(left, wanted)
            if token is not None:
                return token
            sleep(_PAUSE)
        return None

    def _acquiring(self, handle: _Handle, timeout: float, wanted: _Wanted | None = None) -> _Call:
        return _Call(partial(handle.limiter.acquire, timeout, wanted or _Wanted(handle)))

    def _release(self, handle: _Handle) -> None:
        token = handle.out.pop()
        self._in_time(partial(handle.limiter.release, token), "release() does not return")

    def _see_that_none_came(self, token: Hashable) -> None:
        if token is not None:
            told = f"it gives one too many: a token came while {self._limit} were out"
            raise AssertionError(f"{told}; are all that make() returns handles on the same slots?")

    def _in_time(self, function: Callable[[], Any], rule: str) -> Any:
        return self._result(_Call(function), rule)

    def _result(self, call: _Call, rule: str) -> Any:
        left = self._until - monotonic()
        if left < _HANG and not call.wait(max(0.0, left)):
            raise AssertionError(f"it is too slow to be checked; what came last: {rule}")
        return call.result(_HANG, rule)

"""`check_limiter` finds each way in which a limiter can be wrong, and nothing with one that is right."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from jetsocket.limits import FileLimiter, Limiter, LocalLimiter, Owner
from jetsocket.testing import check_limiter, limiters

Wanted = Callable[[], bool]


class AtMost(Limiter):
    """One of 20 lines, as in docs/limiter.md: nothing is wrong with it."""

    def __init__(self, most: int) -> None:
        self._free = threading.BoundedSemaphore(most)

    def acquire(self, timeout: float, wanted: Wanted) -> Hashable | None:
        until = monotonic() + timeout
        while wanted():
            left = max(0.0, until - monotonic())
            if self._free.acquire(timeout=min(left, 0.5)):
                return object()
            if left == 0.0:
                return None
        return None

    def release(self, token: Hashable) -> None:
        self._free.release()


class NeverWaits(AtMost):
    """Has a slot at once, or not at all: a pool asks it again."""

    def acquire(self, timeout: float, wanted: Wanted) -> Hashable | None:
        return super().acquire(0, wanted)


class Numbers(AtMost):
    """Of which the first token is 0, which is a token like any other."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._numbers = itertools.count()

    def acquire(self, timeout: float, wanted: Wanted) -> Hashable | None:
        return None if super().acquire(timeout, wanted) is None else next(self._numbers)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 7])
@pytest.mark.parametrize("kind", [AtMost, NeverWaits, Numbers, LocalLimiter])
def test_nothing_is_wrong_with_one_that_is_right(kind: type[Any], limit: int) -> None:
    limiter = kind(limit)
    check_limiter(lambda: limiter, limit=limit)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 40])
def test_nothing_is_wrong_with_one_of_many_handles(tmp_path: Path, limit: int) -> None:
    check_limiter(lambda: FileLimiter(tmp_path / "slots", limit), limit=limit)
    assert FileLimiter(tmp_path / "slots", limit).stats()["held"] == 0


# --- and these are wrong


class OneTooMany(AtMost):
    def __init__(self, most: int) -> None:
        super().__init__(most + 1)


class OneTooFew(AtMost):
    def __init__(self, most: int) -> None:
        super().__init__(most - 1)


class Racing(Limiter):
    """Looks, and takes: two may look before one takes."""

    def __init__(self, most: int) -> None:
        self._free = most

    def acquire(self, timeout: float, wanted: Wanted) -> Hashable | None:
        until = monotonic() + timeout
        while not self._free:
            if monotonic() >= until or not wanted():
                return None
            sleep(0.001)
        sleep(0.001)
        self._free -= 1
        return object()

    def release(self, token: Hashable) -> None:
        self._free += 1


class LosingWhatComesLate(AtMost):
    """A slot that comes when it is not wanted any more is lost."""

    def acquire(self, timeout: float, wanted: Wanted) -> Hashable | None:
        token = super().acquire(timeout, wanted)
        return token if token is None or wanted() else None


class LosingSomeReleases(AtMost):
    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._releases = itertools.count(1)

    def release(self, token: Hashable) -> None:
        if next(self._releases) % 3:
            super().release(token)


class IgnoringTimeouts(AtMost):
    def acquire(self, timeout: float, wanted: Wanted) -> Hashable | None:
        return super().acquire(1000 if timeout else 0, wanted)


class TakingItsTime(AtMost):
    """Waits for 1.5 s at least, if it waits at all."""

    def acquire(self, timeout: float, wanted: Wanted) -> Hashable | None:
        return super().acquire(max(1.5, timeout) if timeout else 0, wanted)


class BlockingAtZero(AtMost):
    def acquire(self, timeout: float, wanted: Wanted) -> Hashable | None:
        return super().acquire(timeout or 1000, wanted)


class SlowAtZero(AtMost):
    def acquire(self, timeout: float, wanted: Wanted) -> Hashable | None:
        return super().acquire(timeout or 1.0, wanted)


class IgnoringWanted(AtMost):
    def acquire(self, timeout: float, wanted: Wanted) -> Hashable | None:
        return super().acquire(timeout, lambda: True)


class AskingSeldom(AtMost):
    def acquire(self, timeout: float, wanted: Wanted) -> Hashable | None:
        asked_at, answer = monotonic(), wanted()

        def seldom() -> bool:
            nonlocal asked_at, answer
            if monotonic() > asked_at + 1.8:
                asked_at, answer = monotonic(), wanted()
            return answer

        return super().acquire(timeout, seldom)


class NeverWaking(AtMost):
    """Looks at the start, and at the end."""

    def acquire(self, timeout: float, wanted: Wanted) -> Hashable | None:
        until = monotonic() + timeout
        token = super().acquire(0, wanted)
        while token is None and monotonic() < until and wanted():
            sleep(min(0.05, max(0.0, until - monotonic())))
        return token or super().acquire(0, wanted)


class GivingTheSame(AtMost):
    def acquire(self, timeout: float, wanted: Wanted) -> Hashable | None:
        return None if super().acquire(timeout, wanted) is None else "token"


class GivingLists(AtMost):
    def acquire(self, timeout: float, wanted: Wanted) -> Any:
        return None if super().acquire(timeout, wanted) is None else ["token"]


class RaisingInAcquire(AtMost):
    def acquire(self, timeout: float, wanted: Wanted) -> Hashable | None:
        raise OSError("the limiter's server is gone")


class RaisingInRelease(AtMost):
    def release(self, token: Hashable) -> None:
        super().release(token)
        raise KeyError(token)


class TellingThatItIsLost(AtMost):
    def bind(self, owner: Owner) -> None:
        self._owner = owner

    def release(self, token: Hashable) -> None:
        super().release(token)
        self._owner.lost(token, "of no use")


class HangingInRelease(AtMost):
    def release(self, token: Hashable) -> None:
        sleep(1000)


class HangingInBind(AtMost):
    def bind(self, owner: Owner) -> None:
        sleep(1000)


class HangingInUnbind(AtMost):
    def unbind(self, owner: Owner, timeout: float) -> None:
        sleep(1000)


class HangingInStats(AtMost):
    def stats(self) -> Mapping[str, Any]:
        sleep(1000)
        return {}


class TellingNumbers(AtMost):
    def stats(self) -> Any:
        return 7


WRONG = {
    OneTooMany: "it gives one too many: a token came while 3 were out",
    Racing: "it gives one too many",
    OneTooFew: "it loses a slot, or never had 3: with 2 out, no other came",
    LosingWhatComesLate: "it loses a slot",
    LosingSomeReleases: "it loses a slot|it never wakes a waiter",
    IgnoringTimeouts: "it ignores its timeout: .* takes more than",
    TakingItsTime: r"it ignores its timeout: .* takes 1\.\d* s",
    BlockingAtZero: "it blocks at timeout 0: .* takes more than",
    SlowAtZero: r"it blocks at timeout 0: .* takes 1(\.\d*)? s",
    IgnoringWanted: "it ignores wanted",
    AskingSeldom: "it ignores wanted: .*: it is to be asked once a second",
    NeverWaking: "it never wakes a waiter",
    GivingTheSame: "its tokens are not unique: 'token' was given while it was out",
    GivingLists: r"its tokens are not hashable: \['token'\]",
    RaisingInAcquire: "the limiter raises OSError .the limiter's server is gone",
    RaisingInRelease: "the limiter raises KeyError",
    TellingThatItIsLost: "it loses a slot: it told a pool so, with the reason 'of no use'",
    HangingInRelease: r"release\(\) does not return",
    HangingInBind: r"bind\(\) does not return",
    HangingInUnbind: r"unbind\(\) does not return",
    HangingInStats: r"stats\(\) does not return",
    TellingNumbers: r"stats\(\) returns no mapping but 7",
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rule"), WRONG.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_what_is_wrong_is_found_and_named(
    kind: type[Any], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, shorter in {"_HANG": 2.0, "_ASKED": 0.6, "_CHURN": 0.5}.items():
        monkeypatch.setattr(limiters, name, shorter)
    limiter = kind(3)
    with pytest.raises(AssertionError, match=rule):
        check_limiter(lambda: limiter, limit=3)


def test_handles_on_slots_of_their_own_give_too_many() -> None:
    with pytest.raises(AssertionError, match=r"are all that .* returns handles on the same slots"):
        check_limiter(lambda: AtMost(2), limit=2)


@pytest.mark.slow
def test_one_that_is_slow_all_the_time_ends_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(AtMost):
        def release(self, token: Hashable) -> None:
            sleep(0.5)
            super().release(token)

    monkeypatch.setattr(limiters, "_MOST", 3.0)
    limiter = Slow(3)
    began = monotonic()
    with pytest.raises(AssertionError, match="it is too slow to be checked; what came last: "):
        check_limiter(lambda: limiter, limit=3)
    assert monotonic() - began < 20


def test_what_was_got_is_given_back_when_the_check_fails() -> None:
    limiter = OneTooMany(2)
    with pytest.raises(AssertionError, match="one too many"):
        check_limiter(lambda: limiter, limit=2)
    tokens = [limiter.acquire(5, lambda: True) for _ in range(2)]  # the third is the one too many
    assert None not in tokens


@pytest.mark.parametrize("limit", [0, -1, True, 2.0, "2"])
def test_a_limit_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(ValueError, match="limit must be an int, 1 or more"):
        check_limiter(lambda: AtMost(1), limit=limit)


@pytest.mark.parametrize("made", [None, object(), AtMost])
def test_what_is_no_limiter_is_refused(made: Any) -> None:
    with pytest.raises(AssertionError, match=r"make\(\) returns no jetsocket.limits.Limiter but"):
        check_limiter(lambda: made, limit=1)


def test_what_make_raises_is_told() -> None:
    with pytest.raises(AssertionError, match="raises ZeroDivisionError"):
        check_limiter(lambda: 1 // 0, limit=1)  # type: ignore[arg-type,return-value]  # it never returns

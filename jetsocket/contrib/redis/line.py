"""How openers get a slot: at once or not, or in line until one is granted."""

from __future__ import annotations

from collections.abc import Callable

from jetsocket.clock import with_sleep
from jetsocket.contrib.redis.desk import Away, Desk
from jetsocket.contrib.redis.tokens import Token
from jetsocket.exceptions import ConnectionError
from jetsocket.limits import Owner

__all__ = ["take", "wait"]

_GLANCE = 0.25  # s between two looks at whether it is wanted still
_NUDGE = 1.0  # s between two requests to the other pools of this process


class _Waiting:
    """One who waits in line."""

    def __init__(self, owner: Owner | None, until: float) -> None:
        self.owner = owner
        self.until = until
        self.nudge_at = 0.0


def take(desk: Desk, owner: Owner | None) -> Token | None:
    """A slot at once, or none.

    Raises:
        ConnectionError: Redis is away, and `on_error` allows none.
    """
    with desk.lock:
        if desk.line:
            return None  # they were first
        is_asked = bool(desk.member.granted) or desk.member.away is not None
    if not is_asked:
        try:
            desk.call(now_or_never=True)
        except Away:
            return _without_redis(desk, owner)
    with desk.lock:
        if desk.line:
            return None
        if desk.member.granted:
            return _owned(desk.member.granted.popleft(), owner)
        is_away = desk.member.away is not None
    return _without_redis(desk, owner) if is_away else None


def wait(desk: Desk, until: float, wanted: Callable[[], bool], owner: Owner | None) -> Token | None:
    """A slot before `until`, while it is wanted; None: none.

    Raises:
        ConnectionError: Redis is away, and `on_error` allows none.
    """
    me, is_wanted = _Waiting(owner, until), True
    with desk.lock:
        desk.line.append(me)
    try:
        while is_wanted and not desk.is_over:
            token = _next(desk, me)
            if token is not None or with_sleep() >= until:
                return token
            is_wanted = wanted()
        return None
    finally:
        _leave_line(desk, me, is_wanted)


def _next(desk: Desk, me: _Waiting) -> Token | None:
    """Ask for a slot if that is not done, and wait a moment for what is granted."""
    member = desk.member
    with desk.lock:
        if member.granted and desk.line[0] is me:
            return _owned(member.granted.popleft(), me.owner)
        is_away = member.away is not None
        asks = not (is_away or member.asking or member.granted)
        others: list[Owner] = []
        if with_sleep() >= me.nudge_at:
            me.nudge_at = with_sleep() + _NUDGE
            others = [each for each in desk.owners if each is not me.owner]
    for other in others:
        other.give_up(1)
    if asks:
        try:
            desk.call()
        except Away:
            is_away = True
    if is_away:
        token = _without_redis(desk, me.owner)
        if token is not None:
            return token
    with desk.lock:
        is_news = (bool(member.granted) and desk.line[0] is me) or (member.away is not None) != is_away
        if not is_news and not desk.is_over:
            desk.changed.wait(max(0.0, min(_GLANCE, me.until - with_sleep())))
        if member.granted and desk.line[0] is me:
            return _owned(member.granted.popleft(), me.owner)
    return None


def _owned(token: Token, owner: Owner | None) -> Token:
    token.owner = owner
    return token


def _leave_line(desk: Desk, me: _Waiting, is_wanted: bool) -> None:
    with desk.lock:
        desk.line.remove(me)
        desk.changed.notify_all()  # another one is first now
        if desk.line:
            return
        # Who has waited in vain mostly waits again at once: it keeps its ticket so long.
        desk.left_at = with_sleep() if is_wanted else 0.0
        member = desk.member
        withdraws = not is_wanted and member.away is None and (member.asking or bool(member.granted))
    if withdraws:
        desk.try_call()


def _without_redis(desk: Desk, owner: Owner | None) -> Token | None:
    """What `on_error` allows while Redis is away."""
    with desk.lock:
        if desk.is_over:
            return None  # this process has left: nothing of what it opened now would count
        token, why = desk.member.unslotted(), desk.member.away or "slow"
    if token is not None:
        return _owned(token, owner)
    if desk.settings.on_error != "closed":
        return None
    raise ConnectionError(
        f"{desk.source} does not answer ({why}), so the limiter {desk.settings.name!r} gives no slots:"
        ' with on_error="closed", no connection is opened until it does; what is open stays in use until its'
        " lease ends"
    )

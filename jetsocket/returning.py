"""The one way home of a connection: a lease is claimed, judged, and what it held comes back to the state."""

from __future__ import annotations

import logging
from threading import get_ident
from typing import TYPE_CHECKING, Any

from jetsocket.borrower import UNTIL_BOOKED, Borrower
from jetsocket.callback_lease import call_back
from jetsocket.clean import why_unclean, why_unsettled
from jetsocket.clock import monotonic
from jetsocket.connection import Callback
from jetsocket.connection_states import CLOSING, GONE
from jetsocket.dispatch import Dispatcher
from jetsocket.entry import Entry
from jetsocket.interrupts import is_alarm
from jetsocket.lease import Lease, Terms, note_owed, returns
from jetsocket.process_id import getpid
from jetsocket.state import State
from jetsocket.state.moves import NEVER
from jetsocket.suspects import ended_silently, ping_siblings
from jetsocket.threads import is_housekeeping
from jetsocket.user_errors import told

if TYPE_CHECKING:
    from jetsocket.wire.websocket import WebSocket

_NEVER_RESET = ("discarded", "closed", "half sent", "late reply", "subscribed")


class Returning:
    """How leases of one pool come back."""

    def __init__(self, state: State, terms: Terms[Any], reset: Callback | None) -> None:
        """Take leases back; `reset` is the user's."""
        self.state = state
        self.terms = terms
        self._reset = reset

    @returns
    def take_back(self, lease: Lease[Any], failed: bool) -> None:
        """Return a lease: what `release()` and leaving the `with` block do.

        Args:
            lease: One of this pool.
            failed: Whether an exception left the borrower's block.
        """
        borrower, state = lease._borrower, self.state
        # From here on only this caller returns it. What strikes below, the housekeeper finds: see
        # `unreturned`.
        try:
            del state.lent[borrower]  # `claim`, written out
        except KeyError as error:
            if is_alarm(error):
                raise
            if not self._claim_late(lease):
                return
        borrower.lease = None  # it may go from here on, without a word to the housekeeper
        if borrower.shares:
            self._leave_share(lease)
            return
        borrower.reason = "interrupted"  # unless we get further
        lease._released = True
        entry: Entry | None = None
        try:
            entry, lease._entry = lease._entry, None
            if entry is not None:
                wire = entry.wire
                wire.holder = None  # first: a thread that has not begun to use it by the next line is refused
                if (  # then it was not used: what has come since, the next acquire sees
                    not (failed or lease._touched or lease._discarded or wire.stirred)
                    and self._reset is None
                    and (entry.expires == NEVER or monotonic() < entry.expires)
                ) or self._is_clean(lease, entry, wire, failed):
                    borrower.reason = None
                    borrower.lent_for = UNTIL_BOOKED
            if borrower.reason is not None:
                self._judge(lease, entry, failed)
        except BaseException:
            borrower.reason = "interrupted"
            borrower.lent_for = monotonic() - borrower.taken_at or 1e-9
            if state.events is not None:
                tell_released(state, borrower, lease._shown, by_worker=True)
            raise
        finally:
            uses = 0 if entry is None else entry.uses
            state.come_back(borrower)
        if borrower.reason is not None or borrower.warned:
            self._tell(lease, entry)
        if state.events is not None:
            tell_released(state, borrower, entry, uses=uses)

    def _leave_share(self, lease: Lease[Any]) -> None:
        """Give up a place on a connection that others use, too; say if it is not to be used any longer."""
        borrower, lease._released = lease._borrower, True
        entry, lease._entry = lease._entry, None
        try:
            borrower.lent_for = monotonic() - borrower.taken_at or 1e-9
            if entry is not None and (where := entry.dispatcher) is not None:
                wire = entry.wire
                is_settled = wire.failure is None and where.topics.can_be_ended and not lease._discarded
                if not is_settled or wire.left_half_way:  # nearly never
                    borrower.reason = why_unsettled(
                        alive=wire.failure is None,
                        half_sent=wire.left_half_way,
                        discarded=lease._discarded,
                        unanswered=False,
                        subscribed=where.topics.leaves_open(borrower),
                    )
        finally:
            self.state.part(borrower)
        if self.state.events is not None:
            tell_released(self.state, borrower, entry)

    def _is_clean(self, lease: Lease[Any], entry: Entry, wire: WebSocket, failed: bool) -> bool:
        """Whether `why_unclean` would find nothing, which nearly always is so; False: ask it."""
        if wire.reader.lent:  # looked at when the holder is gone: see `_lend`
            wire.recall_queue()
        if entry.dispatcher is not None:
            is_live = entry.expires == NEVER or monotonic() < entry.expires
            is_free = self._reset is None and not lease._discarded and entry.dispatcher.is_settled
            return is_free and is_live and wire.at_rest()
        account = lease._account
        sent, received = wire.messages_sent, wire.reader.received
        of_lease = sent - entry.sent
        tagged = 0 if account is None else account.tagged
        if not (
            of_lease == received - entry.received
            and not (failed or lease._discarded or lease._timed_out)
            and (account is None or account.is_settled)
            and self._reset is None
            and (entry.expires == NEVER or monotonic() < entry.expires)
            and (of_lease == tagged or entry.key not in self.state.known.unasked)
            and wire.at_rest()
        ):
            return False
        if of_lease != tagged:
            entry.by_counts = True
        entry.sent, entry.received = sent, received  # the next lease begins here, unless it is stirred
        return True

    def _tell(self, lease: Lease[Any], entry: Entry | None) -> None:
        """Say what there is to be said of a return."""
        borrower, state = lease._borrower, self.state
        if borrower.reason is not None and entry is not None:
            # In a forked child a thread that is not there may hold the lock of the parent's state.
            is_ours = state.pid == getpid() and not state.closed
            if is_ours and _seems_dead(lease, entry) and not state.is_interrupted():
                ping_siblings(state, entry)
            text = "[%s] connection %d not kept: %s"
            state.log.note(logging.DEBUG, text, state.name, entry.id, borrower.reason)
        if borrower.warned:
            text = "[%s] the leaked connection %s came back after %.3g s"
            which = "?" if entry is None else entry.id
            state.log.note(logging.WARNING, text, state.name, which, monotonic() - borrower.taken_at)

    def _judge(self, lease: Lease[Any], entry: Entry | None, failed: bool) -> None:
        """Say whether what a lease held may go to another borrower; if not, begin to close it."""
        borrower, now = lease._borrower, monotonic()
        borrower.lent_for = now - borrower.taken_at or 1e-9
        if entry is not None:
            if entry.dispatcher is None:
                borrower.reason = self._why_unclean(lease, entry, failed, now)
            else:
                borrower.reason = self._why_unsettled(lease, entry, entry.dispatcher, now)
            if borrower.reason is not None:
                borrower.gone = close_now(entry.wire, *lease._close_with)

    def _claim_late(self, lease: Lease[Any]) -> bool:
        """Release a lease that has no connection: given up, or on its way to another; True: it has got it.

        The thread that moves it looks at `_released` when it is there, and returns what it got.
        """
        borrower, state = lease._borrower, self.state
        if state.closed:  # then close() has claimed them all
            lease._detach()
        was_released, lease._released = lease._released, True
        if was_released:
            return False
        if borrower in state.line:
            state.come_back(borrower)
            return False
        return state.claim(borrower)

    def _why_unclean(self, lease: Lease[Any], entry: Entry, failed: bool, now: float) -> str | None:
        wire, account, known = entry.wire, lease._account, self.state.known
        tagged = 0 if account is None else account.tagged
        reuse = self.state.config.reuse
        if not wire.look(quick=reuse != "always") or wire.is_sending():
            wire.cut("it was released while another thread used it")
            return "in use"
        sent = wire.messages_sent - entry.sent
        received = wire.messages_received - entry.received
        if received > sent and not (failed or lease._discarded or lease._iterated):
            known.note_unasked(entry, "as more messages came than went")
        reason = why_unclean(
            reuse,
            alive=wire.failure is None,
            half_sent=wire.half_sent,
            discarded=lease._discarded,
            failed=failed,
            timed_out=lease._timed_out,
            half_read=wire.half_read,
            unread=wire.unread,
            sent=sent - tagged,
            received=received if account is None else received - account.answered - account.late,
            tagged=tagged,
            unanswered=account is not None and (bool(account.open) or account.taking),
            late=account is not None and account.late > 0,
            again=account is not None and account.again,
            unasked=entry.key in known.unasked,
        )
        entry.by_counts = entry.by_counts or sent != tagged
        note_owed(lease, entry)
        return self._unless_reset(lease, entry, reason, now)

    def _why_unsettled(self, lease: Lease[Any], entry: Entry, where: Dispatcher, now: float) -> str | None:
        """`_why_unclean`, with a correlation."""
        reason = why_unsettled(
            alive=entry.wire.failure is None,
            half_sent=entry.wire.left_half_way,
            discarded=lease._discarded,
            unanswered=bool(where.raw_asked),
            subscribed=not (where.topics.is_empty and where.topics.can_be_ended),
        )
        where.forget_lease()
        return self._unless_reset(lease, entry, reason, now)

    def _unless_reset(self, lease: Lease[Any], entry: Entry, reason: str | None, now: float) -> str | None:
        """`reason`, or what the user's `reset` makes of it; and whether the lifetime is over."""
        if self._reset is not None and reason not in _NEVER_RESET:
            reason = self._why_not_reset(lease._borrower, entry, self._reset)
        if reason is None and now >= entry.expires:
            return "lifetime"
        return reason

    def _why_not_reset(self, borrower: Any, entry: Entry, reset: Callback) -> str | None:
        state = self.state
        if state.is_interrupted() or is_housekeeping():
            return "dropped"  # this is a finalizer, above the pool's own code: no place for a user's callback
        limit = state.config.health_check_timeout
        borrower.returning_thread = get_ident()
        borrower.returning_until = monotonic() + limit + 1.0
        entry.count_from_here()
        try:
            call_back(self.terms, entry, reset, monotonic() + limit)
        except Exception as error:  # the user's code; it is logged, and the connection closed
            if is_alarm(error, users_code=True):
                raise
            text = "[%s] reset() failed; connection %d is closed: %s"
            state.log.note(logging.WARNING, text, state.name, entry.id, told(error), failure=error)
            return "reset failed"
        finally:
            borrower.returning_until = 0.0
            entry.forgive()
        return None


def _seems_dead(lease: Lease[Any], entry: Entry) -> bool:
    """Whether one that had been idle ended without a word, or was silent until its borrower gave up."""
    borrower = lease._borrower
    if not entry.idle_since:
        return False  # it was new
    if borrower.reason == "closed":
        return ended_silently(entry)
    return lease._timed_out and entry.wire.last_heard < borrower.taken_at


def close_now(wire: WebSocket, code: int = 1000, reason: str = "") -> bool:
    """Send a close frame without waiting; True if the connection is closed by that."""
    wire.start_close(code, reason)
    gone = wire.poll_close()
    if gone:
        wire.shutdown()
    return gone


def tell_released(
    state: State, borrower: Borrower, entry: Entry | None, *, by_worker: bool = False, uses: int = 0
) -> None:
    """Tell listeners that a lease has ended.

    Args:
        state: The pool's.
        borrower: Whose lease it was.
        entry: Its connection.
        by_worker: Not in this thread.
        uses: How often that had been lent when it came back. If no other has had it since and it is closed,
            it was clean, and is not lent again for the pool's reasons: it was cleared, the pool drains.
    """
    events = state.events
    if events is not None and entry is not None and events.wants("released"):
        now = monotonic()
        used, reason = now - borrower.taken_at, borrower.reason
        if reason is None and entry.uses == uses and entry.place in (CLOSING, GONE):
            reason = entry.closed_for
        told = events.note if by_worker else events.tell
        told("released", lambda: (events.info_of(entry, now), used, reason))


__all__ = ["Returning", "close_now", "tell_released"]

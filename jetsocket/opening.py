"""How connections are opened: by daemon threads of the pool, while the callers wait in line.

An opener takes up an order (`Dial`), makes room if it has to, dials as often as `connect_attempts` allows,
runs `configure`, and tells the state how it went, which hands the connection to the first in line. It parks
for a few seconds, then ends. What belongs to the borrower's thread, thread-locals and alarms, does not reach
it; the context variables of the first caller in line do.
"""

from __future__ import annotations

import logging
import sys
import threading
from contextvars import copy_context
from queue import Empty
from typing import Any

from jetsocket import limiter_calls
from jetsocket.callback_lease import configure, untraced
from jetsocket.clock import monotonic
from jetsocket.connect_parameters import approach, load_for, renews, straight
from jetsocket.connection import Callback
from jetsocket.cooldown import backoff, chance, is_worth_retrying
from jetsocket.dial_order import Dial
from jetsocket.dispatch import Dispatcher
from jetsocket.entry import Entry
from jetsocket.exceptions import ConnectionError, HandshakeError, JetSocketError, TimeoutError
from jetsocket.expiry import expires_at
from jetsocket.interrupts import is_alarm
from jetsocket.lease import Terms
from jetsocket.manager_kwargs import Options
from jetsocket.new_wires import NewWires
from jetsocket.process_id import PID, getpid
from jetsocket.state import State
from jetsocket.stuck_threads import carries_out
from jetsocket.testing_seam import Seam, connect
from jetsocket.threads import Forked, rest_if_forked
from jetsocket.uris import Target, same_origin
from jetsocket.user_errors import as_told, told

START_PATIENCE = 0.5
"""s that an opener may take to be started."""

_PARK = 5.0  # s that an opener waits for its next order
_LEAST_PARK = 0.01  # s that it waits after it was woken for an order that another opener has
_ROOM_PATIENCE = 0.25  # s that a connection has for its closing handshake when its slot is wanted
_OVERDUE = 0.1  # s after which a dial that has not ended by itself is given up
_FEW = 8  # threads


class Opening:
    """What the openers of one pool know, which is all but the pool itself: that must be collectable."""

    def __init__(
        self,
        state: State,
        options: Options,
        base: Target | None,
        terms: Terms[Any],
        *,
        on_open: Callback | None,
        seam: Seam,
    ) -> None:
        """Open connections of that pool in this way; `on_open` is the user's `configure`."""
        self._state = state
        self._options = options
        self._base = base
        self._terms = terms
        self._configure = on_open
        load_for(options)
        self._wires = NewWires(options, state.unfinished, state.log.note_end)
        self._seam = seam
        self._threads: list[threading.Thread] = []
        self._tidy_at = _FEW  # so many threads, of which some have ended
        matching = terms.matching
        times = 1 + (on_open is not None) + (matching is not None and matching.configures)
        # How long one attempt may take before it is given up from outside (s).
        self._most_time = options.connect_timeout * times + _OVERDUE

    # --- threads ---------------------------------------------------------------------------------------

    def start_threads(self) -> None:
        """Start as many openers as the orders need; for the housekeeper."""
        wanted = self._state.openers_wanted()
        for number in range(wanted):
            name = f"jetsocket-opener-{self._state.name}"
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            try:
                thread.start()
            except (RuntimeError, MemoryError):  # the system's limit, or the interpreter ends: callers dial
                self._state.openers_not_started(wanted - number)
                return
            if len(self._threads) >= self._tidy_at:  # not each time: of a crowd, each is asked
                self._threads = [each for each in self._threads if each.is_alive()]
                self._tidy_at = 2 * len(self._threads) + _FEW
            self._threads.append(thread)

    def join(self, deadline: float) -> None:
        """Wait until the openers have ended, but for those that hang, at most until then (monotonic, s)."""
        hanging = {dial.thread for dial in self._state.left_behind}
        for thread in self._threads:
            if (
                thread.ident not in hanging
                and thread is not threading.current_thread()
                and not sys.is_finalizing()
            ):
                thread.join(max(0.0, deadline - monotonic()))

    def _run(self) -> None:
        try:
            self._serve()
        except Forked:  # this is the child: if the user's code has forked, it ends with this thread
            pass
        else:
            if self._state.closed:
                limiter_calls.release_late(self._state)
        rest_if_forked(self._state.pid)

    def _serve(self) -> None:
        state, is_new, is_parked = self._state, True, False
        while True:
            dial = None if is_parked else state.next_dial(is_new=is_new)
            is_new = False
            if dial is None and ((state.closed and not is_parked) or (dial := self._park()) is None):
                return
            try:
                self.open(dial, parks=True)
            except Forked:
                raise
            except BaseException:  # noqa: BLE001  # whatever it is, the callers in line have got it
                assert dial.is_over
            is_parked = dial.parks
            del dial

    def _park(self) -> Dial | None:
        """Wait for an order; None: none came for long, and the thread is to end."""
        state = self._state
        deadline = monotonic() + _PARK
        while True:
            try:
                # Not by `take`, whose exception a caller would wait for that has just got a connection. So,
                # before Python 3.13, a thread that is stopped here for so long parks until the next order.
                state.wake_opener.get(timeout=max(_LEAST_PARK, deadline - monotonic()))
                is_late = False
            except Empty:
                is_late = True
            dial = state.unpark(stay=not is_late)
            if dial is not None or is_late or state.closed:
                return dial

    # --- one order -------------------------------------------------------------------------------------

    @carries_out
    def open(self, dial: Dial, *, parks: bool = False) -> None:
        """Carry out an order, in the context of the caller that it was made for; see `Dialling.opened`."""
        context = copy_context() if dial.context is None else dial.context.copy()
        dial.thread = threading.get_ident()
        try:
            context.run(self._open, dial, parks)
        except Forked:
            raise
        except BaseException as error:
            if not dial.is_over:  # SystemExit out of a callback, or what struck this thread: the line is told
                failure = ConnectionError(f"cannot connect to {dial.target.redacted}: {told(error)} ended it")
                failure.__cause__ = as_told(error)
                self._state.failed(dial, dial.entry, failure)
            raise
        finally:
            if dial in self._state.left_behind and self._state.pid == getpid():
                self._come_back(dial)

    def _come_back(self, dial: Dial) -> None:
        """This thread comes back from a dial that was given up."""
        self._state.came_back(dial)
        if dial.is_told:
            text = "[%s] a thread that hung in a dial to %s has come back after %.3g s"
            lasted = monotonic() - dial.began_at
            self._state.log.note(logging.WARNING, text, self._state.name, dial.target.redacted, lasted)

    def _open(self, dial: Dial, parks: bool) -> None:
        state, attempts_left, is_renewed = self._state, self._options.connect_attempts, False
        while True:
            if state.pid != PID[0]:
                raise Forked
            # One for each attempt: that of the last one went back with its end.
            if state.quotas is not None and not self._get_grant(dial):
                return
            self._close_room(dial)
            entry = Entry(dial.target, self._wires.take(), expires_at(state.config))
            if not state.begin(dial, entry, monotonic() + self._most_time):
                return
            failure = self._attempt_told(dial, entry)
            if failure is None:
                if not state.opened(dial, entry, parks=parks):
                    entry.wire.shutdown()
                    state.drop_dial(dial)
                return
            if entry.is_renewed and not is_renewed:  # once, with other credentials, and at once
                is_renewed, is_over = True, not state.attempt_failed(dial, entry, failure)
            else:
                attempts_left -= 1
                is_over = self._ends_with(failure, dial, entry, not attempts_left)
            failure = None  # its cause's frames, of the user's code, lead to this one
            if is_over:
                return

    def _get_grant(self, dial: Dial) -> bool:
        """Get what a dial needs of the limiter that counts for it, if one does; False: the dial is over."""
        state = self._state
        try:
            quota = limiter_calls.quota_for(state, dial)
            if quota is None:
                return True
            timeout = self._options.connect_timeout
            return limiter_calls.get_grant(state, quota, dial, timeout, self._close_room)
        except ConnectionError as error:
            if is_alarm(error):
                raise
            state.failed(dial, None, untraced(error))
            return False

    def _attempt(self, entry: Entry) -> JetSocketError | None:
        """Connect once; returns why that failed.

        Raises:
            Forked: The user's code has forked, and this is the child: it leaves everything as it is.
        """
        pid = self._state.pid
        if pid != PID[0]:  # another greenlet has forked: this order is the parent's
            raise Forked
        try:
            self._dial(entry)
        except BaseException as error:
            if pid != PID[0] and isinstance(error, Exception):
                raise Forked from None
            if pid == PID[0]:
                entry.wire.shutdown()
            if not isinstance(error, (ConnectionError, TimeoutError)) or is_alarm(error):
                raise  # an alarm is in the borrower's own thread, where no other runs
            return untraced(error)  # whose frames lead here, and to what holds it: only the GC would end that
        if pid != PID[0]:
            raise Forked
        return None

    def _attempt_told(self, dial: Dial, entry: Entry) -> JetSocketError | None:
        """`_attempt`, of which listeners are told."""
        events, marks = self._state.events, None
        if events is not None:
            marks = events.begin_connecting(dial.target.redacted, self._state.marks_in_line(dial.key))
        try:
            failure = self._attempt(entry)
        except BaseException as error:
            if events is not None and marks is not None and not isinstance(error, Forked):
                events.end("connect_failed", marks, error)
            raise
        entry.was_opened = failure is None
        if events is not None and marks is not None:
            if failure is None:
                events.end("connected", marks, events.info_of(entry, monotonic()))
            else:
                events.end("connect_failed", marks, failure)
        try:
            return failure
        finally:
            failure = None  # see `_open`

    def _ends_with(self, error: JetSocketError, dial: Dial, entry: Entry, is_last: bool) -> bool:
        """Tell of a failed attempt, and wait before the next one; True if there is none."""
        state = self._state
        retry_after = getattr(error, "retry_after", None)
        dial.attempts += 1
        pause = backoff(dial.attempts, chance(), retry_after)
        is_too_long = retry_after is not None and retry_after > self._options.connect_timeout
        if is_last or is_too_long or not is_worth_retrying(error):
            state.failed(dial, entry, error, retry_after)
            return True
        if not state.attempt_failed(dial, entry, error):
            return True
        return dial.wait(pause)  # `close` ends it

    def _close_room(self, dial: Dial) -> None:
        """Close the connection whose slot is wanted: the server is to see it go before the new one comes."""
        if (room := dial.room) is None:
            return
        now, patience = monotonic(), min(_ROOM_PATIENCE, self._options.close_timeout)
        until = now + patience
        if room.close_by:  # it has been closing for a while already
            until = min(until, room.close_by - self._options.close_timeout + patience)
        if room.created:
            room.wire.start_close()
            room.wire.finish_close(until)
        else:  # a dial that was broken off
            room.wire.shutdown()
        self._state.room_is_closed(dial)
        self._state.log.note(logging.DEBUG, "[%s] connection %d made room", self._state.name, room.id)

    def _dial(self, entry: Entry) -> None:
        """Connect, and prepare the connection for its first borrower."""
        options, target = self._options, entry.target
        deadline = monotonic() + options.connect_timeout
        ours = self._base is None or options.cross_origin_headers or same_origin(self._base, target)
        matching, pushes, prepared = self._terms.matching, self._terms.pushes, None
        offered = options.subprotocols or (() if matching is None else matching.correlation.subprotocols)
        try:
            if options.auth is None and options.resolve is None:
                way = straight(options, target, offered, ours=ours)
            else:
                way = approach(options, target, offered, deadline, ours=ours)
                prepared = way.prepared
            connect(
                self._seam,
                entry.wire,
                self._wires.take,
                options.connect_timeout,
                way.target,
                deadline=deadline,
                header=way.header,
                cookie=way.cookie,
                origin=options.origin,
                subprotocols=way.subprotocols,
                compress=options.compress,
                ssl_context=way.ssl_context,
                proxy=options.proxy,
                unix=way.unix,
                socket_options=options.socket_options,
                server_hostname=way.server_hostname,
                source_address=options.source_address,
                max_redirects=options.max_redirects,
                meanwhile=self._wires.make_ahead,
                tokens=way.tokens,
                secrets=way.secrets,
            )
        except HandshakeError as error:
            if prepared is not None and not is_alarm(error):
                entry.is_renewed = renews(options, error, prepared, target)
            raise
        except TimeoutError as error:
            if is_alarm(error):
                raise
            error.timeout = options.connect_timeout  # as it was given, not what of it was left
            raise
        except JetSocketError:
            raise
        except Exception as error:  # an extra that is missing, a header that can't be sent
            if is_alarm(error):
                raise
            raise ConnectionError(f"cannot connect to {target.redacted}: {told(error)}") from error
        entry.created = monotonic()
        if matching is not None:
            entry.dispatcher = Dispatcher(entry.wire, target, matching, pushes)
            if matching.configures:
                greeting, name = matching.correlation.configure, type(matching.correlation).__name__
                configure(self._terms, entry, greeting, options.connect_timeout, f"{name}.configure()")
        if self._configure is not None:
            configure(self._terms, entry, self._configure, options.connect_timeout)


__all__ = ["START_PATIENCE", "Opening"]

"""What a pool's new connections meet while a recording is made or played: a fake server that knows a tape.

What is not on the tape goes to the real server, over a connection that the pool itself opens, where the mode
allows that; else it is wrong, as a message that no rule matches.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from jetsocket import HandshakeError
from jetsocket.correlation.base import Correlation
from jetsocket.testing.judging import Guest
from jetsocket.testing.matching import differences
from jetsocket.testing.payloads import Payload, payload_of, shown
from jetsocket.testing.redacting import Redactor, same, target_without_values
from jetsocket.testing.replies import Replies
from jetsocket.testing.server import FakeServer
from jetsocket.testing.tape import Closed, Exchange, Recorded, Said, kept_headers, raw, said
from jetsocket.testing.upstream import Upstream
from jetsocket.testing.verdicts import Problem
from jetsocket.testing_seam import Detour, Reaches
from jetsocket.uris import Target
from jetsocket.wire.websocket import WebSocket

if TYPE_CHECKING:
    from websockets.http11 import Response

    from jetsocket.testing.endpoint import Endpoint

_TICKET = "X-Jetsocket-Detour"  # says which dial of the pool a connection belongs to
_REFUSED_BODY = 4096  # characters of what a refusal said


class _Line:
    """One connection of the pool's: what of the tape it plays, and what goes to the real server."""

    def __init__(self) -> None:
        self.connect: Callable[[], WebSocket] | None = None
        self.wire: WebSocket | None = None
        self.upstream: Upstream | None = None
        self.playing: Recorded | None = None
        self.recording: Recorded | None = None
        self.asked: dict[Hashable, tuple[Exchange, Any]] = {}  # under way at the real server
        self.waiting: list[tuple[Payload, Any]] = []  # until the real server is reached


class Relay(FakeServer):
    """Plays a tape, and records on it."""

    def __init__(
        self,
        tape: list[Recorded],
        *,
        records: bool,
        redact: Iterable[str] = (),
        correlation: Correlation | None = None,
        assert_all_called: bool = True,
        told: str = "the recording",
    ) -> None:
        """Make one.

        Args:
            tape: What is played; what is recorded is added.
            records: Whether what is not on the tape goes to the real server.
            redact: Names of fields that are hidden, too.
            correlation: The pool's.
            assert_all_called: Whether what was recorded has to be asked for.
            told: What the tape is called in reports.
        """
        super().__init__(assert_all_called=assert_all_called)
        self.tape = tape
        self.has_news = False
        self.redactor = Redactor(redact)
        self._records = records
        self._replies = Replies(correlation)
        self._told = told
        self._lines: dict[Endpoint, _Line] = {}
        self._upstreams: list[Upstream] = []  # those of lines that have ended, too
        self._expected: dict[str, _Line] = {}
        self._tickets = itertools.count(1)
        self._plays = bool(tape)
        self._lets_go = False

    # --- in the pool's threads -------------------------------------------------------------------------

    def detour(self, target: Target, reach: Reaches) -> Detour:
        """Where a new connection of the pool's goes: here.

        What only records reaches the real server first, and fails as that does.
        """
        ticket, line, connect = str(next(self._tickets)), _Line(), partial(reach, self.redactor.learn_head)
        if self._records:
            line.connect = connect
            if not self._plays:
                line.wire = self._reach(target, connect)
        self._expected[ticket] = line
        return Detour((self._address[0], self.port), [(_TICKET, ticket)])

    def _reach(self, target: Target, connect: Callable[[], WebSocket]) -> WebSocket:
        try:
            return connect()
        except HandshakeError as error:
            if error.status_code is not None:
                kept = target_without_values(target.resource)
                body = error.body.decode("utf-8", "replace")[:_REFUSED_BODY]
                headers = kept_headers(error.headers, error.retry_after)
                self.tape.append(Recorded(kept, None, error.status_code, body, headers, is_used=True))
                self.has_news = True
            raise

    # --- in the loop's thread --------------------------------------------------------------------------

    async def _upgrade(self, endpoint: Endpoint) -> Response | None:
        """Let it in, or refuse it as it was refused then."""
        from jetsocket.testing.endpoint import refusal

        response = await super()._upgrade(endpoint)
        line = self._expected.pop(endpoint.headers.get(_TICKET, ""), None) or _Line()
        self._lines[endpoint] = line
        self.redactor.learn_request(endpoint.target, endpoint.headers)
        if line.wire is None:
            line.playing = next(
                (each for each in self.tape if each.path == endpoint.path and not each.is_used), None
            )
        if line.playing is not None:
            line.playing.is_used = True
            if response is None and line.playing.status != 101:
                self._guests[endpoint].seen._status = line.playing.status
                return refusal(line.playing.status, line.playing.body, line.playing.headers)
        return response

    def _choose(self, offered: list[str], endpoint: Endpoint) -> str | None:
        """The subprotocol that the real server has chosen."""
        line = self._lines[endpoint]
        if line.wire is not None:
            return line.wire.getsubprotocol()
        return super()._choose(offered, endpoint) if line.playing is None else line.playing.subprotocol

    def _opened(self, endpoint: Endpoint) -> None:
        """Play what came first then, or go on with the real server."""
        super()._opened(endpoint)
        line = self._lines[endpoint]
        if line.wire is not None:
            self._go_on(endpoint, line, line.wire)
        elif line.playing is not None:
            self._play(endpoint, line.playing.opening, None)
        elif not any(each.path == endpoint.path for each in self.tape):
            if line.connect is not None:
                self._call_upstream(endpoint, line)
            elif not any(rule.fits(endpoint.path) for rule in self._rules):
                self._note(Problem(f"a connection to {endpoint.path} is not in {self._told}{self._remedy}"))
                endpoint.close(1011, "this connection was not recorded")

    def _ended(self, endpoint: Endpoint) -> None:
        """The pool has closed: so does the real connection."""
        line = self._lines.pop(endpoint, None)
        if line is not None and line.upstream is not None:
            line.upstream.close()
        super()._ended(endpoint)

    def _closing(self, endpoint: Endpoint) -> None:
        """The pool closes: with the same code at the real server."""
        super()._closing(endpoint)
        line = self._lines.get(endpoint)
        if line is not None and line.upstream is not None:
            line.upstream.close(endpoint.close_code or 1000)

    def _unmatched(self, endpoint: Endpoint, guest: Guest, message: Any, payload: Payload) -> None:
        """A message that no rule of the test's matches: on the tape, or for the real server."""
        line = self._lines[endpoint]
        message = self._replies.read(payload, endpoint.subprotocol)
        self.redactor.learn(message)
        found = None if line.wire is not None else self._find(endpoint, line, message, payload)
        if found is not None:
            found.is_used = True
            self._play(endpoint, found.events, message)
        elif line.upstream is not None:
            self._pass_on(line, payload, message)
        elif line.connect is not None:
            line.waiting.append((payload, message))
            self._call_upstream(endpoint, line)
        else:
            self._note(self._unrecorded(endpoint, message, payload))
            endpoint.close(1011, "this message was not recorded")

    # --- playing ---------------------------------------------------------------------------------------

    def _find(self, endpoint: Endpoint, line: _Line, message: Any, payload: Payload) -> Exchange | None:
        """The recorded exchange that a request is: of this connection's first, and with its own id first."""
        own = [line.playing] if line.playing is not None else []
        others = [each for each in self.tape if each.path == endpoint.path and each is not line.playing]
        unused = [
            exchange
            for each in [*own, *others]
            if each is not line.recording
            for exchange in each.exchanges
            if not exchange.is_used
        ]
        ways: tuple[Callable[[Any], Any], ...] = (lambda value: value, self._replies.without_id)
        for compared in ways:
            came = compared(message)
            forms = [said(value, payload) for value in (came, self.redactor.hidden(came))]
            for exchange in unused:
                kept = exchange.sent
                wanted = compared(kept.value)
                if any(form.form == kept.form and same(wanted, form.value) for form in forms):
                    return exchange
        return None

    def _play(self, endpoint: Endpoint, events: list[Said | Closed], request: Any) -> None:
        for event in events:
            if isinstance(event, Said):
                value = raw(event)
                if event.answers:
                    value = self._replies.addressed(value, request)
                self._send(endpoint, value, event.form)
            elif event.code == 1006:
                endpoint.spawn(endpoint.drop())
            elif event.code == 1005:
                endpoint.close()
            else:
                endpoint.close(event.code, event.reason)

    def _send(self, endpoint: Endpoint, value: Any, form: str) -> None:
        if form in ("text", "base64"):
            endpoint.send(value)
            return
        payload = self._replies.write(value, endpoint.subprotocol)
        if isinstance(value, str) and form == "json":
            payload = payload_of([value])[1:-1]  # a text in quotes
        if form == "binary" and isinstance(payload, str):
            payload = payload.encode()
        endpoint.send(payload)

    @property
    def _remedy(self) -> str:
        return '; record(pool, path, mode="new_episodes") adds it, mode="all" records everything anew'

    def _unrecorded(self, endpoint: Endpoint, message: Any, payload: Payload) -> Problem:
        came = self._replies.without_id(message)
        lines = [f"a message came to {endpoint.path} that is not in {self._told}: {shown(message)}"]
        there = [each for each in self.tape if each.path == endpoint.path]
        recorded = [exchange for each in there for exchange in each.exchanges]
        if recorded:
            exchange = min(recorded, key=lambda each: self._distance(each, came, payload))
            wanted = self._replies.without_id(exchange.sent.value)
            lines.append(f"nearest: {shown(wanted)}" + (", which was asked for already" * exchange.is_used))
            lines += differences(wanted, came, payload)
        else:
            lines.append(f"nothing is recorded for {endpoint.path}")
        lines.append(f"it was answered with close 1011{self._remedy}")
        return Problem("\n    ".join(lines))

    def _distance(self, exchange: Exchange, came: Any, payload: Payload) -> tuple[int, bool]:
        found = differences(self._replies.without_id(exchange.sent.value), came, payload)
        return len(found), exchange.is_used

    def _unreached(self) -> list[Problem]:
        """What was recorded and never asked for, besides the rules of the test."""
        found = super()._unreached()
        permit = "; assert_all_called=False permits it"
        for each in self.tape:
            if not each.is_used and (each.opening or each.status != 101):
                found.append(
                    Problem(f"a connection to {each.path} is in {self._told}, and none came{permit}")
                )
            for exchange in each.exchanges:
                if not exchange.is_used:
                    told = f"{each.path}: {shown(exchange.sent.value)}"
                    found.append(Problem(f"{told} is in {self._told}, and was never asked for{permit}"))
        return found

    # --- recording -------------------------------------------------------------------------------------

    def _call_upstream(self, endpoint: Endpoint, line: _Line) -> None:
        """Reach the real server, in a thread: the pool's own way there blocks."""
        connect, line.connect = line.connect, None
        if connect is None:
            return  # it is being reached

        async def reach() -> None:
            try:
                wire = await endpoint.loop.run_in_executor(None, connect)
            except Exception as error:  # noqa: BLE001  # the pool's own error: the caller is told by the close
                self._note(Problem(f"{self._told}: the real server could not be reached: {error}", error))
                endpoint.close(1011, "the real server could not be reached")
                return
            self._go_on(endpoint, line, wire)

        endpoint.spawn(reach())

    def _go_on(self, endpoint: Endpoint, line: _Line, wire: WebSocket) -> None:
        """From now on the real server answers, and all is recorded."""
        target = target_without_values(endpoint.target)
        recording = Recorded(target, wire.getsubprotocol(), is_used=True)
        line.recording = recording
        self.tape.append(recording)
        self.has_news = True
        loop = endpoint.loop

        def tell(what: Callable[..., None], *given: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: the real server took too long
                loop.call_soon_threadsafe(what, endpoint, line, *given)

        line.upstream = Upstream(wire, partial(tell, self._came), partial(tell, self._upstream_ended))
        self._upstreams.append(line.upstream)
        for payload, message in line.waiting:
            self._pass_on(line, payload, message)
        line.waiting.clear()

    def _pass_on(self, line: _Line, payload: Payload, message: Any) -> None:
        assert line.recording is not None
        assert line.upstream is not None
        number = len(line.recording.exchanges) + 1
        kept = said(self._replies.numbered(message, number), payload)
        exchange = Exchange(kept, is_used=True)
        line.recording.exchanges.append(exchange)
        key = self._replies.asked(message)
        if key is not None:
            line.asked[key] = exchange, self._replies.numbered(message, number)
        line.upstream.send(payload)

    def _came(self, endpoint: Endpoint, line: _Line, payload: Payload) -> None:
        """A message of the real server's."""
        assert line.recording is not None
        self._hub_stirred()
        message = self._replies.read(payload, endpoint.subprotocol)
        self.redactor.learn(message)
        key = self._replies.answered(message)
        found = None if key is None else line.asked.get(key)
        if found is not None:
            exchange, request = found
            kept = said(self._replies.addressed(message, request), payload)
            kept.answers = True
            exchange.events.append(kept)
        else:
            self._events(line).append(said(message, payload))
        if line.playing is None or line.recording.exchanges:  # else it has had its greeting, from the tape
            endpoint.send(payload)

    def _upstream_ended(self, endpoint: Endpoint, line: _Line, code: int, reason: str) -> None:
        if self._lets_go or not endpoint.is_open or endpoint.close_code is not None:
            return  # this side has closed
        self._events(line).append(Closed(code, reason))
        self._play(endpoint, [Closed(code, reason)], None)

    def _events(self, line: _Line) -> list[Said | Closed]:
        """Where that goes which answers nothing: behind what was asked last."""
        assert line.recording is not None
        exchanges = line.recording.exchanges
        return exchanges[-1].events if exchanges else line.recording.opening

    def _hub_stirred(self) -> None:
        if self._hub is not None:
            self._hub.stirred()

    # --- the end ---------------------------------------------------------------------------------------

    def let_go(self) -> None:
        """Close what is open to the real server, after what was sent to it."""
        self._settle()
        self._lets_go = True
        for upstream in self._upstreams:
            upstream.close()
        for upstream in self._upstreams:
            upstream.join()

    def hidden(self) -> list[Recorded]:
        """The tape without what is secret, to be kept."""

        def hide(event: Said | Closed) -> Said | Closed:
            if isinstance(event, Closed):
                return Closed(event.code, self.redactor.hidden(event.reason))
            return (
                event
                if event.form == "base64"
                else Said(self.redactor.hidden(event.value), event.form, event.answers)
            )

        kept = []
        for each in self.tape:
            body, headers = self.redactor.hidden(each.body), self.redactor.hidden(each.headers)
            again = Recorded(each.target, each.subprotocol, each.status, body, headers)
            again.opening = [hide(event) for event in each.opening]
            for exchange in each.exchanges:
                sent = hide(exchange.sent)
                assert isinstance(sent, Said)
                again.exchanges.append(Exchange(sent, [hide(event) for event in exchange.events]))
            kept.append(again)
        return kept


__all__ = ["Relay"]

"""The HTTP upgrade (RFC 6455 §4): the socket that websocket-client shakes hands on, bounded in time and size.

websocket-client writes the request, and checks the answer that this request must get, while the server has
yet to give it. What the server answers is read here, in one go, within one deadline, and is checked for more
than websocket-client asks of it; errors are such as a user can act on.
"""

from __future__ import annotations

import builtins
import re
import ssl
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

from jetsocket.clock import monotonic
from jetsocket.exceptions import ConnectionError, HandshakeError, TimeoutError
from jetsocket.interrupts import is_alarm
from jetsocket.redacted_uris import redact
from jetsocket.uris import Target
from jetsocket.wire.certificates import late_remedy
from jetsocket.wire.deflate import Agreement, agree
from jetsocket.wire.headers import (
    NO_HEADERS,
    Headers,
    is_chunked,
    is_status_line,
    location_of,
    parse_head,
    parse_switch,
    retry_after,
    unchunk,
)
from jetsocket.wire.not_http import MOST_LOOKED_AT, can_be_http, first_line, guess, has_line
from jetsocket.wire.redaction import as_cause, censored, hide, raise_alone, secrets_of, secrets_of_cookies
from jetsocket.wire.stream import Stream
from jetsocket.wire.upgrade_answer import (
    CUT_OFF,
    STRANGE,
    Redirected,
    accept_for,
    check_switch,
    check_upgrade,
    chosen_of,
    expected,
    remedy_of,
)
from jetsocket.wire.upgrade_request import KEY

MAX_HEAD = 64 * 1024
"""B of status line and headers that a server may send."""

MAX_ERROR_BODY = 4 * 1024
"""B of a refusal's body that are read and kept."""

_ERROR_BODY_PATIENCE = 1.0  # s, for a body whose length nobody told
_GREETING_PATIENCE = 0.2  # s, for enough of what is no HTTP to tell what it is
_WITHOUT_BODY = frozenset({204, 304})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile("[0-9]{1,10}")


class Upgrade:
    """What websocket-client takes for its socket during the handshake; then, `finish` reads the answer.

    Attributes:
        stream: Where the request goes. As long as there is none (the TLS handshake is not over), it is kept.
        headers: Of the response, once read.
        subprotocol: The one the server chose.
        agreement: How the server agreed to compress; None if it did not.
        leftover: Bytes that came after the head: the server's first frames.
        request: The head of the request, once it is written.
        accept: What proves that the server has understood the key in it.
        granted: What websocket-client made of the answer that it took for granted.
        failure: What went wrong, as the user is to see it; websocket-client may have wrapped it.
    """

    def __init__(
        self,
        target: Target,
        *,
        subprotocols: Sequence[str],
        compress: bool = False,
        deadline: float,
        timeout: float,
        sent_before: Set[str] = frozenset(),
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        """Shake hands until `deadline` (monotonic).

        Errors name the `timeout` (s) and show nothing of what was secret in the request, or in those that
        were `sent_before` and led here. While the server has yet to answer, `meanwhile` is called.
        """
        self.stream: Stream | None = None
        self.headers = NO_HEADERS
        self.subprotocol: str | None = None
        self.agreement: Agreement | None = None
        self.leftover = b""
        self.request = b""
        self.accept = ""
        self.granted: Any = None
        self.failure: ConnectionError | TimeoutError | None = None
        self._target = target
        self._offered = subprotocols
        self._compress = compress
        self._deadline = deadline
        self._timeout = timeout
        self._sent_before = sent_before
        self._meanwhile = meanwhile
        self._shown: Iterator[bytes] = iter(())  # what websocket-client has not read yet
        self._heard = False  # whether a byte of an answer came
        self._not_sent: OSError | None = None  # why the request did not leave

    # --- what websocket-client calls -------------------------------------------------------------------

    def gettimeout(self) -> float:
        """0.0 makes websocket-client do one plain call each and leave waiting and errors to it."""
        return 0.0

    def settimeout(self, timeout: float | None) -> None:
        """Do nothing: the one deadline stands."""

    def send(self, request: bytes) -> int:
        """Take the whole request, its target as the user gave it (websocket-client drops ";params")."""
        self.write(request.partition(b"\r\n")[2].decode("utf-8").encode("latin-1"))
        self._shown = expected(self.accept)
        return len(request)

    def recv(self, size: int) -> bytes:
        """Whole lines of what the server has to answer; single bytes would be a hundred calls."""
        return next(self._shown, b"")

    def close(self) -> None:
        """Close the stream: websocket-client gave up."""
        if self.stream is not None:
            self.stream.close()

    # --- the handshake ---------------------------------------------------------------------------------

    def write(self, fields: bytes) -> None:
        """Write the request that has those header fields, an empty line at their end.

        All that can be done before there is an answer is done here: the server is at work meanwhile.
        """
        self.request = b"GET %b HTTP/1.1\r\n%b" % (self._target.resource.encode("ascii"), fields)
        if self.stream is not None:
            self._write(self.stream)
        found = KEY.search(self.request)
        self.accept = accept_for(found[1] if found else b"")
        if self._meanwhile is not None:
            self._meanwhile()

    def finish(self, stream: Stream) -> None:
        """Send the request, if it was kept, and read what the server answers to it.

        Raises:
            HandshakeError: The server does not upgrade, or not as it should.
            ConnectionError: The connection failed.
            TimeoutError: Not in time.
        """
        if self.stream is None:
            self.stream = stream
            self._write(stream)
        try:
            self._read_answer()
        except OSError as error:
            if is_alarm(error):
                raise
            if self._not_sent is not None and not self._heard and not isinstance(error, ssl.SSLError):
                self._fail(self._not_sent, "sending the upgrade request")
            self._fail(error, "waiting for the answer to the upgrade request")

    def _write(self, stream: Stream) -> None:
        try:
            stream.write(self.request, self._deadline)
        except OSError as error:
            if is_alarm(error):
                raise
            if isinstance(error, builtins.TimeoutError):
                self._fail(error, "sending the upgrade request")
            # A server that is too busy to read may have said so: `finish` looks. Its frames lead back.
            self._not_sent = error.with_traceback(None)

    # --- reading the answer ----------------------------------------------------------------------------

    def _read_answer(self) -> None:
        status, reason, headers, rest = self._read_final_head()
        if status != 101:
            self._refuse(status, reason, headers, rest)
        try:
            check_switch(headers)
            self.subprotocol = check_upgrade(headers, self.accept, self._offered, compress=self._compress)
            if self._compress and (chosen := chosen_of(headers, "sec-websocket-extensions")) is not None:
                self.agreement = agree(chosen)
        except ValueError as error:
            if is_alarm(error):
                raise
            why = self._unless_echoed(error, headers.get("sec-websocket-extensions", ""))
            told = f"the server's upgrade is not valid: {why}"
            raise_alone(self._refused(told, remedy_of(str(error), compress=self._compress), 101, headers))
        self.headers, self.leftover = headers, rest

    def _read_final_head(self) -> tuple[int, str, Headers, bytes]:
        """Status, reason and headers, and what came behind them; interim responses are skipped."""
        rest, left = self._read(self._deadline), MAX_HEAD
        if (switch := parse_switch(rest)) is not None:  # nearly always
            return 101, "", *switch
        while True:
            head, line_end, rest = self._read_head(rest, left)
            left -= len(head)
            try:
                status, reason, headers = parse_head(head, line_end)
            except ValueError as error:
                if is_alarm(error):
                    raise
                why = self._unless_echoed(error, head.decode("latin-1"))
                raise_alone(self._refused(f"the server did not answer in HTTP: {why}", STRANGE))
            if status == 101 and head.startswith(b"HTTP/1.0"):  # it has no upgrade (RFC 6455 §4.1)
                told = "the server's upgrade is not valid: it is one of HTTP/1.0"
                raise self._refused(told, STRANGE, 101, headers)
            if status == 101 or status >= 200:
                return status, reason, headers, rest
            # A 103, say: any number may come (RFC 9110 §15.2), as far as the limit of the head goes.

    def _read_head(self, come: bytes, most: int) -> tuple[bytes, bytes, bytes]:
        """A head of at most so many B (some may have come already), what ends its lines, and the rest."""
        data = bytearray(come)
        seen = 0
        while True:
            if data:
                self._refuse_if_not_http(data)
                if (found := _HEAD_END.search(data, max(0, seen - 3))) is not None:
                    break
            seen = len(data)
            if seen > most:
                raise self._refused(f"the server sent more than {MAX_HEAD} B of headers", STRANGE)
            more = self._read(self._deadline)
            if not more:
                said = f"after {seen} B of its answer" if seen else "without an answer"
                raise self._refused(f"the server closed the connection {said}", self._hint())
            data += more
        end, rest = found.span()
        if end > most:
            raise self._refused(f"the server sent more than {MAX_HEAD} B of headers", STRANGE)
        # Whoever ends the first line in LF alone may do so with all of them (RFC 9112 §2.2), but not now and
        # then: what is one line to us must not be two to whoever reads it next.
        line_end = b"\n" if data.find(b"\n") != data.find(b"\r\n") + 1 else b"\r\n"
        if found[0] != line_end * 2:
            told = "the server ends some lines of its answer in CR LF, and others in LF alone"
            raise self._refused(told, STRANGE)
        return bytes(data[:end]), line_end, bytes(data[rest:])

    def _refuse_if_not_http(self, data: bytearray) -> None:
        """Refuse what cannot become an answer at its first bytes: a mail server says no more for minutes."""
        if can_be_http(data):
            end = data.find(b"\n")
            if end < 0 or is_status_line(data[:end].rstrip(b"\r")):
                return
        else:
            self._read_greeting(data)
        said = first_line(bytes(data))
        kind, remedy = guess(bytes(data), secure=self._target.secure)
        told = [f"it seems to be {kind}"] if kind else []
        if self._hide(said) != said or self.request.startswith(data[:MOST_LOOKED_AT]):
            told.append("it repeats what was sent to it")
        elif said:
            shown = censored(said, self._secrets(), cut=b"\n" not in data)
            told.append(f'it says "{shown}"')
        elif data.startswith((b"\n", b"\r\n")):
            told.append("it begins with an empty line")
        why = ", and ".join(told) or "what it sends is no text"
        raise self._refused(f"the server did not answer in HTTP: {why}", remedy)

    def _read_greeting(self, data: bytearray) -> None:
        """Read on for a moment: the first bytes may be too few to tell whose they are."""
        deadline = min(self._deadline, monotonic() + _GREETING_PATIENCE)
        assert self.stream is not None, "nothing was sent"
        while len(data) < MOST_LOOKED_AT and not has_line(data) and self.stream.wait_readable(deadline):
            try:
                more = self._read(deadline)
            except OSError as error:
                if is_alarm(error):
                    raise
                return  # what came before it was cut off is what counts
            if not more:
                return
            data += more

    def _refuse(self, status: int, reason: str, headers: Headers, body: bytes) -> None:
        location = location_of(headers)
        leads_on = status in _REDIRECTS and location is not None  # then the body is of no interest
        patience = 0.0 if leads_on else _ERROR_BODY_PATIENCE
        body = b"" if status in _WITHOUT_BODY else self._read_body(headers, body, patience)
        if leads_on and location is not None:
            shown = redact(self._hide(location))
            text = self._text(f"the server redirects to {shown} ({status})")
            raise Redirected(
                text, status_code=status, headers=headers, body=body, shown=shown, secrets=self._secrets()
            )
        secrets = self._secrets() | secrets_of_cookies(headers.get_all("set-cookie"))
        from jetsocket.wire.upgrade_refusals import advice, first_words  # what most servers never say

        said = first_words(body, headers, f"{status} {reason}")
        what = f"the server refused with {status} {censored(reason, secrets)}".rstrip()
        if said:
            what += f' and says "{censored(said, secrets, cut=len(body) >= MAX_ERROR_BODY)}"'
        hint = advice(status, headers, said, compressed=self._compress, secure=self._target.secure)
        if wait := retry_after(headers):
            hint += f"; it asks for {wait:.0f} s of patience"
        raise self._refused(what, hint, status, headers, body)

    def _read_body(self, headers: Headers, body: bytes, patience: float) -> bytes:
        """As much of a refusal's body as comes in time, at most MAX_ERROR_BODY, chunks with their framing."""
        length, chunked = headers.get("content-length", ""), is_chunked(headers)
        wanted = MAX_ERROR_BODY
        if _LENGTH.fullmatch(length) and not chunked:  # int() refuses thousands of digits with a ValueError
            wanted = min(wanted, int(length))
        deadline = min(self._deadline, monotonic() + patience)
        try:
            while len(body) < wanted and not (chunked and unchunk(body)[1]):
                more = self._read(deadline)
                if not more:
                    break
                body += more
        except OSError as error:
            if is_alarm(error):
                raise
            # Late or cut off: the status is what counts, and the body is a courtesy.
        return unchunk(body[:wanted])[0] if chunked else body[:wanted]

    def _read(self, deadline: float) -> bytes:
        stream = self.stream
        assert stream is not None, "nothing was sent"
        while True:
            if not stream.wait_readable(deadline):
                raise self._late("waiting for the answer to the upgrade request")
            data = stream.read_now()
            if stream.has_replies and not stream.broken:  # one that renegotiates TLS waits for them
                stream.flush_now()
            if data is not None:
                self._heard |= bool(data)
                return data

    # --- errors ----------------------------------------------------------------------------------------

    def _secrets(self) -> set[str]:
        return secrets_of(self.request).union(self._sent_before)

    def _hide(self, said: str) -> str:
        return hide(said, self._secrets())

    def _hint(self) -> str:
        """What to do where a server hangs up: at plain text, it may want TLS."""
        return CUT_OFF if self._target.secure or self._heard else "does it want wss://?"

    def _unless_echoed(self, why: ValueError, said: str) -> str:
        """What is wrong with what the server `said`; if that has a secret of the request, not even a part."""
        return str(why) if self._hide(said) == said else "it repeats what was sent to it"

    def _fail(self, error: OSError, doing: str) -> None:
        if isinstance(error, (ConnectionError, TimeoutError)):
            self.failure = error
        elif isinstance(error, builtins.TimeoutError):
            self.failure = self._late(doing)
        else:
            hint = self._hint() if isinstance(error, builtins.ConnectionError) else CUT_OFF
            why = f"the connection failed while {doing}: {censored(str(error), self._secrets())}"
            self.failure = ConnectionError(self._text(f"{why}; {late_remedy(error) or hint}"))
            self.failure.__cause__ = as_cause(error, self._secrets())
        del error  # it may be the one that is raised, whose traceback has this frame: a cycle
        raise self.failure

    def _late(self, doing: str) -> TimeoutError:
        told = f"{self._timeout:.3g} s were not enough, ended while {doing}; allow more time"
        return TimeoutError(self._text(told), operation="connect", timeout=self._timeout)

    def _refused(
        self,
        why: str,
        remedy: str,
        status: int | None = None,
        headers: Headers | None = None,
        body: bytes = b"",
    ) -> HandshakeError:
        wait = None if headers is None else retry_after(headers)
        return HandshakeError(self._text(f"{why}; {remedy}"), status, wait, headers=headers, body=body)

    def _text(self, why: str) -> str:
        return f"no WebSocket at {self._target.redacted}: {why}"

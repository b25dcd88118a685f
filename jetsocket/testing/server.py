"""FakeServer: a real WebSocket server on this machine that says what a test tells it to, and is strict.

Here is what a test calls; how rules are found and messages kept is in `judging`, the rest below that.
"""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from jetsocket.header_fields import TOKEN, field_value
from jetsocket.testing.actions import duration, number
from jetsocket.testing.judging import Judging, Refusal
from jetsocket.testing.matching import described, matches
from jetsocket.testing.payloads import bare_path, decoded, payload_of
from jetsocket.testing.places import caller
from jetsocket.testing.rules import Rule, Script
from jetsocket.testing.seen import SeenConnection
from jetsocket.testing.verdicts import add_note, what_came
from jetsocket.testing_seam import Origin, divert, restore
from jetsocket.uris import parse


class FakeServer(Judging):
    """A scripted WebSocket server on 127.0.0.1, over a real socket; use it as a context manager.

    A message that no rule matches is answered with close 1011 and fails the test, and so do rules and steps
    of scripts that were never reached, and what a callback or matcher raises.

    Example:
        >>> with FakeServer() as server:
        ...     server.on({"method": "height"}).reply({"result": 7})
        ...     with ConnectionPool(base_uri=server.uri) as pool:
        ...         assert pool.request("/", {"id": 1, "method": "height"}) == {"id": 1, "result": 7}
    """

    def __init__(
        self,
        *,
        tls: bool = False,
        instead_of: str | None = None,
        id_field: str | None = "id",
        assert_all_called: bool = True,
        assert_all_expected: bool = True,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Make a server; `with`, or `start`, starts it.

        Args:
            tls: Speak wss:// as localhost, with a certificate of its own; see `ssl_context` and `ca_file`.
            instead_of: A ws:// or wss:// URI whose origin every pool of this process dials here meanwhile,
                without DNS, proxy and TLS. Path, Host header and `conn.uri` stay what they are.
            id_field: Where requests carry their id: it is put into replies that have none. None: never.
            assert_all_called: Whether rules and steps that were never reached fail the test.
            assert_all_expected: Whether messages that no rule matches do; else these are answered with
                nothing.
            host: Where to listen.
            port: Likewise; 0 is any that is free.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: `instead_of` is no WebSocket URI, or `tls` is asked for with it.
        """
        for name, flag in (
            ("tls", tls),
            ("assert_all_called", assert_all_called),
            ("assert_all_expected", assert_all_expected),
        ):
            if not isinstance(flag, bool):
                raise TypeError(f"{name} must be True or False, not {flag!r}")
        if id_field is not None and not isinstance(id_field, str):
            raise TypeError(f"id_field must be a str or None, not {id_field!r}")
        if instead_of is not None and tls:
            raise ValueError("instead_of is dialled without TLS, whatever its scheme; leave out tls=True")
        super().__init__(id_field, assert_all_called, assert_all_expected)
        self._origin: Origin | None = None if instead_of is None else parse(instead_of).origin
        self._tls = tls
        self._address = (host, number(port, "port"))
        self._made_at = caller()
        self._context: ssl.SSLContext | None = None
        self._ca_file: str | None = None
        self._port: int | None = None

    # --- its life --------------------------------------------------------------------------------------

    def start(self) -> FakeServer:
        """Listen. `close` ends it.

        Raises:
            ImportError: The extra `testing` is not installed.
            RuntimeError: It was started before; one is started once.
            ValueError: Another server stands in for `instead_of`.
            OSError: The port is taken.
        """
        if self._hub is not None:
            raise RuntimeError("a FakeServer is started once; make a new one")
        try:
            from jetsocket.testing.hub import Hub
        except ImportError as error:
            if error.name is None or error.name.partition(".")[0] != "websockets":
                raise
            raise ImportError('FakeServer needs websockets: pip install "jetsocket[testing]"') from error
        context = None
        if self._tls:
            from jetsocket.testing.tls import client_context, server_context

            context, self._context = server_context(), client_context()
        self._hub = Hub(self, address=self._address, ssl_context=context)
        self._port = self._hub.port
        if self._origin is not None:
            try:
                divert(self._origin, (self._address[0], self._port))
            except ValueError:
                self._origin = None
                self._hub.stop()
                raise
        self._tell_pytest()
        return self

    def close(self) -> None:
        """Close all connections and stop listening; the second time does nothing.

        Raises:
            AssertionError: Something is wrong that no one was told of yet.
        """
        error = self.finish()
        if error is not None:
            raise error

    def finish(self) -> AssertionError | None:
        """Stop, and say what was wrong."""
        error = self.verdict(final=True)
        self.stop()
        return error

    def stop(self) -> None:
        """`close` without a word about what was wrong: pytest, or a later `close`, asks for that."""
        if self._hub is not None and self._hub.is_elsewhere:
            return  # a fork: port, diversion and file are those of the process that has started it
        self._settle()
        if self._origin is not None:
            restore(self._origin)
            self._origin = None
        if self._hub is not None:
            self._hub.stop()
        if self._ca_file is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._ca_file)
            self._ca_file = None

    def __enter__(self) -> FakeServer:
        self._refuse_if_over()
        return self if self._hub is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        found = self.finish()
        if found is None:
            return
        if error is None:
            raise found
        add_note(error, str(found))

    def __repr__(self) -> str:
        return f"<FakeServer {self._where}>"

    # --- where it is -----------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Where it listens."""
        if self._port is None:
            raise RuntimeError("the FakeServer is not started: write `with FakeServer() as server:`")
        return self._port

    @property
    def uri(self) -> str:
        """ws://127.0.0.1:port, or wss://localhost:port with TLS."""
        host = self._address[0]
        shown = f"[{host}]" if ":" in host else host
        return f"wss://localhost:{self.port}" if self._tls else f"ws://{shown}:{self.port}"

    def url_for(self, path: str) -> str:
        """The URI of a path on this server; it may have a query."""
        return f"{self.uri}/{path.removeprefix('/')}"

    @property
    def speaks_tls(self) -> bool:
        """Whether it was made with `tls=True`."""
        return self._tls

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """A client's context that trusts this server; for `manager_kwargs`, and any other client.

        Raises:
            RuntimeError: It speaks no TLS.
        """
        if self._context is None:
            raise RuntimeError("this FakeServer speaks no TLS: FakeServer(tls=True) does, once it is started")
        return self._context

    @property
    def ca_file(self) -> str:
        """The path of a PEM file with its authority's certificate; there until the server ends.

        Raises:
            RuntimeError: It speaks no TLS.
        """
        if self._ca_file is None:
            _ = self.ssl_context
            from jetsocket.testing.tls import authority_pem

            descriptor, self._ca_file = tempfile.mkstemp(prefix="fake-server-ca-", suffix=".pem")
            with os.fdopen(descriptor, "wb") as file:
                file.write(authority_pem())
        return self._ca_file

    # --- what it says ----------------------------------------------------------------------------------

    def on(self, matcher: Any, *, path: str | None = None) -> Rule:
        """What is done about messages that match; rules are tried in the order in which they were made.

        Args:
            matcher: A dict matches in part, at every depth; a list item by item; a regex by `search` in the
                text; a callable by what it returns; `ANY` everything; all else by `==` with the decoded
                message or its text.
            path: Only on connections to that path.
        """
        self._refuse_if_over()
        rule = Rule(matcher, None if path is None else bare_path(path), caller())
        self._rules.append(rule)
        return rule

    def script(self, path: str | None = None) -> Script:
        """An ordered conversation with one connection: the next one to that path."""
        self._refuse_if_over()
        script = Script(None if path is None else bare_path(path), caller())
        self._scripts.append(script)
        return script

    def push(self, message: Any, *, path: str | None = None) -> int:
        """Send a message to all who are connected, to a path if one is given; returns to how many.

        Raises:
            AssertionError: No one is.
            TypeError: It can't be sent.
        """
        payload = payload_of(message)
        wanted = None if path is None else bare_path(path)
        hub = self._running
        hub.settle()

        def send() -> int:
            open_there = [each for each in hub.endpoints if wanted in (None, each.path)]
            return sum(each.send(payload) for each in open_there)

        reached = hub.do(send)
        if not reached:
            where = "" if wanted is None else f" to {wanted}"
            raise AssertionError(f"push: no one is connected{where}; connections: {self.connections}")
        return reached

    # --- the upgrade -----------------------------------------------------------------------------------

    def reject(
        self, status: int = 403, body: str | bytes | Any = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Refuse all connections from now on, until `accept_after`.

        Args:
            status: The HTTP status.
            body: What is said; what is neither `str` nor bytes goes out as JSON.
            headers: Fields of the answer.
        """
        self._refusal = self._refusing(status, body, headers)

    def reject_once(
        self, status: int = 503, body: str | bytes | Any = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Refuse the next connection; as `reject`. To be reached, like a rule."""
        self._refusals.append(self._refusing(status, body, headers))

    def accept_after(self, delay: float) -> None:
        """Accept connections, each so long after it has asked (s)."""
        self._refuse_if_over()
        self._refusal, self._accept_after = None, duration(delay, "delay")

    def _refusing(self, status: int, body: Any, headers: Mapping[str, str] | None) -> Refusal:
        self._refuse_if_over()
        if isinstance(status, bool) or not isinstance(status, int):
            raise TypeError(f"status must be an int, not {status!r}")
        if not 200 <= status <= 599:
            raise ValueError(f"status must be one that refuses, 200 to 599, not {status}")
        fields = {str(name): str(value) for name, value in (headers or {}).items()}
        for name, value in fields.items():
            if not TOKEN.fullmatch(name):
                raise ValueError(f"header name {name!r} is not a token (RFC 9110 §5.6.2)")
            field_value(f"the value of header {name}", value)
        if not isinstance(body, (str, bytes)):
            body = json.dumps(body)
            fields = {"Content-Type": "application/json", **fields}
        return Refusal(status, body, fields, caller())

    # --- looking ---------------------------------------------------------------------------------------

    @property
    def messages(self) -> list[Any]:
        """The decoded messages of all connections, in the order in which they came."""
        self._settle()
        return [decoded(payload) for payload in list(self._payloads)]

    @property
    def connections(self) -> list[SeenConnection]:
        """All connections in the order in which they came, also those that were refused or are over."""
        self._settle()
        return list(self._connections)

    def wait_for(self, matcher: Any, timeout: float = 5) -> Any:
        """Wait until a message has come that matches, as for `on`, and return it: the first one.

        Raises:
            AssertionError: None has, within `timeout` (s); it says what did come.
        """
        limit = duration(timeout, "timeout")
        found = self._await(matcher, 1, limit)
        if found:
            return found[0]
        raise AssertionError(
            f"no message came within {limit:g} s that matches {described(matcher)};"
            f" {what_came(self.messages)}"
        )

    def assert_received(self, matcher: Any, count: int | None = None, timeout: float = 1) -> None:
        """Assert that messages have come that match, as for `on`; waits for what is under way.

        Args:
            matcher: Which ones.
            count: How many; None: at least one. 0: none, which waits for nothing but what was sent already.
            timeout: s.

        Raises:
            AssertionError: Fewer or more came; it says what did.
        """
        least = 1 if count is None else number(count, "count")
        found = self._await(matcher, least, duration(timeout, "timeout"))
        if len(found) >= least and count is not None:
            found = self._await(matcher, 0, 0)  # and no more
        if len(found) < least or (count is not None and len(found) > count):
            wanted = "at least 1 message" if count is None else f"{count} messages"
            raise AssertionError(
                f"{wanted} expected that match {described(matcher)}, {len(found)} came;"
                f" {what_came(self.messages)}"
            )

    def _await(self, matcher: Any, least: int, timeout: float) -> list[Any]:
        """All messages that match, once there are so many or the time is over."""
        found: list[Any] = []
        seen = 0

        def look() -> bool:
            nonlocal seen
            while seen < len(self._payloads):
                payload = self._payloads[seen]
                seen += 1
                if matches(matcher, message := decoded(payload), payload):
                    found.append(message)
            return len(found) >= least

        self._settle()
        self._wait_until(look, timeout)
        return found


__all__ = ["FakeServer"]

"""A connection step by step: DNS, proxy, TCP, TLS, upgrade, each with its time, for `check` and `ping`."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jetsocket.cli.certificates import facts_of
from jetsocket.clock import deadline_in, monotonic
from jetsocket.exceptions import JetSocketError
from jetsocket.manager_kwargs import Options
from jetsocket.uris import Target
from jetsocket.wire.dial import Dialing
from jetsocket.wire.dns import Address
from jetsocket.wire.proxy_environment import Choice, proxy_for
from jetsocket.wire.proxy_url import redact_proxy
from jetsocket.wire.stream import Stream
from jetsocket.wire.websocket import WebSocket

__all__ = ["Step", "Stepped", "dial"]

R = TypeVar("R")


@dataclass
class Step:
    """A step that was taken.

    Attributes:
        name: Which one.
        seconds: What it took; None: it had nothing to do.
        ok: Whether it went well.
        told: What is to be said of it, in one line.
        facts: The same, for `--json`.
    """

    name: str
    seconds: float | None
    ok: bool = True
    told: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Stepped(WebSocket):
    """A connection that tells of its steps as they are taken."""

    def __init__(self, show: Callable[[Step], None], max_message_size: int) -> None:
        """Tell `show`; take messages of at most so many B."""
        super().__init__(max_message_size=max_message_size)
        self._show = show
        self.doing = ""  # the step under way, or the last one
        self.expired = False  # whether the certificate is, that was rejected
        self._began = 0.0
        self._dialing_type = self._watched

    def _watched(self, target: Target, **options: Any) -> Dialing:
        if self.doing == "upgrade":
            self.end(f"redirected to {target.redacted}", redirected=target.redacted)
        return _SteppedDialing(target, self, **options)

    def begin(self, name: str) -> None:
        """A step begins."""
        self.doing, self._began = name, monotonic()

    def end(self, told: str = "", **facts: Any) -> None:
        """It went well."""
        self._show(Step(self.doing, monotonic() - self._began, True, told, facts))

    def skip(self, name: str, told: str) -> None:
        """There was nothing to do."""
        self._show(Step(name, None, True, told))

    def fail(self, told: str = "", **facts: Any) -> None:
        """It went wrong."""
        self._show(Step(self.doing, monotonic() - self._began, False, told, facts))

    def take(self, name: str, step: Callable[[], R]) -> R:
        """Take a step, of which the caller tells when it went well."""
        self.begin(name)
        return step()


class _SteppedDialing(Dialing):
    """The opening of one connection, watched."""

    def __init__(self, target: Target, watcher: Stepped, **options: Any) -> None:
        super().__init__(target, **options)
        self._watcher = watcher

    def open(self, meanwhile: Callable[[], object] | None = None) -> Stream:
        self._choice = None if self._unix is not None else proxy_for(self._target, self._proxy)
        if self._unix is not None:
            self._watcher.skip("dns", "not needed for a Unix socket")
        stream = super().open(meanwhile)
        self._watcher.begin("upgrade")
        return stream

    def _look_up(self, host: str, port: int, family: int = 0, *, whom: str = "") -> list[Address]:
        find = super()._look_up
        found = self._watcher.take("dns", lambda: find(host, port, family, whom=whom))
        addresses = list(dict.fromkeys(str(each.sockaddr[0]) for each in found))
        of = f"{host} (the proxy): " if whom else "" if addresses == [host] else f"{host}: "
        self._watcher.end(of + ", ".join(addresses), addresses=addresses)
        if self._choice is None:
            self._watcher.skip("proxy", "none")
        return found

    def _race(self, addresses: Sequence[Address], whom: str = "") -> Stream:
        connect = super()._race
        stream = self._watcher.take("tcp", lambda: connect(addresses, whom))
        where = str(addresses[0]) if len(addresses) == 1 else _peer(stream, addresses)
        self._watcher.end(where, address=where)
        return stream

    def _tunnel(self, choice: Choice) -> Stream:
        stream = super()._tunnel(choice)
        shown = redact_proxy(choice.url) + (f" ({choice.variable})" if choice.variable else "")
        self._watcher.end(f"{shown} connects to {self._target.host_header}", proxy=shown)
        return stream

    def _ask_proxy(self, *args: Any) -> Any:
        ask = super()._ask_proxy
        return self._watcher.take("proxy", lambda: ask(*args))

    def _start_tls(self, stream: Stream) -> None:
        start = super()._start_tls
        try:
            self._watcher.take("tls", lambda: start(stream))
        except JetSocketError:
            session = stream.tls_session
            facts = None if session is None else facts_of(session)
            if facts is not None and facts.chain:
                now = time.time()
                self._watcher.expired = facts.expires is not None and facts.expires < now
                self._watcher.fail(facts.shown(now), **facts.record(now))
            else:
                self._watcher.fail()
            raise
        session = stream.tls_session
        assert session is not None
        facts, now = facts_of(session), time.time()
        self._watcher.end(facts.shown(now), **facts.record(now))


def _peer(stream: Stream, addresses: Sequence[Address]) -> str:
    """Which of several addresses it is."""
    with socket.socket(fileno=os.dup(stream.fileno())) as copy:
        try:
            host = copy.getpeername()[0]
        except OSError:
            return str(addresses[0])
    return next((str(each) for each in addresses if each.sockaddr[0] == host), str(addresses[0]))


def dial(ws: Stepped, target: Target, kwargs: dict[str, Any]) -> None:
    """Connect and upgrade, within `connect_timeout`.

    Raises:
        JetSocketError: As `WebSocket.connect`; the step that failed was told of.
    """
    options = Options.from_kwargs(kwargs)
    try:
        ws.connect(
            target,
            deadline=deadline_in(options.connect_timeout),
            header=options.headers(),
            origin=options.origin,
            subprotocols=options.subprotocols,
            compress=options.compress,
            ssl_context=options.ssl_context,
            proxy=options.proxy,
            unix=options.unix,
            server_hostname=options.server_hostname,
        )
    except JetSocketError:
        if ws.doing != "tls":  # whose failure was told of, with the certificate
            ws.fail()
        raise
    chosen, extensions = ws.getsubprotocol(), ws.response_headers.get("sec-websocket-extensions", "")
    server = ws.response_headers.get("server", "")
    told = ["101", f"subprotocol {chosen}" if chosen else _none_of(options.subprotocols)]
    told.append(f"extensions {extensions}" if extensions else "no extensions")
    if server:
        told.append(f"server {server}")
    ws.end(", ".join(told), status=101, subprotocol=chosen, extensions=extensions, server=server)


def _none_of(offered: Sequence[str]) -> str:
    return (
        f"none of the subprotocols that were offered ({', '.join(offered)})" if offered else "no subprotocol"
    )

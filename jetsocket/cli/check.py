"""`jetsocket check`: a doctor, who goes through a connection step by step, and says what to do."""

from __future__ import annotations

import argparse
import socket
import ssl
from dataclasses import replace

from jetsocket.cli.exits import NO_WEBSOCKET, OK, TIMEOUT, UNREACHABLE, Outcome, outcome_of
from jetsocket.cli.figures import shown_time
from jetsocket.cli.output import Terminal
from jetsocket.cli.settings import manager_kwargs, only_uri
from jetsocket.cli.steps import Step, Stepped, dial
from jetsocket.clock import deadline_in
from jetsocket.exceptions import JetSocketError
from jetsocket.uris import Target

__all__ = ["better", "run", "speaks_tls"]

_PROBE_PATIENCE = 2.0  # s
_CLOSE_PATIENCE = 2.0  # s


def run(options: argparse.Namespace, given: list[str], terminal: Terminal) -> int:
    """Do what the command line says.

    Args:
        options: What was given by name.
        given: The URI.
        terminal: Where to print.

    Returns:
        The exit code.
    """
    target, _ = only_uri("check", given)
    kwargs = manager_kwargs(options)
    if not terminal.json:
        terminal.line(target.redacted, "bold")

    def show(step: Step) -> None:
        _show(terminal, step)

    ws = Stepped(show, options.max_message_size)
    try:
        dial(ws, target, kwargs)
    except JetSocketError as error:
        directly = options.unix is None and ws.doing == "upgrade"
        outcome = better(
            outcome_of(error), target, tls_there=directly and _has_tls(target, outcome_of(error))
        )
        if ws.expired and "has expired" not in outcome.cause:
            also = "; it has expired, too: the server needs a new one"
            outcome = replace(outcome, remedy=outcome.remedy + also)
        return _end(terminal, outcome)
    for name, value in ws.response_headers.items():
        terminal.detail(f"< {name}: {value}")
    failed: Outcome | None = None
    try:
        ws.begin("ping")
        try:
            round_trip = ws.measure_latency(deadline_in(options.timeout))
        except JetSocketError as error:
            ws.fail()
            failed = outcome_of(error)
            if failed.exit == TIMEOUT:
                remedy = "it answers no pings: for a pool, give it a check; or allow more time with -t"
                failed = Outcome(TIMEOUT, failed.cause, remedy)
        else:
            ws.end(f"pong after {shown_time(round_trip)}")
        if failed is None or failed.exit == TIMEOUT:
            failed = _close(ws, failed)
    finally:
        ws.close(timeout=0)
    return _end(terminal, failed)


def _close(ws: Stepped, failed: Outcome | None) -> Outcome | None:
    ws.begin("close")
    ws.close(timeout=_CLOSE_PATIENCE)
    if ws.reader.close is not None:
        code, reason = ws.reader.close
        ws.end(f"{code} {reason}".rstrip(), code=code)
        return failed
    ws.fail("the server did not answer the close frame")
    remedy = "closing such connections takes as long as close_timeout allows"
    return failed or Outcome(TIMEOUT, "the server did not answer the close frame", remedy)


def _show(terminal: Terminal, step: Step) -> None:
    took = None if step.seconds is None else round(step.seconds, 6)
    if terminal.json:
        terminal.record("step", name=step.name, ok=step.ok, seconds=took, **step.facts)
        return
    mark = "ok  " if step.ok else "FAIL"
    time = "-" if step.seconds is None else shown_time(step.seconds)
    line = f"{mark}  {step.name:<8}{time:>8}  {step.told}".rstrip()
    terminal.line(line, *(() if step.ok else ("red",)))


def _end(terminal: Terminal, failed: Outcome | None) -> int:
    code = OK if failed is None else failed.exit
    if failed is not None:
        terminal.fail(failed)
    if terminal.json:
        terminal.record("summary", ok=failed is None, exit=code)
    return code


def better(outcome: Outcome, target: Target, *, tls_there: bool) -> Outcome:
    """What is known better after another look: whether TLS is spoken there."""
    if target.secure or not tls_there:
        return outcome
    instead = target.redacted.replace("ws://", "wss://", 1)
    return replace(outcome, remedy=f"TLS is spoken there: write {instead}")


def _has_tls(target: Target, outcome: Outcome) -> bool:
    """Whether to look for TLS, and it is there: where plain text got no answer in HTTP."""
    may_be = outcome.exit in (UNREACHABLE, NO_WEBSOCKET, TIMEOUT) and outcome.status in (None, 400)
    return not target.secure and may_be and speaks_tls(target.host, target.port)


def speaks_tls(host: str, port: int) -> bool:
    """Whether a TLS handshake works there, with whatever certificate; nothing is sent over it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), _PROBE_PATIENCE) as sock,
            context.wrap_socket(sock, server_hostname=host) as wrapped,
        ):
            return wrapped.version() is not None
    except (OSError, ValueError):
        return False

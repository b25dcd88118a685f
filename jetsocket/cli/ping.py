"""`jetsocket ping`: how long a connection takes, and then each round trip."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from jetsocket.cli.exits import OK, TIMEOUT, Outcome, close_outcome, outcome_of
from jetsocket.cli.figures import shown_time, summary
from jetsocket.cli.output import PipeClosedError, Terminal
from jetsocket.cli.settings import manager_kwargs, only_uri
from jetsocket.cli.steps import Step, Stepped, dial
from jetsocket.clock import deadline_in, monotonic
from jetsocket.exceptions import ConnectionClosedError, JetSocketError, TimeoutError

__all__ = ["Tally", "run"]

_LOOK = 0.25  # s between two looks whether the output is still read
_CLOSE_PATIENCE = 1.0  # s


@dataclass
class Tally:
    """What came of the pings: how many went, and the round trips (s)."""

    sent: int = 0
    times: list[float] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """The share that got no pong, from 0 to 1."""
        return 1 - len(self.times) / self.sent if self.sent else 0.0

    def shown(self) -> str:
        """In one line."""
        told = f"{self.sent} pings, {len(self.times)} pongs, {self.loss * 100:.0f} % lost"
        figures = summary(self.times)
        if figures is None:
            return told
        names = ("min", "avg", "p50", "p99", "max")
        values = " / ".join(shown_time(getattr(figures, name)) for name in names)
        return f"{told}; {'/'.join(names)} {values}"

    def record(self) -> dict[str, object]:
        """For `--json`."""
        figures = summary(self.times)
        times = {
            name: None if figures is None else round(getattr(figures, name), 6)
            for name in ("min", "avg", "p50", "p99", "max")
        }
        return {"sent": self.sent, "received": len(self.times), "loss": round(self.loss, 4), **times}


def run(options: argparse.Namespace, given: list[str], terminal: Terminal) -> int:
    """Do what the command line says.

    Args:
        options: What was given by name.
        given: The URI.
        terminal: Where to print.

    Returns:
        The exit code.
    """
    target, _ = only_uri("ping", given)
    kwargs = manager_kwargs(options)
    steps: list[Step] = []
    ws = Stepped(steps.append, options.max_message_size)
    try:
        dial(ws, target, kwargs)
    except JetSocketError as error:
        return terminal.fail(outcome_of(error))
    _show_steps(terminal, target.redacted, steps)
    tally = Tally()
    failed: Outcome | None = None
    try:
        try:
            _ping_all(ws, options, terminal, tally)
        except ConnectionClosedError as error:
            failed = None if error.is_normal else close_outcome(error.code, error.args[2])
            if failed is None:
                terminal.note(f"the server closed the connection with {error.code}", "yellow")
        except JetSocketError as error:
            failed = outcome_of(error)
        finally:
            ws.close(timeout=_CLOSE_PATIENCE)
    except KeyboardInterrupt:
        _conclude(terminal, tally)
        raise
    _conclude(terminal, tally)
    if failed is not None:
        return terminal.fail(failed)
    if tally.times:
        return OK
    remedy = "it answers no pings; allow more time with -t"
    return terminal.fail(Outcome(TIMEOUT, f"no pong came to {tally.sent} pings", remedy))


def _show_steps(terminal: Terminal, uri: str, steps: list[Step]) -> None:
    timed = [step for step in steps if step.seconds is not None]
    if terminal.json:
        for step in timed:
            took = None if step.seconds is None else round(step.seconds, 6)
            terminal.record("step", name=step.name, ok=step.ok, seconds=took, **step.facts)
        return
    told = ", ".join(f"{step.name} {shown_time(step.seconds or 0.0)}" for step in timed)
    terminal.line(f"{uri}: {told}")


def _ping_all(ws: Stepped, options: argparse.Namespace, terminal: Terminal, tally: Tally) -> None:
    due = monotonic()
    while options.count is None or tally.sent < options.count:
        _rest(ws, terminal, due)
        due = max(due + options.interval, monotonic())
        tally.sent += 1
        try:
            took = ws.measure_latency(deadline_in(options.timeout))
        except TimeoutError:
            if terminal.json:
                terminal.record("pong", seq=tally.sent, seconds=None)
            else:
                terminal.line(f"seq={tally.sent} no pong within {shown_time(options.timeout)}", "yellow")
        else:
            tally.times.append(took)
            if terminal.json:
                terminal.record("pong", seq=tally.sent, seconds=round(took, 6))
            else:
                terminal.line(f"seq={tally.sent} time={shown_time(took)}")


def _rest(ws: Stepped, terminal: Terminal, until: float) -> None:
    """Wait, and read what comes meanwhile: the server's own pings are to be answered."""
    while (now := monotonic()) < until:
        try:
            ws.recv_message(min(until, now + _LOOK))
        except TimeoutError:
            if not terminal.is_read():
                raise PipeClosedError from None


def _conclude(terminal: Terminal, tally: Tally) -> None:
    if terminal.json:
        terminal.record("summary", **tally.record())
    else:
        terminal.line(tally.shown())

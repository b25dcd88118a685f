"""What a pool tells of what it has counted: its figures, and histograms of its times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from jetsocket.histogram import Histogram


@dataclass(frozen=True)
class PoolStats:
    """The figures of a pool at one moment. Totals keep counting connections that are gone.

    Attributes:
        total_connections: Connections ever opened.
        active_connections: Lent now, or shared.
        idle_connections: Idle now.
        total_messages_sent: Messages that borrowers sent.
        total_messages_received: Messages that came for borrowers, whether read or not.
        total_reconnects: Connections opened in place of one that was lost.
        connecting: Being opened now.
        waiting: Callers in line now.
        acquires: Leases given out.
        reuses: Leases of a connection that had another borrower before.
        timeouts: Callers who got `PoolExhaustedError`.
        refused: How long they had waited who got an error instead of a lease, by the name of its type.
        connect_errors: Attempts to connect that failed.
        discards: Connections given up, by reason.
        bytes_sent: B sent over all connections, TLS and upgrades included.
        bytes_received: B received likewise.
        in_flight: Requests under way now, with a correlation.
        late_replies: Replies that came after their request was given up, and were dropped.
        unasked_messages: Messages that belonged to no request, subscription or lease: `on_push` got them.
        wait_time: From `acquire` to the lease, connecting included.
        lend_time: From the lease to its return.
        connect_time: From the beginning of a dial to its connection, `configure` included.
        reply_time: From the moment that a request has left to its reply, of a `stream` the first; those of
            callbacks not counted.
    """

    total_connections: int
    active_connections: int
    idle_connections: int
    total_messages_sent: int
    total_messages_received: int
    total_reconnects: int
    connecting: int = 0
    waiting: int = 0
    acquires: int = 0
    reuses: int = 0
    timeouts: int = 0
    connect_errors: int = 0
    discards: Mapping[str, int] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    in_flight: int = 0
    late_replies: int = 0
    unasked_messages: int = 0
    refused: Mapping[str, Histogram] = field(default_factory=dict)
    wait_time: Histogram = field(default_factory=Histogram)
    lend_time: Histogram = field(default_factory=Histogram)
    connect_time: Histogram = field(default_factory=Histogram)
    reply_time: Histogram = field(default_factory=Histogram)

    def as_dict(self) -> dict[str, int | float]:
        """All figures by name, flat: of the histograms count, mean, p50, p95, p99 and longest (s)."""
        flat: dict[str, int | float] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Histogram):
                for name in ("count", "mean", "p50", "p95", "p99", "longest"):
                    flat[f"{each.name}_{name}"] = getattr(value, name)
            elif isinstance(value, Mapping):
                counts = {k: v.count if isinstance(v, Histogram) else v for k, v in value.items()}
                flat[each.name] = sum(counts.values())
                flat.update({f"{each.name}_{key.replace(' ', '_')}": count for key, count in counts.items()})
            else:
                flat[each.name] = value
        return flat

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from jetsocket.html_tables import grid, table  # few programs show anything

        counts = [(name, value) for name, value in self.as_dict().items() if isinstance(value, int)]
        told = [(name.replace("_", " "), value) for name, value in counts if not name.endswith("_count")]
        times = [
            (name.replace("_", " "), of.count, *(f"{of.percentile(p):.3g} s" for p in (50, 95, 99)))
            for name in ("wait_time", "lend_time", "connect_time", "reply_time")
            if (of := getattr(self, name)).count
        ]
        return table("PoolStats", told) + grid("Times", ("", "count", "p50", "p95", "p99"), times)

    def __str__(self) -> str:
        """Readable lines: what is now, what has been, and how long it took."""
        discards = ", ".join(f"{count} {reason}" for reason, count in sorted(self.discards.items())) or "none"
        times = ("wait", self.wait_time), ("lent", self.lend_time), ("connect", self.connect_time)
        told = [f"{name} {_told(of)}" for name, of in (*times, ("reply", self.reply_time)) if of.count]
        by_id = ""
        if self.in_flight or self.late_replies or self.unasked_messages:  # only with a correlation
            by_id = f"; {self.in_flight} in flight, {self.late_replies} late, {self.unasked_messages} unasked"
        return (
            f"now: {self.active_connections} lent, {self.idle_connections} idle, {self.connecting} being"
            f" opened, {self.waiting} waiting\n"
            f"so far: {self.acquires} acquires ({self.reuses} reused, {self.timeouts} timed out),"
            f" {self.total_connections} opened ({self.total_reconnects} for lost ones,"
            f" {self.connect_errors} connect errors), not kept: {discards}\n"
            f"messages: {self.total_messages_sent} sent, {self.total_messages_received} received"
            f" ({self.bytes_sent} and {self.bytes_received} B){by_id}\n"
            f"p50 / p99: {', '.join(told) or 'nothing yet'}"
        )


def _told(times: Histogram) -> str:
    return f"{times.p50:.3g} / {times.p99:.3g} s"

"""The final ledger of a soak: what was counted on all sides, and whether the promises were kept. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

MIB = 1 << 20

LATEST = (
    5.0  # s that an operation may outlast its deadline: two busy cores, and many threads of Python on one
)
LONGEST_PAUSE = 10.0  # s without an answer while the server is up
LONGEST_CLOSE = 1.0 + LATEST  # s: close_timeout, and as above
WARM_UP = 0.05  # part of the time after which memory is measured
GROWTH = 0.25  # part by which memory may have grown since
SLACK = 32 * MIB  # and what it may grow by in any case: many threads meet with large messages now and then


class Verdict(NamedTuple):
    """One line of the ledger."""

    what: str
    figure: str
    rule: str
    """What it has to be; empty for what is only told."""
    kept: bool = True


@dataclass(frozen=True)
class Ledger:
    """What the client said of itself, and what was counted where its connections arrived.

    Attributes:
        found: The client's result; see `client.Soak`.
        caps: max_connections by kind of pool.
        most: Most connections open at once by kind of pool, as the server or the proxies counted them.
        opened: Connections that the server upgraded.
        gusts: What was done to server and proxies, by name.
    """

    found: Mapping[str, Any]
    caps: Mapping[str, int]
    most: Mapping[str, int]
    opened: int
    gusts: Mapping[str, int]

    def verdicts(self) -> list[Verdict]:
        return [*self._calls(), *self._pools(), *self._process()]

    def broken(self) -> list[str]:
        """What broke, in plain words; with what there is to know about it."""
        told = [
            f"{one.what}: {one.figure}; it has to be {one.rule}" for one in self.verdicts() if not one.kept
        ]
        found = self.found
        return [*told, *found["foreign"], *found["unexplained"][:20], *found["broken"][:20]]

    def _calls(self) -> Iterator[Verdict]:
        found = self.found
        failed = sum(found["failed"].values())
        made, answered, struck = found["made"], found["answered"], found["struck"]
        ends = f"{answered:,} + {failed:,} + {struck:,}"
        yield Verdict(
            "calls made", f"{made:,}", "answered + failed + struck", made == answered + failed + struck
        )
        yield Verdict(
            "answered + failed by name + struck", ends, "calls made", made == answered + failed + struck
        )
        yield Verdict("replies checked", f"{found['replies']:,}", "more than 0", found["replies"] > 0)
        yield zero("foreign replies", len(found["foreign"]))
        for name, number in sorted(found["failed"].items(), key=lambda item: -item[1]):
            yield Verdict(f"failed: {name}", f"{number:,}", "")
        yield zero("errors that no trouble explains", len(found["unexplained"]))
        yield zero("errors that must never be", len(found["broken"]))
        yield most("longest time without an answer, the server being up", found["pause"], LONGEST_PAUSE)
        yield most("latest end of an operation after its deadline", max(0.0, found["overrun"]), LATEST)

    def _pools(self) -> Iterator[Verdict]:
        found = self.found
        for kind, cap in self.caps.items():
            seen = self.most.get(kind, 0)
            yield Verdict(f"open at once, pool {kind}", f"{seen}", f"at most {cap}", seen <= cap)
        for kind, (lent, cap) in found["lent"].items():
            yield Verdict(f"lent at once in the end, pool {kind}", f"{lent}", f"{cap}", lent == cap)
        yield most("longest close()", found["longest_close"], LONGEST_CLOSE)
        yield Verdict("connections upgraded", f"{self.opened:,}", "")
        yield Verdict("pools closed, drained, forgotten and made anew", counted(found["ends"]), "")
        yield zero("forgotten pools that are still there", found["forgotten"])
        yield Verdict("leases dropped and reclaimed, each with its warning", f"{found['dropped']:,}", "")
        yield Verdict("asynchronous exceptions", f"{found['strikes']:,}", "")
        yield Verdict("  swallowed by finalizers", f"{found['swallowed']:,}", "")
        yield Verdict("  sockets that were closed by their finalizer", f"{found['unclosed']:,}", "")
        yield Verdict("children forked", f"{found['actions'].get('fork', 0):,}", "")
        yield Verdict("  sockets of threads that were connecting, in a child", f"{found['inherited']:,}", "")
        yield Verdict("faults of server and network", counted(self.gusts), "")

    def _process(self) -> Iterator[Verdict]:
        found = self.found
        start, end = found["start"], found["end"]
        yield zero("threads that are stuck", len(found["stuck"]))
        for name in ("sockets", "fds", "threads"):
            what = f"{name} at start and end"
            yield Verdict(what, f"{start[name]}, {end[name]}", "equal", start[name] == end[name])
        left = counted(found["objects"])
        yield Verdict("the library's objects that are left", left or "0", "0", not found["objects"])
        warm, last = self.warm(), end["rss"]
        limit = warm + max(SLACK, int(warm * GROWTH))
        figure = f"{warm / MIB:.1f} MiB, {last / MIB:.1f} MiB"
        yield Verdict(
            "memory after warm-up and in the end", figure, f"at most {limit / MIB:.1f} MiB", last <= limit
        )

    def warm(self) -> int:
        """Memory (B) when a twentieth of the time was over."""
        memory: list[tuple[float, int]] = self.found["memory"]
        from_here = memory[-1][0] * WARM_UP
        return next(rss for at, rss in memory if at >= from_here)


def zero(what: str, number: int) -> Verdict:
    return Verdict(what, f"{number:,}", "0", number == 0)


def most(what: str, seconds: float, limit: float) -> Verdict:
    return Verdict(what, f"{seconds:.2f} s", f"at most {limit:g} s", seconds <= limit)


def counted(numbers: Mapping[str, int]) -> str:
    """`{"cut": 3}` in words, the largest first."""
    return ", ".join(
        f"{name} {number:,}" for name, number in sorted(numbers.items(), key=lambda item: -item[1])
    )

"""The page: reports as HTML. All that comes from elsewhere is escaped here."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from jetsocket.contrib.status.lines import duration, slots
from jetsocket.contrib.status.plots import plot
from jetsocket.contrib.status.reports import Report, merged
from jetsocket.contrib.status.style import CSS, SCRIPT
from jetsocket.contrib.status.watching import SERIES

_REFRESH = 5  # s, where no script runs
_LONG_PATH = re.compile(r"\(.*/([^/]+/[^/]+)\)$")


@dataclass(frozen=True)
class View:
    """What is to be shown, and how.

    Attributes:
        mine: What the worker says that answers.
        others: What the others say.
        token: What a form has to send back; "": there are no forms.
        is_paused: The page is to stay as it is.
        is_shared: The workers share a directory.
        trouble: Why others' reports are missing; "": they are not.
    """

    mine: Report
    others: Sequence[Report]
    token: str
    is_paused: bool
    is_shared: bool
    trouble: str


def render(view: View) -> str:
    """The whole page."""
    return "".join(_page(view))


def _page(view: View) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>jetsocket pools</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    if not view.is_paused:
        yield f'<noscript><meta http-equiv="refresh" content="{_REFRESH}"></noscript>'
    yield f"<style>{CSS}</style></head><body>"
    yield '<header><h1>jetsocket pools</h1><nav aria-label="This page">'
    yield '<a href="./">Go on refreshing</a>' if view.is_paused else '<a href="?pause">Pause</a>'
    yield '<a href="status.json">JSON</a></nav><p id="note" class="bad" role="status"></p></header>'
    yield f'<main data-jetsocket><div data-live="workers">{"".join(_workers(view))}</div>'
    pools = merged([view.mine, *view.others])
    for number, pool in enumerate(pools):
        yield from _pool(number, pool, view)
    if not pools:
        yield '<section data-live="none"><p>There is no pool.</p></section>'
    yield "</main>"
    yield "</body></html>\n" if view.is_paused else f"<script>{SCRIPT}</script></body></html>\n"


def _workers(view: View) -> Iterator[str]:
    at = time.strftime("%H:%M:%S UTC", time.gmtime(view.mine["written"]))
    count = 1 + len(view.others)
    answers = f"worker {escape(view.mine['worker'])}"
    if view.is_shared:
        whose = f"{count} worker{'s' if count > 1 else ''}; {answers} answers"
    else:
        whose = f"{answers} alone: other processes have pages of their own"
    yield f'<p class="quiet">At {at}, of {whose}.{" Paused." if view.is_paused else ""}</p>'
    if view.trouble:
        yield f'<p class="bad">{escape(view.trouble)}</p>'
    for other in view.others:
        if other["late"]:
            late = duration(other["late"])
            yield f'<p class="bad">Worker {escape(other["worker"])} was not heard of for {late}.</p>'


def _pool(number: int, pool: Report, view: View) -> Iterator[str]:
    name, several = escape(pool["name"]), bool(view.others)
    yield f'<section aria-labelledby="pool-{number}"><div class="title"><h2 id="pool-{number}">{name}</h2>'
    yield f'<div data-live="state-{number}">{_state(pool)}</div></div>'
    yield f'<div data-live="figures-{number}">{"".join(_figures(pool))}</div>'
    yield "<h3>Connections, and who holds them</h3>"
    label = f"Connections of {name}"
    yield f'<div class="scroll" role="region" aria-label="{label}" tabindex="0" data-live="table-{number}">'
    yield f"{''.join(_table(pool, several))}</div>"
    yield f'<div data-live="errors-{number}">{"".join(_errors(pool, several))}</div>'
    if view.token and not pool["closed"]:
        yield '<form method="post" action="clear">'
        yield f'<input type="hidden" name="token" value="{escape(view.token)}">'
        yield f'<input type="hidden" name="pool" value="{name}">'
        yield f"<button>Close what is idle in {name}, and what is lent when it comes back</button></form>"
    yield "</section>"


def _state(pool: Report) -> str:
    if pool["closed"]:
        return '<span class="bad">closed</span>'
    workers = f" in {pool['workers']} workers" if pool["workers"] > 1 else ""
    return f'<span class="quiet">at most {pool["max_connections"]} connections{workers}</span>'


def _figures(pool: Report) -> Iterator[str]:
    now, history = pool["now"], pool["history"]
    cap = 0 if pool["closed"] else pool["max_connections"]
    yield '<ul class="cards">'
    for name in SERIES:
        known = [value for value in history[name] if value is not None]
        peak = max([now[name], *known])
        most = max(peak, cap) if name not in ("waiting", "opening") else max(peak, 4)
        told = f"{name} over the last 5 minutes: {now[name]} now, at most {peak}"
        has_cap = name == "open" and bool(cap)
        picture = plot(history[name], highest=most, limit=cap if has_cap else None, told=told)
        of = f" of {cap}" if has_cap else ""
        yield f"<li><b>{now[name]}</b>{name}{picture}<small>peak {peak}{of}</small></li>"
    yield "</ul>"
    yield f'<p class="quiet">Plots: the last 5 minutes, a line a minute. {"".join(_totals(pool))}</p>'
    for limiter in pool["limiters"]:
        kind = "bad" if limiter["away"] else "quiet"
        yield f'<p class="{kind}">{escape(_begun(slots(limiter)))}.</p>'
    if pool["discards"]:
        reasons = ", ".join(f"{count} {escape(reason)}" for reason, count in pool["discards"].items())
        yield f'<p class="quiet">Connections not kept, by reason: {reasons}.</p>'


def _begun(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _totals(pool: Report) -> Iterator[str]:
    totals = pool["totals"]
    acquires, reuses = totals.get("acquires", 0), totals.get("reuses", 0)
    yield f"So far: {acquires} acquires"
    if acquires:
        yield f", {100 * reuses / acquires:.3g} % of them of a reused connection"
        slowest = " (of the slowest worker)" if pool["workers"] > 1 else ""
        p50, p99 = totals.get("wait_time_p50", 0), totals.get("wait_time_p99", 0)
        yield f", p50 / p99 of the wait{slowest} {duration(p50)} / {duration(p99)}"
    yield f"; {totals.get('timeouts', 0)} timed out, {totals.get('connect_errors', 0)} connect errors."


def _table(pool: Report, several: bool) -> Iterator[str]:
    if not pool["connections"]:
        yield "<p>None is open.</p>"
        return
    heads = ["No.", "URI", "Place", "Age", "Uses", "Latency", "Held by", "For", "Doing", "Acquired in"]
    if several:
        heads.insert(0, "Worker")
    yield "<table><thead><tr>"
    for head in heads:
        kind = ' class="number"' if head in ("No.", "Age", "Uses", "Latency", "For") else ""
        yield f'<th scope="col"{kind}>{head}</th>'
    yield "</tr></thead><tbody>"
    for row in pool["connections"]:
        holders = [each for each in pool["leases"] if _key(each) == _key(row)]
        yield from _row(row, holders or [None], several)
    yield "</tbody></table>"
    if pool["not_listed"]:
        yield f"<p>{pool['not_listed']} more are not listed.</p>"


def _row(row: Report, holders: Iterable[Report | None], several: bool) -> Iterator[str]:
    """One for a connection; where several callers share it, one for each."""
    latency = "" if row["latency"] is None else duration(row["latency"])
    for holder in holders:
        yield "<tr>"
        if several:
            yield f"<td>{escape(row['worker'])}</td>"
        yield f'<td class="number">{row["id"]}</td>{_long(row["uri"], "uri")}'
        yield f'<td>{escape(row["place"])}</td><td class="number">{duration(row["age"])}</td>'
        yield f'<td class="number">{row["uses"]}</td><td class="number">{latency}</td>'
        if holder is None:
            yield "<td></td><td></td><td></td><td></td>"
        else:
            yield f'{_long(holder["thread"])}<td class="number">{duration(holder["age"])}</td>'
            yield f"{_long(holder['doing'])}{_long(_short(holder['where']))}"
        yield "</tr>"


def _long(text: str, kind: str = "long") -> str:
    """A cell of text that may be long: it is broken into lines, which keeps the next ones in sight."""
    return f'<td><span class="{kind}">{escape(text)}</span></td>'


def _short(where: str) -> str:
    """Function, the last two parts of the file's path, and the line; `/status.json` has all of it."""
    return _LONG_PATH.sub(r"(…/\1)", where)


def _key(row: Report) -> Any:
    return row["worker"], row["id"]


def _errors(pool: Report, several: bool) -> Iterator[str]:
    if not pool["errors"]:
        return
    yield '<h3>Last errors</h3><ul class="errors">'
    for error in pool["errors"][:20]:
        at = time.strftime("%H:%M:%S", time.gmtime(error["at"]))
        times = f" ({error['count']} times)" if error["count"] > 1 else ""
        worker = f" in {escape(error['worker'])}" if several else ""
        yield f"<li><time>{at}</time>{worker}, {escape(error['doing'])}{times}: {escape(error['text'])}</li>"
    yield "</ul>"

"""A panel of django-debug-toolbar: what a request asked of the pools, how long it waited, what was slow."""

from __future__ import annotations

from contextvars import ContextVar
from time import perf_counter
from typing import Any, TypeAlias

from jetsocket import ConnectionInfo
from jetsocket.contrib.django.pools import pools
from jetsocket.events import Listener

try:
    from debug_toolbar.panels import Panel
    from django.http import HttpRequest, HttpResponse
    from django.utils.html import format_html, format_html_join
except ImportError as error:
    raise ImportError("JetSocketPanel needs Django and django-debug-toolbar") from error

__all__ = ["JetSocketPanel"]

_SLOW = 0.1  # s, from which a call is marked

Call: TypeAlias = tuple[str, str, float, str]
"""What was asked for, of which URI, how long that took (s), and how it went."""

_calls: ContextVar[list[Call] | None] = ContextVar("jetsocket_calls", default=None)


class _Recorder(Listener):
    """Notes what a request with the toolbar asks of the pools, in whichever thread its context is."""

    def acquiring(self, uri: str) -> float:
        return perf_counter()

    def acquired(self, token: float, info: ConnectionInfo, waited: float, reused: bool) -> None:
        _note("acquire", info.uri, waited, "reused" if reused else "opened for it")

    def refused(self, token: float, error: BaseException) -> None:
        _note("acquire", "", perf_counter() - token, type(error).__name__)

    def requesting(self, info: ConnectionInfo, message: Any) -> tuple[float, str]:
        return perf_counter(), info.uri

    def replied(self, token: tuple[float, str], error: BaseException | None) -> None:
        began, uri = token
        _note("request", uri, perf_counter() - began, "" if error is None else type(error).__name__)


def _note(what: str, uri: str, seconds: float, how: str) -> None:
    calls = _calls.get()
    if calls is not None:
        calls.append((what, uri, seconds, how))


_recorder = _Recorder()


class JetSocketPanel(Panel):  # type: ignore[misc]  # the toolbar has no types
    """``DEBUG_TOOLBAR_PANELS += ["jetsocket.contrib.django.panels.JetSocketPanel"]``."""

    title = "WebSocket pools"
    has_content = True

    @property
    def nav_subtitle(self) -> str:
        """What stands in the toolbar."""
        calls = self.get_stats().get("calls", [])
        asked = sum(what == "request" for what, *_ in calls)
        waited = sum(seconds for what, _, seconds, _ in calls if what == "acquire")
        return f"{asked} requests, waited {1000 * waited:.0f} ms"

    def enable_instrumentation(self) -> None:
        """A request begins."""
        pools.listen_once(_recorder)
        self._noted: list[Call] = []
        _calls.set(self._noted)

    def disable_instrumentation(self) -> None:
        """It has ended."""
        _calls.set(None)

    def generate_stats(self, request: HttpRequest, response: HttpResponse) -> None:
        """Keep what was noted; the toolbar asks behind `disable_instrumentation`."""
        self.record_stats({"calls": list(self._noted)})

    @property
    def content(self) -> str:
        """The table."""
        calls = self.get_stats().get("calls", [])
        reused = sum(how == "reused" for what, _, _, how in calls if what == "acquire")
        slow = sum(seconds >= _SLOW for _, _, seconds, _ in calls)
        rows = format_html_join(
            "",
            "<tr><td>{}</td><td>{}</td><td>{} ms{}</td><td>{}</td></tr>",
            (
                (what, uri, f"{1000 * seconds:.1f}", " (slow)" if seconds >= _SLOW else "", how)
                for what, uri, seconds, how in calls
            ),
        )
        return str(
            format_html(
                "<p>{} calls, {} of them over {} ms; {} connections reused.</p><table><thead><tr>"
                "<th>Call</th><th>URI</th><th>Time</th><th></th></tr></thead><tbody>{}</tbody></table>",
                len(calls),
                slow,
                f"{1000 * _SLOW:.0f}",
                reused,
                rows,
            )
        )

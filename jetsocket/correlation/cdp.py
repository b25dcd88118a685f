"""Browsers: the Chrome DevTools Protocol, and WebDriver BiDi, which looks alike."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

from jetsocket.correlation.base import Correlation, NewId, Topics
from jetsocket.correlation.reading import key_of, member, needs_object, put_back, reply_error, text_of
from jetsocket.exceptions import ReplyError

__all__ = ["Cdp"]


class _Switch(NamedTuple):
    """A command that turns events on, without being the `enable` of their domain."""

    off: str
    params: dict[str, Any]
    events: tuple[str, ...]  # names without the domain; none: all of its domain
    kept: tuple[str, ...] = ()  # parameters that are the same in both


_SWITCHES = {
    "Target.setDiscoverTargets": _Switch(
        "Target.setDiscoverTargets",
        {"discover": False},
        ("targetCreated", "targetInfoChanged", "targetDestroyed", "targetCrashed"),
    ),
    "Target.setAutoAttach": _Switch(
        "Target.setAutoAttach",
        {"autoAttach": False, "waitForDebuggerOnStart": False},
        ("attachedToTarget", "detachedFromTarget"),
        ("flatten",),
    ),
    "Page.startScreencast": _Switch(
        "Page.stopScreencast", {}, ("screencastFrame", "screencastVisibilityChanged")
    ),
    "HeapProfiler.startTrackingHeapObjects": _Switch(
        "HeapProfiler.stopTrackingHeapObjects", {}, ("heapStatsUpdate", "lastSeenObjectId")
    ),
    "Tracing.start": _Switch("Tracing.end", {}, ()),
}


class Cdp(Correlation):
    """The Chrome DevTools Protocol (https://chromedevtools.github.io/devtools-protocol/), and WebDriver BiDi.

    BiDi is https://w3c.github.io/webdriver-bidi/. ::

        with ConnectionPool(base_uri="ws://127.0.0.1:9222", correlation=Cdp()) as pool:
            with pool.acquire("/devtools/browser/8a6c…") as browser:
                target = browser.request({"method": "Target.createTarget", "params": {"url": "about:blank"}})
                where = {"targetId": target["result"]["targetId"], "flatten": True}
                session = browser.request({"method": "Target.attachToTarget", "params": where})
                page = {"sessionId": session["result"]["sessionId"]}
                with browser.subscribe({"method": "Network.enable", **page}) as events:
                    browser.request({"method": "Page.navigate", "params": {"url": url}, **page})
                    for event in events:
                        ...

    - **Replies** are told by their id alone: it is unique on the connection, and a reply may lack the
      `sessionId` of its command. Ids are numbers; Chromium takes no others.
    - **A session that is being closed** leaves commands unanswered (`Target.closeTarget`, a crash): they time
      out, and what may still come is late. An error without an id is for no asker.
    - **Subscriptions** in CDP: `Network.enable` gets all events of the domain that come with the same
      `sessionId`, or without one if the command has none. `Target.setDiscoverTargets`,
      `Target.setAutoAttach`, `Page.startScreencast`, `HeapProfiler.startTrackingHeapObjects` get their own
      events, `Tracing.start` those of its domain. What turns them on turns them off at the end:
      `Network.disable`. Any other command gets the events of its domain, and only the end of the connection
      ends that. Events that come before the reply (`Runtime.enable` sends those of what exists already) are
      not lost.
    - **Subscriptions in BiDi**: `session.subscribe` gets each event and module that it names, of whichever
      browsing context; it is ended by `session.unsubscribe`. One that is limited to `contexts` or
      `userContexts` can be ended only by an id that the events don't carry, so with the connection.
    - **Errors** are `ReplyError`: CDP's `code` is a number, BiDi's a text such as "no such element".
    """

    def tag(self, message: Any, new_id: NewId) -> tuple[Any, Hashable | None]:
        """Give a command our id."""
        command = needs_object(message, "a command")
        if not isinstance(command.get("method"), str):
            raise ValueError("a command names its method, a text")
        return {**command, "id": new_id.number}, new_id.number

    def asks(self, message: Any) -> Hashable | None:
        """The id of a command that is sent as it is."""
        return key_of(message.get("id")) if isinstance(message, dict) and "method" in message else None

    def key(self, message: Any) -> Hashable | None:
        """The id of a reply, of whatever session."""
        if not isinstance(message, dict) or "method" in message:
            return None
        return key_of(message.get("id"))

    def error(self, message: Any) -> ReplyError | None:
        """CDP's error object, or BiDi's error."""
        found = member(message, "error")
        if isinstance(found, dict):
            return reply_error(found.get("code"), found.get("message"), data=found.get("data"), reply=message)
        if member(message, "type") != "error":
            return None
        return reply_error(found, message.get("message"), data=message.get("stacktrace"), reply=message)

    def untag(self, reply: Any, message: Any) -> Any:
        """Put the caller's id back."""
        return put_back(reply, message, "id")

    def topic(self, message: Any) -> Topics:
        """An event's name and its domain, of its session; in BiDi its name and its modules."""
        method = text_of(member(message, "method"))
        if not method or "id" in message:
            return None
        if message.get("type") == "event":
            parts = method.split(".")
            return [".".join(parts[:end]) for end in range(len(parts), 0, -1)] if len(parts) <= 8 else method
        session = text_of(message.get("sessionId"))
        return [(session, method), (session, method.partition(".")[0])]

    def topic_of(self, sent: Any, reply: Any) -> Topics:
        """What a command turns on, once it is answered."""
        if reply is None:
            return None
        method = text_of(member(sent, "method"))
        if method == "session.subscribe":
            events = member(sent, "params", "events")
            return (
                [each for each in events if isinstance(each, str)]
                if isinstance(events, (list, tuple))
                else None
            )
        session, domain = text_of(member(sent, "sessionId")), method.partition(".")[0]
        switch = _SWITCHES.get(method)
        if switch is None or not switch.events:
            return (session, domain)
        return [(session, f"{domain}.{event}") for event in switch.events]

    def unsubscribe(self, topic: Hashable, sent: Any) -> Any | None:
        """The command that turns it off, in the session in which it was turned on."""
        method = text_of(member(sent, "method"))
        if method == "session.subscribe":
            params = member(sent, "params")
            limited = "contexts" in params or "userContexts" in params
            return None if limited else {"method": "session.unsubscribe", "params": {"events": [topic]}}
        domain, _, command = method.partition(".")
        switch = _SWITCHES.get(method)
        if switch is None and command != "enable":
            return None
        session = member(sent, "sessionId")
        where = {} if session is None else {"sessionId": session}
        if switch is None:
            return {"method": f"{domain}.disable", "params": {}, **where}
        given = member(sent, "params")
        kept = {name: given[name] for name in switch.kept if isinstance(given, dict) and name in given}
        return {"method": switch.off, "params": {**switch.params, **kept}, **where}

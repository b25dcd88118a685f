"""A recording and its file: connections, what was asked on them, and what came.

The file is JSON with one message a line. What came stands behind the request that it answers or follows, so
that replies which overtook each other make no difference; ports, times and the ids of a pool are not in it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from jetsocket.testing.payloads import Payload

_FORMAT = "jetsocket recording 1"
_FIGURE = re.compile(r"[0-9]+(\.[0-9]+)?")
_OF_THEN = frozenset({
    "age",
    "connection",
    "content-length",
    "date",
    "keep-alive",
    "location",  # a redirect of a recording leads nowhere
    "trailer",
    "transfer-encoding",
    "upgrade",
})  # fmt: skip
_FORMS = ("json", "text", "base64", "binary")

T = TypeVar("T")


@dataclass
class Said:
    """One message.

    Attributes:
        value: What it says: the value, the text, or bytes in base64.
        form: How it goes out: "json", "text", "base64" or "binary" (JSON in a binary message).
        answers: Whether it carries the id of its request.
    """

    value: Any
    form: str = "json"
    answers: bool = False


@dataclass
class Closed:
    """The server has closed; 1006: without a word."""

    code: int
    reason: str = ""


@dataclass
class Exchange:
    """A request, and what came after it."""

    sent: Said
    events: list[Said | Closed] = field(default_factory=list)
    is_used: bool = False


@dataclass
class Recorded:
    """One connection.

    Attributes:
        target: Path and query; the query's values are hidden.
        subprotocol: The one that was agreed on.
        status: The answer to the upgrade.
        body: What a refusal said.
        headers: Its headers; secret values are hidden.
        opening: What came before anything was asked.
        exchanges: The rest.
        is_used: Whether it was played.
    """

    target: str
    subprotocol: str | None = None
    status: int = 101
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    opening: list[Said | Closed] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    is_used: bool = False

    @property
    def path(self) -> str:
        """Without the query."""
        return self.target.partition("?")[0]


def said(value: Any, payload: Payload) -> Said:
    """A message as it is kept; `value` is what it says."""
    if isinstance(value, bytes):
        return Said(base64.b64encode(value).decode("ascii"), "base64")
    form = "binary" if isinstance(payload, bytes) else "json"
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return said(payload, payload) if isinstance(payload, bytes) else Said(payload, "text")
    # A text that is no JSON is read as itself; so is a text in quotes, as what is in them.
    return Said(value, "text") if isinstance(value, str) and value == payload else Said(value, form)


def raw(message: Said) -> Any:
    """What a kept message says."""
    return base64.b64decode(message.value) if message.form == "base64" else message.value


def kept_headers(headers: Mapping[str, str], retry_after: float | None) -> dict[str, str]:
    """The headers of a refusal that say the same when they are sent again.

    Args:
        headers: As they came.
        retry_after: s that they ask for: a date would have passed by then.
    """
    kept = {name: value for name, value in headers.items() if name.lower() not in _OF_THEN}
    for name, value in kept.items():
        if name.lower() == "retry-after" and retry_after is not None and not _FIGURE.fullmatch(value):
            kept[name] = str(math.ceil(retry_after))
        elif name.lower() == "content-type" and "charset" in value.lower():
            kept[name] = f"{value.partition(';')[0]}; charset=utf-8"  # as the body is kept
    return kept


# --- the file


def load(path: Path) -> list[Recorded]:
    """Read a recording.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The file is no recording.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}")
        return [_connection(each) for each in content["connections"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no recording of jetsocket.testing: {error!r}") from error


def _connection(each: dict[str, Any]) -> Recorded:
    found = Recorded(
        _of(str, each["path"]),
        None if each["subprotocol"] is None else _of(str, each["subprotocol"]),
        _of(int, each.get("status", 101)),
        _of(str, each.get("body", "")),
        {name: _of(str, value) for name, value in each.get("headers", {}).items()},
    )
    events = found.opening
    for line in each["messages"]:
        if "sent" in line:
            found.exchanges.append(Exchange(_said(line["sent"], line)))
            events = found.exchanges[-1].events
        elif "received" in line:
            events.append(_said(line["received"], line))
        else:
            events.append(Closed(_of(int, line["closed"]), _of(str, line.get("reason", ""))))
    return found


def _said(value: Any, line: dict[str, Any]) -> Said:
    form = line.get("as", "json")
    if form not in _FORMS:
        raise ValueError(f"a message as {form!r}")
    if form in ("text", "base64"):
        _of(str, value)
    if form == "base64":
        base64.b64decode(value, validate=True)
    return Said(value, form, _of(bool, line.get("answers", False)))


def _of(kind: type[T], value: Any) -> T:
    """A value of the file's, which people may edit.

    Raises:
        TypeError: It is not of that kind.
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{value!r} in place of a {kind.__name__}")
    return value


def text_of(connections: list[Recorded]) -> str:
    """The content of the file."""
    blocks = [_block(each) for each in connections]
    inner = ",\n".join(blocks)
    return f'{{"format": {_json(_FORMAT)}, "connections": [\n{inner}\n]}}\n'


def _block(each: Recorded) -> str:
    head: dict[str, Any] = {"path": each.target, "subprotocol": each.subprotocol}
    if each.status != 101:
        head |= {"status": each.status, "body": each.body}
        if each.headers:
            head["headers"] = each.headers
    lines = ",\n".join(f"  {_json(line)}" for line in _lines(each))
    return _json(head)[:-1] + (f', "messages": [\n{lines}\n]}}' if lines else ', "messages": []}')


def _lines(each: Recorded) -> Iterator[dict[str, Any]]:
    yield from map(_event, each.opening)
    for exchange in each.exchanges:
        yield _line("sent", exchange.sent)
        yield from map(_event, exchange.events)


def _event(event: Said | Closed) -> dict[str, Any]:
    if isinstance(event, Closed):
        return {"closed": event.code, **({"reason": event.reason} if event.reason else {})}
    return _line("received", event) | ({"answers": True} if event.answers else {})


def _line(kind: str, message: Said) -> dict[str, Any]:
    return {kind: message.value, **({} if message.form == "json" else {"as": message.form})}


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(value)
    return text


def save(path: Path, connections: list[Recorded]) -> None:
    """Write a recording, whole or not at all; a file that says the same already is left alone."""
    content = text_of(connections).encode("utf-8")
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)  # mkstemp's is for its owner alone, and this file goes into a repository
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


__all__ = ["Closed", "Exchange", "Recorded", "Said", "kept_headers", "load", "raw", "said", "save", "text_of"]

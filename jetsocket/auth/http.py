"""One HTTP request within a deadline, by `requests`; what goes wrong is told without what was sent.

The texts of `requests` have the URL with its query, and an answer may repeat what it was asked: so an error
shows the URL redacted, the status, and the first line of the answer, censored.
"""

from __future__ import annotations

import io
import ssl
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from jetsocket.clock import monotonic
from jetsocket.exceptions import ConnectionError, HandshakeError, TimeoutError
from jetsocket.interrupts import is_alarm, raise_alarm_behind
from jetsocket.redacted_uris import redact
from jetsocket.wire.headers import Headers, retry_after
from jetsocket.wire.redaction import as_cause, censored, raise_alone, secrets_of
from jetsocket.wire.upgrade_refusals import first_words

__all__ = ["ask", "import_requests", "json_of", "no_ticket", "refuse", "told"]

MOST = 1024 * 1024
"""B of an answer."""

_PIECE = 64 * 1024
_MOST_QUOTED = 4 * 1024  # B of a refusal that are looked at and kept


def import_requests() -> Any:
    """The package, of the extra `http`.

    Raises:
        ImportError: It is not installed; the message names the extra.
    """
    try:
        import requests
    except ImportError as error:
        if is_alarm(error):
            raise
        text = 'tickets are got by HTTP, which needs requests: pip install "jetsocket[http]"'
        raise ImportError(text, name="requests") from error
    return requests


def ask(method: str, url: str, timeout: float, *, session: Any = None, **given: Any) -> Any:
    """Ask, and return the answer, read, whatever its status below 400.

    Args:
        method: Of HTTP.
        url: Where.
        timeout: s for all of it.
        session: A `requests.Session`, or what has its `request` method; None: one for this request, which
            follows no redirect: what it sends may be secret.
        **given: `headers`, `json`, `data`.

    Raises:
        HandshakeError: The answer is a refusal, or is too long; `status_code` has its status.
        TimeoutError: It did not come in time.
        ConnectionError: It did not come.
    """
    if session is not None:
        return _ask(session, method, url, timeout, given)
    with import_requests().Session() as own:
        if "authorization" in {name.lower() for name in given.get("headers", ())}:
            own.auth = _as_it_is  # or a line of ~/.netrc would take the place of that header
        return _ask(own, method, url, timeout, given | {"allow_redirects": False})


def _as_it_is(request: Any) -> Any:
    return request


def _ask(session: Any, method: str, url: str, timeout: float, given: dict[str, Any]) -> Any:
    deadline = monotonic() + timeout
    in_pieces = _is_of_requests(session)
    if in_pieces:
        given = given | {"stream": True}
    try:
        answer = session.request(method, url, timeout=timeout, **given)
        is_whole = not in_pieces or _read(answer, deadline)
    except Exception as error:  # noqa: BLE001  # whatever a session raises; it is told
        raise_alarm_behind(error)
        _fail(error, url, given, timeout, deadline)
    if not is_whole:
        if monotonic() >= deadline:
            raise _late(url, timeout)
        why = f"it answered {told(answer)} and more than {MOST} B"
        raise HandshakeError(no_ticket(url, why), answer.status_code)
    if answer.status_code >= 400:
        refuse(answer, url)
    return answer


def _read(answer: Any, deadline: float) -> bool:
    """Read the body, as far as that goes; whether all of it came."""
    raw, pieces, size = answer.raw, [], 0
    try:
        for piece in _pieces_of(raw):
            pieces.append(piece)
            size += len(piece)
            if size > MOST or monotonic() > deadline:
                return False
    finally:
        raw.close()  # one that was read to its end has left its connection to the session
    answer.raw = io.BytesIO(b"".join(pieces))
    return True


def _pieces_of(raw: Any) -> Iterator[bytes]:
    """A body as it comes."""
    if not hasattr(raw, "read1"):  # urllib3 before 2.2 waits for whole pieces, whatever the time
        yield from raw.stream(_PIECE, decode_content=True)
        return
    while piece := raw.read1(_PIECE, decode_content=True):
        yield piece


def _is_of_requests(session: Any) -> bool:
    requests = sys.modules.get("requests")  # if it is not loaded, nothing is a session of its
    return requests is not None and isinstance(session, requests.Session)


def refuse(answer: Any, url: str, *, lacks: str = "", said: str = "") -> NoReturn:
    """Raise what tells of an answer that has no ticket.

    Args:
        answer: The answer.
        url: Where it came from.
        lacks: What it has not.
        said: What of it to quote, if it does not lack anything; "": the first line of a refusal's body that
            says something to people. What else is in JSON, and what is no refusal, may be the ticket.
    """
    headers = Headers([*answer.headers.items()])
    body = bytes(answer.content)[:_MOST_QUOTED]
    secrets = _secrets_of(answer)
    text = f"it answered {told(answer)} without {lacks}" if lacks else f"it answered {told(answer)}"
    if not lacks and not said and answer.status_code >= 400:
        said = first_words(body, headers, told(answer), is_quotable=False)
    if said and not lacks:
        text += f' and says "{censored(said, secrets, cut=len(body) >= _MOST_QUOTED)}"'
    wait = retry_after(headers)
    if wait:
        text += f"; it asks for {wait:.0f} s of patience"
    failure = HandshakeError(no_ticket(url, text), answer.status_code, wait, headers=headers, body=body)
    raise_alone(failure)


def told(answer: Any) -> str:
    """The status of an answer, and what it calls that: a server chooses its words."""
    reason = getattr(answer, "reason", "") or getattr(answer, "reason_phrase", "")
    if isinstance(reason, bytes):
        reason = reason.decode("latin-1")
    return f"{answer.status_code} {censored(str(reason or ''), _secrets_of(answer))}".rstrip()


def no_ticket(url: str, why: str) -> str:
    """What an error says of a ticket that was not to be had."""
    return f"there is no ticket from {redact(url)}: {why}"


def _secrets_of(answer: Any) -> set[str]:
    """What was secret in the request that was answered."""
    request = getattr(answer, "request", None)
    if request is None:
        return set()
    found = _secrets_in(str(request.url), request.headers)
    return found | set(_values_in(getattr(request, "body", None)))


def _secrets_in(url: str, headers: Mapping[str, Any]) -> set[str]:
    head = f"GET {url.partition('://')[2]} HTTP/1.1\r\n"
    head += "".join(f"{name}: {_text(value)}\r\n" for name, value in headers.items())
    return secrets_of(head.encode("latin-1", "replace"))


def _values_in(body: object) -> Iterator[str]:
    """The values in a body of JSON or of a form."""
    text = _text(body) if isinstance(body, (str, bytes)) else ""
    yield text
    if text.lstrip().startswith(("{", "[")):
        import json

        try:
            yield from _leaves(json.loads(text))
        except (ValueError, RecursionError) as error:
            if is_alarm(error):
                raise
            return  # it is none
    else:
        from urllib.parse import parse_qsl

        for (_, value), pair in zip(parse_qsl(text, keep_blank_values=True), text.split("&"), strict=False):
            yield value
            yield pair.partition("=")[2]


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _leaves(each)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _late(url: str, timeout: float) -> TimeoutError:
    text = no_ticket(url, f"{timeout:.3g} s were not enough for the answer; allow more time")
    return TimeoutError(text, operation="connect", timeout=timeout)


def _fail(error: Exception, url: str, given: Mapping[str, Any], timeout: float, deadline: float) -> NoReturn:
    """Raise what tells of a request that had no answer; the system's own error is its cause."""
    causes = [*_chain(error)]
    if any("timeout" in type(each).__name__.lower() for each in causes) or monotonic() >= deadline:
        raise_alone(_late(url, timeout))
    own = next((each for each in causes if _is_systems(each)), None)
    if own is None:
        raise_alone(ConnectionError(no_ticket(url, type(error).__name__)), as_cause(error, text=""))
    secrets = _secrets_in(url, given.get("headers", {})) | {*_leaves([given.get("json"), given.get("data")])}
    cause = as_cause(own, secrets.union(*map(_secrets_of, causes)))  # some have the request
    raise_alone(ConnectionError(no_ticket(url, f"{cause}")), cause)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what is behind it; `requests` and urllib3 put some of it into arguments."""
    seen: list[BaseException] = []
    left: list[object] = [error]
    while left:
        each = left.pop()
        if isinstance(each, BaseException) and not any(each is other for other in seen):
            seen.append(each)
            yield each
            left += [each.__context__, each.__cause__, getattr(each, "reason", None), *each.args]


def _is_systems(error: BaseException) -> bool:
    """Whether it is Python's own for an error of the system's or of TLS: its text tells nothing of ours."""
    of_python = type(error).__module__ in ("builtins", "socket", "ssl")
    return isinstance(error, (OSError, ssl.SSLError)) and of_python and error.errno is not None


def json_of(answer: Any, url: str) -> Any:
    """The JSON of an answer.

    Raises:
        HandshakeError: It is none.
    """
    try:
        return answer.json()
    except ValueError as error:
        if is_alarm(error):
            raise
        refuse(answer, url, lacks="JSON")

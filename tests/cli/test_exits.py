"""From an exception to exit code, cause and remedy; the situations of a user are in test_errors.py."""

from __future__ import annotations

import json
import re
import socket
import ssl
from dataclasses import fields
from pathlib import Path

import pytest

from jetsocket import ConnectionPoolConfig, exceptions
from jetsocket.cli.exits import (
    CLOSED,
    FAILED,
    NO_WEBSOCKET,
    TIMEOUT,
    UNREACHABLE,
    USAGE,
    Outcome,
    UsageError,
    close_outcome,
    in_shell_words,
    outcome_of,
)
from jetsocket.exceptions import (
    ConnectionClosedError,
    ConnectionError,
    DecodeError,
    HandshakeError,
    JetSocketError,
    MessageTooBigError,
    PoolExhaustedError,
    ProtocolError,
    ReplyError,
    TimeoutError,
)
from jetsocket.manager_kwargs import Options
from jetsocket.wire import certificates, not_http, proxy_tunnel, proxy_url, upgrade_refusals
from tests import told

PACKAGE = Path(exceptions.__file__).parent


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), USAGE),
        (ValueError("x"), USAGE),
        (ImportError("pip install it"), USAGE),
        (FileNotFoundError(2, "No such file", "f"), USAGE),
        (ConnectionError("cannot connect to ws://h: refused; is it running?"), UNREACHABLE),
        (caused(ConnectionError("x"), socket.gaierror(-2, "unknown")), UNREACHABLE),
        (caused(ConnectionError("no WebSocket at wss://h: failed"), ssl.SSLError("alert")), UNREACHABLE),
        (ConnectionError("no WebSocket at ws://h: the connection failed: reset"), NO_WEBSOCKET),
        (HandshakeError("x", 403), NO_WEBSOCKET),
        (HandshakeError("x"), NO_WEBSOCKET),
        (DecodeError("x"), NO_WEBSOCKET),
        (TimeoutError("x", "connect", 1), TIMEOUT),
        (PoolExhaustedError("x"), TIMEOUT),
        (PoolExhaustedError("x", last_connect_error=HandshakeError("y", 503)), NO_WEBSOCKET),
        (ConnectionClosedError("x", 1006), CLOSED),
        (ProtocolError("x", 1002), CLOSED),
        (MessageTooBigError("x", 1), CLOSED),
        (ReplyError("x", -32601, "no such method"), FAILED),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_every_error_has_its_code(error: Exception, code: int) -> None:
    assert outcome_of(error).exit == code


def test_every_error_of_the_library_is_known() -> None:
    for name in exceptions.__all__:
        error = getattr(exceptions, name)("it broke; do this")
        outcome = outcome_of(error)
        assert outcome.exit in range(1, 7) and outcome.cause.startswith("it broke"), name


def test_cause_and_remedy_are_parted_outside_quotes() -> None:
    told = 'no WebSocket at ws://h/: the server says "a; b"; it may want credentials; or not'
    outcome = outcome_of(HandshakeError(told, 403))
    assert outcome.cause.endswith('says "a; b"')
    assert (outcome.remedy, outcome.status) == ("it may want credentials; or not", 403)


@pytest.mark.parametrize(
    ("told", "remedy"),
    [
        ("it seems to be TLS, and it says nothing; does it want wss://?", "write wss:// in place of ws://"),
        ("the server closed the connection; does it want wss://?", "does it want wss:// in place of ws://?"),
        ('it says "missing subprotocol"; check the headers', "--subprotocol"),
    ],
)
def test_refusals_whose_remedy_is_known_better(told: str, remedy: str) -> None:
    assert remedy in outcome_of(HandshakeError(f"no WebSocket at ws://h/: {told}")).remedy


def test_what_json_shows() -> None:
    record = Outcome(4, "refused", "log in", status=401).record()
    assert list(record) == ["type", "exit", "status", "cause", "remedy"]
    assert record == {"type": "error", "exit": 4, "status": 401, "cause": "refused", "remedy": "log in"}
    record = outcome_of(ReplyError("x", -32000, "no", data={"a": 1})).record()
    assert (record["code"], record["data"]) == (-32000, {"a": 1})
    assert json.dumps(record)


@pytest.mark.parametrize(
    ("code", "cause", "remedy"),
    [
        (1006, "lost", "its log"),
        (1008, "1008", "logged in"),
        (4401, "4401", "logged in"),
        (1011, "1011", "its log"),
        (1013, "1013", "later"),
        (1002, "1002", ""),
    ],
)
def test_a_close_is_told_with_its_code(code: int, cause: str, remedy: str) -> None:
    outcome = close_outcome(code, "")
    assert (outcome.exit, outcome.code) == (CLOSED, code)
    assert cause in outcome.cause and remedy in outcome.remedy
    assert 'says "go away"' in close_outcome(1008, "go away").cause


# --- no advice speaks of the pool's arguments


def advices() -> list[str]:
    """All advice that the library gives when it can't connect."""
    found = [remedy for _, remedy in certificates._REMEDIES]
    for code in (2, 9, 10, 18, 19, 20, 23, 62, 64):
        error = ssl.SSLCertVerificationError("x")
        error.verify_code, error.verify_message = code, "x"
        found.append(certificates.explain(error, "h", ["a"])[1])
    for first in (b"SSH-2.0", b"\x15\x03\x01", b"HTTP/2 ", b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", b"?"):
        found += [not_http.guess(first, secure=secure)[1] for secure in (True, False)]
    for status in range(200, 600):
        for said in ("", "https"):
            found.append(upgrade_refusals.advice(status, {}, said, compressed=True, secure=False))
    found += [proxy_tunnel.CHECK, f"list it in NO_PROXY, or pass {proxy_url.DIRECTLY}"]
    found.append(f"pass {proxy_url.DIRECTLY}, or True in place of its URL and list it in NO_PROXY")
    found.append(f"check the name; to connect directly pass {proxy_url.DIRECTLY}")
    return found


_ARGUMENTS = {
    field.name for kind in (Options, ConnectionPoolConfig) for field in fields(kind) if "_" in field.name
}
_PYTHONS = re.compile(rf"manager_kwargs|SSLContext|\[[\"']|\w\(\)|\w=|(?<![\w-])(?:{'|'.join(_ARGUMENTS)})\b")
_NEVER_SAID = {  # by what a command makes of its options, or to those who write Python only
    "sslopt is not used; pass ssl_context to connect() or create_connection()",
    "connect() takes no option …; see its documentation",
    "not connected; call connect() first",
    "proxy=None in manager_kwargs",  # always behind "pass": it is a part
    "socket_options (…, …, …): …",
}


def test_no_remedy_speaks_of_pythons_arguments() -> None:
    said = {
        text
        for text, place in told.of_the_library().items()
        if re.match(r"jetsocket/(wire/|uris|header_fields)", place)
    }
    assert len(said) > 200
    for text in {*advices(), *said} - _NEVER_SAID:
        shown = in_shell_words(text)
        assert not _PYTHONS.search(shown), shown


@pytest.mark.parametrize(
    "text",
    [
        'manager_kwargs: give "unix" or a "proxy" URL, not both',
        "message of 9 characters could not be decoded: no; recv_raw() returns messages undecoded",
        "the server sent a message of 9 B or more, over max_message_size=8 B;"
        ' raise manager_kwargs["max_message_size"] if that is to be expected',
    ],
)
def test_nor_does_a_cause(text: str) -> None:
    outcome = outcome_of(ProtocolError(text))
    assert not _PYTHONS.search(outcome.cause) and not _PYTHONS.search(outcome.remedy), outcome


def test_a_pool_that_is_exhausted_is_told_without_its_figures() -> None:
    outcome = outcome_of(
        PoolExhaustedError(
            "pool 'terminal' has no connection to ws://h/ to lend: none within 5 s (1 lent;"
            " max_connections=1). Release sooner, raise max_connections, or wait longer (acquire_timeout)"
        )
    )
    assert outcome.cause == "pool 'terminal' has no connection to ws://h/ to lend: none within 5 s"


def test_what_a_server_says_stays_as_it_is() -> None:
    said = 'the server refused with 403 and says "set another password"; it may want credentials'
    assert 'says "set another password"' in outcome_of(HandshakeError(said, 403)).cause


def test_options_that_remedies_name_exist() -> None:
    from jetsocket.cli.parsers import build

    known = build()[1]["call"].format_help()
    source = (PACKAGE / "cli" / "exits.py").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", source)) - {"--json", "--help"}
    assert len(named) > 8
    assert [option for option in named if option not in known] == []


@pytest.mark.parametrize(
    ("advice", "shown"),
    [
        (
            'it may want credentials (manager_kwargs["extra_headers"]), or another manager_kwargs["origin"]',
            "it may want credentials (-H or --header-file), or another --origin",
        ),
        ("to connect directly pass proxy=None in manager_kwargs", "to connect directly give --proxy none"),
        ("is the server running?", "is the server running?"),
    ],
)
def test_advice_in_the_words_of_the_shell(advice: str, shown: str) -> None:
    assert in_shell_words(advice) == shown


def test_an_unknown_error_of_the_library_is_no_success() -> None:
    assert outcome_of(JetSocketError("x")).exit == USAGE

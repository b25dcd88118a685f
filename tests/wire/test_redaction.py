"""What may be secret in a request, and how it is hidden in what a server says."""

from __future__ import annotations

import base64
import builtins
import errno
import gc
import json
import pickle
import socket
import ssl
import sys
import traceback
import weakref
from typing import Any

import pytest

from jetsocket.text import printable
from jetsocket.wire.redaction import (
    as_cause,
    censored,
    hide,
    raise_alone,
    secrets_of,
    secrets_of_login,
)

BASIC = base64.b64encode(b"someone:pass:word").decode()
REQUEST = "\r\n".join([
    "GET /ws?token=a%20secret&n=1&lonely HTTP/1.1",
    "Host: example.com",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Protocol: realtime, key.12345",
    f"Authorization: Basic {BASIC}",
    "Cookie: session=c00kie; theme=dark",
    "X-Key: k3y-value",
    "",
    "",
]).encode()  # fmt: skip


def test_what_is_secret_in_a_request() -> None:
    found = secrets_of(REQUEST)
    assert found >= {"a%20secret", "a secret", "lonely", "key.12345", BASIC, f"Basic {BASIC}"}
    assert found >= {"someone", "pass:word", "someone:pass:word", "c00kie", "dark", "k3y-value"}
    assert not found & {"example.com", "websocket", "13", "Basic", "/ws", "GET"}


def test_a_bearers_token_is_known_without_its_scheme() -> None:
    assert "t0ken" in secrets_of(b"GET / HTTP/1.1\r\nAuthorization: Bearer t0ken\r\n\r\n")


@pytest.mark.parametrize(
    "line",
    [
        "X-Auth: Token k3y-value",
        'Authorization: Token token="k3y-value"',
        "Authorization: Digest username=u, response=k3y-value",
        'Cookie: a=1; sid="k3y-value"',
        "Cookie: sid=k3y-value",
        "X-Key:k3y-value",
    ],
)
def test_a_secret_is_known_without_what_stands_around_it(line: str) -> None:
    secrets = secrets_of(f"GET / HTTP/1.1\r\n{line}\r\n\r\n".encode())
    assert censored("no such key: k3y-value", secrets) == "no such key: ***"


def test_the_words_of_a_header_are_no_secrets_each() -> None:
    secrets = secrets_of(b"GET / HTTP/1.1\r\nUser-Agent: websocket client 1.0 of mine\r\n\r\n")
    assert censored("which client?", secrets) == "which client?"


def test_before_a_request_there_is_nothing_to_hide() -> None:
    assert hide("what a server says", secrets_of(b"")) == "what a server says"


def test_the_longest_is_hidden_first_and_what_is_short_not_at_all() -> None:
    assert hide("1 for abcdef, abcd", {"abcd", "abcdef", "1", ""}) == "1 for ***, ***"


def test_a_login_is_known_in_both_forms() -> None:
    told = hide(f"no {BASIC} for someone", secrets_of_login("someone", "pass:word"))
    assert told == "no *** for ***"


def test_a_login_is_known_in_all_forms() -> None:
    login = "user:hunter2-東"
    forms = [
        "hunter2-東",
        "hunter2-%E6%9D%B1",
        "hunter2-東".encode().decode("latin-1"),
        base64.b64encode(login.encode()).decode(),
    ]
    assert hide(" ".join(forms), secrets_of_login("user", "hunter2-東")) == "*** *** *** ***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Busy", "Busy"),
        ("a\r\nb\tc\u2028d", "a  b c d"),
        ("\x1b[31mred\x00\x9b\u202etext\ud800", "?[31mred???text?"),
        ("東京", "東京"),
        ("x" * 200, "x" * 200),
        ("x" * 60_000, "x" * 199 + "…"),
    ],
)
def test_what_is_shown_is_printable_and_short(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_secret_at_the_end_of_what_is_shown_is_hidden_before_the_rest_is_cut() -> None:
    assert censored("x" * 190 + "s3cr3t-password", ["s3cr3t-password"]) == "x" * 190 + "***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no abcdefghijkl for you", "no *** for you"),
        ("abcdefghij", "***"),
        ("ghijklmnop", "***"),
        ("bcdefghijkXmnop", "***Xmnop"),
        ("abcdefghijabcdefghij", "******"),
        ("abcdefghi is too short to tell much", "abcdefghi is too short to tell much"),
    ],
)
def test_a_secret_that_the_stranger_has_cut_is_hidden_as_well(text: str, shown: str) -> None:
    assert censored(text, ["abcdefghijklmnop"]) == shown


class Foreign(ValueError):
    """An error of a library, with the raw text in an attribute."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.raw = text


class ForeignOSError(ConnectionResetError):
    pass


class Unrelated(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (Foreign("no s3cr3t\x1b"), ValueError, "Foreign: no ***?"),
        (Unrelated("s3cr3t"), Exception, "Unrelated: ***"),
        (Unrelated(), Exception, "Unrelated"),
        (ValueError("s3cr3t"), ValueError, "***"),
        (KeyError("s3cr3t"), KeyError, "\"'***'\""),
        (OSError("s3cr3t"), OSError, "***"),
        (OSError(errno.ECONNREFUSED, "s3cr3t"), ConnectionRefusedError, f"[Errno {errno.ECONNREFUSED}] ***"),
        (OSError(errno.ENOENT, "none", "/s3cr3t"), FileNotFoundError, f"[Errno {errno.ENOENT}] none"),
        (ForeignOSError(errno.ECONNRESET, "gone"), ConnectionResetError, f"[Errno {errno.ECONNRESET}] gone"),
        (ForeignOSError("gone"), ConnectionResetError, "ForeignOSError: gone"),
        (socket.gaierror(socket.EAI_NONAME, "none"), socket.gaierror, f"[Errno {socket.EAI_NONAME}] none"),
        (ssl.SSLError(1, "bad s3cr3t"), ssl.SSLError, "bad ***"),
        (ssl.SSLCertVerificationError(1, "bad"), ssl.SSLCertVerificationError, "bad"),
        (UnicodeDecodeError("utf-8", b"s3cr3t\xff", 6, 7, "why"), UnicodeError, None),
        (
            json.JSONDecodeError("why", "s3cr3t", 3),
            ValueError,
            "JSONDecodeError: why: line 1 column 4 (char 3)",
        ),
    ],
)
def test_a_stand_in_keeps_type_errno_and_what_of_the_text_is_no_secret(
    error: BaseException, kind: type[BaseException], text: str | None
) -> None:
    if isinstance(error, ssl.SSLCertVerificationError):  # as the ssl module fills them in
        error.verify_code, error.verify_message = 18, "self-signed certificate"
    stand_in = as_cause(error, ["s3cr3t"])
    assert type(stand_in) is kind
    assert text is None or str(stand_in) == text
    assert "s3cr3t" not in repr((str(stand_in), stand_in, stand_in.args, vars(stand_in)))
    if isinstance(stand_in, OSError):
        assert isinstance(error, OSError)
        assert stand_in.errno == error.errno
        assert stand_in.filename is None
    if isinstance(stand_in, ssl.SSLCertVerificationError):
        assert (stand_in.verify_code, stand_in.verify_message) == (18, "self-signed certificate")
    assert type(pickle.loads(pickle.dumps(stand_in))) is kind


def test_a_stand_in_can_say_something_else_than_the_error() -> None:
    assert str(as_cause(Foreign("input_value='IBAN'"), text="name: missing")) == "Foreign: name: missing"
    assert str(as_cause(Foreign("input_value='IBAN'"), text="")) == "Foreign"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are none before")
def test_a_group_of_errors_is_told_by_its_name() -> None:
    group: BaseException = builtins.ExceptionGroup("s3cr3t", [ValueError("s3cr3t")])  # type: ignore[attr-defined,unused-ignore]
    stand_in = as_cause(group, ["s3cr3t"])
    assert type(stand_in) is Exception
    assert "s3cr3t" not in repr(vars(stand_in)) + str(stand_in)


def reachable(error: BaseException) -> list[BaseException]:
    """All errors that can be got at from this one: its chain, what it is made of, what its frames hold."""
    seen: dict[int, object] = {}
    todo: list[Any] = [error]
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen[id(each)] = each
        if isinstance(each, BaseException):
            frames = [frame for frame, _ in traceback.walk_tb(each.__traceback__)]
            todo += [each.__cause__, each.__context__, each.args, vars(each)]
            todo += [frame.f_locals for frame in frames]
        elif isinstance(each, dict):
            todo += each.values()
        elif isinstance(each, (list, tuple, set)):
            todo += each
    return [each for each in seen.values() if isinstance(each, BaseException)]


def fail_alone() -> None:
    try:
        try:
            raise KeyError("s3cr3t of the first")
        except KeyError as first:
            raise Foreign("s3cr3t of the second") from first
    except Foreign as error:
        raise_alone(RuntimeError("what we say"), as_cause(error, text="why"))


def caught_alone() -> BaseException:
    try:
        fail_alone()
    except RuntimeError as error:
        return error.with_traceback(error.__traceback__.tb_next)  # type: ignore[union-attr]
    raise AssertionError


def test_the_original_cannot_be_reached_from_what_is_raised() -> None:
    error = caught_alone()
    assert sorted(map(repr, reachable(error))) == [
        "RuntimeError('what we say')",
        "ValueError('Foreign: why')",
    ]
    told = "".join(traceback.format_exception(error))
    assert "ValueError: Foreign: why" in told
    assert "of the second" not in told.replace('raise Foreign("s3cr3t of the second")', "")


class Watched(Exception):
    """One that a weak reference can watch."""


def test_what_is_raised_alone_makes_no_cycle() -> None:
    gc.collect()
    gc.disable()
    try:
        try:
            raise_alone(Watched(), ValueError())
        except Watched as error:
            gone = weakref.ref(error)
        assert gone() is None
    finally:
        gc.enable()

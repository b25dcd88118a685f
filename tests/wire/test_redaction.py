"""What may be secret in a request, and how it is hidden in what a server says."""

from __future__ import annotations

import base64

from jetsocket.wire.redaction import hide, secrets_of, secrets_of_login

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


def test_before_a_request_there_is_nothing_to_hide() -> None:
    assert hide("what a server says", secrets_of(b"")) == "what a server says"


def test_the_longest_is_hidden_first_and_what_is_short_not_at_all() -> None:
    assert hide("1 for abcdef, abcd", {"abcd", "abcdef", "1", ""}) == "1 for ***, ***"


def test_a_login_is_known_in_both_forms() -> None:
    told = hide(f"no {BASIC} for someone", secrets_of_login("someone", "pass:word"))
    assert told == "no *** for ***"

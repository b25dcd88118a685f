"""How to connect, as the options say.

Also tests: `pools`.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from jetsocket.cli.arguments import parse
from jetsocket.cli.exits import UsageError
from jetsocket.cli.parsers import build
from jetsocket.cli.pools import CORRELATIONS, correlation_of
from jetsocket.cli.settings import manager_kwargs, one_uri, read_headers
from jetsocket.correlation import ById, Cdp, GraphQLTransportWs, HomeAssistant, JsonRpc, Jupyter, Obs
from tests.conftest import Tls


def settings(*arguments: str) -> dict[str, Any]:
    return manager_kwargs(parse(build()[1]["call"], arguments)[0])


def test_headers_come_from_files_and_options(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("# a comment\nAuthorization: Bearer s3cret\n\n  X-A:b:c  \nEmpty:\n", encoding="utf-8")
    kwargs = settings("-H", "X-One: 1", "--header-file", str(file))
    assert kwargs["extra_headers"] == [
        ("Authorization", "Bearer s3cret"),
        ("X-A", "b:c"),
        ("Empty", ""),
        ("X-One", "1"),
    ]


@pytest.mark.parametrize("text", ["Bearer s3cret", ": s3cret", "Authorization s3cret"])
def test_a_header_that_is_none_is_named_by_its_line_without_its_value(tmp_path: Path, text: str) -> None:
    file = tmp_path / "headers"
    file.write_text(f"# one\n{text}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"headers, line 2: a header is written 'Name: value'") as caught:
        read_headers(str(file))
    assert "s3cret" not in str(caught.value)


def test_an_option_without_a_colon_is_not_quoted() -> None:
    with pytest.raises(UsageError, match="header number 2 given with -H: a header is written") as caught:
        settings("-H", "A: 1", "-H", "Authorization s3cret")
    assert "s3cret" not in str(caught.value)


def test_a_header_that_no_header_may_be_is_not_quoted() -> None:
    with pytest.raises(UsageError) as caught:
        settings("-H", "Authorization: s3cret\x01")
    assert "s3cret" not in str(caught.value) and "-H" in str(caught.value)
    assert "manager_kwargs" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--header-file", "/nonexistent"], "/nonexistent: No such file"),
        (["--ca", "/nonexistent"], "--ca /nonexistent: No such file"),
        (["--ca", __file__], "--ca"),
        (["--cert", "/nonexistent"], "--cert /nonexistent"),
        (["--key", "/nonexistent"], "--key needs --cert"),
        (["--proxy", "h:3128"], "--proxy"),
        (["--proxy", "ftp://h:1"], "--proxy"),
        (["--unix", "/s", "--proxy", "http://h:1"], "unix"),
        (["--subprotocol", "a b"], "--subprotocol"),
        (["--origin", "a\nb"], "--origin"),
        (["--server-hostname", "a:1"], "--server-hostname"),
        (["-H", "Sec-WebSocket-Key: x"], "(?i)sec-websocket-key"),
    ],
)
def test_what_is_wrong_is_named_as_an_option(arguments: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        settings(*arguments)
    assert "manager_kwargs" not in str(caught.value)


def test_certificates(tls: Tls, tmp_path: Path) -> None:
    authority, both = tmp_path / "ca.pem", tmp_path / "both.pem"
    tls.ca.cert_pem.write_to_path(str(authority))
    tls.ca.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(str(both))
    assert settings()["ssl_context"] is None
    context = settings("--ca", str(authority), "--cert", str(both))["ssl_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
    assert len(context.get_ca_certs()) == 1  # and no others
    insecure = settings("-k")["ssl_context"]
    assert insecure.verify_mode is ssl.CERT_NONE and not insecure.check_hostname
    with pytest.raises(UsageError, match="--cert"):
        settings("--cert", str(authority))


def test_the_rest() -> None:
    kwargs = settings(
        "--proxy",
        "none",
        "--no-compress",
        "--connect-timeout",
        "2",
        "--subprotocol",
        "a",
        "--subprotocol",
        "b",
    )
    assert (kwargs["proxy"], kwargs["compress"], kwargs["connect_timeout"]) == (False, False, 2)
    assert kwargs["subprotocols"] == ["a", "b"]
    assert "proxy" not in settings()  # then the environment counts


def test_the_uri_comes_first() -> None:
    target, uri, rest = one_uri(["WS://h/a?b=c", "x", "y"])
    assert (target.uri, uri, rest) == ("ws://h/a?b=c", "WS://h/a?b=c", ["x", "y"])
    with pytest.raises(UsageError, match="URI is missing"):
        one_uri([])
    with pytest.raises(UsageError, match="invalid WebSocket URI") as caught:
        one_uri(["http://user:s3cret@h/"])
    assert "s3cret" not in str(caught.value) and "ws://" in caught.value.remedy


# --- correlations


def test_correlations_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JETSOCKET_TOKEN", "s3cret")
    kinds = [type(correlation_of(name.replace("PATH", "a.b"))) for name in CORRELATIONS]
    assert kinds == [JsonRpc, Cdp, GraphQLTransportWs, Jupyter, HomeAssistant, Obs, ById]


@pytest.mark.parametrize("name", ["nope", "id:", "", "home-assistant"])
def test_a_correlation_that_can_not_be_had(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JETSOCKET_TOKEN", raising=False)
    with pytest.raises(UsageError) as caught:
        correlation_of(name)
    assert caught.value.remedy

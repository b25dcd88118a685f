"""Which proxy the environment names, and for which hosts it names none."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket import uris
from jetsocket.wire.proxy_environment import Choice, is_exempt, is_loopback, proxy_for

pytestmark = pytest.mark.usefixtures("no_proxy_from_outside")

HTTP = {"http_proxy": "http://p:1"}


class TestProxyFor:
    @pytest.mark.parametrize(
        ("uri", "environment", "expected"),
        [
            ("ws://h/", {}, None),
            ("ws://h/", {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
            ("ws://h/", {"http_proxy": "http://p:1", "https_proxy": "http://q:1"}, "http://p:1"),
            ("wss://h/", {"http_proxy": "http://p:1", "https_proxy": "http://q:1"}, "http://q:1"),
            ("wss://h/", {"http_proxy": "http://p:1"}, None),
            ("wss://h/", {"ALL_PROXY": "socks5://p:1"}, "socks5://p:1"),
            ("ws://h/", {"ALL_PROXY": "socks5://p:1", "http_proxy": "http://q:1"}, "http://q:1"),
            ("ws://h/", {"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, None),
            ("ws://localhost/", HTTP, "http://p:1"),
            ("ws://h/", HTTP | {"no_proxy": "*"}, None),
            ("ws://h/", HTTP | {"NO_PROXY": "h"}, None),
            ("ws://h/", HTTP | {"NO_PROXY": "x, h ,y"}, None),
            ("ws://h/", HTTP | {"no_proxy": "other", "NO_PROXY": "h"}, "http://p:1"),
            ("ws://a.example.com/", HTTP | {"no_proxy": "example.com"}, None),
            ("ws://a.example.com/", HTTP | {"no_proxy": ".example.com"}, None),
            ("ws://A.Example.COM/", HTTP | {"no_proxy": "EXAMPLE.com"}, None),
            ("ws://example.com/", HTTP | {"no_proxy": ".example.com"}, None),
            ("ws://badexample.com/", HTTP | {"no_proxy": "example.com"}, "http://p:1"),
            ("ws://h:8080/", HTTP | {"no_proxy": "h:8080"}, None),
            ("ws://h:8081/", HTTP | {"no_proxy": "h:8080"}, "http://p:1"),
            ("ws://10.1.2.3/", HTTP | {"no_proxy": "10.0.0.0/8"}, None),
            ("ws://11.1.2.3/", HTTP | {"no_proxy": "10.0.0.0/8"}, "http://p:1"),
            ("ws://10.1.2.3/", HTTP | {"no_proxy": "10.1.2.3"}, None),
            ("ws://10.1.2.3:81/", HTTP | {"no_proxy": "10.1.2.3:81"}, None),
            ("ws://10.1.2.3/", HTTP | {"no_proxy": "10.0.0.0/99"}, "http://p:1"),
            ("ws://h/", HTTP | {"no_proxy": "10.0.0.0/8"}, "http://p:1"),
            ("ws://[fd00::1]/", HTTP | {"no_proxy": "fd00::/8"}, None),
            ("ws://[::1]/", HTTP | {"no_proxy": "::1"}, None),
            ("ws://[::1]:81/", HTTP | {"no_proxy": "[::1]:81"}, None),
        ],
    )
    def test_the_environment_as_requests_reads_it(
        self, monkeypatch: pytest.MonkeyPatch, uri: str, environment: dict[str, str], expected: str | None
    ) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        choice = proxy_for(uris.parse(uri), True)
        assert (choice and choice.url) == expected

    @pytest.mark.parametrize(
        ("setting", "expected"), [(None, None), (False, None), ("", None), ("socks5://p", "socks5://p")]
    )
    def test_a_setting_is_not_overruled(
        self, monkeypatch: pytest.MonkeyPatch, setting: bool | str | None, expected: str | None
    ) -> None:
        monkeypatch.setenv("http_proxy", "http://other:1")
        monkeypatch.setenv("no_proxy", "*")
        choice = proxy_for(uris.parse("ws://h/"), setting)
        assert (choice and choice.url) == expected

    @pytest.mark.parametrize(
        ("uri", "environment", "variable"),
        [
            ("ws://h/", {"http_proxy": "p:1", "HTTP_PROXY": "q:1"}, "http_proxy"),
            ("ws://h/", {"HTTP_PROXY": " p:1 "}, "HTTP_PROXY"),
            ("wss://h/", {"HTTPS_PROXY": "p:1", "all_proxy": "q:1"}, "HTTPS_PROXY"),
            ("wss://h/", {"https_proxy": "", "HTTPS_PROXY": "q:1", "ALL_PROXY": "p:1"}, "ALL_PROXY"),
            ("ws://h/", {"REQUEST_METHOD": "GET", "HTTP_PROXY": "q:1", "http_proxy": "p:1"}, "http_proxy"),
        ],
    )
    def test_it_says_which_variable_it_is(
        self, monkeypatch: pytest.MonkeyPatch, uri: str, environment: dict[str, str], variable: str
    ) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert proxy_for(uris.parse(uri), True) == Choice("p:1", variable)

    @pytest.mark.parametrize(
        "environment", [{}, {"HTTP_PROXY": "p:1"}, {"ALL_PROXY": "q:1", "no_proxy": "h"}]
    )
    def test_another_mapping_in_place_of_the_environment_says_the_same(
        self, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
    ) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        said = [proxy_for(uris.parse(uri), True) for uri in ("ws://h/", "wss://i/")]
        monkeypatch.setattr(os, "environ", environment)
        assert [proxy_for(uris.parse(uri), True) for uri in ("ws://h/", "wss://i/")] == said

    def test_small_letters_without_a_value_say_that_there_is_none(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", "")
        monkeypatch.setenv("HTTP_PROXY", "p:1")
        assert proxy_for(uris.parse("ws://h/"), True) is None

    def test_a_repr_shows_no_password(self) -> None:
        assert repr(Choice("http://u:s3cret@h:1", "HTTP_PROXY")) == "Choice('http://***@h:1', 'HTTP_PROXY')"


@pytest.mark.parametrize(
    ("uri", "listed", "exempt"),
    [
        # names: as they are, and what is below them
        ("ws://example.com/", "example.com", True),
        ("ws://a.b.example.com/", "example.com", True),
        ("ws://example.com/", ".example.com", True),
        ("ws://a.example.com/", ".example.com", True),
        ("ws://a.example.com/", "*.example.com", True),
        ("ws://abcab.example.com/", "a*b*ab.*.com", True),
        ("ws://ab.example.com/", "ab*b.example.com", False),
        ("ws://a.b.example.com/", "*.example.com", True),
        ("ws://example.com/", "*.example.com", False),  # as in Go
        ("ws://badexample.com/", "*.example.com", False),
        ("ws://badexample.com/", "*example.com", True),
        ("ws://example.com.evil.test/", "*.example.com", False),
        ("ws://db-7.prod.test/", "db-*.prod.test", True),
        ("ws://db-7.dev.test/", "db-*.prod.test", False),
        ("ws://a.EXAMPLE.com/", "*.Example.COM", True),
        ("ws://example.com./", "example.com", True),
        ("ws://example.com/", "example.com.", True),
        ("ws://bücher.test/", "bücher.test", True),
        ("ws://a.bücher.test/", "*.bücher.test", True),
        ("ws://xn--bcher-kva.test/", ".BÜCHER.test", True),
        ("ws://h/", ".", False),
        ("ws://h/", "*", True),
        ("ws://h/", "x,*", True),
        ("ws://10.1.2.3/", "*", True),
        # lists
        ("ws://h/", "x h y", True),
        ("ws://h/", " x , h,, y ", True),
        ("ws://h/", "x\th\ny", True),
        ("ws://h/", "xh y", False),
        # ports
        ("ws://h:8080/", "h:8080", True),
        ("ws://h/", "h:80", True),
        ("wss://h/", "h:80", False),
        ("ws://a.h:8080/", "*.h:8080", True),
        ("ws://a.h:8081/", "*.h:8080", False),
        ("ws://h:8080/", "*:8080", True),
        ("ws://h:8081/", "*:8080", False),
        ("ws://h/", "h:http", False),
        ("ws://h:8080/", f"h:{'9' * 5000}", False),
        # addresses
        ("ws://10.1.2.3/", "10.1.2.3", True),
        ("ws://10.1.2.3/", "1.2.3", False),
        ("ws://10.1.2.3/", ".2.3", False),
        ("ws://192.168.0.7/", "192.168.0.*", True),
        ("ws://192.168.0.7:81/", "192.168.0.*:81", True),
        ("ws://192.168.0.7:82/", "192.168.0.*:81", False),
        ("ws://192.168.1.7/", "192.168.0.*", False),
        ("ws://192.168.1.7/", "192.168.*", True),
        ("ws://192.168.1.7/", "192.168.*.*", True),
        ("ws://192.168.0.example.com/", "192.168.0.*", False),
        ("ws://10.1.2.3/", "10.0.0.0/8", True),
        ("ws://10.1.2.3/", "10.9.9.9/8", True),
        ("ws://11.1.2.3/", "10.0.0.0/8", False),
        ("ws://10.1.2.3/", "10.0.0.0/255.0.0.0", True),
        ("ws://10.1.2.3/", "10.0.0.0/x", False),
        ("ws://10.example.com/", "10.0.0.0/8", False),
        ("ws://127.0.0.1/", "localhost", False),
        ("ws://localhost/", "127.0.0.1", False),
        ("ws://[::1]/", "::1", True),
        ("ws://[::1]/", "0:0:0:0:0:0:0:1", True),
        ("ws://[::1]/", "[::1]", True),
        ("ws://[::1]:81/", "[::1]:81", True),
        ("ws://[::1]:82/", "[::1]:81", False),
        ("ws://[::1]/", "::", False),
        ("ws://[FD00::1]/", "fd00::/8", True),
        ("ws://[fd00::1]/", "[fd00::]/8", True),
        ("ws://[fe80::1%25eth0]/", "fe80::1", True),
        ("ws://[fe80::1%25eth0]/", "fe80::/10", True),
        ("ws://[::ffff:10.1.2.3]/", "10.0.0.0/8", True),
        ("ws://[fd00::1]/", "10.0.0.0/8", False),
        ("ws://h/", "[::1", False),
        ("ws://h/", "a:b:c", False),
        ("ws://h/", "", False),
    ],
)
def test_what_no_proxy_names(monkeypatch: pytest.MonkeyPatch, uri: str, listed: str, exempt: bool) -> None:
    monkeypatch.setenv("HTTP_PROXY", "p:1")
    monkeypatch.setenv("HTTPS_PROXY", "p:1")
    monkeypatch.setenv("NO_PROXY", listed)
    assert (proxy_for(uris.parse(uri), True) is None) is exempt


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("localhost", True),
        ("localhost.", True),
        ("app.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("notlocalhost", False),
        ("localhost.test", False),
        ("10.0.0.1", False),
        ("::2", False),
    ],
)
def test_what_is_this_machine(host: str, is_it: bool) -> None:
    assert is_loopback(host) is is_it


@given(
    st.text(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from("*.,:/[]0"),
        max_size=40,
    )
)
def test_whatever_no_proxy_says_is_read_in_peace(listed: str) -> None:
    for uri in ("ws://a.example.com:8080/", "ws://10.1.2.3/", "wss://[fd00::1]/"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("no_proxy", listed)
            assert is_exempt(uris.parse(uri)) in (True, False)


@pytest.mark.parametrize("listed", ["*a" * 100 + "*b", "1*" * 100 + "2", "*" * 10_000 + "b"])
def test_many_stars_in_no_proxy_take_no_time(monkeypatch: pytest.MonkeyPatch, listed: str) -> None:
    monkeypatch.setenv("no_proxy", listed)
    assert not is_exempt(uris.parse("ws://" + ".".join(["a" * 60] * 4)))
    assert not is_exempt(uris.parse("ws://111.111.111.111"))

"""Which proxy is used, and how it is shown. What goes through it is in test_dial.py."""

from __future__ import annotations

import pytest

from jetsocket import uris
from jetsocket.wire.proxies import proxy_for, redact_proxy

HTTP = {"http_proxy": "http://p:1"}


@pytest.fixture(autouse=True)
def no_proxy_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "request_method"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


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
        assert proxy_for(uris.parse(uri), True) == expected

    @pytest.mark.parametrize(
        ("setting", "expected"), [(None, None), (False, None), ("", None), ("socks5://p", "socks5://p")]
    )
    def test_a_setting_is_not_overruled(
        self, monkeypatch: pytest.MonkeyPatch, setting: bool | str | None, expected: str | None
    ) -> None:
        monkeypatch.setenv("http_proxy", "http://other:1")
        monkeypatch.setenv("no_proxy", "*")
        assert proxy_for(uris.parse("ws://h/"), setting) == expected


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host:3128", "http://host:3128"),
        ("host:3128", "http://host:3128"),
        ("http://user:s3cret@host:3128/path?s3cret", "http://***@host:3128"),
        ("socks5://s3cret@host", "socks5://***@host"),
        ("http://[::1]:3128", "http://[::1]:3128"),
        ("http://user:s3/cret@host:3128", "***"),
        ("http://user:12/s3cret@host:3128", "***"),
        ("http://user:s3cret@[::1", "***"),
        ("http://user:s3cret@host:none", "***"),
        ("", "http://"),
    ],
)
def test_a_proxy_s_url_shows_no_credentials(url: str, shown: str) -> None:
    assert redact_proxy(url) == shown

"""How a proxy's URL is read, and how it is shown. What goes through one is in test_tunnel.py."""

from __future__ import annotations

import base64
import contextlib
import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket.wire.proxy_url import Proxy, redact_proxy


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
        ("HTTP://user:s3cret@h:1/", "http://***@h:1"),
        ("http://user:s3cret＠h:1", "***"),
        ("s3cret http://h:1", "***"),
        ("http://\x1b[31mh:1", "***"),
        ("http://h\u202e:1", "http://h?:1"),
        ("http://" + "h" * 60_000, "http://" + "h" * 192 + "…"),
    ],
)
def test_a_proxy_s_url_shows_no_credentials(url: str, shown: str) -> None:
    assert redact_proxy(url) == shown


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port"),
    [
        ("h", "http", "h", 80),
        ("h:3128", "http", "h", 3128),
        (" HTTP://h:3128/path?x#y ", "http", "h", 3128),
        ("http://h:/", "http", "h", 80),
        ("socks5h://[::1]", "socks5h", "::1", 1080),
        ("SOCKS4A://[fe80::1%25eth0]:1", "socks4a", "fe80::1%eth0", 1),
        ("user@h:3128", "http", "h", 3128),
        ("http://user:p@ss:w@h:3128", "http", "h", 3128),
        ("http://bücher.test:1", "http", "bücher.test", 1),
    ],
)
def test_what_a_url_means(url: str, scheme: str, host: str, port: int) -> None:
    proxy = Proxy.parse(url)
    assert (proxy.scheme, proxy.host, proxy.port) == (scheme, host, port)


def test_a_repr_shows_no_login() -> None:
    shown = repr(Proxy.parse("http://us3r:s3cret@h:1"))
    assert "s3cret" not in shown
    assert "us3r" not in shown


@given(
    st.text(max_size=60) | st.from_regex(r"[a-z]{1,6}://[^ ]{0,40}@[a-z]{0,5}(:[0-9]{0,6})?", fullmatch=True)
)
def test_whatever_is_given_is_shown_or_refused_in_peace(url: str) -> None:
    assert redact_proxy(url).isprintable()
    with contextlib.suppress(ValueError):
        assert Proxy.parse(url).scheme in ("http", "socks4", "socks4a", "socks5", "socks5h")


@given(st.text(min_size=1, max_size=30), st.text(max_size=30))
def test_a_login_that_is_percent_encoded_comes_out_as_it_was(username: str, password: str) -> None:
    try:
        login = f"{quote(username, safe='')}:{quote(password, safe='')}"
    except UnicodeEncodeError:
        return  # a lone surrogate
    url = f"http://{login}@h:3128"
    assert redact_proxy(url) == "http://***@h:3128"
    if ":" in username or re.search("[\x00-\x1f\x7f]", username + password):
        with pytest.raises(ValueError, match="RFC 7617"):
            Proxy.parse(url)
        return
    proxy = Proxy.parse(url)
    assert (proxy.username, proxy.password) == (username, password)
    assert proxy.authorization == "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()

"""What is said to a proxy, and what becomes of its answers: scripted ones on real sockets.

Also tests: `through_proxy`.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket import exceptions, uris
from jetsocket.wire.dial import Dialing
from jetsocket.wire.proxy_tunnel import ask
from jetsocket.wire.proxy_url import Proxy
from jetsocket.wire.stream import Stream
from tests.servers import (
    RawServer,
    Script,
    Upgrade,
    hold,
    read_request,
    refusing_port,
    reset,
)
from tests.wire.conftest import says_hello, soon
from tests.wire.proxies import answering, relay, socks_proxy

pytestmark = pytest.mark.usefixtures("no_proxy_from_outside", "nothing_left_open")

Serve = Callable[..., RawServer]
Names = dict[str, list[tuple[str, int]]]

PASSWORD = "hunter2-東"
LOGIN = "us%65r:hunter2-%E6%9D%B1"
BEGINNINGS = [
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 407 \r\n",
    b"HTTP/1.1 103 x\n\n",
    b"HTTP/1.",
    b"\n",
    b"\x15\x03",
]
BASIC = base64.b64encode(f"user:{PASSWORD}".encode()).decode()


def dialing(uri: str, seconds: float = 10.0, **kwargs: Any) -> Dialing:
    return Dialing(uris.parse(uri), deadline=soon(seconds), **kwargs)


def refused(proxy: RawServer, *, login: str = "", scheme: str = "http", seconds: float = 10.0) -> str:
    """What is told when that proxy opens no tunnel; none of it is secret."""
    url = f"{scheme}://{login + '@' if login else ''}127.0.0.1:{proxy.port}"
    with pytest.raises(exceptions.ConnectionError) as caught:
        dialing("ws://host.test/", seconds, proxy=url).open()
    error = caught.value
    assert error.__context__ is None
    told = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__cause__)
    for secret in (PASSWORD, BASIC, "hunter2"):
        assert secret not in told
    assert not [BASIC[at : at + 10] for at in range(len(BASIC) - 9) if BASIC[at : at + 10] in told]
    assert "".join(filter(lambda char: not char.isprintable() and char != "\n", told)) == ""
    assert len(str(error)) < 600
    return str(error)


def says(answer: bytes, then: Callable[[socket.socket], None] = hold) -> Script:
    """A proxy that answers so, and keeps the connection."""

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer)
        then(sock)

    return script


# --- what is success


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 Connection established\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nVia: x\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 200 \r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 299 Fine\r\n\r\n",
        b"HTTP/1.1 200 OK\n\n",
        b"HTTP/1.1 200 OK\nVia: x\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\nLink: </x>\n\n" * 3 + b"HTTP/1.1 204 OK\n\n",
        b"HTTP/1.1 200 OK\r\n\x80\xff no header\r\n\r\n",
    ],
)
@pytest.mark.parametrize("piece", [1, 100_000])
def test_any_2xx_opens_the_tunnel(server: RawServer, raw_server: Serve, answer: bytes, piece: int) -> None:
    def script(sock: socket.socket) -> None:
        read_request(sock)
        with socket.create_connection((server.host, server.port), 5) as upstream:
            for start in range(0, len(answer), piece):
                sock.sendall(answer[start : start + piece])
            relay(sock, upstream)

    proxy = raw_server(script)
    with contextlib.closing(dialing(server.uri, proxy=f"http://127.0.0.1:{proxy.port}").open()) as stream:
        assert says_hello(stream)


@pytest.mark.parametrize("scheme", ["HTTP", "Socks5H"])
def test_a_scheme_in_capitals(server: RawServer, raw_server: Serve, scheme: str) -> None:
    script = answering(b"HTTP/1.1 200 OK\r\n\r\n") if scheme == "HTTP" else socks_proxy([])
    proxy = raw_server(script)
    with contextlib.closing(dialing(server.uri, proxy=f"{scheme}://127.0.0.1:{proxy.port}").open()) as stream:
        assert says_hello(stream)


# --- what it is asked


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("ws://Host.Test/", "host.test:80"),
        ("wss://host.test/", "host.test:443"),
        ("ws://[2001:DB8::1]:8080/", "[2001:db8::1]:8080"),
        ("ws://[fe80::1%25eth0]/", "[fe80::1]:80"),
        ("ws://bücher.test/", "xn--bcher-kva.test:80"),
    ],
)
def test_the_place_that_is_asked_for(raw_server: Serve, uri: str, place: str) -> None:
    asked: list[Upgrade] = []

    def script(sock: socket.socket) -> None:
        asked.append(read_request(sock))
        sock.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")

    with pytest.raises(
        exceptions.ConnectionError, match="it answered 502 Bad Gateway; see whether the target"
    ):
        dialing(uri, proxy=f"http://127.0.0.1:{raw_server(script).port}").open()
    (request,) = asked
    assert (request.method, request.target, request.headers["host"]) == ("CONNECT", place, place)
    assert "proxy-authorization" not in request.headers


@pytest.mark.parametrize(
    ("login", "sent"),
    [
        (LOGIN, f"user:{PASSWORD}"),
        (f"user:{PASSWORD}", f"user:{PASSWORD}"),
        ("user:p%40s%3As", "user:p@s:s"),
        ("us%20er:100%", "us er:100%"),
        ("user:a@b", "user:a@b"),
        (":pw", ":pw"),
        ("user", "user:"),
        ("user:", "user:"),
        (":", None),
        ("", None),
    ],
)
def test_a_login_is_sent_as_utf_8(server: RawServer, raw_server: Serve, login: str, sent: str | None) -> None:
    asked: list[Upgrade] = []
    proxy = raw_server(answering(b"HTTP/1.1 200 OK\r\n\r\n", asked))
    with contextlib.closing(
        dialing(server.uri, proxy=f"http://{login}@127.0.0.1:{proxy.port}").open()
    ) as stream:
        assert says_hello(stream)
    given = asked[0].headers.get("proxy-authorization")
    assert given == (None if sent is None else "Basic " + base64.b64encode(sent.encode()).decode())


def test_bytes_of_a_login_that_are_no_utf_8_are_sent_as_they_are(
    server: RawServer, raw_server: Serve
) -> None:
    asked: list[Upgrade] = []
    proxy = raw_server(answering(b"HTTP/1.1 200 OK\r\n\r\n", asked))
    # The second as the environment has it.
    for login in ("u:%ff%fe", "u:\udcff\udcfe"):
        dialing(server.uri, proxy=f"http://{login}@127.0.0.1:{proxy.port}").open().close()
    assert {each.headers["proxy-authorization"] for each in asked} == {
        "Basic " + base64.b64encode(b"u:\xff\xfe").decode()
    }


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://us%0d%0aEvil:pw@127.0.0.1:1", "control character"),
        ("http://user:p%00w@127.0.0.1:1", "control character"),
        ("http://user:p\r\nX: y@127.0.0.1:1", "control character"),
        ("http://us%3Aer:pw@127.0.0.1:1", "a user name with a colon"),
        ("http://user:\ud800@127.0.0.1:1", "lone surrogate"),
        ("socks5://us%0aer:pw@127.0.0.1:1", "control characters"),
        ("http://user:p/w@127.0.0.1:1", "has to be percent-encoded"),
        ("http://user:12/w@127.0.0.1:1", "has to be percent-encoded"),
        ("http://user:pw＠127.0.0.1:1", "has to be percent-encoded"),
        ("http://[::1", "in brackets"),
        ("http://[not-an-address]:1", "names no host"),
        ("http://ho\rst:1", "has to be percent-encoded"),
        ("http://h:+1", "not a number"),
        ("http://h:１", "not a number"),
        ("socks://h:1", "only http, .*; say socks5h://"),
        ("https://h:1", "most proxies take http:// on the same port"),
    ],
)
def test_urls_that_are_refused_before_anything_is_opened(url: str, why: str) -> None:
    with pytest.raises(exceptions.ConnectionError, match=why) as caught:
        dialing("ws://host.test/", proxy=url).open()
    assert caught.value.__context__ is None
    assert "pw" not in str(caught.value)


# --- what is not


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "it answered 101 Switching Protocols"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://login/\r\n\r\n", "it answered 302 Found; check its URL"),
        (b"HTTP/1.1 403 Filtered\r\n\r\n", "403 Filtered; see whether it lets anything through to this host"),
        (b"HTTP/1.1 405 No\r\n\r\n", "405 No; see whether it allows CONNECT at all"),
        (b"HTTP/1.1 502\r\n\r\n", "it answered 502; see whether the target can be reached from the proxy"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "did not answer in HTTP/1.1: 'HTTP/1.1 2000 OK'"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "did not answer in HTTP"),
        (b"HTTP/1.1 502 \x1b[31m\x9b\xe2\x80\xaeBad\r\n\r\n", r"502 \?\[31m�\?Bad"),
        (b"HTTP/1.1 502 " + b"\x1b" * 60_000 + b"\r\n\r\n", r"502 \?{199}…; "),
        (b"HTTP/1.1 502 B\xc3\xb6se\r\n\r\n", "502 Böse"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 66_000, "longer than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 66_000 + b"\r\n\r\n", "longer than 65536 bytes"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 3000, "longer than 65536 bytes"),
        (b"HTTP/1.1 204 OK\r\n\r\nextra", "data behind its answer"),
    ],
)
def test_an_answer_that_opens_no_tunnel(raw_server: Serve, answer: bytes, why: str) -> None:
    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer)
        hold(sock)

    with pytest.raises(exceptions.ConnectionError, match=why) as caught:
        dialing("ws://host.test/", proxy=f"http://127.0.0.1:{raw_server(script).port}").open()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "did not answer in HTTP/1.1, but in SSH: 'SSH-2.0-OpenSSH_9.2'"),
        (b"220 mail.test ESMTP\r\n", "did not answer in HTTP/1.1, but in SMTP: '220 mail.test ESMTP'"),
        (
            b"\x15\x03\x01\x00\x02\x02\x46",
            r"in HTTP/1\.1, but in TLS; it wants TLS itself \(https://\), which is not supported",
        ),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "but in HTTP/2; check that this is"),
        (b"\x05\xff", "does it speak SOCKS"),
        (b"HTTP/2 200\r\n", "but in another version of HTTP: 'HTTP/2 200'"),
        (b"\r\n\r\n", "did not answer in HTTP/1.1; check"),
        (b"H\n", "did not answer in HTTP/1.1: 'H'"),
    ],
)
def test_what_cannot_become_http_is_refused_at_its_first_bytes(
    raw_server: Serve, said: bytes, why: str
) -> None:
    """The proxy keeps the connection: whoever waits for more waits for the deadline."""
    with pytest.raises(exceptions.ConnectionError, match=why):
        dialing("ws://host.test/", proxy=f"http://127.0.0.1:{raw_server(says(said)).port}").open()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "closed the connection before it had answered; check its URL"),
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\nVia",
            "answered: 'HTTP/1.1 407 Proxy Authentication",
        ),
        (b"HTT", "before it had answered: 'HTT'"),
    ],
)
def test_one_that_closes_in_its_answer(raw_server: Serve, said: bytes, why: str) -> None:
    with pytest.raises(exceptions.ConnectionError, match=why):
        dialing(
            "ws://host.test/", proxy=f"http://127.0.0.1:{raw_server(says(said, lambda sock: None)).port}"
        ).open()


def test_one_that_resets_keeps_the_system_s_error_as_the_cause(raw_server: Serve) -> None:
    with pytest.raises(exceptions.ConnectionError) as caught:
        dialing("ws://host.test/", proxy=f"http://127.0.0.1:{raw_server(says(b'', reset)).port}").open()
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert caught.value.__cause__.errno == errno.ECONNRESET


def test_a_401_is_as_good_as_a_407(raw_server: Serve) -> None:
    """Of tinyproxy, where the password is wrong."""
    answer = b'HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic realm="Tinyproxy"\r\n\r\n'
    told = refused(raw_server(says(answer)), login=LOGIN)
    assert "it answered 401 Unauthorized; check its URL, its credentials: it does not take those" in told


@pytest.mark.parametrize(
    ("fields", "login", "advice"),
    [
        (b"", "", "it wants credentials: say http://user:password@host:port"),
        (b'Proxy-Authenticate: Basic realm="x"\r\n', "", "it wants credentials"),
        (
            b'Proxy-Authenticate: Basic realm="x"\r\n',
            LOGIN,
            "its credentials: it does not take those that it got",
        ),
        (
            b"proxy-authenticate: NTLM\r\nProxy-Authenticate: Negotiate\r\n",
            LOGIN,
            "it wants Negotiate or NTLM",
        ),
        (b"Proxy-Authenticate: Negotiate\r\nProxy-Authenticate: basic\r\n", "", "it wants credentials"),
        (b"Proxy-Authenticate: \x1b[31mhunter2\r\n", LOGIN, "it does not take those"),
        (b'Proxy-Authenticate: Negotiate, Basic realm="x"\r\n', "", "it wants credentials"),
        (b'Proxy-Authenticate: Digest realm="x, y", qop = auth, Basic\r\n', LOGIN, "does not take those"),
        (b'Proxy-Authenticate: Digest realm="x", nonce=Basic, NTLM\r\n', LOGIN, "it wants Digest or NTLM"),
    ],
)
def test_a_407_says_what_to_do(raw_server: Serve, fields: bytes, login: str, advice: str) -> None:
    proxy = raw_server(says(b"HTTP/1.1 407 Proxy Authentication Required\r\n" + fields + b"\r\n"))
    told = refused(proxy, login=login)
    assert "it answered 407 Proxy Authentication Required; " in told
    assert advice in told


@pytest.mark.parametrize(
    "repeat",
    [
        lambda request: b"HTTP/1.1 407 %s\r\n\r\n" % request.headers["proxy-authorization"].encode(),
        lambda request: b"HTTP/1.1 407 no \x1b[31m user:%s\r\n\r\n" % PASSWORD.encode(),
        lambda request: b"HTTP/1.1 407 no hunter2-%E6%9D%B1 " + b"x" * 60_000 + b"\r\n\r\n",
        lambda request: b"HTTP/1.1 407 " + b"x" * 180 + b" " + BASIC.encode() + b"\r\n\r\n",
        lambda request: b"HTTP/1.1 407 " + BASIC[5:].encode() + b" " + BASIC[:-5].encode() + b"\r\n\r\n",
        lambda request: request.raw.partition(b"\r\n")[2],
        lambda request: b"HTTP/1.1 " + request.headers["proxy-authorization"].encode() + b"\r\n\r\n",
    ],
    ids=["basic", "plain", "as in the URL", "at the cut", "cut", "no HTTP", "in place of a status"],
)
def test_a_login_that_the_proxy_repeats_is_shown_nowhere(
    raw_server: Serve, repeat: Callable[[Upgrade], bytes]
) -> None:
    def script(sock: socket.socket) -> None:
        sock.sendall(repeat(read_request(sock)))

    refused(raw_server(script), login=LOGIN)


@given(
    st.one_of(
        st.binary(max_size=300), st.tuples(st.sampled_from(BEGINNINGS), st.binary(max_size=100)).map(b"".join)
    )
)
def test_no_answer_whatever_does_harm(answer: bytes) -> None:
    """A tunnel, a refusal that is fit to be shown, or the end of the stream: nothing else comes of it."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        stream = Stream(ours)
        try:
            refusal = ask(stream, Proxy.parse(f"http://{LOGIN}@h:1"), "host.test", 80, soon())
        finally:
            stream.close()
    if refusal is None:
        assert answer.startswith(b"HTTP/1.")
    else:
        assert (refusal.why + refusal.advice).isprintable()
        assert len(refusal.why) < 500


# --- what is not there


def test_a_proxy_whose_host_is_not_known_is_told_as_such() -> None:
    with pytest.raises(
        exceptions.ConnectionError,
        match=r"resolving host 'no\.invalid' of the proxy http://.* to connect directly pass proxy=None",
    ):
        dialing("ws://host.test/", proxy="http://user:hunter2@no.invalid:1").open()


def test_a_proxy_that_does_not_run_is_told_as_such() -> None:
    with refusing_port() as port, pytest.raises(exceptions.ConnectionError) as caught:
        dialing("ws://host.test/", proxy=f"http://user:hunter2@127.0.0.1:{port}").open()
    assert f"connecting to the proxy http://***@127.0.0.1:{port} failed" in str(caught.value)
    assert "to connect directly pass proxy=None" in str(caught.value)


# --- SOCKS


NO_ROUTE = b"\x05\x04\0\x01" + bytes(6)


def test_each_address_is_tried_that_our_dns_knows(server: RawServer, raw_server: Serve, names: Names) -> None:
    names["host.test"] = [
        ("2001:db8::1", server.port),
        ("192.0.2.1", server.port),
        ("127.0.0.1", server.port),
    ]
    asked: list[str] = []

    def refuses(host: str, sock: socket.socket) -> bytes:
        return b"" if host == "127.0.0.1" else NO_ROUTE

    proxy = raw_server(socks_proxy(asked, refuses=refuses))
    uri = f"ws://host.test:{server.port}/"
    with contextlib.closing(dialing(uri, proxy=f"socks5://127.0.0.1:{proxy.port}").open()) as stream:
        assert says_hello(stream)
    assert [each.rpartition(":")[0] for each in asked] == [
        "socks5 2001:db8::1",
        "socks5 192.0.2.1",
        "socks5 127.0.0.1",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("refusal", ["holds", "closes", "resets", "socks4"])
def test_an_address_that_swallows_or_cuts_costs_its_share_of_the_time(
    server: RawServer, raw_server: Serve, names: Names, refusal: str
) -> None:
    names["host.test"] = [("192.0.2.1", server.port), ("127.0.0.1", server.port)]

    def refuses(host: str, sock: socket.socket) -> bytes:
        if host == "127.0.0.1":
            return b""
        if refusal == "socks4":
            return b"\0\x5b" + bytes(6)
        {"holds": hold, "closes": lambda sock: None, "resets": reset}[refusal](sock)
        raise EOFError

    proxy = raw_server(socks_proxy([], refuses=refuses))
    scheme = "socks4" if refusal == "socks4" else "socks5"
    uri = f"ws://host.test:{server.port}/"
    with contextlib.closing(dialing(uri, 4.0, proxy=f"{scheme}://127.0.0.1:{proxy.port}").open()) as stream:
        assert says_hello(stream)


def test_all_addresses_are_told_when_none_will_do(raw_server: Serve, names: Names) -> None:
    names["host.test"] = [("2001:db8::1", 80), ("192.0.2.1", 80)]
    proxy = raw_server(socks_proxy([], refuses=lambda host, sock: NO_ROUTE))
    told = refused(proxy, scheme="socks5")
    assert "failed: 2001:db8::1: Host unreachable, 192.0.2.1: Host unreachable; check its URL" in told


def test_the_last_address_has_what_is_left_of_the_time(raw_server: Serve, names: Names) -> None:
    names["host.test"] = [("2001:db8::1", 80), ("192.0.2.1", 80)]

    def refuses(host: str, sock: socket.socket) -> bytes:
        hold(sock)
        raise EOFError

    asked: list[str] = []
    proxy = raw_server(socks_proxy(asked, refuses=refuses))
    with pytest.raises(exceptions.TimeoutError, match=r"asking the proxy .* for 192\.0\.2\.1:80") as caught:
        dialing("ws://host.test/", 0.5, proxy=f"socks5://127.0.0.1:{proxy.port}").open()
    assert caught.value.__context__ is None
    assert len(asked) == 2


def test_a_login_that_is_refused_is_asked_for_once(raw_server: Serve, names: Names) -> None:
    names["host.test"] = [("2001:db8::1", 80), ("192.0.2.1", 80)]
    proxy = raw_server(socks_proxy([], user="user:other"))
    told = refused(proxy, scheme="socks5", login="user:hunter2")
    assert "authentication failure" in told
    assert proxy.accepted == 1


@pytest.mark.parametrize(("login", "sent"), [("user", "user:"), (":pw", ":pw"), ("user:pw", "user:pw")])
def test_half_a_login_is_sent_to_socks_as_well(
    server: RawServer, raw_server: Serve, login: str, sent: str
) -> None:
    proxy = raw_server(socks_proxy([], user=sent))
    url = f"socks5h://{login}@127.0.0.1:{proxy.port}"
    with contextlib.closing(dialing(server.uri, proxy=url).open()) as stream:
        assert says_hello(stream)


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b"\x15\x03\x01\x00\x02\x02\x46"]
)
def test_what_is_not_socks_is_refused_at_its_first_bytes(raw_server: Serve, said: bytes) -> None:
    def script(sock: socket.socket) -> None:
        sock.recv(3)
        sock.sendall(said)
        hold(sock)

    assert "Unexpected SOCKS version number" in refused(
        raw_server(script), scheme="socks5h", login="u:hunter2"
    )


def test_socks_4_is_asked_for_no_ipv6_address(raw_server: Serve) -> None:
    asked: list[str] = []
    proxy = raw_server(socks_proxy(asked, refuses=lambda host, sock: b"\0\x5b" + bytes(6)))
    with pytest.raises(exceptions.ConnectionError, match="SOCKS 4 carries no IPv6 addresses; say socks5://"):
        dialing("ws://[2001:db8::1]/", proxy=f"socks4://127.0.0.1:{proxy.port}").open()
    assert asked == []


def test_what_comes_behind_the_answer_of_a_socks_proxy_is_refused(raw_server: Serve) -> None:
    def refuses(host: str, sock: socket.socket) -> bytes:
        return b"\x05\0\0\x01" + bytes(6) + b"extra"

    assert "data behind its answer" in refused(raw_server(socks_proxy([], refuses=refuses)), scheme="socks5h")


# --- alarms


class Alarm(TimeoutError):
    """What the usual recipe for a time limit raises."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the platform has no timers that signal")
@pytest.mark.parametrize("kind", [Alarm, TimeoutError, ConnectionResetError, ValueError])
@pytest.mark.parametrize("scheme", ["http", "socks5h", "socks5"])
def test_an_alarm_that_comes_while_a_proxy_is_asked_stays_itself(
    raw_server: Serve, names: Names, scheme: str, kind: type[Exception]
) -> None:
    names["host.test"] = [("2001:db8::1", 80), ("192.0.2.1", 80)]
    alarm = kind("mine")

    def ring(*args: object) -> None:
        raise alarm

    def script(sock: socket.socket) -> None:
        sock.recv(3)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        hold(sock)

    proxy = raw_server(script)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(kind) as caught:
            dialing("ws://host.test/", proxy=f"{scheme}://127.0.0.1:{proxy.port}").open()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught.value is alarm


# --- this machine, and the environment


@pytest.mark.parametrize(
    "uri", ["ws://localhost:1/", "ws://127.0.0.9/", "ws://[::1]/", "ws://app.localhost/"]
)
@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_loopback_address_that_a_proxy_refuses_names_no_proxy(
    raw_server: Serve, monkeypatch: pytest.MonkeyPatch, uri: str, given: str
) -> None:
    url = f"http://127.0.0.1:{raw_server(says(b'HTTP/1.1 403 Filtered' + bytes([13, 10, 13, 10]))).port}"
    if given == "environment":
        monkeypatch.setenv("HTTP_PROXY", url)
    with pytest.raises(exceptions.ConnectionError, match=r"403 Filtered.*this machine.*NO_PROXY") as caught:
        dialing(uri, proxy=url if given == "option" else True).open()
    assert "proxy=None" in str(caught.value)
    assert ("(HTTP_PROXY)" in str(caught.value)) is (given == "environment")


def test_another_address_that_a_proxy_refuses_does_not(raw_server: Serve) -> None:
    assert "NO_PROXY" not in refused(raw_server(says(b"HTTP/1.1 403 Filtered\r\n\r\n")))

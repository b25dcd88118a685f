"""The ten error situations of a shell user: each has its own cause and remedy, from `check` and `call`."""

from __future__ import annotations

import re
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from jetsocket.cli import steps
from tests.cli.terminal import Ran, run
from tests.conftest import Tls
from tests.servers import EchoServer, RawServer, refusing_port

TIMES = re.compile(r"0\.[0-9]+ s")
HASTY = ("--connect-timeout", "300ms")


def mute(sock: socket.socket) -> None:
    while sock.recv(4096):
        pass


def ssh(sock: socket.socket) -> None:
    sock.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
    mute(sock)


def page(sock: socket.socket) -> None:
    sock.recv(4096)
    body = b"<html><title>Welcome to nginx</title></html>"
    sock.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )


@pytest.fixture
def start() -> Iterator[Callable[..., str]]:
    """Start a server for the test; its URI."""
    with ExitStack() as stack:

        def begin(server: EchoServer | RawServer) -> str:
            return stack.enter_context(server).uri

        yield begin


def both(*arguments: str) -> tuple[Ran, Ran]:
    """`check` and `call`, each as text; and they agree with what `--json` says."""
    uri, *options = arguments
    checked, called = run("check", uri, *options), run("call", uri, "hello", *options)
    in_json = run("call", uri, "hello", *options, "--json")
    error = in_json.error
    assert in_json.err == ""
    assert error["exit"] == in_json.code == called.code == checked.code
    for ran in (checked, called):
        cause, remedy = ran.err.splitlines()
        assert cause.startswith("jetsocket: ") and remedy.startswith("  → ")
    said = f"jetsocket: {error['cause']}\n  → {error['remedy']}\n"
    assert TIMES.sub("… s", called.err) == TIMES.sub("… s", said)
    return checked, called


def test_self_signed(start: Callable[..., str], tls: Tls) -> None:
    checked, called = both(start(EchoServer(ssl_context=tls.server_context)))
    for ran in (checked, called):
        assert ran.code == 3
        assert "certificate could not be verified: unable to get local issuer certificate" in ran.err
        assert "--ca FILE" in ran.err and "-k" in ran.err
    assert checked.lines[-1].startswith("FAIL  tls")
    assert "days left" in checked.lines[-1]  # what the certificate says is shown all the same


def test_wrong_name(start: Callable[..., str], tls: Tls, tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    tls.ca.cert_pem.write_to_path(str(authority))
    uri = start(EchoServer(ssl_context=tls.issue("other.example.com")))
    for ran in both(uri, "--ca", str(authority)):
        assert ran.code == 3
        assert "certificate is for other.example.com, not for 127.0.0.1" in ran.err
        assert "--server-hostname" in ran.err
    assert (
        run("call", uri, "hello", "--ca", str(authority), "--server-hostname", "other.example.com").out
        == b"hello\n"
    )
    assert run("call", uri, "hello", "-k").out == b"hello\n"


def test_ws_to_a_tls_port(start: Callable[..., str], tls: Tls) -> None:
    uri = start(EchoServer(ssl_context=tls.server_context)).replace("wss", "ws")
    checked, called = both(uri)
    for ran in (checked, called):
        assert ran.code == 4 and "wss://" in ran.err.splitlines()[1]
    assert checked.err.endswith(f"TLS is spoken there: write {uri.replace('ws', 'wss')}/\n")


def test_wss_to_a_plain_port(start: Callable[..., str]) -> None:
    for ran in both(start(RawServer(page)).replace("ws", "wss")):
        assert ran.code == 3
        assert "does not speak TLS" in ran.err
        assert "write ws:// in place of wss://" in ran.err


@pytest.mark.slow
def test_a_mute_server(start: Callable[..., str]) -> None:
    for ran in both(start(RawServer(mute)), *HASTY):
        assert ran.code == 5
        assert "waiting for the answer to the upgrade request" in ran.err
        assert "something listens there and does not speak" in ran.err


def test_ssh(start: Callable[..., str]) -> None:
    for ran in both(start(RawServer(ssh))):
        assert ran.code == 4
        assert 'it seems to be SSH, and it says "SSH-2.0-OpenSSH_9.6"' in ran.err
        assert "check host and port" in ran.err


def test_a_page(start: Callable[..., str]) -> None:
    uri = start(RawServer(page))
    for ran in both(uri):
        assert ran.code == 4
        assert 'refused with 200 OK and says "Welcome to nginx"' in ran.err
        assert "check the path" in ran.err
    assert run("call", uri, "hello", "--json").error["status"] == 200


def answers(answer: bytes) -> Callable[[socket.socket], None]:
    def script(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(answer)

    return script


def refusing(status: str, body: bytes = b"", fields: str = "") -> Callable[[socket.socket], None]:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{fields}\r\n"
    return answers(head.encode() + body)


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


@pytest.mark.parametrize(
    ("script", "cause", "remedy"),
    [
        (refusing("401 Unauthorized"), "401", "the credentials in the URI, or in -H or --header-file"),
        (refusing("401 Unauthorized", b"who?"), 'says "who?"', "-H or --header-file"),
        (refusing("403 Forbidden"), "403", "credentials (-H or --header-file), or another --origin"),
        (refusing("403 Forbidden", b"no room"), 'says "no room"', "(-H or --header-file)"),
        (refusing("403 Forbidden", b"your origin?"), 'says "your origin?"', "give --origin to one"),
        (refusing("422 Unprocessable", b"odd"), 'says "odd"', "check the URI and the headers"),
        (refusing("400 Bad Request", b"odd"), 'says "odd"', "--no-compress leaves that out"),
        (refusing("500 Oh", b"a bug"), 'says "a bug"', "its own log"),
        (
            refusing("302 Found", fields="Location: wss://other.example.com/\r\n"),
            "origin",
            "dial it yourself",
        ),
        (
            refusing("302 Found", fields="Location: ftp://h/\r\n"),
            "redirected to ftp://h/: ",
            "the server has",
        ),
        (refusing("302 Found", fields="Location: /\r\n"), "again and again", "in a circle?"),
        (
            answers(SWITCH + b"Sec-WebSocket-Accept: wrong\r\n\r\n"),
            "does not fit",
            "is it a WebSocket server",
        ),
        (answers(SWITCH.replace(b"1.1", b"1.0") + b"\r\n"), "HTTP/1.0", "is it a WebSocket server"),
        (answers(b"HTTP/1.1 101 Swi"), "after 16 B of its answer", "its log may say why"),
        (answers(b"HTTP/1.1 200 OK\r\n: x\r\n\r\n"), "no valid name", "is it a WebSocket server"),
        (answers(b"HTTP/1.1 200 OK\r\na: x\n\r\n\r\n"), "in LF alone", "is it a WebSocket server"),
        (answers(b"HTTP/1.1 200 OK\r\na: " + b"x" * 70_000), "B of headers", "is it a WebSocket server"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_is_answered_has_a_remedy(
    start: Callable[..., str], script: Callable[[socket.socket], None], cause: str, remedy: str
) -> None:
    for ran in both(start(RawServer(script))):
        said, advised = ran.err.splitlines()
        assert ran.code == 4
        assert cause in said and remedy in advised


def test_a_server_that_resets_has_a_remedy(start: Callable[..., str], tls: Tls) -> None:
    uri = start(RawServer(lambda sock: None, ssl_context=tls.server_context))
    ran = run("call", uri, "x", "-k")
    assert ran.code in (3, 4) and ran.err.splitlines()[1] == (
        "  → it, or something on the way to it, gave up; its log may say why"
    )


def test_a_message_that_is_too_long(start: Callable[..., str]) -> None:
    uri = start(EchoServer())
    for ran in (
        run("call", uri, "x" * 1025, "--max-message-size", "1KiB", "--no-compress"),
        run("call", uri, "x" * 1025, "--max-message-size", "1KiB"),
    ):
        assert ran.code == 6
        cause, remedy = ran.err.splitlines()
        assert cause.endswith(f" --max-message-size 1024 B (at {uri}/)")
        assert remedy == "  → raise --max-message-size if that is to be expected"
    assert run("call", uri, "x" * 1025, "--max-message-size", "1025").code == 0


def test_refused() -> None:
    with refusing_port() as port:
        for ran in both(f"ws://127.0.0.1:{port}"):
            assert ran.code == 3
            assert "Connection refused" in ran.err
            assert "is the server running" in ran.err


def test_an_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for ran in both("wss://no-such-host.example.com"):
        assert ran.code == 3
        assert "resolving host 'no-such-host.example.com' failed" in ran.err
        assert "check the name" in ran.err


def test_a_blank_in_the_uri() -> None:
    for ran in both("ws://127.0.0.1/a path"):
        assert ran.code == 2
        assert "character ' ' at index 16 is not allowed" in ran.err
        assert "percent-encode it" in ran.err
        assert ran.out == b""  # nothing was begun


@pytest.mark.parametrize(
    ("uri", "cause", "remedy"),
    [
        ("localhost:8080", "localhost:8080: no scheme", "write ws://localhost:8080 (or wss://)"),
        ("example.com:443/x", "no scheme", "write ws://example.com:443 (or wss://)"),
        ("ws://local host/", "is in the host, where none can stand", "remove it"),
        ("ws://local%20host/", "the host is no valid name", "letters, digits"),
        ("ws://localhost:8080 ", "character ' ' at the end is not allowed", "remove it"),
        (" ws://localhost:8080", "character ' ' at the beginning is not allowed", "remove it"),
        ("ws://h/a; b", "URI ws://h/a; b: character ' ' at index 9", "percent-encode it"),
        ("ws://u%3Ax:p@h/", "a colon", "send an Authorization header of your own, -H or --header-file"),
        ("ws://", "the host is empty", "write it behind //"),
    ],
)
def test_a_uri_that_is_none(uri: str, cause: str, remedy: str) -> None:
    for ran in both(uri):
        said, advised = ran.err.splitlines()
        assert (ran.code, ran.out) == (2, b"")
        assert cause in said and remedy in advised


def test_a_certificate_that_is_unknown_and_expired_is_both(
    start: Callable[..., str], tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    expires = time.time() + 2000 * 365 * 86_400
    monkeypatch.setattr(steps, "time", SimpleNamespace(time=lambda: expires))
    ran = run("check", start(EchoServer(ssl_context=tls.server_context)))
    assert ran.code == 3 and "expired " in ran.lines[-1] and "no protocol" not in ran.lines[-1]
    assert ran.err.splitlines()[1].endswith("; it has expired, too: the server needs a new one")


@pytest.mark.parametrize("option", ["--ca", "--cert", "--key"])
def test_a_file_that_is_not_there(option: str, tmp_path: Path) -> None:
    there = tmp_path / "there.pem"
    there.touch()
    also = ("--cert", str(there)) if option == "--key" else ()
    for ran in both("wss://h", *also, option, str(tmp_path / "nope")):
        cause, remedy = ran.err.splitlines()
        assert cause.endswith(f"{option} {tmp_path / 'nope'}: No such file or directory")
        assert (ran.code, remedy) == (2, "  → give a PEM file that can be read")


def test_socks_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_socks", None)
    for ran in both("ws://h", "--proxy", "socks5h://127.0.0.1:1080"):
        cause, remedy = ran.err.splitlines()
        assert ran.code == 2 and cause.endswith('pip install "jetsocket[proxy]"')
        assert remedy == "  → to connect directly give --proxy none"


def test_all_ten_are_told_apart_from_one_another(start: Callable[..., str], tls: Tls) -> None:
    """No two of the situations above have the same remedy."""
    with refusing_port() as port:
        told = [
            run("call", uri, "x", "--json", *HASTY).error["remedy"]
            for uri in (
                start(EchoServer(ssl_context=tls.server_context)),
                start(EchoServer(ssl_context=tls.server_context)).replace("wss", "ws"),
                start(RawServer(page)).replace("ws", "wss"),
                start(RawServer(mute)),
                start(RawServer(ssh)),
                start(RawServer(page)),
                f"ws://127.0.0.1:{port}",
                "ws://a b",
            )
        ]
    assert len(set(told)) == len(told)


def test_a_server_that_closes_at_a_tls_hello(start: Callable[..., str]) -> None:
    ran = run("check", start(EchoServer()).replace("ws", "wss"))
    assert ran.code == 3 and "ws://" in ran.err.splitlines()[1]


def test_a_certificate_of_ours_is_wanted(start: Callable[..., str], tls: Tls, tmp_path: Path) -> None:
    context = tls.issue("127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    tls.ca.configure_trust(context)
    uri = start(RawServer(mute, ssl_context=context))
    authority, ours = tmp_path / "ca.pem", tmp_path / "ours.pem"
    tls.ca.cert_pem.write_to_path(str(authority))
    tls.ca.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(str(ours))
    ran = run("call", uri, "x", "--ca", str(authority), *HASTY)
    assert (ran.code, "--cert" in ran.err) == (3, True), ran.err
    assert (
        run("call", uri, "x", "--ca", str(authority), "--cert", str(ours), *HASTY).code == 5
    )  # it is let in

"""Dialling: every stage against real sockets, each failure named, in time, and with nothing left open.

Also tests: `race`, `reach`.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import signal
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import pytest

from jetsocket import exceptions, uris
from jetsocket.wire.dial import Dialing
from jetsocket.wire.tls import default_ssl_context
from tests.awake import awake
from tests.conftest import Tls
from tests.servers import (
    RawServer,
    drip,
    echo_bytes,
    hold,
    open_sockets,
    read_exactly,
    refusing_port,
    reset,
    wait_until,
)
from tests.wire.conftest import in_background, says_hello, soon
from tests.wire.proxies import http_proxy, socks_proxy

pytestmark = pytest.mark.usefixtures("no_proxy_from_outside", "nothing_left_open")

Serve = Callable[..., RawServer]


def reset_after_reading(sock: socket.socket) -> None:
    sock.recv(65536)
    reset(sock)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Nothing can be opened while the block runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def dialing(uri: str, seconds: float = 5.0, **kwargs: Any) -> Dialing:
    return Dialing(uris.parse(uri), deadline=soon(seconds), **kwargs)


class HangingDns:
    """A resolver that answers when it is `over`: with an error, or what it is told to."""

    def __init__(self) -> None:
        self.asked, self.over = threading.Event(), threading.Event()
        self.answer: list[Any] = []

    def getaddrinfo(self, *_: Any) -> list[Any]:
        self.asked.set()
        self.over.wait(30)
        if not self.answer:
            raise socket.gaierror(socket.EAI_AGAIN, "too late")
        return self.answer


@pytest.fixture
def hanging_dns(nothing_left_open: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingDns]:
    dns = HangingDns()
    monkeypatch.setattr(socket, "getaddrinfo", dns.getaddrinfo)
    yield dns
    dns.over.set()


def no_more_threads(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.fixture
def black_hole(nothing_left_open: None) -> Iterator[tuple[str, int]]:
    """An address that answers no attempt to connect: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                filler.connect(listener.getsockname())
        yield listener.getsockname()


@contextlib.contextmanager
def cancelled(dial: Dialing) -> Iterator[None]:
    """Cancel from another thread while the block waits; it has to raise within 0.2 s of that."""
    times: list[float] = []

    def cancel() -> None:
        times.append(awake())
        dial.cancel()

    timer = threading.Timer(0.1, cancel)
    timer.start()
    with pytest.raises(exceptions.ConnectionError, match="was cancelled while"):
        yield
    took = awake() - times[0]
    timer.join()
    assert took < 0.2


class TestTcp:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_an_address_and_a_name(self, server: RawServer, host: str) -> None:
        with contextlib.closing(dialing(f"ws://{host}:{server.port}/").open()) as stream:
            assert says_hello(stream)
            assert stream._tls is None

    def test_ipv6(self) -> None:
        try:
            listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
        except OSError:
            pytest.skip("this machine has no IPv6")
        with (
            listener,
            contextlib.closing(dialing(f"ws://[::1]:{listener.getsockname()[1]}/").open()) as stream,
        ):
            peer, _ = listener.accept()
            with peer:
                stream.write(b"x", soon())
                assert peer.recv(1) == b"x"

    def test_options_are_set_over_the_defaults(self, server: RawServer) -> None:
        options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0), (socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)]
        for given, keepalive in (((), True), (options, False)):
            stream = dialing(server.uri, socket_options=given).open()
            with contextlib.closing(stream), socket.socket(fileno=os.dup(stream.fileno())) as sock:
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is keepalive
                assert given == () or sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) in (65536, 131072)

    def test_an_option_the_system_refuses_is_named(self, server: RawServer) -> None:
        with pytest.raises(exceptions.ConnectionError, match=r"socket_options \(65000, 1, 1\)"):
            dialing(server.uri, socket_options=[(65000, 1, 1)]).open()

    def test_refused(self) -> None:
        with (
            refusing_port() as port,
            pytest.raises(exceptions.ConnectionError, match="is the server running") as caught,
        ):
            dialing(f"ws://127.0.0.1:{port}/x?token=s3cret").open()
        assert f"127.0.0.1:{port}: Connection refused" in str(caught.value)
        assert "s3cret" not in str(caught.value)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)

    def test_all_refused_lists_every_address_families_taking_turns(
        self, names: dict[str, list[tuple[str, int]]]
    ) -> None:
        with refusing_port() as port:
            names["many.test"] = [("127.0.0.1", port), ("127.0.0.2", port), ("::1", port)]
            with pytest.raises(exceptions.ConnectionError) as caught:
                dialing("ws://many.test/").open()
        message = str(caught.value)
        places = [message.index(f"{host}:{port}: ") for host in ("127.0.0.1", "[::1]", "127.0.0.2")]
        assert places == sorted(places)

    def test_after_a_refusal_the_next_address_is_tried_at_once(
        self, server: RawServer, names: dict[str, list[tuple[str, int]]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("jetsocket.wire.race._HEAD_START", 4.0)
        with refusing_port() as port:
            names["two.test"] = [("127.0.0.1", port), ("127.0.0.1", server.port)]
            start = awake()
            with contextlib.closing(dialing("ws://two.test/").open()) as stream:
                assert awake() - start < 2.0
                assert says_hello(stream)

    def test_an_address_that_this_machine_cannot_dial_is_passed_over(
        self, server: RawServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        good = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", server.port))
        bad = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_UDP, "", ("127.0.0.2", server.port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [bad, good])
        with contextlib.closing(dialing("ws://two.test/").open()) as stream:
            assert says_hello(stream)

    def test_a_black_hole_costs_a_quarter_of_a_second(
        self, server: RawServer, names: dict[str, list[tuple[str, int]]], black_hole: tuple[str, int]
    ) -> None:
        names["two.test"] = [black_hole, ("127.0.0.1", server.port)]
        start = perf_counter()
        with contextlib.closing(dialing("ws://two.test/").open()) as stream:
            assert 0.2 < perf_counter() - start < 1.0
            assert says_hello(stream)

    def test_a_connection_that_took_its_time_is_closed_at_once(self, nothing_left_open: None) -> None:
        """Its descriptor must not wait for the garbage collector, as it would with its socket in a cycle."""
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            for _ in range(2):  # now the backlog is full; the kernel tries again after a second
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            accepting = threading.Timer(0.2, lambda: [stack.push(listener.accept()[0]) for _ in range(2)])
            accepting.start()
            stack.callback(accepting.join)
            gc.collect()
            gc.disable()
            stack.callback(gc.enable)
            stream = dialing(f"ws://127.0.0.1:{listener.getsockname()[1]}/", 10).open()
            descriptor = stream.fileno()
            stream.close()
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)

    def test_nothing_but_black_holes(
        self, names: dict[str, list[tuple[str, int]]], black_hole: tuple[str, int]
    ) -> None:
        with refusing_port() as port:
            names["two.test"] = [("127.0.0.1", port), black_hole]
            start = awake()
            with pytest.raises(
                exceptions.TimeoutError, match=r"within 0\.3 s.*while connecting to"
            ) as caught:
                dialing("ws://two.test/", 0.3).open()
        assert awake() - start < 1.0
        assert caught.value.operation == "connect"
        assert caught.value.timeout == pytest.approx(0.3, abs=0.01)
        assert f"failed so far: 127.0.0.1:{port}: Connection refused" in str(caught.value)

    def test_a_deadline_in_the_past(self, server: RawServer) -> None:
        with pytest.raises(exceptions.TimeoutError):
            dialing(server.uri, -1).open()
        assert server.accepted == 0

    def test_an_endless_deadline(self, server: RawServer) -> None:
        with contextlib.closing(dialing(server.uri, float("inf")).open()) as stream:
            assert says_hello(stream)

    @pytest.mark.skipif(
        sys.platform != "linux", reason="the range of local ports can be chosen on Linux only"
    )
    def test_a_connection_to_itself_is_no_connection(self) -> None:
        with refusing_port() as port:
            pass
        only_that_port = (socket.IPPROTO_IP, 51, struct.pack("=I", port << 16 | port))  # IP_LOCAL_PORT_RANGE
        with socket.socket() as probe:
            try:
                probe.setsockopt(*only_that_port)
            except OSError:
                pytest.skip("the kernel is older than Linux 6.3")
        with pytest.raises(exceptions.ConnectionError, match="Connection refused"):
            dialing(f"ws://127.0.0.1:{port}/", socket_options=[only_that_port]).open()

    def test_no_descriptors_left(self) -> None:
        resource = pytest.importorskip("resource")
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Nobody else in this process may want a descriptor meanwhile, as a server's accept() would.
        dial = dialing("ws://127.0.0.1:9/")
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(exceptions.ConnectionError, match="short of descriptors") as caught:
                dial.open()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EMFILE

    @pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
    def test_ctrl_c_leaves_nothing_open(self, black_hole: tuple[str, int]) -> None:
        before = open_sockets()
        interrupt = threading.Timer(0.1, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            dialing(f"ws://127.0.0.1:{black_hole[1]}/").open()
        interrupt.join()
        wait_until(lambda: open_sockets() == before)


class TestDns:
    def test_an_unknown_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def getaddrinfo(*args: Any, **kwargs: Any) -> list[Any]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        with pytest.raises(
            exceptions.ConnectionError, match=r"resolving host 'no.test' failed.*not known"
        ) as caught:
            dialing("ws://no.test/").open()
        assert isinstance(caught.value.__cause__, socket.gaierror)

    def test_a_dns_that_hangs_costs_others_their_deadline(self, hanging_dns: HangingDns) -> None:
        """Nothing can interrupt the first one that asks; those that ask the same wait beside it."""
        first = in_background(dialing("ws://slow.test/", 0.2).open)
        wait_until(hanging_dns.asked.is_set)
        start = awake()
        with pytest.raises(exceptions.TimeoutError, match=r"resolving host 'slow.test'"):
            dialing("ws://slow.test/", 0.2).open()
        assert awake() - start < 1.0
        assert not first.done()
        hanging_dns.over.set()
        with pytest.raises(exceptions.TimeoutError, match=r"resolving host 'slow.test'"):
            first.result(5)

    def test_an_answer_that_comes_behind_the_deadline_is_late(
        self, server: RawServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def getaddrinfo(*_: Any) -> list[Any]:
            wait_until(lambda: monotonic() > deadline)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        deadline = soon(0.1)
        with pytest.raises(exceptions.TimeoutError, match=r"resolving host 'slow.test'"):
            Dialing(uris.parse("ws://slow.test/"), deadline=deadline).open()
        assert server.accepted == 0

    def test_a_process_that_can_start_no_thread_dials_all_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            dial = dialing(f"ws://localhost:{listener.getsockname()[1]}/")
            monkeypatch.setattr(threading.Thread, "start", no_more_threads)
            dial.open().close()


class TestCancel:
    def test_before_the_start(self, server: RawServer) -> None:
        dial = dialing(server.uri)
        dial.cancel()
        with pytest.raises(exceptions.ConnectionError, match="was cancelled"):
            dial.open()
        assert server.accepted == 0

    def test_in_another_s_look_up(self, hanging_dns: HangingDns) -> None:
        in_background(dialing("ws://slow.test/").open)
        wait_until(hanging_dns.asked.is_set)
        dial = dialing("ws://slow.test/")
        with cancelled(dial):
            dial.open()

    def test_in_one_s_own_look_up(self, hanging_dns: HangingDns, server: RawServer) -> None:
        """Nothing can interrupt it; when it is over, so is the dial."""
        dial = dialing("ws://slow.test/")
        outcome = in_background(dial.open)
        wait_until(hanging_dns.asked.is_set)
        dial.cancel()
        hanging_dns.answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]
        hanging_dns.over.set()
        with pytest.raises(exceptions.ConnectionError, match="was cancelled while resolving"):
            outcome.result(5)
        assert server.accepted == 0

    def test_in_tcp(self, black_hole: tuple[str, int]) -> None:
        dial = dialing(f"ws://127.0.0.1:{black_hole[1]}/")
        with cancelled(dial):
            dial.open()

    def test_in_tls(self, raw_server: Serve, tls: Tls) -> None:
        server = raw_server(hold)
        dial = dialing(server.uri.replace("ws:", "wss:"), ssl_context=tls.client_context)
        with cancelled(dial):
            dial.open()

    @pytest.mark.parametrize("scheme", ["http", "socks5"])
    def test_in_a_proxy(self, raw_server: Serve, scheme: str) -> None:
        silent = raw_server(hold)
        dial = dialing("ws://127.0.0.1:1/", proxy=f"{scheme}://127.0.0.1:{silent.port}")
        with cancelled(dial):
            dial.open()

    def test_on_a_unix_socket(self, full_unix_socket: str) -> None:
        dial = dialing("ws://localhost/", unix=full_unix_socket)
        with cancelled(dial):
            dial.open()

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the platform has no timers that signal")
    def test_from_a_signal_handler_of_the_same_thread(self, hanging_dns: HangingDns) -> None:
        in_background(dialing("ws://slow.test/").open)
        wait_until(hanging_dns.asked.is_set)
        dial = dialing("ws://slow.test/")
        before = signal.signal(signal.SIGALRM, lambda *_: dial.cancel())
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            start = awake()
            with pytest.raises(exceptions.ConnectionError, match="was cancelled while resolving"):
                dial.open()
            assert awake() - start < 2.0
        finally:
            signal.signal(signal.SIGALRM, before)

    def test_what_was_opened_is_left_alone(self, server: RawServer) -> None:
        dial = dialing(server.uri)
        with contextlib.closing(dial.open()) as stream:
            dial.cancel()
            assert says_hello(stream)


class TestTls:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_names_and_addresses_are_checked_and_good(self, raw_server: Serve, tls: Tls, host: str) -> None:
        server = raw_server(echo_bytes, ssl_context=tls.server_context)
        dial = dialing(f"wss://{host}:{server.port}/", ssl_context=tls.client_context)
        with contextlib.closing(dial.open()) as stream:
            assert says_hello(stream)
            assert stream._tls is not None and stream._tls.version == "TLSv1.3"

    def test_the_wrong_name(self, raw_server: Serve, tls: Tls) -> None:
        server = raw_server(echo_bytes, ssl_context=tls.issue("elsewhere.example"))
        with pytest.raises(
            exceptions.ConnectionError, match=r"certificate is for elsewhere.example, not for localhost"
        ) as caught:
            dialing(f"wss://localhost:{server.port}/", ssl_context=tls.client_context).open()
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        assert 'manager_kwargs["server_hostname"]' in str(caught.value)

    def test_an_unknown_authority(self, raw_server: Serve, tls: Tls) -> None:
        server = raw_server(echo_bytes, ssl_context=tls.server_context)
        with pytest.raises(exceptions.ConnectionError, match="certificate could not be verified") as caught:
            dialing(server.uri).open()
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)

    def test_by_default_names_are_checked(self) -> None:
        context = default_ssl_context()
        assert context is default_ssl_context()
        assert context.check_hostname
        assert context.verify_mode == ssl.CERT_REQUIRED

    def test_a_moment_without_descriptors_does_not_spoil_what_is_trusted(
        self, raw_server: Serve, tls: Tls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tls.ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
        monkeypatch.setattr("jetsocket.wire.tls._default_contexts", [])
        with no_descriptors():
            default_ssl_context()
        server = raw_server(hold, ssl_context=tls.server_context)
        dialing(f"wss://127.0.0.1:{server.port}/").open().close()
        assert default_ssl_context() is default_ssl_context()

    def test_a_server_that_speaks_no_tls(self, raw_server: Serve, tls: Tls) -> None:
        server = raw_server(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        with pytest.raises(
            exceptions.ConnectionError, match=r"does not speak TLS: .*does it want ws://"
        ) as caught:
            dialing(f"wss://127.0.0.1:{server.port}/", ssl_context=tls.client_context).open()
        assert isinstance(caught.value.__cause__, ssl.SSLError)

    def test_a_server_that_resets(self, raw_server: Serve, tls: Tls) -> None:
        server = raw_server(reset_after_reading)
        with pytest.raises(exceptions.ConnectionError, match=r"TLS handshake with 127.0.0.1:.* failed"):
            dialing(f"wss://127.0.0.1:{server.port}/", ssl_context=tls.client_context).open()

    @pytest.mark.parametrize(
        "script",
        [hold, lambda sock: drip(sock, b"\x16\x03\x03\x40\x00" + bytes(200), 0.01)],
        ids=["silent", "drips"],
    )
    def test_a_server_that_takes_for_ever(
        self, raw_server: Serve, tls: Tls, script: Callable[[socket.socket], None]
    ) -> None:
        server = raw_server(script)
        start = awake()
        with pytest.raises(exceptions.TimeoutError, match="while doing the TLS handshake"):
            dialing(f"wss://127.0.0.1:{server.port}/", 0.2, ssl_context=tls.client_context).open()
        assert awake() - start < 1.0


@pytest.fixture
def unix_socket(
    nothing_left_open: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """A listening Unix socket at the path "s" of the current directory, for paths are short things."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        listener.listen(0)
        listener.settimeout(5)
        yield listener


@pytest.fixture
def full_unix_socket(unix_socket: socket.socket) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(BlockingIOError):
            while True:
                filler = stack.enter_context(socket.socket(socket.AF_UNIX))
                filler.setblocking(False)
                filler.connect("s")
        yield "s"


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="the platform has no Unix sockets")
class TestUnix:
    def test_connects(self, unix_socket: socket.socket) -> None:
        with contextlib.closing(dialing("ws://localhost/", unix="s").open()) as stream:
            peer, _ = unix_socket.accept()
            with peer:
                stream.write(b"x", soon())
                assert peer.recv(1) == b"x"

    def test_tls(self, unix_socket: socket.socket, tls: Tls) -> None:
        def serve() -> None:
            peer, _ = unix_socket.accept()
            with tls.server_context.wrap_socket(peer, server_side=True) as wrapped:
                wrapped.sendall(read_exactly(wrapped, 5))

        with ThreadPoolExecutor(1) as pool:
            served = pool.submit(serve)
            dial = dialing("wss://localhost/", unix="s", ssl_context=tls.client_context)
            with contextlib.closing(dial.open()) as stream:
                assert says_hello(stream)
            served.result(5)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(exceptions.ConnectionError, match="unix:nowhere: No such file"):
            dialing("ws://localhost/", unix="nowhere").open()

    def test_a_path_that_is_too_long(self) -> None:
        with pytest.raises(exceptions.ConnectionError, match="too long"):
            dialing("ws://localhost/", unix="x" * 200).open()

    def test_a_full_backlog_costs_the_deadline(self, full_unix_socket: str) -> None:
        start = awake()
        with pytest.raises(exceptions.TimeoutError, match="while connecting to unix:s"):
            dialing("ws://localhost/", 0.2, unix=full_unix_socket).open()
        assert awake() - start < 1.0

    def test_a_full_backlog_that_empties(self, unix_socket: socket.socket, full_unix_socket: str) -> None:
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(dialing("ws://localhost/", unix=full_unix_socket).open)
            assert not wait([opening], 0.1).done
            unix_socket.accept()[0].close()
            opening.result(5).close()


class TestProxy:
    @pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
    @pytest.mark.parametrize("scheme", ["http", "socks4", "socks4a", "socks5", "socks5h"])
    def test_through_it(self, raw_server: Serve, tls: Tls, scheme: str, secure: bool) -> None:
        server = raw_server(echo_bytes, ssl_context=tls.server_context if secure else None)
        asked: list[str] = []
        proxy = raw_server(http_proxy(asked) if scheme == "http" else socks_proxy(asked))
        uri = f"{server.uri.split(':')[0]}://localhost:{server.port}/"
        url = f"{scheme}://127.0.0.1:{proxy.port}"
        with contextlib.closing(dialing(uri, ssl_context=tls.client_context, proxy=url).open()) as stream:
            assert says_hello(stream)
        resolved_here = scheme in ("socks4", "socks5")
        host = asked[0].split()[1].rsplit(":", 1)[0]
        assert (host in ("127.0.0.1", "::1")) if resolved_here else (host == "localhost")

    @pytest.mark.parametrize("scheme", ["http", "socks5"])
    def test_credentials(self, server: RawServer, raw_server: Serve, scheme: str) -> None:
        asked: list[str] = []
        make = http_proxy if scheme == "http" else socks_proxy
        proxy = raw_server(make(asked, user="me:p@ss"))
        url = f"{scheme}://me:p%40ss@127.0.0.1:{proxy.port}"
        with contextlib.closing(dialing(server.uri, proxy=url).open()) as stream:
            assert says_hello(stream)

    @pytest.mark.parametrize("scheme", ["http", "socks5"])
    def test_wrong_credentials_are_an_error_that_does_not_show_them(
        self, server: RawServer, raw_server: Serve, scheme: str
    ) -> None:
        make = http_proxy if scheme == "http" else socks_proxy
        proxy = raw_server(make([], user="me:right"))
        url = f"{scheme}://me:s3cret@127.0.0.1:{proxy.port}"
        with pytest.raises(exceptions.ConnectionError, match="check its URL, its credentials") as caught:
            dialing(server.uri, proxy=url).open()
        assert f"{scheme}://***@127.0.0.1:{proxy.port}" in str(caught.value)
        assert "s3cret" not in str(caught.value)
        assert scheme == "socks5" or "407 Proxy Authentication Required" in str(caught.value)
        assert server.accepted == 0

    def test_credentials_that_cannot_be_sent(self, server: RawServer, raw_server: Serve) -> None:
        proxy = raw_server(socks_proxy([], user="me:right"))
        url = f"socks5://me:{'s3cret' * 50}@127.0.0.1:{proxy.port}"
        with pytest.raises(exceptions.ConnectionError) as caught:
            dialing(server.uri, proxy=url).open()
        assert "s3cret" not in str(caught.value)

    def test_an_answer_in_pieces(self, server: RawServer, raw_server: Serve) -> None:
        proxy = raw_server(http_proxy([], byte_by_byte=True))
        with contextlib.closing(dialing(server.uri, proxy=f"http://127.0.0.1:{proxy.port}").open()) as stream:
            assert says_hello(stream)

    @pytest.mark.parametrize(
        ("script", "message"),
        [
            (lambda sock: sock.sendall(b"HTTP/1.1 502 \x1b[31mBad\r\n\r\n"), r"502 \?\[31mBad"),
            (lambda sock: sock.sendall(b"garbage\r\n\r\n"), "did not answer in HTTP/1.1: 'garbage'"),
            (lambda sock: sock.sendall(b"HTTP/1.1 200 O"), "closed the connection before it had answered"),
            (lambda sock: sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nextra"), "data behind its answer"),
            (lambda sock: sock.sendall(b"HTTP/1.1 200 " + b"x" * 200_000), "longer than 65536 bytes"),
            (reset, "asking the proxy.*failed"),
        ],
        ids=["502", "garbage", "half", "extra", "endless", "reset"],
    )
    def test_bad_answers(
        self, raw_server: Serve, script: Callable[[socket.socket], None], message: str
    ) -> None:
        def read_then_answer(sock: socket.socket) -> None:
            sock.recv(65536)
            script(sock)

        proxy = raw_server(read_then_answer)
        with pytest.raises(exceptions.ConnectionError, match=message) as caught:
            dialing("ws://127.0.0.1:1/", proxy=f"http://127.0.0.1:{proxy.port}").open()
        assert len(str(caught.value)) < 600

    @pytest.mark.parametrize("scheme", ["http", "socks5"])
    @pytest.mark.parametrize(
        "script", [hold, lambda sock: drip(sock, b"\x05" * 1000, 0.01)], ids=["silent", "drips"]
    )
    def test_one_that_takes_for_ever(
        self, raw_server: Serve, script: Callable[[socket.socket], None], scheme: str
    ) -> None:
        proxy = raw_server(script)
        start = awake()
        with pytest.raises((exceptions.TimeoutError, exceptions.ConnectionError), match="asking the proxy"):
            dialing("ws://127.0.0.1:1/", 0.2, proxy=f"{scheme}://127.0.0.1:{proxy.port}").open()
        assert awake() - start < 1.0

    def test_one_that_is_not_there(self) -> None:
        with refusing_port() as port, pytest.raises(exceptions.ConnectionError) as caught:
            dialing("ws://host.test/", proxy=f"http://u:s3cret@127.0.0.1:{port}").open()
        assert f"connecting to the proxy http://***@127.0.0.1:{port} failed" in str(caught.value)
        assert "Connection refused" in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("https://127.0.0.1:1", "https:// proxies are not supported, only http"),
            ("http://:3128", "names no host"),
            ("http://127.0.0.1:99999", "port"),
            ("http://127.0.0.1:none", "port"),
            ("http://[::1", "correct the proxy's URL"),
            ("socks5://u:s3cret%C3%BC@127.0.0.1:1", "SOCKS user name or password is ASCII"),
            ("socks5h://%C3%BC:s3cret@127.0.0.1:1", "correct the proxy's URL"),
            ("socks4a://u%00x@127.0.0.1:1", "without NUL"),
            (f"socks5://{'u' * 256}:s3cret@127.0.0.1:1", "at most 255 characters"),
        ],
    )
    def test_urls_that_name_no_proxy(self, url: str, message: str) -> None:
        with pytest.raises(exceptions.ConnectionError, match=message):
            dialing("ws://127.0.0.1:1/", proxy=url).open()

    def test_from_the_environment(
        self, server: RawServer, raw_server: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []
        proxy = raw_server(http_proxy(asked))
        monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{proxy.port}")
        for setting, through_it in ((True, True), (None, False), (False, False)):
            asked.clear()
            with contextlib.closing(dialing(server.uri, proxy=setting).open()) as stream:
                assert says_hello(stream)
            assert bool(asked) is through_it

    @pytest.mark.parametrize("scheme", ["socks4", "socks4a", "socks5", "socks5h"])
    def test_the_extra_is_named_when_it_is_missing(
        self, server: RawServer, without_python_socks: None, scheme: str
    ) -> None:
        with pytest.raises(ImportError, match=r'pip install "jetsocket\[proxy\]"'):
            dialing(server.uri, proxy=f"{scheme}://127.0.0.1:1").open()

    def test_http_needs_no_extra(
        self, server: RawServer, raw_server: Serve, without_python_socks: None
    ) -> None:
        proxy = raw_server(http_proxy([]))
        with contextlib.closing(dialing(server.uri, proxy=f"http://127.0.0.1:{proxy.port}").open()) as stream:
            assert says_hello(stream)

    def test_a_unix_socket_goes_through_no_proxy(
        self, unix_socket: socket.socket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
        dialing("ws://localhost/", unix="s").open().close()

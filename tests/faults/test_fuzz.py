"""Fuzzing of what a server decides: frames, the answer to the upgrade, compression; and so of a whole pool.

Whatever comes, only named errors go out, in time, with little memory. The quick forms are Hypothesis, which
knows what frames and heads look like; the long ones let atheris find inputs that lead to new paths, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from time import monotonic, thread_time
from typing import Any

import pytest
import websocket._handshake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jetsocket import ConnectionPool, ConnectionPoolConfig, PooledConnection
from jetsocket.exceptions import JetSocketError
from jetsocket.wire.deflate import Agreement, Inflater, agree
from jetsocket.wire.frames import encode_frame
from jetsocket.wire.message_reader import MessageReader
from tests import servers
from tests.books import faults
from tests.faults import fuzz_targets
from tests.faults.conftest import Report
from tests.faults.fuzz_targets import LIMITS, Answering, check_frames, check_upgrade_over_socket
from tests.scripts import ROOT
from tests.servers import RawServer, close_frame, frame, wait_until
from tests.sizes import size

MIB = 1 << 20


def quick(examples: int) -> settings:
    """A third of these examples, or ten times as many in `make soak`."""
    return settings(
        deadline=None,
        max_examples=size(examples // 3, examples * 10),
        suppress_health_check=[HealthCheck.too_slow],
    )


# --- frames


def deflated(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-12)
    return (stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


contents = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=20).map(str.encode),
    st.integers(0, 3000).map(bytes),
    st.sampled_from([b"", b"\xe2\x82", b"\xac", b"\xed\xa0\x80"]),
)
good_frames = st.one_of(
    st.builds(frame, st.sampled_from([0, 1, 2]), contents, fin=st.integers(0, 1)),
    st.builds(frame, st.sampled_from([9, 10]), st.binary(max_size=125)),
    st.builds(lambda data: frame(2, deflated(data), rsv=4), contents),
    st.builds(
        lambda data, cut: frame(1, deflated(data)[:cut], fin=0, rsv=4) + frame(0, deflated(data)[cut:]),
        contents,
        st.integers(0, 20),
    ),
)
bad_frames = st.one_of(
    st.builds(
        frame,
        st.integers(0, 15),
        contents,
        fin=st.integers(0, 1),
        rsv=st.integers(0, 7),
        masked=st.booleans(),
        declared_length=st.none() | st.sampled_from([0, 1, 125, 126, 65535, 65536, 1 << 31, (1 << 64) - 1]),
    ),
    st.builds(close_frame, st.integers(0, 65535), st.binary(max_size=123)),
    st.binary(max_size=30),
)


@st.composite
def streams(draw: Any) -> bytes:
    """What a server might send: frames, some of them wrong, with bytes changed here and there."""
    data = bytearray(b"".join(draw(st.lists(good_frames, max_size=8))))
    data += b"".join(draw(st.lists(bad_frames | good_frames, max_size=3)))
    for at, byte in draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3)):
        if at < len(data):
            data[at] = byte
    if draw(st.booleans()):
        del data[: draw(st.integers(0, 3))]
    return bytes(data)


def split(data: bytes, at: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[start:stop] for start, stop in pairwise(edges)]


@pytest.mark.deep
@quick(150)
@given(
    stream=streams(),
    at=st.lists(st.integers(0, 4000), max_size=12),
    limit=st.sampled_from(LIMITS),
    compressed=st.booleans(),
)
def test_frames_mean_the_same_however_they_are_split(
    stream: bytes, at: list[int], limit: int, compressed: bool
) -> None:
    by_byte = [stream[i : i + 1] for i in range(len(stream))]
    check_frames([stream], split(stream, at), by_byte, limit=limit, compressed=compressed)


@pytest.mark.deep
@quick(100)
@given(
    messages=st.lists(st.tuples(st.sampled_from([1, 2]), st.text(max_size=70), st.booleans()), max_size=10),
    at=st.lists(st.integers(0, 4000), max_size=6),
)
def test_what_is_encoded_is_parsed(messages: list[tuple[int, str, bool]], at: list[int]) -> None:
    """A server's frame is a client's without its mask."""

    def unmasked(opcode: int, data: bytes, rsv1: bool) -> bytes:
        whole = encode_frame(opcode, data, b"\0\0\0\0", rsv1=rsv1)
        start = len(whole) - len(data)
        return bytes([whole[0], whole[1] & 0x7F]) + whole[2 : start - 4] + whole[start:]

    stream = b"".join(
        unmasked(opcode, deflated(text.encode()) if rsv1 else text.encode(), rsv1)
        for opcode, text, rsv1 in messages
    )
    expected = [text if opcode == 1 else text.encode() for opcode, text, _ in messages]
    # Each was compressed by itself, and whoever keeps the context must not mind.
    found = check_frames([stream], split(stream, at), limit=1000, compressed=True)
    assert (found["messages"], found["error"], found["mid_message"]) == (expected, None, False)


@pytest.mark.deep
@quick(100)
@given(data=st.binary(max_size=300))
def test_a_reader_that_broke_stays_broken(data: bytes) -> None:
    reader = MessageReader(1000)
    with pytest.raises(JetSocketError):
        reader.feed(frame(1, b"before") + frame(3))
    with contextlib.suppress(JetSocketError):
        reader.feed(data)
    assert reader.broken


# --- the upgrade

tokens = st.sampled_from(
    ["Upgrade", "Connection", "X", "Set-Cookie", "Location", "Content-Length", "x y", ""]
)
values = st.sampled_from(
    [
        "websocket",
        "Upgrade",
        "keep-alive, Upgrade",
        "{accept}",
        "chat",
        "a=b; Domain=handshake.invalid",
        "/again",
        "wss://localhost/",
        "0",
        "9" * 30,
        "permessage-deflate",
        "permessage-deflate; server_max_window_bits=9",
        "permessage-deflate; client_max_window_bits",
    ]
) | st.text(st.characters(max_codepoint=255), max_size=12)
RIGHT = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: {accept}"]
SEC = ["Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol", "Sec-WebSocket-Accept"]


@st.composite
def answers(draw: Any) -> bytes:
    """What a server might answer to the upgrade: right, nearly right, or anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    status = draw(
        st.sampled_from(["101 Switching Protocols"] * 4 + ["200 OK", "302 Found", "401 No", "1e3 X"])
    )
    fields = draw(st.lists(st.sampled_from(RIGHT), max_size=4)) if draw(st.integers(0, 2)) == 0 else RIGHT
    more = draw(st.lists(st.tuples(tokens | st.sampled_from(SEC), values), max_size=3))
    lines = [f"HTTP/1.1 {status}", *fields, *(f"{name}: {value}" for name, value in more), "", ""]
    end = draw(st.sampled_from(["\r\n"] * 8 + ["\n", "\r", "\r\n\t", "\0\r\n"]))
    head = bytearray(end.join(lines).encode("latin-1"))
    if draw(st.integers(0, 4)) == 0:
        head[draw(st.integers(0, len(head) - 1))] = draw(st.integers(0, 255))
    return bytes(head) + draw(streams())


@pytest.fixture(scope="module")
def answering() -> Iterator[Answering]:
    server = Answering()
    yield server
    server.close()


@pytest.mark.slow
@pytest.mark.deep
@quick(100)
@given(answer=answers())
def test_an_answer_to_the_upgrade_ends_in_a_connection_or_a_named_error(
    answering: Answering, answer: bytes
) -> None:
    check_upgrade_over_socket(answering, answer)
    assert ".handshake.invalid" not in websocket._handshake.CookieJar.jar  # from where it would go out


def test_the_strategy_reaches_both_sides_of_the_upgrade(answering: Answering) -> None:
    """Else the test above would show little."""
    right = "\r\n".join(["HTTP/1.1 101 OK", *RIGHT, "", ""]).encode()
    assert check_upgrade_over_socket(answering, right) == "ConnectionClosedError"
    assert check_upgrade_over_socket(answering, right + frame(3)) == "ProtocolError"
    assert check_upgrade_over_socket(answering, right[1:]) == "HandshakeError"


@pytest.mark.deep
@settings(deadline=None, max_examples=size(5, 30))
@given(answer=answers().filter(lambda answer: not re.search(rb"\n\r?\n", answer)))
def test_an_answer_that_never_ends_costs_the_deadline(answering: Answering, answer: bytes) -> None:
    answering.holds = True
    try:
        begun = monotonic()
        assert check_upgrade_over_socket(answering, answer, timeout=0.1) in ("TimeoutError", "HandshakeError")
        assert monotonic() - begun < 5
    finally:
        answering.holds = False


@pytest.mark.deep
@quick(100)
@given(answer=answers(), noise=st.binary(max_size=60))
def test_a_head_is_read_or_a_value_error(answer: bytes, noise: bytes) -> None:
    fuzz_targets.head(answer.partition(b"\r\n\r\n")[0])
    fuzz_targets.head(b"HTTP/1.1 101 OK\r\nSec-WebSocket-Extensions:" + noise)
    fuzz_targets.head(b"HTTP/1.1 302 OK\r\nLocation:" + noise)


# --- compression

parts = st.sampled_from(
    [
        "permessage-deflate",
        "server_no_context_takeover",
        "client_no_context_takeover",
        "server_max_window_bits",
        "client_max_window_bits",
        "=",
        "=8",
        "=12",
        '="10"',
        '="',
        "=99999999999",
        ";",
        "; ",
        ",",
        "\t",
        "\n",
        "²",
    ]
)
extensions = st.one_of(
    st.lists(parts, max_size=10).map("".join),
    st.lists(parts, max_size=8).map(lambda chosen: "permessage-deflate; " + "; ".join(chosen)),
    st.text(max_size=60),
)


@pytest.mark.deep
@quick(400)
@given(header=extensions)
def test_a_negotiation_ends_in_an_agreement_or_a_value_error(header: str) -> None:
    with contextlib.suppress(ValueError):
        fuzz_targets.check_agreement(agree(header))


@pytest.mark.parametrize(
    "header",
    [
        "a;b" + " " * 60_000 + "!",
        "a" + ";b" * 30_000 + "!",
        "a" + ' ; b = "c"' * 6_000 + '"',
        "a" + " ;b " * 15_000 + "=",
        "a," * 30_000,
        "a" * 60_000 + "(",
        '";' * 30_000,
        "permessage-deflate" + ";server_max_window_bits=12" * 2_000,
    ],
    ids=lambda header: header[:12],
)
def test_a_long_negotiation_takes_linear_time(header: str) -> None:
    begun = thread_time()
    with pytest.raises(ValueError, match=r"it[s ]") as caught:
        agree(header)
    assert thread_time() - begun < 2
    assert len(str(caught.value)) < 500


agreements = st.builds(Agreement, st.booleans(), st.booleans(), st.integers(8, 15), st.integers(8, 12))


@pytest.mark.deep
@quick(300)
@given(
    payloads=st.lists(contents.map(deflated) | st.binary(max_size=80), max_size=5),
    changes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3),
    agreement=agreements,
    limit=st.sampled_from(LIMITS),
)
def test_what_inflates_badly_is_a_named_error(
    payloads: list[bytes], changes: list[tuple[int, int]], agreement: Agreement, limit: int
) -> None:
    fuzz_targets.inflate(payloads, agreement, limit)
    changed = [bytearray(payload) for payload in payloads]
    for at, byte in changes:
        for payload in changed[:1]:
            if at < len(payload):
                payload[at] = byte
    fuzz_targets.inflate([bytes(payload) for payload in changed], agreement, limit)


def test_the_targets_are_not_all_for_errors() -> None:
    text = b"hello" * 100
    assert fuzz_targets.inflate([deflated(text)] * 3, Agreement(), 1000) == 3
    assert Inflater(Agreement(), 1000).inflate(deflated(text)) == text


# --- a pool, and a server that sends what Hypothesis thinks of


class Whim(RawServer):
    """Answers /N with what was planned under N; echoes on all other paths.

    Attributes:
        plans: Answer, frames, and whether to hold the connection then, by number.
    """

    def __init__(self) -> None:
        super().__init__(self._serve)
        self.plans: dict[str, tuple[bytes, bytes, bool]] = {}

    def _serve(self, sock: socket.socket) -> None:
        request = servers.read_request(sock)
        plan = self.plans.get(request.target)
        if plan is None:
            sock.sendall(servers.upgrade_response(request))
            while (got := servers.read_client_frame(sock)).opcode != 8:
                sock.sendall(frame(10 if got.opcode == 9 else got.opcode, got.payload))
            sock.sendall(frame(8, got.payload))
            return
        answer, stream, holds = plan
        sock.sendall(answer.replace(b"{accept}", request.accept.encode()))
        sock.sendall(stream)
        if not holds:
            sock.shutdown(socket.SHUT_WR)
        servers.hold(sock)


PROPER = "\r\n".join(["HTTP/1.1 101 OK", *RIGHT, "", ""]).encode()
MOST = 3


class Hostile(RuleBasedStateMachine):
    """A pool of three against the whims of a server; its books are in order, and every permit comes back."""

    leases = Bundle("leases")
    reuse = "balanced"

    def __init__(self) -> None:
        super().__init__()
        self.server = Whim().__enter__()
        config = ConnectionPoolConfig(max_connections=MOST, reuse=self.reuse)  # type: ignore[arg-type]
        kwargs = {"close_timeout": 0.05, "max_message_size": 1000, "compress": True, "send_timeout": 1.0}
        self.pool: ConnectionPool[Any] = ConnectionPool(
            config, base_uri=self.server.uri, manager_kwargs=kwargs
        )
        self.held: list[PooledConnection[Any]] = []
        self.plans = 0

    @contextlib.contextmanager
    def only_named(self) -> Iterator[None]:
        begun = monotonic()
        with contextlib.suppress(JetSocketError):
            yield
        assert monotonic() - begun < 8

    @precondition(lambda self: len(self.held) < MOST)
    @rule(target=leases, stream=streams(), holds=st.booleans(), answer=st.just(PROPER) | answers())
    def acquire(self, stream: bytes, holds: bool, answer: bytes) -> Any:
        self.plans += 1
        path = f"/{self.plans}"
        # An answer without an end would cost its whole time for nothing that is not tried elsewhere.
        self.server.plans[path] = (answer, stream, holds and b"\r\n\r\n" in answer)
        with self.only_named():
            lease = self.pool.acquire(path, timeout=5)
            self.held.append(lease)
            return lease
        return None

    @precondition(lambda self: len(self.held) < MOST)
    @rule(target=leases, plan=st.integers(1, 5))
    def acquire_again(self, plan: int) -> Any:
        with self.only_named():
            lease = self.pool.acquire(f"/{plan}", timeout=5)
            self.held.append(lease)
            return lease
        return None

    @rule(lease=leases, message=st.text(max_size=9))
    def send(self, lease: PooledConnection[Any] | None, message: str) -> None:
        if lease is not None:
            with self.only_named():
                lease.send(message)

    @rule(lease=leases, times=st.integers(1, 4))
    def receive(self, lease: PooledConnection[Any] | None, times: int) -> None:
        if lease is not None:
            with self.only_named():
                for _ in range(times):
                    assert len(lease.recv_raw(0.01)) <= 1000

    @rule(lease=leases)
    def ping(self, lease: PooledConnection[Any] | None) -> None:
        if lease is not None:
            with self.only_named():
                lease.ping(0.01)

    @rule(lease=consumes(leases), how=st.sampled_from(["release", "discard", "drop"]))
    def give_back(self, lease: PooledConnection[Any] | None, how: str) -> None:
        if lease is None or lease not in self.held:
            return
        self.held.remove(lease)
        if how == "discard":
            lease.discard()
        lease.release()

    @invariant()
    def books_are_in_order(self) -> None:
        stats = self.pool.stats()
        assert stats.active_connections == len(self.held)
        assert stats.active_connections + stats.idle_connections <= MOST
        assert faults(self.pool) == []

    def teardown(self) -> None:
        try:
            for lease in self.held:
                lease.release()
            again = [self.pool.acquire(f"/good/{n}", timeout=5) for n in range(MOST)]  # every permit is back
            for lease in again:
                assert lease.request({"n": 1}, 5) == {"n": 1}
                lease.release()
        finally:
            self.pool.close(timeout=0.2)
            self.server.__exit__(None, None, None)
        wait_until(lambda: self.server.open_now == 0)


class HostileAlways(Hostile):
    """The same, with unread messages left to the next borrower."""

    reuse = "always"


def of_length(examples: int, steps: int) -> settings:
    return settings(
        deadline=None,
        max_examples=examples,
        stateful_step_count=steps,
        suppress_health_check=list(HealthCheck),
    )


TestHostile = Hostile.TestCase
TestHostile.settings = of_length(5, 12)
TestHostileAlways = HostileAlways.TestCase
TestHostileAlways.settings = of_length(3, 12)


# --- the long forms


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("machine", [Hostile, HostileAlways])
def test_a_pool_against_many_whims(machine: type[Hostile], depth: float, report: Report) -> None:
    examples = max(10, int(120 * depth))
    begun = monotonic()
    run_state_machine_as_test(machine, settings=of_length(examples, 30))
    took = monotonic() - begun
    report(
        "hostile servers: a pool under Hypothesis", reuse=machine.reuse, runs=examples, seconds=round(took)
    )


RUNS = re.compile(r"stat::number_of_executed_units: *([0-9]+)")
PEAK = re.compile(r"stat::peak_rss_mb: *([0-9]+)")


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets below it."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", fuzz_targets.TARGETS)
def test_atheris_finds_nothing(target: str, room: Path, depth: float, report: Report) -> None:
    """No input that raises, hangs for 10 s, or takes 512 MiB; what does is shown, to be tried again."""
    pytest.importorskip("atheris", reason="atheris is not installed")
    (room / "corpus").mkdir()
    limits = (
        "-timeout=10",
        "-rss_limit_mb=512",
        "-max_len=8192",
        f"-max_total_time={max(5, int(60 * depth))}",
    )
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tests.faults.fuzz_atheris", target, str(room / "corpus"), *limits),
            *(f"-artifact_prefix={room}/", "-print_final_stats=1"),
        ],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(room)},  # it ends without tidying up
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=200,
        check=False,
    )
    for found in room.glob("*-*"):
        print(f"python -m tests.faults.fuzz_atheris {target} FILE, with this in it: {found.read_bytes()!r}")
    assert ended.returncode == 0, ended.stdout[-4000:]
    runs, peak = RUNS.search(ended.stdout), PEAK.search(ended.stdout)
    assert runs is not None and peak is not None
    report(
        "hostile servers: fuzzers",
        target=target,
        executions=int(runs[1]),
        exceptions_outside_the_named=0,
        peak_rss_mib=int(peak[1]),
    )

"""record and replay: what a real server has said, said again.

Also tests: `relay`, `upstream`, `tape`, `replies`, `redacting`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jetsocket import ConnectionClosedError, ConnectionPool, HandshakeError
from jetsocket.correlation import JsonRpc, Jupyter
from jetsocket.testing import ANY, FakePool, FakeServer, record, replay
from jetsocket.testing.redacting import Redactor, same, target_without_values
from jetsocket.testing.replies import Replies
from jetsocket.testing.tape import Closed, Exchange, Recorded, Said, kept_headers, load, said, save, text_of
from tests.servers import RawServer, after_upgrade, wait_until


@pytest.fixture
def real() -> Iterator[FakeServer]:
    """A server that stands for the real one."""
    with FakeServer() as server:
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cassettes" / "talk.json"


def lines_of(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def test_what_was_recorded_is_played_without_the_server(real: FakeServer, file: Path) -> None:
    real.on({"method": "height"}).reply({"result": 7}).times(1)
    real.on("text").reply("héllo").times(1)
    real.on(b"\x00").reply(b"\xff").times(1)
    for number in (1, 2):
        with ConnectionPool(base_uri=real.uri) as pool:
            pool.acquire("/rpc").release()  # idle: set aside
            with record(pool, file) as same_pool:
                assert same_pool is pool
                assert pool.request("/rpc?token=s3cret", {"method": "height", "id": f"id-{number}"}) == {
                    "id": f"id-{number}",
                    "result": 7,
                }
                with pool.acquire("/rpc?token=s3cret") as conn:
                    assert conn.uri.startswith(real.uri)
                    for sent, came in (("text", "héllo"), (b"\x00", b"\xff")):
                        conn.send(sent)
                        assert conn.recv_raw() == came
        if number == 1:
            first = file.read_bytes()
    assert file.read_bytes() == first and b"s3cret" not in first and b"host" not in first
    assert lines_of(file) == [
        '{"format": "jetsocket recording 1", "connections": [',
        '{"path": "/rpc?token=***", "subprotocol": null, "messages": [',
        '  {"sent": {"method": "height", "id": "id-1"}},',
        '  {"received": {"id": "id-1", "result": 7}, "answers": true},',
        '  {"sent": "text", "as": "text"},',
        '  {"received": "héllo", "as": "text"},',
        '  {"sent": "AA==", "as": "base64"},',
        '  {"received": "/w==", "as": "base64"}',
        "]}",
        "]}",
    ]
    with replay(file) as fake:
        assert isinstance(fake, FakePool)
        assert fake.request("/rpc", {"method": "height", "id": 9}) == {"id": 9, "result": 7}
        with fake.acquire("/rpc") as conn:
            for sent, came in ((b"\x00", b"\xff"), ("text", "héllo")):
                conn.send(sent)
                assert conn.recv_raw() == came


def test_pushes_refusals_and_close_codes_are_played_too(real: FakeServer, file: Path) -> None:
    def talk(pool: ConnectionPool[Any]) -> None:
        with pytest.raises(HandshakeError) as refused:
            pool.acquire("/feed")
        assert (refused.value.status_code, refused.value.body) == (429, b"later")
        with pool.acquire("/feed") as conn:
            assert conn.recv() == {"hello": 1}
            conn.send({"subscribe": "trades"})
            assert [conn.recv() for _ in range(3)] == [{"ok": True}, {"price": 1}, {"price": 2}]
            conn.send({"unsubscribe": "trades"})
            with pytest.raises(ConnectionClosedError) as closed:
                conn.recv()
            assert (closed.value.code, closed.value.reason) == (4001, "done")
        with pool.acquire("/feed") as conn, pytest.raises(ConnectionClosedError) as dropped:
            conn.send("drop")
            conn.recv()
        assert dropped.value.code == 1006

    real.reject_once(429, body="later")
    script = real.script("/feed").send({"hello": 1}).expect({"subscribe": "trades"})
    script.send({"ok": True}).send({"price": 1}).send({"price": 2}).expect(ANY).close(4001, "done")
    real.on("drop").drop()
    with (
        ConnectionPool(base_uri=real.uri, manager_kwargs={"connect_attempts": 1}) as pool,
        record(pool, file),
    ):
        talk(pool)
    real.stop()
    with ConnectionPool(base_uri=real.uri) as pool, record(pool, file, mode="none"):
        talk(pool)
    with replay(file) as fake:
        talk(fake)


def test_a_refusal_keeps_its_headers(real: FakeServer, file: Path) -> None:
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    far = f"Thu, 01 Jan {time.gmtime().tm_year + 2} 00:00:00 GMT"

    def talk(pool: ConnectionPool[Any], kept: str = "s3cret-echo") -> list[HandshakeError]:
        told = []
        for _ in range(4):
            with pytest.raises(HandshakeError) as refused:
                pool.acquire("/feed?key=query-s3cret")
            told.append(refused.value)
        assert [each.body for each in told] == [f"no {kept}".encode()] * 4
        assert told[0].headers["x-limit"] == "60" and told[0].headers["content-type"] == "text/plain"
        assert [each.retry_after for each in told[:2]] == [7, 0.5]
        assert told[2].retry_after is not None and told[2].retry_after > 86400 * 200
        assert (told[3].retry_after, told[3].status_code) == (None, 503)
        return told

    more = {
        "Content-Type": "text/plain",
        "X-Limit": "60",
        "Set-Cookie": "sid=s3cret-sid",
        "X-Echo": "s3cret-echo",
    }
    for wait in ("7", "0.5", far, "soon"):
        real.reject_once(
            429 if wait != "soon" else 503,
            body="no s3cret-echo",
            headers={**more, "Retry-After": wait, "Date": date},
        )
    kwargs = {"connect_attempts": 1, "extra_headers": {"X-Api-Key": "s3cret-echo"}}
    with ConnectionPool(base_uri=real.uri, manager_kwargs=kwargs) as pool, record(pool, file):
        talk(pool)
    text = file.read_text(encoding="utf-8")
    assert "s3cret" not in text and '"set-cookie": "***", "x-echo": "***"' in text
    assert "1994" not in text and "GMT" not in text
    with replay(file, manager_kwargs={"connect_attempts": 1}) as fake:
        assert talk(fake, "***")[0].headers["x-echo"] == "***"


@pytest.mark.parametrize(
    ("came", "kept"),
    [
        ({"Date": "x", "Content-Length": "3", "Location": "/other", "Server": "x"}, {"Server": "x"}),
        ({"Content-Type": "text/html; Charset=latin-1"}, {"Content-Type": "text/html; charset=utf-8"}),
        ({"Content-Type": "text/html"}, {"Content-Type": "text/html"}),
        ({"Retry-After": "30"}, {"Retry-After": "30"}),
        ({"retry-after": "in a minute"}, {"retry-after": "60"}),
    ],
)
def test_which_headers_of_a_refusal_are_kept(came: dict[str, str], kept: dict[str, str]) -> None:
    assert kept_headers(came, 59.2) == kept


def test_a_correlation_tells_whose_reply_it_is(real: FakeServer, file: Path) -> None:
    real.on({"method": "slow"}).delay(0.03).reply({"result": "slow"}).times(1)
    real.on({"method": "fast"}).reply({"result": "fast"}).times(1)
    messages = [{"method": "slow"}, {"method": "fast"}]
    pool: ConnectionPool[Any] = ConnectionPool(base_uri=real.uri, correlation=JsonRpc())
    with pool, record(pool, file), pool.acquire("/") as conn:
        recorded = conn.request_many(messages)
    assert [line.split('"id": ')[1][0] for line in lines_of(file) if '"id"' in line] == ["1", "1", "2", "2"]
    with replay(file, correlation=JsonRpc()) as fake:
        for message, reply in reversed(list(zip(messages, recorded, strict=True))):
            assert fake.request("/", message)["result"] == reply["result"]  # type: ignore[index]  # a dict


def test_what_is_not_recorded_or_not_asked_for_is_wrong(real: FakeServer, file: Path) -> None:
    real.on({"n": ANY}).reply("ok")
    real.script("/feed").send("hello")
    with ConnectionPool(base_uri=real.uri) as pool, record(pool, file):
        with pool.acquire("/") as conn:
            for n in (1, 2):
                conn.send({"n": n})
                conn.recv_raw()
        with pool.acquire("/feed") as conn:
            conn.recv_raw()
    with pytest.raises(AssertionError) as caught, replay(file) as fake:
        with fake.acquire("/") as conn:
            conn.send({"n": 1})
            assert conn.recv_raw() == "ok"
            conn.send({"n": 3, "id": 5})
            with pytest.raises(ConnectionClosedError, match="not recorded"):
                conn.recv()
        with fake.acquire("/") as conn:
            conn.send({"n": 1})
            with pytest.raises(ConnectionClosedError, match="not recorded"):
                conn.recv()
        with fake.acquire("/elsewhere") as conn, pytest.raises(ConnectionClosedError, match="not recorded"):
            conn.recv()
    text = str(caught.value)
    assert "5 problems" in text and str(file) in text
    assert (
        f'a message came to / that is not in {file}: {{"n": 3, "id": 5}}\n    nearest: {{"n": 2}}\n    - n: 2'
        in text
    )
    assert 'nearest: {"n": 1}, which was asked for already' in text
    assert f"a connection to /elsewhere is not in {file}" in text
    assert f'/: {{"n": 2}} is in {file}, and was never asked for; assert_all_called=False permits it' in text
    assert f"a connection to /feed is in {file}, and none came" in text
    with replay(file, assert_all_called=False):
        pass


def recorders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "recorder"]


def test_a_real_server_that_answers_no_close_is_waited_for(file: Path) -> None:
    """Else what it tells later would find no loop any more."""
    with RawServer(after_upgrade(b"\x81\x02hi")) as mute, ConnectionPool(base_uri=mute.uri) as pool:
        with record(pool, file):
            with pool.acquire("/") as conn:
                assert conn.recv_raw() == "hi"
                conn.discard()
            wait_until(lambda: pool.connections() == [])
        assert recorders() == []
    assert '{"received": "hi", "as": "text"}' in file.read_text(encoding="utf-8")


def test_what_a_real_server_tells_after_the_end_is_not_wanted(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetsocket.testing.upstream.Upstream.join", lambda self: None)
    with RawServer(after_upgrade(b"\x81\x02hi")) as mute, ConnectionPool(base_uri=mute.uri) as pool:
        with record(pool, file), pool.acquire("/") as conn:
            assert conn.recv_raw() == "hi"
        wait_until(lambda: not recorders())  # an exception of theirs would fail this test


def test_new_episodes_are_added_and_all_are_recorded_anew(real: FakeServer, file: Path) -> None:
    real.on({"n": ANY}).reply("v1").times(2)

    def ask(mode: Any, *numbers: int) -> list[str | bytes]:
        with (
            ConnectionPool(base_uri=real.uri) as pool,
            record(pool, file, mode=mode, assert_all_called=False),
            pool.acquire("/") as conn,
        ):
            replies = []
            for n in numbers:
                conn.send({"n": n})
                replies.append(conn.recv_raw())
            return replies

    assert ask("new_episodes", 1) == ["v1"]
    before = file.read_bytes()
    assert ask("new_episodes", 1) == ["v1"] and file.read_bytes() == before
    assert len(real.messages) == 1
    assert ask("new_episodes", 1, 2) == ["v1", "v1"]
    assert [message["n"] for message in real.messages] == [1, 2]
    assert file.read_bytes() != before
    real.on({"n": ANY}).reply("v2")
    assert ask("once", 2, 1) == ["v1", "v1"]
    assert ask("all", 1, 2) == ["v2", "v2"]
    before = file.read_bytes()
    assert ask("all", 1, 2) == ["v2", "v2"]
    assert file.read_bytes() == before
    assert ask("none", 2) == ["v2"]


def test_nothing_is_written_when_the_block_raised(real: FakeServer, file: Path) -> None:
    real.on(ANY).reply("x").optional()
    with ConnectionPool(base_uri=real.uri) as pool:
        with pytest.raises(ZeroDivisionError), record(pool, file):
            pool.acquire("/").release()
            raise ZeroDivisionError
        assert not file.exists()
        with (
            pytest.raises(AssertionError, match="no such file; record it first"),
            record(pool, file, mode="none"),
        ):
            pass
        with record(pool, file), pytest.raises(RuntimeError, match="already"), record(pool, file):
            pass
        with pytest.raises(ValueError, match="mode must be one of none, once, new_episodes, all"):
            record(pool, file, mode="onse").__enter__()  # type: ignore[arg-type]  # on purpose
        with pytest.raises(TypeError, match="takes a ConnectionPool"):
            record("pool", file).__enter__()  # type: ignore[type-var]  # likewise
        with pool.acquire("/") as conn:  # outside, it is as it was
            conn.send("x")
            assert conn.recv_raw() == "x"
        file.write_text("{}")
        with pytest.raises(ValueError, match="no recording"), record(pool, file):
            pass


def test_an_error_of_the_way_there_is_the_pools_own(file: Path) -> None:
    def pool() -> ConnectionPool[Any]:
        return ConnectionPool(base_uri="ws://127.0.0.1:1")

    with record(pool(), file, mode="all") as unused, pytest.raises(ConnectionError, match="refused"):
        unused.acquire("/")
    assert load(file) == []
    save(file, [Recorded("/", exchanges=[Exchange(Said("x", "text"))])])
    with (
        pytest.raises(AssertionError, match="the real server could not be reached"),
        record(pool(), file, "new_episodes", (), False) as unused,
        unused.acquire("/") as conn,
        pytest.raises(ConnectionClosedError, match="not be reached"),
    ):
        conn.send("y")
        conn.recv()


def test_secrets_are_nowhere_in_the_file(real: FakeServer, file: Path) -> None:
    def talk(pool: ConnectionPool[Any], password: str) -> None:
        with pool.acquire("/?api_key=querys3cret&x=querys3cret2") as conn:
            login = {"login": "me", "password": password, "nested": [{"pin": 1234, "max_tokens": 5}]}
            assert conn.request(login) == {"session_token": ANY, "text": ANY, "token": None}
            conn.send(f"Bearer {password}")
            assert conn.recv_raw() in ("ok, userinfos3cret", "ok, ***")

    answer = {"session_token": "s3cret-token", "text": "for s3cret-token", "token": None}
    real.on({"login": "me"}).reply(answer)
    real.on("Bearer s3cret-password").reply("ok, userinfos3cret")
    uri = real.uri.replace("ws://", "ws://user:userinfos3cret@")
    kwargs = {
        "extra_headers": {"X-Api-Key": "headers3cret"},
        "cookie": "sid=cookies3cret",
    }
    with (
        ConnectionPool(base_uri=uri, manager_kwargs=kwargs) as pool,
        record(pool, file, redact=("pin",)),
    ):
        talk(pool, "s3cret-password")
    text = file.read_text(encoding="utf-8")
    assert "s3cret" not in text and "1234" not in text
    assert '"max_tokens": 5' in text and '"token": null' in text and '"Bearer ***"' in text
    assert '"path": "/?api_key=***&x=***"' in text
    with replay(file, redact=("pin",)) as fake:
        talk(fake, "another-password")
    with replay(file) as fake:  # what was hidden then matches any
        talk(fake, "yet another")


# --- the parts


def test_fields_that_are_secret() -> None:
    redactor = Redactor(["Card-Number"])
    hidden = {
        "apiKey",
        "accessToken",
        "client_secret",
        "SIGNATURE",
        "card_number",
        "Set-Cookie",
        "passwd",
        "auth",
    }
    plain = {
        "token_type_hint": 3,
        "author": "x",
        "design": "x",
        "symbol": "x",
        "secret": True,
        "max_tokens": 1,
    }
    message = {**dict.fromkeys(hidden, "value"), **plain}
    assert redactor.hidden(message) == {**dict.fromkeys(hidden, "***"), **plain}
    assert redactor.hidden([{"password": {"a": 1}}, 1]) == [{"password": "***"}, 1]
    redactor.learn({"token": "tok-en-1", "pwd": "x"})
    assert redactor.hidden("a tok-en-1 x") == "a *** x"
    for names in ("pin", [1]):
        with pytest.raises(TypeError):
            Redactor(names)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    ("recorded", "came", "expected"),
    [
        ("***", {"a": 1}, True),
        ({"a": "***", "b": [1]}, {"a": 5, "b": [1]}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ([1], [1, 2], False),
        ("x *** y", "x \n y", True),
        ("x *** y", "x", False),
        (1, True, False),
        (1, 1.0, False),
        ("1", 1, False),
        (None, None, True),
    ],
)
def test_what_is_the_same(recorded: Any, came: Any, expected: bool) -> None:
    assert same(recorded, came) is expected


def test_a_target_loses_its_values() -> None:
    assert target_without_values("/a?x=1&y&z=") == "/a?x=***&***&z=***"
    assert target_without_values("/a") == "/a"


def test_a_tape_is_read_as_it_was_written(tmp_path: Path) -> None:
    tape = [
        Recorded(
            "/a?x=***",
            "v1",
            opening=[Said({"ü": "\ud800"}), Said("hi", "text"), Closed(1000)],
            exchanges=[
                Exchange(said("7", '"7"'), [Said({"id": 1}, "json", True), Closed(4000, "why")]),
                Exchange(said({"n": float("nan")}, '{"n": NaN}')),
                Exchange(said({"b": 1}, b'{"b": 1}')),
                Exchange(said(b"\x00", b"\x00")),
            ],
        ),
        Recorded("/b", status=401, body="no", headers={"retry-after": "7"}),
        Recorded("/c"),
    ]
    path = tmp_path / "a.json"
    save(path, tape)
    assert load(path) == tape
    json.loads(text_of(tape))
    assert [exchange.sent.form for exchange in tape[0].exchanges] == ["json", "text", "binary", "base64"]
    time_before = path.stat().st_mtime_ns
    save(path, tape)
    assert path.stat().st_mtime_ns == time_before
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "connection",
    [
        {"path": 5, "subprotocol": None, "messages": []},
        {"path": "/", "subprotocol": 5, "messages": []},
        {"path": "/", "subprotocol": None, "messages": [], "status": "401"},
        {"path": "/", "subprotocol": None, "messages": [], "status": True},
        {"path": "/", "subprotocol": None, "messages": [], "status": 401, "body": None},
        {"path": "/", "subprotocol": None, "messages": [], "status": 401, "headers": ["a"]},
        {"path": "/", "subprotocol": None, "messages": [], "status": 401, "headers": {"a": 1}},
        {"path": "/", "subprotocol": None, "messages": [{"sent": 1, "as": "base64"}]},
        {"path": "/", "subprotocol": None, "messages": [{"sent": "*", "as": "base64"}]},
        {"path": "/", "subprotocol": None, "messages": [{"received": {}, "as": "text"}]},
        {"path": "/", "subprotocol": None, "messages": [{"received": {}, "as": "yaml"}]},
        {"path": "/", "subprotocol": None, "messages": [{"received": {}, "answers": "yes"}]},
        {"path": "/", "subprotocol": None, "messages": [{"closed": "1000"}]},
        {"path": "/", "subprotocol": None, "messages": [{"closed": 1000, "reason": 1}]},
        {"path": "/", "subprotocol": None, "messages": [{"came": 1}]},
        {"path": "/", "subprotocol": None, "messages": ["sent"]},
        {"path": "/", "subprotocol": None, "messages": None},
    ],
)
def test_a_file_that_was_edited_wrongly_is_told_of_before_anything_is_played(
    connection: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    content = {"format": "jetsocket recording 1", "connections": [connection]}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="is no recording"):
        load(path)


def test_whose_reply_it_is() -> None:
    plain = Replies(None)
    assert plain.asked({"id": "a"}) == plain.answered({"id": "a"}) == "a"
    assert plain.asked("text") is None and plain.asked({"id": [1]}) is None
    assert plain.without_id({"id": 1, "x": 2}) == {"x": 2} and plain.without_id("x") == "x"
    assert plain.addressed({"id": 1, "r": 2}, {"id": 9}) == {"id": 9, "r": 2}
    assert plain.addressed("x", {"id": 9}) == "x"
    rpc = Replies(JsonRpc())
    call = {"jsonrpc": "2.0", "method": "m", "id": 77}
    assert rpc.numbered(call, 3)["id"] == 3 and rpc.asked(call) == 77
    assert rpc.numbered({"method": "a notification"}, 3) == {"method": "a notification"}
    assert rpc.addressed({"jsonrpc": "2.0", "id": 3, "result": 1}, call)["id"] == 77
    jupyter = Replies(Jupyter())
    assert jupyter.read(b"\xff", None) == b"\xff" and jupyter.asked(b"\xff") is None

"""A directory that workers share: what each writes, the others read, and what is none of theirs is ignored.

Also tests: `reports`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket import ConnectionPool
from jetsocket.contrib import status
from jetsocket.contrib.status import directory as shared
from jetsocket.contrib.status.reports import checked, merged, of_worker
from jetsocket.contrib.status.watching import SERIES, SLOTS
from jetsocket.limits import LocalLimiter
from tests.contrib.status.client import ask, shown
from tests.contrib.status.test_clearing import post, visit
from tests.servers import EchoServer, wait_until

MakePool = Callable[..., ConnectionPool[Any]]

WORKER = """
import sys
from jetsocket import ConnectionPool
from jetsocket.contrib import status

with ConnectionPool(base_uri=sys.argv[1], name="nodes") as pool:
    status.publish({"nodes": pool}, sys.argv[2])
    with pool.acquire("/worker"):
        pass
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def worker(echo: EchoServer, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, with a pool of its own and an idle connection."""
    command = [sys.executable, "-c", WORKER, echo.uri, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            wait_until(lambda: any(tmp_path.glob("jetsocket-*.json")))
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_all_workers_are_shown_and_cleared_together(
    worker: subprocess.Popen[str], echo: EchoServer, make_pool: MakePool, tmp_path: Path
) -> None:
    pool = make_pool(echo, name="nodes", max_connections=3)
    pool.prewarm("/here", 2)
    app = shown({"nodes": pool}, directory=tmp_path, clear=True)
    told = ask(app, "/status.json").json
    assert [each["pid"] for each in told["workers"]] == [os.getpid(), worker.pid]
    page = wait_until(lambda: "/worker" in (body := ask(app).body) and body)
    assert "2 workers" in page and f"worker {told['worker']} answers" in page
    assert "at most 13 connections in 2 workers" in page and "/here" in page
    assert f"<td>{told['workers'][1]['worker']}</td>" in page

    token, cookie = visit(app)
    assert post(app, {"token": token, "pool": "nodes"}, cookie).status == 303
    wait_until(lambda: echo.open_now == 0)

    def others() -> Any:
        return ask(app, "/status.json").json["workers"][1]["pools"][0]["discards"]

    wait_until(lambda: others() == {"cleared": 1})
    # Each writes its report once a second.
    text = wait_until(lambda: "3 cleared" in (told := status.as_text(status.read(tmp_path))) and told)
    assert f"worker {worker.pid} on " in text and "0 of 13 connections open" in text


def test_a_worker_that_is_killed_is_gone(worker: subprocess.Popen[str], tmp_path: Path) -> None:
    assert [each["pid"] for each in status.read(tmp_path)] == [worker.pid]
    worker.kill()
    wait_until(lambda: not status.read(tmp_path))  # before its parent has waited for it
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_ends_in_order_takes_its_file_along(
    worker: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(30) == 0
    assert list(tmp_path.iterdir()) == []


def test_one_that_hangs_is_said_to(
    worker: subprocess.Popen[str], make_pool: MakePool, tmp_path: Path
) -> None:
    worker.send_signal(signal.SIGSTOP)
    (path,) = tmp_path.glob("jetsocket-*.json")
    os.utime(path, (time.time() - 42,) * 2)
    (report,) = status.read(tmp_path)
    assert 42 <= report["late"] < 60
    page = ask(shown(make_pool("ws://localhost"), directory=tmp_path)).body
    assert f"Worker {report['worker']} was not heard of for 4" in page
    assert "not heard of for 4" in status.as_text([report])


# --- what is none of theirs


def a_report(**changed: Any) -> dict[str, Any]:
    """What a worker might write, but for what is changed."""
    pool = ConnectionPool(base_uri="ws://localhost", name="nodes", limiter=LocalLimiter(7))
    try:
        told = of_worker(shared.this_process(), {"nodes": pool}, time.time())
    finally:
        pool.close()
    return {**json.loads(json.dumps(told)), **changed}


def put(path: Path, report: object, pid: int | None = None) -> Path:
    file = path / f"jetsocket-{os.getpid() if pid is None else pid}-{'ab' * 8}.json"
    file.write_text(json.dumps(report))
    return file


def test_a_report_comes_back_as_it_was(tmp_path: Path) -> None:
    report = a_report()
    put(tmp_path, report)
    (found,) = status.read(tmp_path)
    assert found == {key: value for key, value in report.items() if key not in ("version", "space", "start")}


def with_pool(**changed: Any) -> dict[str, Any]:
    report = a_report()
    return {**report, "pools": [{**report["pools"][0], **changed}]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        b'{"version": 2}',
        json.dumps(a_report(version=1)).encode(),
        json.dumps(a_report(pid=1)).encode(),
        json.dumps(a_report(pid=True)).encode(),
        json.dumps(a_report(written=float("nan"))).encode(),
        json.dumps(a_report(written=1e300)).encode(),
        json.dumps(a_report(worker=["x"])).encode(),
        json.dumps(a_report(pools={})).encode(),
        json.dumps(a_report(pools=[[]])).encode(),
        json.dumps(a_report(pools=[{}] * 1000)).encode(),
        json.dumps(with_pool(max_connections=-1)).encode(),
        json.dumps(with_pool(now={})).encode(),
        json.dumps(with_pool(discards={"<b>": 1})).encode(),
        json.dumps(with_pool(totals={"a": "b"})).encode(),
        json.dumps(with_pool(limiters=[{}])).encode(),
        json.dumps(with_pool(limiters=[{"name": "a", "away": 0, "figures": {}}])).encode(),
        json.dumps(with_pool(limiters=[{"name": "a", "away": False, "figures": {"held": -1}}])).encode(),
        json.dumps(with_pool(limiters=[{"name": "a", "away": False, "figures": {}}] * 99)).encode(),
        json.dumps(with_pool(history={name: [0] * 9999 for name in ("until", *SERIES)})).encode(),
        json.dumps(with_pool(errors=[{"at": 10**17, "doing": "", "text": "", "count": 1}])).encode(),
        b'{"version": ' + b"9" * 10_000 + b"}",
        b" " * (shared._LARGEST + 1),
    ],
    ids=lambda content: content[:20],
)
def test_what_is_no_report_is_ignored_and_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / f"jetsocket-{os.getpid()}-{'ab' * 8}.json"
    file.write_bytes(content)
    assert status.read(tmp_path) == []
    assert file.exists()


def test_what_is_no_file_or_of_another_name_is_ignored_and_left_alone(tmp_path: Path) -> None:
    target = put(tmp_path, a_report())
    real = target.rename(tmp_path / "target")
    (tmp_path / f"jetsocket-{os.getpid()}-{'00' * 8}.json").symlink_to(real)
    os.mkfifo(tmp_path / f"jetsocket-{os.getpid()}-{'11' * 8}.json")
    (tmp_path / f"jetsocket-{os.getpid()}-{'22' * 8}.json").mkdir()
    (tmp_path / "jetsocket-..-evil.json").write_text(json.dumps(a_report()))
    before = sorted(tmp_path.iterdir())
    assert status.read(tmp_path) == []
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_of_another_user_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, a_report())
    assert len(status.read(tmp_path)) == 1
    monkeypatch.setattr(shared, "_owners", lambda path: (os.geteuid() + 1, os.geteuid() + 1))
    assert status.read(tmp_path) == []


def test_a_process_elsewhere_counts_as_gone_after_a_while(tmp_path: Path) -> None:
    file = put(tmp_path, a_report(space="another container"))
    os.utime(file, (time.time() - 50,) * 2)
    assert len(status.read(tmp_path)) == 1
    os.utime(file, (time.time() - 70,) * 2)
    assert status.read(tmp_path) == [] and not file.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't tell when a process began")
def test_a_process_id_that_was_given_again_is_another_process(tmp_path: Path) -> None:
    file = put(tmp_path, a_report(start=1))
    assert status.read(tmp_path) == [] and not file.exists()


def test_what_a_killed_writer_left_is_removed_in_time(tmp_path: Path) -> None:
    half = tmp_path / f".jetsocket-1-{'ab' * 8}.json.7f.new"
    half.touch()
    assert status.read(tmp_path) == [] and half.exists()
    os.utime(half, (time.time() - 70,) * 2)
    assert status.read(tmp_path) == [] and not half.exists()


def test_a_directory_that_can_t_be_read_is_said(
    make_pool: MakePool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError):
        status.read(file)
    with caplog.at_level(logging.ERROR, "jetsocket.status"):
        answer = ask(shown(make_pool("ws://localhost"), directory=file))
    assert answer.status == 200 and "Not a directory" in answer.body


def test_a_directory_that_was_taken_away_is_made_again(tmp_path: Path) -> None:
    directory, path = shared.Directory(tmp_path / "shared"), tmp_path / "shared"
    report = of_worker(shared.this_process(), {}, time.time())
    directory.write(report)
    for each in path.iterdir():
        each.unlink()
    path.rmdir()
    assert status.read(path) == []
    directory.write(report)
    assert [each["pid"] for each in status.read(path)] == [os.getpid()]
    assert path.stat().st_mode & 0o777 == 0o700
    directory.remove()


def test_files_are_for_whom_the_directory_is_for(tmp_path: Path) -> None:
    for mode, expected in ((0o700, 0o600), (0o750, 0o640)):
        path = tmp_path / f"{mode:o}"
        path.mkdir(mode)
        path.chmod(mode)
        before = os.umask(0)
        try:
            shared.Directory(path).write(a_report())
        finally:
            os.umask(before)
        (file,) = path.iterdir()
        assert file.stat().st_mode & 0o777 == expected


def test_a_report_is_whole_at_every_moment_and_nothing_is_left_of_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shared.Directory(tmp_path)
    own.write(a_report(worker="first"))

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(Path, "replace", full)
        own.write(a_report(worker="second"))
    assert [each["worker"] for each in status.read(tmp_path)] == ["first"]
    assert len(list(tmp_path.iterdir())) == 1
    own.write(a_report(worker="third"))
    assert [each["worker"] for each in status.read(tmp_path)] == ["third"]


# --- reports


def test_a_terminal_is_shown_nothing_that_moves_its_cursor(tmp_path: Path) -> None:
    put(tmp_path, a_report(worker="\x1b[2J\x07evil\n"))
    text = status.as_text(status.read(tmp_path))
    assert "?[2J?evil" in text and "\x1b" not in text


def test_no_worker_is_said() -> None:
    assert "no worker" in status.as_text([])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
REPORT = a_report()


@given(data=st.data())
def test_whatever_is_read_is_a_report_or_a_value_error(data: st.DataObject) -> None:
    """And a report can be shown."""
    report = json.loads(json.dumps(REPORT))
    pool = report["pools"][0]
    place = data.draw(st.sampled_from([report, pool, pool["now"], pool["history"], pool["totals"]]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(values)
    try:
        found = checked(report)
    except ValueError:
        return
    assert status.as_text([{**found, "late": 0.0}])
    json.dumps(found, allow_nan=False)


def test_figures_of_workers_are_added_second_by_second() -> None:
    first, second = a_report(worker="a"), a_report(worker="b")
    for report, until, values in ((first, 100, [1, 2, 3]), (second, 101, [10, None, 30])):
        history = {"until": until, **dict.fromkeys(SERIES, values)}
        report["pools"][0].update(history=history, totals={"acquires": 2, "wait_time_p99": until})
    (pool,) = merged([first, second])
    assert len(pool["history"]["lent"]) == SLOTS
    assert pool["history"]["lent"][-5:] == [None, 1, 12, 3, 30]
    assert pool["totals"] == {"acquires": 4, "wait_time_p99": 101}
    assert (pool["workers"], pool["max_connections"]) == (2, 20)


def test_a_slot_that_moves_between_two_reports_is_counted_once() -> None:
    reports = [a_report(worker="a"), a_report(worker="b")]
    for report, held, others in zip(reports, (7, 6), (5, 6), strict=True):
        figures = {"limit": 12, "held": held, "others": others}
        report["pools"][0]["limiters"] = [{"name": "account", "away": False, "figures": figures}]
    (pool,) = merged(reports)
    assert pool["limiters"][0]["figures"] == {"limit": 12, "held": 12, "others": 0}
    for report in reports:  # a LocalLimiter, which knows of no other process
        report["pools"][0]["limiters"][0]["figures"]["others"] = 0
    assert merged(reports)[0]["limiters"][0]["figures"]["held"] == 13


def test_slots_of_workers_are_added_and_those_of_others_are_what_is_left() -> None:
    first, second = a_report(worker="a"), a_report(worker="b")
    account: dict[str, Any] = {"limit": 20, "held": 3, "others": 10, "waiting": 2, "lost": 1, "errors": 5}
    account["without_slot"] = 1
    first["pools"][0]["limiters"] = [{"name": "account", "away": False, "figures": account}]
    second["pools"][0]["limiters"] = [
        {"name": "account", "away": True, "figures": {**account, "held": 4, "others": 9, "waiting": 3}},
        {"name": "other", "away": False, "figures": {"limit": 5}},
    ]
    (pool,) = merged([first, second])
    figures = {"limit": 20, "held": 7, "others": 6, "waiting": 3, "lost": 2, "errors": 10}
    figures["without_slot"] = 2
    assert pool["limiters"] == [
        {"name": "account", "away": True, "figures": figures},
        {"name": "other", "away": False, "figures": {"limit": 5}},
    ]
    text = status.as_text([{**report, "late": 0.0} for report in (first, second)])
    said = "7 of 20 slots held here, 6 by others, 3 waiting, 2 lost, 10 errors"
    said += ", 2 open without one, its server is away"
    assert f"  limiter account: {said}\n  limiter other: 5 slots\n" in f"{text}\n"

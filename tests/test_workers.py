"""Workers: jobs run in order, apart from the thread that has them run, and whatever they raise."""

from __future__ import annotations

import sys
import threading
from functools import partial
from time import monotonic
from typing import Any

import pytest

from jetsocket import workers
from jetsocket.workers import Worker, Workers
from tests.servers import wait_until


@pytest.fixture
def worker() -> Any:
    made = Worker("jetsocket-test")
    yield made
    made.stop(monotonic() + 5)


def running(name: str = "jetsocket-test") -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_jobs_run_in_order_in_one_thread_of_their_own(worker: Worker) -> None:
    ran: list[tuple[int, int]] = []
    assert running() == []
    for number in range(200):
        worker.submit(lambda number=number: ran.append((number, threading.get_ident())))
    wait_until(lambda: len(ran) == 200)
    assert [number for number, _ in ran] == list(range(200))
    assert len({thread for _, thread in ran} - {threading.get_ident()}) == 1
    wait_until(lambda: worker.is_idle)


def test_one_that_waits_holds_up_its_own_kind_alone() -> None:
    made = Workers("held-up")
    go_on, ran = threading.Event(), list[str]()
    made.log.submit(lambda: go_on.wait(10))
    made.log.submit(lambda: ran.append("log"))
    made.limiter.submit(lambda: ran.append("limiter"))
    for _ in range(2):
        made.checks.submit(lambda: go_on.wait(10))
    made.checks.submit(lambda: ran.append("check"))
    wait_until(lambda: {"limiter", "check"} <= set(ran))
    assert "log" not in ran
    assert not made.log.is_idle
    go_on.set()
    made.stop(monotonic() + 5)
    assert sorted(ran) == ["check", "limiter", "log"]
    assert not [thread for thread in threading.enumerate() if "held-up" in thread.name]


def test_there_are_at_most_so_many_threads() -> None:
    made = Worker("jetsocket-test", most=3)
    go_on, at_once, most = threading.Event(), [0], [0]
    lock = threading.Lock()

    def job() -> None:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        go_on.wait(10)
        with lock:
            at_once[0] -= 1

    for _ in range(20):
        made.submit(job)
    wait_until(lambda: at_once[0] == 3)
    assert len(running()) == 3
    go_on.set()
    wait_until(lambda: made.is_idle)
    made.stop(monotonic() + 5)
    assert (most[0], at_once[0]) == (3, 0)


@pytest.mark.parametrize("failure", [ValueError("no"), SystemExit(1), KeyboardInterrupt()])
def test_whatever_a_job_raises_costs_no_thread(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def fail() -> None:
        raise failure

    ran: list[int] = []
    worker.submit(fail)
    worker.submit(lambda: ran.append(threading.get_ident()))
    wait_until(lambda: ran)
    assert [each.exc_value for each in told] == [failure]
    assert ran == [thread.ident for thread in running()]


def test_a_job_that_exits_is_told_though_threads_say_nothing_of_that(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # pytest has its own
    worker.submit(partial(sys.exit, "the job"))
    wait_until(lambda: "SystemExit: the job" in capfd.readouterr().err)


def test_a_hook_that_raises_costs_no_thread_either(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`threading.excepthook` is the user's; without its thread a worker would take no job any more."""

    def hook(_told: object) -> None:
        raise LookupError("the hook")

    def fail() -> None:
        raise OSError("the job")

    ran = threading.Event()
    monkeypatch.setattr(threading, "excepthook", hook)
    worker.submit(fail)
    worker.submit(ran.set)
    assert ran.wait(5)
    told = capfd.readouterr().err
    assert "LookupError: the hook" in told
    assert "OSError: the job" in told


def test_a_thread_without_work_ends_and_another_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_PARK", 0.05)
    worker, ran = Worker("jetsocket-test"), list[int]()
    for number in range(3):
        worker.submit(lambda number=number: ran.append(number))
        wait_until(lambda: not running())
    assert ran == [0, 1, 2]


def test_where_no_thread_can_be_had_the_job_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, ran = Worker("jetsocket-test"), list[str]()

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            worker.submit(lambda: ran.append("refused"))
        assert worker.is_idle
    worker.submit(lambda: ran.append("taken"))
    wait_until(lambda: ran)
    worker.stop(monotonic() + 5)
    assert ran == ["taken"]


def test_one_thread_that_runs_takes_what_a_second_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, ran, go_on = Worker("jetsocket-test", most=2), list[int](), threading.Event()
    worker.submit(lambda: go_on.wait(10))

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        worker.submit(lambda: ran.append(1))
    go_on.set()
    wait_until(lambda: ran == [1])
    worker.stop(monotonic() + 5)


def test_stop_lets_it_do_what_waits_within_its_time() -> None:
    worker, ran, go_on = Worker("jetsocket-test"), list[int](), threading.Event()
    for number in range(50):
        worker.submit(lambda number=number: ran.append(number))
    worker.stop(monotonic() + 5)
    assert ran == list(range(50))
    assert running() == []
    slow = Worker("jetsocket-test")
    slow.submit(lambda: go_on.wait(10))
    began = monotonic()
    slow.stop(monotonic() + 0.1)
    assert monotonic() - began < 5
    go_on.set()
    wait_until(lambda: not running())

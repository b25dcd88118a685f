"""`--jobs N`: the tests are collected once, then N processes are forked, and run them side by side.

Workers that start a Python each, and collect for themselves, would spend a fifth of all processor time on it.
A forked one has what was imported and collected, and no test has run in the process that it is forked from.

The parent hands out chunks: tests that stand together in a file. A worker asks for the next before it runs
the last test that it has, for a test is told which one follows, so that what both use is kept.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterable
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

CHUNK = 8  # tests; one that is slow is a chunk of its own


class Chunk(NamedTuple):
    """What is handed out at once: tests of one file, by their places in the session's list."""

    path: Path
    slow: bool
    tests: tuple[int, ...]


def is_slow(item: pytest.Item) -> bool:
    """Whether others should not have to wait for what comes behind it."""
    return item.get_closest_marker("slow") is not None


def chunks_of(items: Iterable[tuple[int, pytest.Item]]) -> list[Chunk]:
    """Those tests in chunks, slow ones first."""
    slow, others = [], []
    for at, item in items:
        if is_slow(item):
            slow.append(Chunk(item.path, True, (at,)))
        elif others and others[-1].path == item.path and len(others[-1].tests) < CHUNK:
            others[-1] = others[-1]._replace(tests=(*others[-1].tests, at))
        else:
            others.append(Chunk(item.path, False, (at,)))
    return slow + others


class SideBySide:
    """The plugin."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run all tests in so many processes."""
        if session.testsfailed or session.config.option.collectonly:
            return None  # pytest itself knows what to do
        if session.config.option.usepdb or session.config.option.basetemp:
            raise pytest.UsageError("--pdb and --basetemp need --jobs 0")
        if others := threading.enumerate()[1:]:
            raise pytest.UsageError(f"importing the tests started {others}, which no forked process has")
        parent = Parent(session)
        try:
            pipe = parent.run(self.jobs)
        except BaseException:
            parent.kill()
            raise
        if pipe is not None:
            work(session, pipe)
        return True


# --- the parent


class Worker:
    """What the parent knows of a worker."""

    def __init__(self, number: int, pid: int, pipe: Connection) -> None:
        name = f"gw{number}"  # pytest shows it where xdist's would be
        self.gateway = SimpleNamespace(id=name)
        self.workerinfo = {
            "id": name,
            "sysplatform": sys.platform,
            "version_info": sys.version_info,
            "executable": sys.executable,
        }
        self.pid = pid
        self.pipe = pipe
        self.path: Path | None = None
        self.tests: deque[int] = deque()  # which it has, and has not told of
        self.ending = False  # there was nothing left for it
        self.failed = False  # one of its tests


class Parent:
    """Hands out tests, and passes on what it is told of them. It runs none itself."""

    def __init__(self, session: pytest.Session) -> None:
        self.session = session
        self.config = session.config
        self.left = chunks_of(enumerate(session.items))
        self.workers: list[Worker] = []
        self.started = 0
        terminal = self.config.pluginmanager.getplugin("terminalreporter")
        if terminal is not None:
            terminal.showfspath = False  # tests of many files are told of in turn

    def run(self, jobs: int) -> Connection | None:
        """Have all tests run. It returns in each worker, too, once that is there: with its end of a pipe."""
        for _ in range(min(jobs, len(self.left))):
            if (pipe := self.fork()) is not None:
                return pipe
        while self.workers:
            ready = wait([worker.pipe for worker in self.workers], timeout=1.0)
            for worker in list(self.workers):
                if worker.pipe not in ready and not has_ended(worker.pid):
                    continue
                try:
                    told = worker.pipe.recv() if worker.pipe in ready else None
                except (EOFError, ConnectionResetError):
                    told = None
                if told is not None:
                    self.heed(worker, told)
                    continue
                self.bury(worker)
                if self.left and len(self.workers) < jobs and (pipe := self.fork()) is not None:
                    return pipe
        return None

    def fork(self) -> Connection | None:
        """Start a worker; None in the parent."""
        ours, theirs = Pipe()
        pid = os.fork()
        if pid == 0:
            for pipe in (ours, *(worker.pipe for worker in self.workers)):
                pipe.close()
            return theirs
        theirs.close()
        self.workers.append(Worker(self.started, pid, ours))
        self.started += 1
        return None

    def heed(self, worker: Worker, told: tuple[str, Any]) -> None:
        """Do what a worker asks for, or pass on what it tells."""
        what, given = told
        if what == "more":
            chunk = self.next_for(worker)
            worker.ending = chunk is None
            worker.path = chunk and chunk.path
            worker.tests.extend(chunk.tests if chunk else ())
            worker.pipe.send(chunk.tests if chunk else ())
        elif what == "warning":
            message = warnings.WarningMessage(
                UserWarning(given.pop("text")), UserWarning, *given.pop("where")
            )
            self.config.hook.pytest_warning_recorded.call_historic(
                kwargs={**given, "warning_message": message, "location": None}
            )
        else:
            for data in given:
                self.report(
                    worker, self.config.hook.pytest_report_from_serializable(config=self.config, data=data)
                )
            item = self.session.items[worker.tests.popleft()]
            self.config.hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def next_for(self, worker: Worker) -> Chunk | None:
        """What is slow, or nobody could help with it in the end; of the file where it is; of a new one."""
        elsewhere = {other.path for other in self.workers}
        best = min(
            self.left,
            key=lambda chunk: (not chunk.slow, chunk.path != worker.path, chunk.path in elsewhere),
            default=None,
        )
        if best is not None:
            self.left.remove(best)
        return best

    def report(self, worker: Worker, report: pytest.TestReport) -> None:
        """Tell pytest."""
        worker.failed = worker.failed or report.failed
        report.node = worker
        self.config.hook.pytest_runtest_logreport(report=report)
        if self.session.shouldfail:
            raise self.session.Failed(self.session.shouldfail)
        if self.session.shouldstop:
            raise self.session.Interrupted(self.session.shouldstop)

    def bury(self, worker: Worker) -> None:
        """One that has ended: a test that it was at has failed, and others run what else it had."""
        self.workers.remove(worker)
        worker.pipe.close()
        status = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        if worker.ending and not worker.tests and status in (0, 1 if worker.failed else 0):
            return
        if worker.tests:
            item = self.session.items[worker.tests.popleft()]
            nodeid, location = item.nodeid, item.location
        else:
            nodeid = f"the end of {worker.gateway.id}"
            location = (nodeid, None, nodeid)
        text = f"the process has ended with status {status}"
        self.report(worker, pytest.TestReport(nodeid, location, {}, "failed", text, "call"))
        self.left[:0] = chunks_of((at, self.session.items[at]) for at in worker.tests)

    def kill(self) -> None:
        """End all workers at once."""
        for worker in self.workers:
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)


def has_ended(pid: int) -> bool:
    """Whether a child has; somebody that it has left behind may hold its end of a pipe."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


# --- a worker


class Messenger:
    """Tells the parent what pytest has to say."""

    def __init__(self, config: pytest.Config, pipe: Connection) -> None:
        self.config = config
        self.pipe = pipe
        self.reports: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep it until the test is over."""
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.reports.append(data)

    def pytest_warning_recorded(self, warning_message: Any, when: str, nodeid: str) -> None:
        """Pass on what can be shown of it."""
        text = f"{warning_message.category.__name__}: {warning_message.message}"
        where = (warning_message.filename, warning_message.lineno)
        self.pipe.send(("warning", {"text": text, "where": where, "when": when, "nodeid": nodeid}))

    def end_test(self) -> None:
        """Pass on all of one test."""
        self.pipe.send(("reports", self.reports))
        self.reports = []


def work(session: pytest.Session, pipe: Connection) -> None:
    """Run what the parent hands out, until nothing is left."""
    config = session.config
    session.testsfailed = 0  # the parent may have counted those of a worker whose place this one takes
    config.workerinput = {"workerid": "forked"}  # type: ignore[attr-defined]  # who is none of the parent's business
    config.pluginmanager.unregister(name="terminalreporter")
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()  # it goes into files that all would share
    capture.start_global_capturing()
    capture.suspend_global_capture()
    messenger = Messenger(config, pipe)
    config.pluginmanager.register(messenger)
    only_the_session = SimpleNamespace(listchain=lambda: [session])
    tests: deque[int] = deque()

    def ask() -> None:
        pipe.send(("more", None))
        tests.extend(pipe.recv())

    ask()
    while tests:
        item = session.items[tests.popleft()]
        following: Any = None
        if is_slow(item):  # who knows when it will be done, and what will be left then
            following = only_the_session
        elif not tests:
            ask()
        if tests:
            following = session.items[tests[0]]
        config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        messenger.end_test()
        if following is only_the_session:
            ask()

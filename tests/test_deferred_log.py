"""Lines that wait for a thread that may emit them: as they were, in order, and not ever more."""

from __future__ import annotations

import ast
import logging
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jetsocket.deferred_log import DeferredLog

POOL, WIRE = "jetsocket.pool", "jetsocket.wire"


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, POOL)
    caplog.set_level(logging.DEBUG, WIRE)


def test_a_line_is_emitted_later_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    log = DeferredLog()
    log.note(logging.WARNING, "[%s] %d", "mine", 7)
    log.note_end(ConnectionError("over"))
    assert caplog.records == []
    assert log.has_lines
    log.emit()
    assert not log.has_lines
    first, second = caplog.records
    assert (first.name, first.levelno, first.getMessage()) == (POOL, logging.WARNING, "[mine] 7")
    assert first.funcName == "test_a_line_is_emitted_later_as_it_was"
    assert first.pathname == __file__
    assert (second.name, second.levelno, second.getMessage()) == (WIRE, logging.DEBUG, "over")


def test_a_failure_comes_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    log = DeferredLog()
    try:
        raise LookupError("of the user's")
    except LookupError as error:
        log.note(logging.WARNING, "check() failed", failure=error)
    log.emit()
    [record] = caplog.records
    assert record.exc_info
    assert "a_failure_comes_with_its_traceback" in caplog.text


def test_what_waits_comes_before_what_is_told(caplog: pytest.LogCaptureFixture) -> None:
    log = DeferredLog()
    log.note(logging.DEBUG, "first")
    log.tell("second %s", "one")
    assert caplog.messages == ["first", "second one"]


def test_what_no_one_wants_to_hear_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, POOL)
    log = DeferredLog()
    log.note(logging.DEBUG, "quiet")
    log.tell("quiet")
    assert not log.has_lines
    assert caplog.records == []


def test_muted_it_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    log = DeferredLog()
    log.note(logging.ERROR, "before")
    log.muted = True
    log.note(logging.ERROR, "after")
    log.tell("after")
    log.emit()
    assert caplog.records == []


@pytest.mark.slow
def test_where_none_emits_them_there_are_not_ever_more() -> None:
    log = DeferredLog()
    for number in range(30_000):
        log.note(logging.ERROR, "%d", number)
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Keep()
    logging.getLogger(POOL).addHandler(handler)
    try:
        log.emit()
    finally:
        logging.getLogger(POOL).removeHandler(handler)
    assert len(lines) == 10_000
    assert lines[-1] == "29999"


def test_threads_that_emit_at_once_emit_each_line_once(caplog: pytest.LogCaptureFixture) -> None:
    log = DeferredLog()
    for number in range(500):
        log.note(logging.INFO, "%d", number)
    threads = [threading.Thread(target=log.emit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(map(int, caplog.messages)) == list(range(500))


def test_a_handler_that_raises_costs_its_own_line(caplog: pytest.LogCaptureFixture) -> None:
    class Bad(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if record.getMessage() == "bad":
                raise RuntimeError("in a filter")
            return True

    log, bad = DeferredLog(), Bad()
    for text in ("good", "bad", "better"):
        log.note(logging.INFO, text)
    logging.getLogger(POOL).addFilter(bad)
    try:
        with pytest.raises(RuntimeError, match="in a filter"):
            log.emit()
        log.emit()
    finally:
        logging.getLogger(POOL).removeFilter(bad)
    assert caplog.messages == ["good", "better"]


def test_the_users_record_factory_is_asked_by_whoever_emits(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may block, or end the thread that notes; what it makes tells when and where it was noted."""
    made_by: list[str] = []

    class Own(logging.LogRecord):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made_by.append(threading.current_thread().name)

    monkeypatch.setattr(logging, "_logRecordFactory", Own)
    log = DeferredLog()
    noting = threading.Thread(target=lambda: log.note(logging.WARNING, "[%s] %d", "mine", 7), name="noting")
    noting.start()
    noting.join()
    assert made_by == []
    before = time.time()
    time.sleep(0.01)
    log.emit()
    assert made_by == [threading.current_thread().name]
    [record] = caplog.records
    assert isinstance(record, Own)
    assert record.getMessage() == "[mine] 7"
    assert record.threadName == "noting"
    assert record.created < before


# --- fields


def fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name.startswith("jetsocket_")}


def test_the_record_of_a_line_has_what_it_tells_as_fields(caplog: pytest.LogCaptureFixture) -> None:
    log = DeferredLog()
    log.note(logging.WARNING, "[%s] connection %d not kept: %s", "mine", 7, "unread")
    log.note(
        logging.WARNING, "[%s] a thread that hung in a dial to %s has come back", "mine", "ws://a/?k=***"
    )
    log.note(logging.WARNING, "[%s] nothing is known of %s; %.3g s", "mine", "ws", 0.5)
    log.emit()
    log.tell("[%s] connection %d %s for %s", "mine", 8, "reused", "wss://a/")
    assert [fields(record) for record in caplog.records] == [
        {"jetsocket_pool": "mine", "jetsocket_connection": 7, "jetsocket_reason": "unread"},
        {"jetsocket_pool": "mine", "jetsocket_uri": "ws://a/?k=***"},
        {"jetsocket_pool": "mine"},
        {"jetsocket_pool": "mine", "jetsocket_connection": 8, "jetsocket_uri": "wss://a/"},
    ]


def test_what_a_record_factory_makes_has_them_too(caplog: pytest.LogCaptureFixture) -> None:
    class Record(logging.LogRecord):
        pass

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(Record)
    try:
        log = DeferredLog()
        log.note(logging.WARNING, "[%s] connection %d made room", "mine", 7)
        log.emit()
    finally:
        logging.setLogRecordFactory(before)
    [record] = caplog.records
    assert isinstance(record, Record)
    assert fields(record) == {"jetsocket_pool": "mine", "jetsocket_connection": 7}


@pytest.mark.slow
@pytest.mark.once
def test_the_table_of_log_lines_is_complete() -> None:
    root = Path(__file__).resolve().parent.parent
    lines = {
        re.sub("%[^%]*?[a-z]", "…", node.value).replace("\n", " ")
        for path in (root / "jetsocket").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("[%s] ")
    }
    page = (root / "docs" / "logging.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| [A-Z]+ \| (`+) ?(\[….*?) ?\1 \|", page, re.MULTILINE)
    assert {line for _, line in found} == lines

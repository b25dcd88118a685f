"""The journal: what is noted anywhere is emitted later, as if it had been then."""

from __future__ import annotations

import logging
import threading

import pytest
from jetsocket.journal import Journal

from jetsocket.exceptions import ConnectionClosedError


@pytest.fixture
def rung() -> list[str]:
    return []


@pytest.fixture
def journal(rung: list[str], caplog: pytest.LogCaptureFixture) -> Journal:
    caplog.set_level(logging.DEBUG, "jetsocket")
    return Journal(lambda: rung.append("ring"))


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_what_is_noted_is_emitted_later_with_its_own_place_and_thread(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    thread = threading.Thread(target=journal.note, args=(logging.DEBUG, "came %d", 1), name="returns")
    thread.start()
    thread.join()
    journal.note(logging.DEBUG, "came %d", 2)
    assert caplog.records == []
    journal.emit()
    journal.emit()
    assert texts(caplog) == ["came 1", "came 2"]
    first, second = caplog.records
    assert (first.threadName, first.name) == ("returns", "jetsocket.pool")
    assert second.funcName == "test_what_is_noted_is_emitted_later_with_its_own_place_and_thread"
    assert second.pathname == __file__


def test_how_a_connection_ended(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    journal.note_end(ConnectionClosedError("it is over"))
    journal.emit()
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("jetsocket.wire", "it is over")
    ]


def test_a_warning_wakes_and_has_its_traceback(
    journal: Journal, rung: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    journal.note(logging.DEBUG, "nothing of note")
    assert rung == []
    try:
        raise ZeroDivisionError("s3cr3t of a message")
    except ZeroDivisionError as error:
        journal.note(logging.WARNING, "it failed", failure=error)
    assert rung == ["ring"]
    journal.emit()
    assert "ZeroDivisionError" in caplog.text
    assert "\nZeroDivisionError: s3cr3t" not in caplog.text


def test_what_is_told_comes_behind_what_waits(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    journal.note(logging.DEBUG, "first")
    journal.tell("then %s", "this")
    assert texts(caplog) == ["first", "then this"]
    assert caplog.records[1].funcName == "test_what_is_told_comes_behind_what_waits"


def test_nothing_is_kept_that_nobody_wants(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "jetsocket")
    journal.note(logging.DEBUG, "not wanted")
    journal.tell("nor this")
    caplog.set_level(logging.DEBUG, "jetsocket")
    journal.emit()
    assert caplog.records == []


def test_a_muted_one_tells_nothing(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    journal.note(logging.WARNING, "before")
    journal.muted = True
    journal.note(logging.WARNING, "after")
    journal.tell("nor this")
    journal.emit()
    assert caplog.records == []


def test_its_memory_is_bounded(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(20_000):
        journal.note(logging.DEBUG, "%d", number)
    journal.emit()
    assert len(caplog.records) < 20_000
    assert texts(caplog)[-1] == "19999"

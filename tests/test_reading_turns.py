"""Leader and followers: who reads for whom, and what happens when the one who reads goes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from jetsocket import ConnectionError, InvalidStateError, TimeoutError
from jetsocket.clock import monotonic
from jetsocket.pending_requests import Request
from jetsocket.reading_turns import LOOK_AGAIN, Mailbox, Reading, Turn
from jetsocket.uris import Target, parse
from tests.servers import wait_until


class Struck(BaseException):
    """What kills the one who reads."""


class Table(Reading):
    """A connection without a socket: what comes is put on `coming`, as (mailbox, message)."""

    def __init__(self) -> None:
        super().__init__()
        self.coming: SimpleQueue[Any] = SimpleQueue()
        self.readers: list[int] = []  # each thread that began to read

    @property
    def target(self) -> Target:
        return parse("ws://h/")

    def _read(self, box: Mailbox[Any], deadline: float) -> None:
        self.readers.append(threading.get_ident())
        while not box.has_mail:
            what = self.coming.get(timeout=20)
            if what == "late":
                raise TimeoutError("late", operation="recv", timeout=None)
            if isinstance(what, BaseException):
                raise what
            for_whom, message = what
            for_whom.arrived.append(message)
            for_whom.ring()

    def _send_for(self, box: Mailbox[Any], deadline: float) -> None:
        raise AssertionError("nothing is sent here")

    def _read_what_is_there(self) -> None:
        self.readers.append(threading.get_ident())

    @property
    def waiting(self) -> int:
        return len(self._followers)


class Waiter:
    """A thread that waits for its mailbox."""

    def __init__(self, table: Table, box: Mailbox[Any] | None = None, timeout: float = 20.0) -> None:
        self.box: Mailbox[Any] = Mailbox() if box is None else box
        self.got: Any = None
        self._table, self._timeout = table, timeout
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._table.wait(self.box, monotonic() + self._timeout, "recv")
            self.got = self.box.arrived.popleft() if self.box.arrived else "ended"
        except BaseException as error:  # told by `result`
            self.got = error

    def result(self) -> Any:
        self._thread.join(10)
        assert not self._thread.is_alive(), "it waits still"
        return self.got

    @property
    def ident(self) -> int:
        return self._thread.ident or 0


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No follower finds out anything by itself: it has to be told."""
    monkeypatch.setattr("jetsocket.reading_turns.LOOK_AGAIN", 30.0)


@pytest.fixture
def crowd(table: Table) -> Iterator[list[Waiter]]:
    """One who reads, and three for whom it does."""
    waiters = [Waiter(table)]
    wait_until(lambda: table.is_led)
    for number in range(1, 4):
        waiters.append(Waiter(table))
        wait_until(lambda number=number: table.waiting == number)
    yield waiters
    for waiter in waiters:
        waiter.box.end()
    for _ in waiters:
        table.coming.put("late")
    for waiter in waiters:
        waiter.result()


@pytest.mark.usefixtures("patient")
def test_the_one_who_reads_hands_out_what_comes_and_passes_on_the_lead(
    table: Table, crowd: list[Waiter]
) -> None:
    first, second, third, fourth = crowd
    table.coming.put((third.box, "for the third"))
    assert third.result() == "for the third"
    table.coming.put((first.box, "for the first"))
    assert first.result() == "for the first"
    wait_until(lambda: len(table.readers) == 2)
    assert table.readers[1] == fourth.ident  # who came last
    table.coming.put((second.box, "for the second"))
    table.coming.put((fourth.box, "for the fourth"))
    assert (fourth.result(), second.result()) == ("for the fourth", "for the second")


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("how", ["late", Struck(), ConnectionError("it has ended"), InvalidStateError("x")])
def test_whatever_ends_the_one_who_reads_the_next_one_reads_at_once(
    table: Table, crowd: list[Waiter], how: Any
) -> None:
    table.coming.put(how)
    assert isinstance(crowd[0].result(), TimeoutError if how == "late" else type(how))
    wait_until(lambda: len(table.readers) == 2)
    table.coming.put((crowd[1].box, "it goes on"))
    assert crowd[1].result() == "it goes on"


def test_a_follower_finds_out_by_itself_that_the_one_who_reads_is_gone(table: Table) -> None:
    """An exception has struck it where it could tell no one."""
    gone = Turn()
    table._leader = gone
    waiter = Waiter(table)
    wait_until(lambda: table.waiting == 1)
    gone.is_over = True
    wait_until(lambda: len(table.readers) == 1, LOOK_AGAIN + 10)
    table.coming.put((waiter.box, "read"))
    assert waiter.result() == "read"


@pytest.mark.usefixtures("patient")
def test_threads_at_one_mailbox_each_get_theirs_and_the_lead(table: Table) -> None:
    box: Mailbox[Any] = Mailbox()
    leader = Waiter(table, box)
    wait_until(lambda: table.is_led)
    followers = [Waiter(table, box) for _ in range(3)]
    wait_until(lambda: table.waiting == 3)
    table.coming.put("late")  # it leaves with nothing: another one of the same mailbox reads on
    assert isinstance(leader.result(), TimeoutError)
    wait_until(lambda: len(table.readers) == 2)
    for number in range(3):
        table.coming.put((box, number))
    assert sorted(each.result() for each in followers) == [0, 1, 2]


@pytest.mark.usefixtures("patient")
def test_a_follower_that_leaves_takes_nothing_from_another_at_the_same_mailbox(table: Table) -> None:
    reader, box = Waiter(table), Mailbox[Any]()
    wait_until(lambda: table.is_led)
    stays = Waiter(table, box)
    wait_until(lambda: table.waiting == 1)
    assert isinstance(Waiter(table, box, timeout=0.05).result(), TimeoutError)
    table.coming.put((reader.box, "done"))
    assert reader.result() == "done"
    wait_until(lambda: len(table.readers) == 2)
    table.coming.put((box, "mine"))
    assert stays.result() == "mine"


@pytest.mark.usefixtures("patient")
def test_a_mailbox_that_is_ended_wakes_its_thread(table: Table, crowd: list[Waiter]) -> None:
    crowd[2].box.end(KeyError("why"))
    assert crowd[2].result() == "ended"
    crowd[2].box.end(ValueError("too late"))
    assert isinstance(crowd[2].box.error, KeyError)


def test_a_follower_gives_up_at_its_deadline(table: Table, crowd: list[Waiter]) -> None:
    late = Waiter(table, timeout=0.05)
    error = late.result()
    assert isinstance(error, TimeoutError)
    assert "ws://h/" in str(error)
    assert table.waiting == 3


def test_what_is_there_is_taken_whatever_the_deadline(table: Table, crowd: list[Waiter]) -> None:
    box: Mailbox[Any] = Mailbox()
    box.arrived.append(1)
    table.wait(box, 0.0, "recv")
    assert table.readers == [crowd[0].ident]


def test_who_interrupts_the_one_who_reads_gets_an_error(table: Table) -> None:
    """A signal handler: waiting would be for itself."""

    class Handling(Table):
        def _read(self, box: Mailbox[Any], deadline: float) -> None:
            with pytest.raises(InvalidStateError, match="signal handler"):
                self.wait(Mailbox(), None, "request")
            box.end()

    Handling().wait(Mailbox(), None, "recv")


def test_who_interrupts_it_under_its_lock_does_not_wait_for_itself() -> None:
    told: list[Any] = []

    class Interrupted(Table):
        """A handler runs while its thread, which is about to lead, holds the lock."""

        @property
        def _leader(self) -> Turn | None:
            if self.lock.locked() and not told:
                told.append("in")
                self._leave(Turn(), Mailbox())  # takes no lock
                with pytest.raises(InvalidStateError, match="signal handler"):
                    self.drain()
                told.append("out")
            return self.led_by

        @_leader.setter
        def _leader(self, turn: Turn | None) -> None:
            self.led_by = turn

    table, turn = Interrupted(), Turn()
    assert table._lead(turn, None, "recv") is turn
    assert told == ["in", "out"]


@pytest.mark.usefixtures("patient")
def test_one_that_follows_before_it_has_a_bell_is_told(table: Table, crowd: list[Waiter]) -> None:
    """Most requests never get one, as their thread reads by itself."""
    request = Request()
    assert request._bell is None
    request.ring()
    waiter = Waiter(table, request)
    wait_until(lambda: table.waiting == 4)
    request.arrived.append("its reply")
    request.end()
    assert waiter.result() == "its reply"


@pytest.mark.usefixtures("patient")
def test_what_comes_as_a_follower_hangs_its_bell_is_not_waited_for(table: Table, crowd: list[Waiter]) -> None:
    class Answered(Request):
        """Its reply comes just then: `ring` has found no bell."""

        def hang_bell(self) -> threading.Lock:
            self.arrived.append("its reply")
            self.end()
            return super().hang_bell()

    assert Waiter(table, Answered()).result() == "its reply"


def test_who_listens_without_a_bell_looks_what_has_come() -> None:
    request = Request()
    request.end()
    began = monotonic()
    request.listen(30.0)
    assert monotonic() - began < 10


def test_drain_reads_unless_another_thread_does(table: Table, crowd: list[Waiter]) -> None:
    table.drain()
    assert len(table.readers) == 1
    other = Table()
    other.drain()
    assert len(other.readers) == 1
    assert not other.is_led

"""Look-ups: what the resolver says, and that those which hang do not add up."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import pytest

from jetsocket.wire import dns
from jetsocket.wire.dns import Address, Answer, Mailbox, Question, look_up, resolve
from tests.servers import wait_until

SLOW = Question("slow.test", 80, 0)
PLACE = Address(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))


class Resolver:
    """Answers when it is told to, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.threads: list[int] = []
        self.answers = threading.Event()
        self.outcome: Any = [tuple(PLACE)]
        self.takes = 0.0  # s
        self.strikes = -1  # how many get the outcome, if it is an exception; -1: all

    def getaddrinfo(self, host: str, *_: Any) -> list[Any]:
        self.asked.append(host)
        self.threads.append(threading.get_ident())
        assert self.answers.wait(30)
        time.sleep(self.takes)
        if isinstance(self.outcome, BaseException) and self.strikes:
            self.strikes -= 1
            raise self.outcome
        if isinstance(self.outcome, BaseException):
            return [tuple(PLACE)]
        return self.outcome  # type: ignore[no-any-return]  # whatever the test put there


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch, no_leaked_threads: None) -> Iterator[Resolver]:
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver.getaddrinfo)
    yield resolver
    resolver.answers.set()


@pytest.fixture
def threads(resolver: Resolver) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(60) as threads:
        yield threads
        resolver.answers.set()


def asked(question: Question = SLOW, seconds: float = 20.0, mailbox: Mailbox | None = None) -> Answer | None:
    return resolve(question, mailbox or queue.SimpleQueue(), monotonic() + seconds)


def joined(count: int) -> bool:
    """Whether so many wait for the answer to another's question."""
    inquiry = dns._under_way.get(SLOW)
    return inquiry is not None and len(inquiry._mailboxes) == count


def test_an_address_reads_as_in_a_uri() -> None:
    assert str(PLACE) == "127.0.0.1:80"
    assert str(PLACE._replace(family=socket.AF_INET6, sockaddr=("::1", 80, 0, 0))) == "[::1]:80"
    assert str(PLACE._replace(family=socket.AF_UNIX, sockaddr="/run/x")) == "unix:/run/x"


@pytest.mark.parametrize("host", ["\ud800.test", "a" * 64 + ".test", "no.such.host.invalid"])
def test_an_error_is_an_answer(host: str) -> None:
    answer = look_up(Question(host, 80, 0))
    assert isinstance(answer, (OSError, UnicodeError))
    assert answer.__traceback__ is None


def test_it_is_this_thread_that_asks(resolver: Resolver) -> None:
    resolver.answers.set()
    assert asked() == [PLACE]
    assert resolver.threads == [threading.get_ident()]


def test_who_asks_the_same_meanwhile_gets_the_same_answer(
    resolver: Resolver, threads: ThreadPoolExecutor
) -> None:
    """However many ask for a host whose DNS hangs: one of them hangs, and the others wait."""
    first = threads.submit(asked)
    wait_until(lambda: resolver.asked)
    others = [threads.submit(asked) for _ in range(50)]
    wait_until(lambda: joined(50))
    resolver.answers.set()
    assert [outcome.result(5) for outcome in (first, *others)] == [[PLACE]] * 51
    assert resolver.asked == ["slow.test"]


def test_an_error_goes_to_all_of_them_too(resolver: Resolver, threads: ThreadPoolExecutor) -> None:
    resolver.outcome = socket.gaierror(socket.EAI_AGAIN, "too late")
    first = threads.submit(asked)
    wait_until(lambda: resolver.asked)
    second = threads.submit(asked)
    wait_until(lambda: joined(1))
    resolver.answers.set()
    assert first.result(5) is second.result(5) is resolver.outcome


def test_a_follower_keeps_to_its_own_deadline(resolver: Resolver, threads: ThreadPoolExecutor) -> None:
    first = threads.submit(asked)
    wait_until(lambda: resolver.asked)
    with pytest.raises(queue.Empty):
        asked(seconds=0.1)
    assert not first.done()
    assert resolver.asked == ["slow.test"]


def test_a_follower_can_be_told_to_go(resolver: Resolver, threads: ThreadPoolExecutor) -> None:
    threads.submit(asked)
    wait_until(lambda: resolver.asked)
    mailbox: Mailbox = queue.SimpleQueue()
    second = threads.submit(asked, SLOW, 20.0, mailbox)
    wait_until(lambda: joined(1))
    mailbox.put(None)
    assert second.result(5) is None


def test_where_the_one_that_asks_is_struck_one_of_the_others_asks(
    resolver: Resolver, threads: ThreadPoolExecutor
) -> None:
    """What struck it is its own: it is no answer."""
    resolver.outcome = SystemExit("struck")
    first = threads.submit(asked)
    wait_until(lambda: resolver.asked)
    others = [threads.submit(asked) for _ in range(20)]
    wait_until(lambda: joined(20))
    resolver.strikes = 1
    resolver.answers.set()
    with pytest.raises(SystemExit, match="struck"):
        first.result(5)
    assert [other.result(5) for other in others] == [[PLACE]] * 20
    assert not dns._under_way


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the platform has no timers that signal")
def test_a_signal_handler_does_not_wait_for_the_thread_that_it_interrupts(resolver: Resolver) -> None:
    answers: list[Any] = []

    def handler(*_: Any) -> None:
        resolver.answers.set()
        answers.append(asked(seconds=5.0))

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        assert asked() == [PLACE]
    finally:
        signal.signal(signal.SIGALRM, before)
    assert answers == [[PLACE]]
    assert len(resolver.asked) == 2


def test_other_questions_are_asked_for_themselves(resolver: Resolver, threads: ThreadPoolExecutor) -> None:
    questions = [SLOW, SLOW._replace(port=81), SLOW._replace(family=2), SLOW._replace(host="other.test")]
    for number, question in enumerate(questions, 1):
        threads.submit(asked, question)
        wait_until(lambda number=number: len(resolver.asked) == number)  # type: ignore[misc]  # its default


def test_what_was_answered_is_asked_again(resolver: Resolver) -> None:
    resolver.answers.set()
    for number in range(1, 4):
        assert asked() == [PLACE]
        assert len(resolver.asked) == number
        assert not dns._under_way


def test_a_race_of_joining_and_answering_leaves_no_one_out(resolver: Resolver) -> None:
    resolver.answers.set()
    resolver.takes = 0.0005
    go = threading.Barrier(8)

    def work() -> list[Any]:
        go.wait(10)
        return [asked() for _ in range(200)]

    with ThreadPoolExecutor(8) as threads:
        outcomes = [threads.submit(work) for _ in range(8)]
        assert [outcome.result(50) for outcome in outcomes] == [[[PLACE]] * 200] * 8
    assert len(resolver.asked) < 8 * 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_asks_for_itself(
    resolver: Resolver, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads.submit(asked)
    wait_until(lambda: resolver.asked)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            # Not the Event: a lock in it may have been held at the fork, by a thread that is not here.
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [tuple(PLACE)])
            os._exit(0 if asked(seconds=10.0) == [PLACE] else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

"""Look-ups: what the resolver says, and that those which hang do not add up."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import pytest

from jetsocket.wire import dns
from jetsocket.wire.dns import Address, Mailbox, Question, ask, look_up
from tests.servers import wait_until

SLOW = Question("slow.test", 80, 0)
PLACE = Address(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))


class Resolver:
    """Answers when it is told to, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()
        self.outcome: Any = [tuple(PLACE)]
        self.takes = 0.0  # s

    def getaddrinfo(self, host: str, *_: Any) -> list[Any]:
        self.asked.append(host)
        assert self.answers.wait(30)
        time.sleep(self.takes)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome  # type: ignore[no-any-return]  # whatever the test put there


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch, no_leaked_threads: None) -> Iterator[Resolver]:
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver.getaddrinfo)
    yield resolver
    resolver.answers.set()
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "jetsocket-dns"])


def asked(question: Question = SLOW) -> Mailbox:
    mailbox: Mailbox = queue.SimpleQueue()
    ask(question, mailbox)
    return mailbox


def test_an_address_reads_as_in_a_uri() -> None:
    assert str(PLACE) == "127.0.0.1:80"
    assert str(PLACE._replace(family=socket.AF_INET6, sockaddr=("::1", 80, 0, 0))) == "[::1]:80"
    assert str(PLACE._replace(family=socket.AF_UNIX, sockaddr="/run/x")) == "unix:/run/x"


@pytest.mark.parametrize("host", ["\ud800.test", "a" * 64 + ".test", "no.such.host.invalid"])
def test_an_error_is_an_answer(host: str) -> None:
    answer = look_up(Question(host, 80, 0))
    assert isinstance(answer, (OSError, UnicodeError))
    assert answer.__traceback__ is None


def test_who_asks_the_same_meanwhile_gets_the_same_answer(resolver: Resolver) -> None:
    first = asked()
    wait_until(lambda: resolver.asked)
    others = [asked() for _ in range(50)]
    resolver.answers.set()
    assert [mailbox.get(timeout=5) for mailbox in (first, *others)] == [[PLACE]] * 51
    assert resolver.asked == ["slow.test"]


def test_an_error_goes_to_all_of_them_too(resolver: Resolver) -> None:
    resolver.outcome = socket.gaierror(socket.EAI_AGAIN, "too late")
    first = asked()
    wait_until(lambda: resolver.asked)
    second = asked()
    resolver.answers.set()
    assert first.get(timeout=5) is second.get(timeout=5) is resolver.outcome


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_look_up_that_was_struck_answers_too(resolver: Resolver) -> None:
    resolver.outcome = SystemExit()
    mailbox = asked()
    resolver.answers.set()
    assert "interrupted" in str(mailbox.get(timeout=5))


def test_other_questions_are_asked_for_themselves(resolver: Resolver) -> None:
    questions = [SLOW, SLOW._replace(port=81), SLOW._replace(family=2), SLOW._replace(host="other.test")]
    for number, question in enumerate(questions, 1):
        asked(question)
        wait_until(lambda number=number: len(resolver.asked) == number)  # type: ignore[misc]  # its default


def test_what_was_answered_is_asked_again(resolver: Resolver) -> None:
    resolver.answers.set()
    for number in range(1, 4):
        assert asked().get(timeout=5) == [PLACE]
        assert len(resolver.asked) == number
        wait_until(lambda: not dns._under_way)


def test_one_that_hangs_for_long_is_not_waited_for(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The DNS may answer again, and the resolver not notice before it asks the next time."""
    asked()
    wait_until(lambda: resolver.asked)
    began = monotonic()
    monkeypatch.setattr(dns, "monotonic", lambda: began + 1.0)
    asked()
    wait_until(lambda: len(resolver.asked) == 2)


def test_a_race_of_joining_and_answering_leaves_nobody_out(resolver: Resolver) -> None:
    resolver.answers.set()
    resolver.takes = 0.0005
    go = threading.Barrier(8)

    def work() -> list[Any]:
        go.wait(10)
        return [asked().get(timeout=20) for _ in range(200)]

    with ThreadPoolExecutor(8) as threads:
        outcomes = [threads.submit(work) for _ in range(8)]
        assert [outcome.result(50) for outcome in outcomes] == [[[PLACE]] * 200] * 8
    assert len(resolver.asked) < 8 * 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_asks_for_itself(resolver: Resolver) -> None:
    asked()
    wait_until(lambda: resolver.asked)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            resolver.answers.set()
            os._exit(0 if asked().get(timeout=10) == [PLACE] else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

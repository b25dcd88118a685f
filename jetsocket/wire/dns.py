"""The addresses of a host, from the system's resolver.

Nothing can interrupt `getaddrinfo`: a thread that asks stays until the resolver gives up, half a minute where
the DNS hangs. So a thread that asks what another asks already waits for the same answer, until its own
deadline: at most one thread a host hangs.
"""

from __future__ import annotations

import _socket
import codecs
import queue
import socket
import threading
from collections import deque
from typing import Any, NamedTuple, TypeAlias

from jetsocket.clock import monotonic
from jetsocket.interrupts import is_alarm, suppress
from jetsocket.process_id import PID, getpid
from jetsocket.uris import bracketed
from jetsocket.wire.waits import take

# getaddrinfo wants it; a signal handler that interrupts its first import and connects would not find it.
codecs.lookup("idna")


class Address(NamedTuple):
    """One place to connect to, as `socket.getaddrinfo` tells it."""

    family: int
    type: int
    proto: int
    canonname: str
    sockaddr: Any

    def __str__(self) -> str:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            return f"{bracketed(self.sockaddr[0])}:{self.sockaddr[1]}"
        return f"unix:{self.sockaddr}"


class Question(NamedTuple):
    """What to ask the resolver."""

    host: str
    port: int
    family: int


Answer: TypeAlias = "list[Address] | Exception"
Mailbox: TypeAlias = "queue.SimpleQueue[Answer | None]"
"""Where an answer is put; None ends the waiting for it."""


_OF_IPV4 = (socket.AF_UNSPEC, socket.AF_INET)
_PYTHONS = socket.getaddrinfo if socket.getaddrinfo.__module__ == "socket" else None  # else it is gevent's


def look_up(question: Question) -> Answer:
    """Ask the system's resolver, however long it takes; an error is returned, not raised."""
    try:
        if socket.getaddrinfo is _PYTHONS:  # no other was put in its place: straight to what it calls
            return _ask(question)
        return list(map(Address._make, socket.getaddrinfo(*question, socket.SOCK_STREAM)))
    except (OSError, UnicodeError) as error:
        if is_alarm(error):
            raise
        return error.with_traceback(None)  # its frames lead back to what keeps it


def read_address(question: Question) -> Answer:
    """Do as `look_up` does, where the host is an address: nothing is asked, so it is for any thread."""
    if ":" not in question.host and question.family in _OF_IPV4:  # there is but one answer
        place = (question.host, question.port)
        return [Address(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place)]
    try:
        return _ask(question)
    except (OSError, UnicodeError) as error:
        if is_alarm(error):
            raise
        return error.with_traceback(None)


def _ask(question: Question) -> list[Address]:
    # Not socket.getaddrinfo: that makes enums of the answer, and encodes by IDNA what a Target has encoded
    # already, in code that takes for its own what a signal handler raises.
    host, port, family = question
    found = _socket.getaddrinfo(host.encode("ascii"), port, family, socket.SOCK_STREAM)
    return list(map(Address._make, found))


def resolve(question: Question, mailbox: Mailbox, deadline: float) -> Answer | None:
    """Ask the resolver in this thread, or wait for the answer to one that asks the same.

    Args:
        question: What to ask.
        mailbox: Of this thread, for the answer; None that is put there ends the waiting for another thread's.
        deadline: Until when to wait for another thread's (monotonic, s); one's own can't be ended.

    Returns:
        The answer, an error included; None if the mailbox said so.

    Raises:
        queue.Empty: The deadline passed while another thread was asking.
    """
    while True:
        inquiry = _Inquiry(question)
        under_way = inquiry.run()
        if under_way is None:
            return inquiry.answer
        under_way.join(mailbox)
        answer = take(mailbox, min(deadline - monotonic(), threading.TIMEOUT_MAX))
        if answer is not _INTERRUPTED:
            return answer


class _Inquiry:
    """A question on its way, and who waits for the answer. No lock, for a signal handler may ask, too.

    Attributes:
        answer: None as long as it is on its way.
    """

    def __init__(self, question: Question) -> None:
        self.answer: Answer | None = None
        self._pid = PID[0] or getpid()
        self._thread = threading.get_ident()
        self._question = question
        self._mailboxes: deque[Mailbox] = deque()

    @property
    def may_be_joined(self) -> bool:
        """Whether waiting for its answer makes sense."""
        # Not in a forked child, whose parent has the thread; nor for a signal handler that interrupts that
        # very thread. Nor among gevent's greenlets: another thread's hub would not wake them.
        elsewhere = self._pid == (PID[0] or getpid()) and self._thread != threading.get_ident()
        return elsewhere and threading.Lock.__module__ == "_thread"

    def join(self, mailbox: Mailbox) -> None:
        """Wait for the same answer."""
        # Put first, looked after; `run` does these in the other order, so that one of the two hands it over.
        self._mailboxes.append(mailbox)
        if self.answer is not None:
            self._hand_out(self.answer)

    def run(self) -> _Inquiry | None:
        """Ask, unless another thread asks the same: that inquiry is returned, to be joined.

        Other threads may join meanwhile. If an exception strikes this one, they ask themselves.
        """
        answer: Answer = _INTERRUPTED
        try:
            first = _under_way.setdefault(self._question, self)
            if first is not self:
                if first.may_be_joined:
                    return first
                _under_way[self._question] = self
            answer = look_up(self._question)
            return None
        finally:
            if _under_way.get(self._question) is self:
                _under_way.pop(self._question, None)
            self.answer = answer
            self._hand_out(answer)

    def _hand_out(self, answer: Answer) -> None:
        while self._mailboxes:
            with suppress(IndexError):  # another thread has handed it out
                self._mailboxes.popleft().put(answer)


_INTERRUPTED = OSError("the thread that asked was interrupted")

_under_way: dict[Question, _Inquiry] = {}
"""The latest look-up of each question. Only touched by single calls, which CPython makes atomic."""

"""The addresses of a host, from the system's resolver: in a thread, for nothing can interrupt `getaddrinfo`.

When the DNS hangs, each look-up takes half a minute, and whoever waits gives up long before. So who asks what
is being asked already waits for the same answer, and those threads don't add up.
"""

from __future__ import annotations

import _socket
import codecs
import os
import queue
import socket
import sys
import threading
from collections import deque
from typing import Any, NamedTuple, TypeAlias

from jetsocket.clock import monotonic
from jetsocket.interrupts import is_alarm, raise_alarm_behind, suppress
from jetsocket.uris import bracketed

# getaddrinfo wants it; a signal handler that interrupts its first import and connects would not find it.
codecs.lookup("idna")

_SHARED_FOR = 1.0  # s; a look-up that hangs for longer may miss that the DNS answers again


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
"""Where an answer is put; None is for whoever wants to end the waiting for it."""


def look_up(question: Question) -> Answer:
    """Ask the system's resolver, however long it takes; an error is returned, not raised."""
    try:
        return list(map(Address._make, socket.getaddrinfo(*question, socket.SOCK_STREAM)))
    except (OSError, UnicodeError) as error:
        if is_alarm(error):
            raise
        return error.with_traceback(None)  # its frames lead back to whoever keeps it


def read_address(question: Question) -> Answer:
    """Do as `look_up` does, where the host is an address: nothing is asked, so it is for any thread."""
    host, port, family = question
    try:
        # Not socket.getaddrinfo: that makes enums of the answer, and a host name of the address, in code that
        # takes for its own what a signal handler raises.
        found = _socket.getaddrinfo(host.encode("ascii"), port, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        if is_alarm(error):
            raise
        return error.with_traceback(None)
    return list(map(Address._make, found))


def ask(question: Question, mailbox: Mailbox) -> None:
    """Have the answer put into `mailbox`, sooner or later.

    Raises:
        RuntimeError: This process can start no more threads.
    """
    under_way = _under_way.get(question)
    if under_way is not None and under_way.may_be_joined:
        under_way.join(mailbox)
        return
    inquiry = _Inquiry(question, mailbox)
    if sys.is_finalizing():
        inquiry.run()  # up to Python 3.11, start() would wait for ever for a thread that never runs
        return
    try:
        threading.Thread(target=inquiry.run, name="jetsocket-dns", daemon=True).start()
    except (KeyError, RuntimeError) as error:
        raise_alarm_behind(error)  # that has struck in start(), which loses its count then: a KeyError
        if isinstance(error, KeyError) or threading.main_thread().is_alive():
            raise
        inquiry.run()  # since Python 3.12 none starts once the main one has ended: here, then


class _Inquiry:
    """A question on its way, and all who wait for the answer. No lock, for a signal handler may ask, too."""

    def __init__(self, question: Question, mailbox: Mailbox) -> None:
        self._began = monotonic()
        self._pid = os.getpid()
        self._question = question
        self._mailboxes = deque([mailbox])
        self._answer: Answer | None = None

    @property
    def may_be_joined(self) -> bool:
        """Whether its answer is as good as one that is asked for now."""
        young = monotonic() - self._began < _SHARED_FOR
        # Not in a forked child, whose parent has the thread. Nor among gevent's greenlets: another thread's
        # hub would not wake them.
        return young and self._pid == os.getpid() and threading.Lock.__module__ == "_thread"

    def join(self, mailbox: Mailbox) -> None:
        """Wait for the same answer."""
        # Put first, looked after; `run` does these in the other order, so that one of the two hands it over.
        self._mailboxes.append(mailbox)
        if self._answer is not None:
            self._hand_out(self._answer)

    def run(self) -> None:
        """Ask. From here on, and not before, others may join: this thread runs, so they get their answer."""
        answer: Answer = OSError("the look-up was interrupted")
        try:
            _under_way[self._question] = self
            answer = look_up(self._question)
        finally:
            if _under_way.get(self._question) is self:
                _under_way.pop(self._question, None)
            self._answer = answer
            self._hand_out(answer)

    def _hand_out(self, answer: Answer) -> None:
        with suppress(IndexError):  # that was the last one
            while True:
                self._mailboxes.popleft().put(answer)


_under_way: dict[Question, _Inquiry] = {}
"""The latest look-up of each question. Only touched by single calls, which CPython makes atomic."""

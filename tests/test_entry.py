"""The record of a connection: its moves, its counts, and what it shows.

Also tests: `borrower`.
"""

from __future__ import annotations

import pytest

from jetsocket.connection_states import CHECKING, IDLE, LENT
from jetsocket.entry import Entry, key_of
from jetsocket.uris import parse
from jetsocket.wire.websocket import WebSocket

URI = "ws://u:secret@h/p?token=secret"


def test_ids_are_unique_and_repr_shows_no_secret() -> None:
    entries = [Entry(parse(URI), WebSocket()) for _ in range(3)]
    assert len({entry.id for entry in entries}) == 3
    assert "secret" not in repr(entries[0])
    assert "ws://h/p" in repr(entries[0])


def test_a_key_tells_who_asks() -> None:
    asked = [key_of(parse(f"ws://{who}h/p")) for who in ("", "a:b@", "a:c@")]
    assert len(set(asked)) == 3
    assert key_of(parse("ws://h/p")) == key_of(parse("ws://h:80/p")) != key_of(parse("ws://h/q"))


def test_it_moves_where_the_table_allows_and_nowhere_else() -> None:
    entry = Entry(parse(URI), WebSocket())
    assert entry.place == "opening"
    with pytest.raises(AssertionError, match="can't go from opening to checking"):
        entry.move(CHECKING)
    entry.move(LENT)
    entry.move(IDLE)
    entry.move(CHECKING)
    assert entry.place == CHECKING


def test_what_callbacks_send_and_receive_counts_for_no_borrower() -> None:
    entry = Entry(parse(URI), WebSocket())
    entry.wire.messages_sent, entry.wire.reader.received = 5, 4
    entry.count_from_here()
    assert (entry.sent, entry.received) == (5, 4)
    entry.wire.messages_sent += 2
    entry.forgive()
    assert entry.messages_sent == 5
    assert (entry.sent, entry.received) == (7, 4)
    entry.wire.messages_sent += 1
    assert entry.messages_sent == 6

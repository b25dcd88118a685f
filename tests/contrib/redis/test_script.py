"""What goes to the script and what comes back, as Redis carries it; what it does is in tests/integration."""

from __future__ import annotations

import hashlib

import pytest

pytest.importorskip("redis")

from jetsocket.contrib.redis.script import DIGEST, SOURCE, Answer, Call, inbox_of, prefix_of


def test_all_keys_of_a_group_are_on_one_node_of_a_cluster() -> None:
    keys = Call(name="binance", process="abc").keys()
    assert len(set(keys)) == 10
    assert all(key.startswith("{js:binance}:") for key in keys)
    assert keys[-1] == inbox_of("binance", "abc") == prefix_of("binance") + "in:abc"


def test_times_go_in_milliseconds_and_tokens_at_the_end() -> None:
    call = Call(
        name="n",
        process="p",
        seq=7,
        lease=2.5,
        limit=3,
        turn=0.25,
        ask=4,
        want=1,
        epoch="e",
        whole=True,
        highest=9,
        label="host:1",
        renew=("p:1", "p:2"),
        give_back=("p:3",),
    )
    expected = ["{js:n}:", "sync", "p", 7, 2500, 3, 250, 4, 1, "e", 1, 9, "host:1", 2, "p:1", "p:2", "p:3"]
    assert call.arguments() == expected


def test_an_answer_is_read_as_it_comes() -> None:
    raw = [b"ok", b"17", 20, 12, 3, 1, b"p:9", 2, 700, 300, [b"p:1"], [b"p:u1", b"p:10", b"p:u2", b"-"]]
    assert Answer.of(raw) == Answer(
        epoch="17",
        limit=20,
        count=12,
        mine=3,
        waiting=1,
        granted="p:9",
        duty=2,
        delay=0.7,
        grace=0.3,
        lost=("p:1",),
        adopted={"p:u1": "p:10", "p:u2": "-"},
    )
    with pytest.raises(OSError, match="later call of this process"):
        Answer.of([b"late"])


def test_redis_finds_it_by_the_digest_of_what_is_sent() -> None:
    assert hashlib.sha1(SOURCE.encode()).hexdigest() == DIGEST
    assert SOURCE.startswith("-- The one script")

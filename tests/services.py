"""A service whose messages carry ids, and the correlation that tells its replies: for the tests of both."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from websockets.exceptions import ConnectionClosed

from jetsocket import ConnectionPool
from jetsocket.correlation import Asked, Correlation, NewId
from jetsocket.exceptions import ReplyError
from jetsocket.ids import key_of
from tests.servers import Connection

MakePool: TypeAlias = Callable[..., ConnectionPool[Any]]


class Plain(Correlation):
    """`{"id": n, "do": …}` is answered by `{"id": n, …}`; `{"topic": t, …}` is pushed."""

    def tag(self, message: Any, new_id: NewId) -> tuple[Any, Any]:
        if not isinstance(message, dict):
            raise TypeError(f"a request is a dict, not {type(message).__name__}")
        if message.get("do") == "notify":
            return dict(message), None
        return {**message, "id": new_id.number}, new_id.number

    def untag(self, reply: Any, message: Any) -> Any:
        return {**reply, "id": message["id"]} if "id" in message else reply

    def key(self, message: Any) -> Any:
        return key_of(message.get("id")) if isinstance(message, dict) else None

    def is_last(self, message: Any, asked: Asked) -> bool:
        return "part" not in message

    def error(self, message: Any) -> ReplyError | None:
        if not isinstance(message, dict) or "error" not in message:
            return None
        return ReplyError("refused", message["error"], "no", reply=message)

    def topic(self, message: Any) -> Any:
        return message.get("topic") if isinstance(message, dict) else None

    def topic_of(self, sent: Any, reply: Any) -> Any:
        if sent.get("do") == "subscribe":
            return None if reply is None else reply.get("opened")
        return sent.get("to") if sent.get("do") == "listen" else None

    def is_end(self, message: Any) -> bool:
        return "end" in message

    def unsubscribe(self, topic: Any, sent: Any) -> Any:
        return None if sent.get("endless") else {"do": "unsubscribe", "topic": topic}

    def answer(self, message: Any) -> Any:
        return {"pong": message["ping"]} if isinstance(message, dict) and "ping" in message else None


def service(conn: Connection) -> None:
    """Do what each message says under `do`, and answer it with its id."""
    Service(conn).run()


class Service:
    """One connection of it."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.held: list[Any] = []
        self.sending = threading.Lock()
        self.topics: set[Any] = set()

    def run(self) -> None:
        for text in self.conn:
            message = json.loads(text)
            if isinstance(message, dict):
                getattr(self, "do_" + str(message.get("do", "echo")), self.do_echo)(message)
            else:
                self.say(message)

    def say(self, *messages: Any) -> None:
        with self.sending:
            for each in messages:
                self.conn.send(json.dumps(each))

    def do_echo(self, message: Any) -> None:
        self.say(message)

    def do_notify(self, message: Any) -> None:
        pass

    do_never = do_notify

    def do_fail(self, message: Any) -> None:
        self.say({"id": message["id"], "error": 7})

    def do_twice(self, message: Any) -> None:
        self.say(message, message)

    def do_hold(self, message: Any) -> None:
        self.held.append(message)

    def do_flush(self, message: Any) -> None:
        self.say(*reversed(self.held), message)
        self.held.clear()

    def do_late(self, message: Any) -> None:
        threading.Timer(message["after"], self.try_to_say, [message]).start()

    def try_to_say(self, message: Any) -> None:
        with contextlib.suppress(ConnectionClosed):
            self.say(message)

    def do_parts(self, message: Any) -> None:
        self.say(*({"id": message["id"], "part": n} for n in range(message["parts"])), message)

    def do_push(self, message: Any) -> None:
        self.say(*message["say"], {"id": message.get("id"), "n": message.get("n")})

    def do_subscribe(self, message: Any) -> None:
        topic = message["topic"]
        if message.get("early"):
            self.say(*({"topic": topic, "n": n} for n in range(message["early"])))
        self.topics.add(topic)
        self.say({"id": message["id"], "opened": topic})
        self.say(*({"topic": topic, "n": n} for n in range(message.get("early", 0), message.get("count", 0))))
        if message.get("end"):
            self.say({"topic": topic, "end": True} | ({"error": 9} if message["end"] == "error" else {}))

    do_listen = do_notify

    def do_unsubscribe(self, message: Any) -> None:
        topic = message["topic"]
        self.topics.discard(topic)
        self.say({"topic": topic, "n": "one more"}, {"id": message["id"]}, {"topic": topic, "n": "late"})

    def do_ping(self, message: Any) -> None:
        self.say({"ping": 1})

    def do_close(self, message: Any) -> None:
        self.conn.close(int(message.get("code", 1000)))

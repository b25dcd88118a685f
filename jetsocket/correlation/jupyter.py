"""Jupyter kernels, through the WebSocket of a Jupyter server or kernel gateway."""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from jetsocket.correlation.base import Asked, Correlation, NewId, Topics
from jetsocket.correlation.jupyter_wire import V1, pack_default, pack_v1, unpack_binary, unpack_v1
from jetsocket.correlation.reading import member, needs_object, reply_error, text_of, with_member
from jetsocket.exceptions import ReplyError

__all__ = ["Jupyter"]

_VERSION = "5.3"  # of the messages
_COMM = ("comm_open", "comm_msg", "comm_close")
_PARTS = frozenset({"channel", "parent_header", "metadata", "buffers", "content"})
_HEADER = frozenset({"username", "session", "date", "version", "msg_id", "msg_type"})
_CHANNELS = {
    "input_reply": "stdin",
    "interrupt_request": "control",
    "shutdown_request": "control",
    "debug_request": "control",
}


class Jupyter(Correlation):
    """Jupyter kernels, through the WebSocket of a Jupyter server or kernel gateway.

    The messages are those of https://jupyter-client.readthedocs.io/en/stable/messaging.html, their forms on
    the wire those of https://jupyter-server.readthedocs.io/en/latest/developers/websocket-protocols.html.
    What a message leaves out is filled in::

        with ConnectionPool(base_uri="ws://127.0.0.1:8888", correlation=Jupyter()) as pool:
            with pool.acquire(f"/api/kernels/{kernel}/channels") as conn:
                for message in conn.stream(
                    {"header": {"msg_type": "execute_request"}, "content": {"code": "print(6 * 7)"}}
                ):
                    if message["header"]["msg_type"] == "stream":
                        print(message["content"]["text"])

    - **Many messages to a request**: what carries its `msg_id` in the `parent_header`. `stream` yields each:
      outputs, status, reply. `request` returns the `…_reply`; outputs are *not* in it. A reply with the
      status "error" or "aborted" raises `ReplyError`, with the exception's name as its code, its text, and
      the traceback as `data`.
    - **The end of a request** is its reply *and* `status: idle`, in whichever order they come. A reply to
      `shutdown_request` is the end (the kernel may be gone before it is idle), an "aborted" one (of older
      kernels) too. What is printed after the end, by a thread of the kernel's, goes to `on_push`.
    - **Message ids** are unique across processes: a kernel publishes the outputs of all its clients to each.
    - **`input()`** in a kernel sends an `input_request` into the `stream` of the request, and waits for
      `conn.send({"header": {"msg_type": "input_reply"}, "content": {"value": …}})`. `request` can't answer,
      so `allow_stdin` is false unless you say otherwise.
    - **Comms**: `subscribe` with a `comm_open` gets the messages of that comm until either side closes it.
      They never belong to a request, though they name one as their parent: the one that ran last. Where
      no subscription is open they go to `on_push`. To a `comm_msg` no reply comes; `request` waits until it
      is processed.
    - **On the wire**: `v1.kernel.websocket.jupyter.org` where the server has it, with `buffers` as a list of
      bytes; else JSON, or binary for messages with buffers.
    """

    subprotocols: Sequence[str] = (V1,)

    def __init__(self, session: str | None = None) -> None:
        """Make one for any number of pools.

        Args:
            session: The session in the headers of messages that name none; None: a new one.
        """
        self._session = uuid.uuid4().hex if session is None else session

    # --- on the wire

    def encode(self, message: Any, subprotocol: str | None) -> str | bytes | None:
        """A message with all that it may leave out, in the form that the server takes."""
        if isinstance(message, (str, bytes, bytearray, memoryview)):
            return None
        given = needs_object(message, "a Jupyter message")
        whole = given if _is_whole(given) else self._completed(given)
        return pack_v1(whole) if subprotocol == V1 else pack_default(whole)

    def decode(self, payload: str | bytes, subprotocol: str | None) -> Any | None:
        """The message of a binary payload; None: it is JSON."""
        if isinstance(payload, str):
            return None
        return unpack_v1(payload) if subprotocol == V1 else unpack_binary(payload)

    # --- requests

    def tag(self, message: Any, new_id: NewId) -> tuple[Any, Hashable | None]:
        """Fill in what the message leaves out, with our id."""
        sent = self._completed(needs_object(message, "a Jupyter message"), new_id.text)
        kind = _kind(sent)
        if kind == "comm_open" and member(sent, "content", "comm_id") is None:
            sent = with_member(sent, new_id.text, "content", "comm_id")
        return sent, None if kind == "input_reply" else new_id.text

    def _completed(self, message: Mapping[str, Any], msg_id: str | None = None) -> dict[str, Any]:
        """A copy with every part there is, and an id; without one of ours, what it has or a new one."""
        given = message.get("header")
        kind = member(given, "msg_type")
        if not isinstance(given, Mapping) or not isinstance(kind, str):
            raise ValueError("a Jupyter message names its type: header.msg_type")
        header = {
            "username": "",
            "session": self._session,
            "date": datetime.now(timezone.utc).isoformat(),
            "version": _VERSION,
            **given,
        }
        header["msg_id"] = msg_id or header.get("msg_id") or uuid.uuid4().hex
        content = message.get("content") or {}
        if kind == "execute_request":
            content = {"allow_stdin": False, **content}
        return {
            "channel": _CHANNELS.get(kind, "shell"),
            "parent_header": {},
            "metadata": {},
            "buffers": [],
            **message,
            "header": header,
            "content": content,
        }

    def asks(self, message: Any) -> Hashable | None:
        """The id of a message that is sent as it is."""
        if _kind(message) == "input_reply":
            return None
        return text_of(member(message, "header", "msg_id")) or None

    def key(self, message: Any) -> Hashable | None:
        """The id of the request that a message was caused by; None for those of comms."""
        if _kind(message) in _COMM:
            return None
        return text_of(member(message, "parent_header", "msg_id")) or None

    def is_last(self, message: Any, asked: Asked) -> bool:
        """Whether both have come: the reply, and that the kernel is idle."""
        kind, asked_kind, notes = _kind(message), _kind(asked.sent), asked.notes
        if kind == "status" and member(message, "content", "execution_state") == "idle":
            notes["idle"] = True
        elif kind.endswith("_reply"):
            notes["reply"] = True
            if asked_kind == "shutdown_request" or member(message, "content", "status") == "aborted":
                return True
        return "idle" in notes and ("reply" in notes or asked_kind in _COMM)

    def error(self, message: Any) -> ReplyError | None:
        """A reply that says that the request has failed."""
        content = member(message, "content")
        status = member(content, "status")
        if not _kind(message).endswith("_reply") or status not in ("error", "aborted"):
            return None
        name, text = content.get("ename"), content.get("evalue")
        return reply_error(name or status, text, data=content.get("traceback"), reply=message)

    def result(self, replies: Sequence[Any], asked: Asked) -> Any:
        """The `…_reply`; without one, the last message."""
        return next((each for each in reversed(replies) if _kind(each).endswith("_reply")), replies[-1])

    def untag(self, reply: Any, message: Any) -> Any:
        """Put the caller's message id back."""
        given = member(message, "header", "msg_id")
        if given is None or member(reply, "parent_header", "msg_id") is None:
            return reply
        return with_member(reply, given, "parent_header", "msg_id")

    # --- comms

    def topic(self, message: Any) -> Topics:
        """The comm that a message belongs to."""
        comm = text_of(member(message, "content", "comm_id"))
        return ("comm", comm) if comm and _kind(message) in _COMM else None

    def topic_of(self, sent: Any, reply: Any) -> Topics:
        """The comm that is opened, at once: the kernel's first messages on it may come before it is idle."""
        return self.topic(sent) if _kind(sent) == "comm_open" else None

    def is_end(self, message: Any) -> bool:
        """The kernel has closed the comm."""
        return _kind(message) == "comm_close"

    def unsubscribe(self, topic: Hashable, sent: Any) -> Any | None:
        """Close the comm."""
        comm = topic[1] if isinstance(topic, tuple) else None
        return {"header": {"msg_type": "comm_close"}, "content": {"comm_id": comm, "data": {}}}


def _is_whole(message: Mapping[str, Any]) -> bool:
    """Whether it has all that `tag` fills in."""
    header = message.get("header")
    return isinstance(header, Mapping) and message.keys() >= _PARTS and header.keys() >= _HEADER


def _kind(message: object) -> str:
    return text_of(member(message, "header", "msg_type"))

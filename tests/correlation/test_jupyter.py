"""Jupyter: conversations with a kernel from its messaging document, and what traps they hold."""

from __future__ import annotations

import itertools
import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket.correlation import Asked, Jupyter, NewId
from jetsocket.correlation.jupyter_wire import V1, pack_default, pack_v1, unpack_v1
from jetsocket.exceptions import DecodeError, ReplyError
from tests.correlation.driver import Conversation
from tests.correlation.garbage import messages, nested, never_raises

JUPYTER = Jupyter("the-session")
EXECUTE = {"header": {"msg_type": "execute_request"}, "content": {"code": "print(6 * 7)"}}

every_form = pytest.mark.parametrize("subprotocol", [V1, None, ""])


def talk(subprotocol: str | None = V1) -> Conversation:
    return Conversation(JUPYTER, subprotocol=subprotocol)


class Kernel:
    """What a kernel sends on behalf of one request, in the form of one subprotocol."""

    def __init__(self, request: str, subprotocol: str | None = V1) -> None:
        self._parent = {"msg_id": request, "msg_type": "…_request"} if request else {}
        self._subprotocol = subprotocol

    def says(self, kind: str, channel: str = "iopub", **content: Any) -> Any:
        message = {
            "channel": channel,
            "header": {"msg_id": "kernel-1", "msg_type": kind},
            "parent_header": self._parent,
            "metadata": {},
            "content": content,
        }
        return pack_v1(message) if self._subprotocol == V1 else pack_default(message)

    def is_(self, state: str) -> Any:
        return self.says("status", execution_state=state)

    def replies(self, kind: str = "execute_reply", status: str = "ok", **content: Any) -> Any:
        return self.says(kind, "shell", status=status, **content)


def kinds(messages: list[Any]) -> list[str]:
    return [message["header"]["msg_type"] for message in messages]


# --- requests


@every_form
def test_a_request_is_over_when_it_is_replied_to_and_the_kernel_idle(subprotocol: str | None) -> None:
    """https://jupyter-client.readthedocs.io/en/stable/messaging.html#request-reply"""
    conversation = talk(subprotocol)
    call = conversation.ask(EXECUTE)
    kernel = Kernel("c0ffee1", subprotocol)
    conversation.comes(
        kernel.is_("busy"),
        kernel.says("execute_input", code="print(6 * 7)", execution_count=1),
        kernel.says("stream", name="stdout", text="42\n"),
        kernel.replies(execution_count=1),
    )
    assert not call.done, "not idle yet: more outputs may follow"
    conversation.comes(kernel.is_("idle"))
    assert call.result(JUPYTER)["content"] == {"status": "ok", "execution_count": 1}
    assert kinds(call.replies) == ["status", "execute_input", "stream", "execute_reply", "status"]


def test_the_reply_may_come_after_idle() -> None:
    """They come over two sockets of the kernel's."""
    conversation = talk()
    call = conversation.ask(EXECUTE)
    kernel = Kernel("c0ffee1")
    conversation.comes(kernel.is_("busy"), kernel.is_("idle"))
    assert not call.done
    conversation.comes(kernel.replies(execution_count=1))
    assert call.result(JUPYTER)["header"]["msg_type"] == "execute_reply"


@every_form
def test_a_message_is_filled_in(subprotocol: str | None) -> None:
    conversation = talk(subprotocol)
    conversation.ask(EXECUTE)
    (sent,) = conversation.out
    header = sent.pop("header")
    datetime.fromisoformat(header.pop("date"))
    assert header == {
        "msg_id": "c0ffee1",
        "msg_type": "execute_request",
        "session": "the-session",
        "username": "",
        "version": "5.3",
    }
    sent.pop("buffers", None)
    assert sent == {
        "channel": "shell",
        "parent_header": {},
        "metadata": {},
        "content": {"code": "print(6 * 7)", "allow_stdin": False},
    }


def test_what_a_message_says_itself_stays() -> None:
    conversation = talk()
    message = {
        "channel": "control",
        "header": {"msg_type": "kernel_info_request", "session": "mine", "username": "me", "date": "now"},
        "parent_header": {"msg_id": "p"},
        "metadata": {"a": 1},
        "content": {"b": 2},
        "buffers": [b"x"],
    }
    conversation.ask(message)
    (sent,) = conversation.out
    assert sent == {**message, "header": {**message["header"], "version": "5.3", "msg_id": "c0ffee1"}}  # type: ignore[dict-item]  # it is one


@pytest.mark.parametrize(
    ("kind", "channel"),
    [
        ("complete_request", "shell"),
        ("shutdown_request", "control"),
        ("interrupt_request", "control"),
        ("debug_request", "control"),
        ("input_reply", "stdin"),
        ("comm_msg", "shell"),
    ],
)
def test_a_message_goes_to_its_channel(kind: str, channel: str) -> None:
    assert JUPYTER.tag({"header": {"msg_type": kind}}, NewId(1, "a"))[0]["channel"] == channel


def test_ids_are_unique_across_processes() -> None:
    """A kernel publishes the outputs of every client to each: a number would be another's, too."""
    sent, key = JUPYTER.tag(
        {**EXECUTE, "header": {"msg_type": "execute_request", "msg_id": "1"}}, NewId(7, "unique")
    )
    assert key == sent["header"]["msg_id"] == "unique"
    conversation = talk()
    call = conversation.ask(EXECUTE)
    other = Kernel("another client's")
    conversation.comes(
        other.says("stream", text="x"), other.replies(), other.is_("idle"), Kernel("").is_("starting")
    )
    assert not call.replies and len(conversation.unasked) == 4


def test_the_caller_s_message_id_comes_back() -> None:
    conversation = talk()
    call = conversation.ask({**EXECUTE, "header": {"msg_type": "execute_request", "msg_id": "mine"}})
    kernel = Kernel("c0ffee1")
    conversation.comes(kernel.is_("idle"), kernel.replies())
    assert call.result(JUPYTER)["parent_header"]["msg_id"] == "mine"
    assert JUPYTER.untag(call.replies[0], EXECUTE)["parent_header"]["msg_id"] == "c0ffee1"


def test_requests_are_interleaved_and_their_outputs_not_mixed() -> None:
    conversation = talk()
    calls = [conversation.ask(EXECUTE) for _ in range(3)]
    kernels = [Kernel(f"c0ffee{number}") for number in (1, 2, 3)]
    for kernel, number in zip(kernels, itertools.count(), strict=False):
        conversation.comes(kernel.says("stream", text=str(number)))
    for kernel in reversed(kernels):
        conversation.comes(kernel.replies(), kernel.is_("idle"))
    assert [call.replies[0]["content"]["text"] for call in calls] == ["0", "1", "2"]
    assert all(call.done for call in calls)


def test_a_failed_execution_raises_what_the_kernel_raised() -> None:
    conversation = talk()
    call = conversation.ask(EXECUTE)
    kernel = Kernel("c0ffee1")
    error = {"ename": "ZeroDivisionError", "evalue": "division by zero", "traceback": ["a", "b"]}
    conversation.comes(
        kernel.says("error", **error),
        kernel.replies(status="error", execution_count=1, **error),
        kernel.is_("idle"),
    )
    with pytest.raises(ReplyError, match="ZeroDivisionError: division by zero") as caught:
        call.result(JUPYTER)
    assert (caught.value.code, caught.value.data) == ("ZeroDivisionError", ["a", "b"])
    assert kinds(call.replies) == ["error", "execute_reply", "status"], "each comes from a stream"


def test_an_aborted_request_is_over_though_older_kernels_are_not_idle_after_it() -> None:
    conversation = talk()
    call = conversation.ask(EXECUTE)
    conversation.comes(Kernel("c0ffee1").replies(status="aborted"))
    with pytest.raises(ReplyError, match="aborted") as caught:
        call.result(JUPYTER)
    assert caught.value.code == "aborted"


def test_a_kernel_that_is_shut_down_need_not_become_idle() -> None:
    conversation = talk()
    call = conversation.ask({"header": {"msg_type": "shutdown_request"}, "content": {"restart": False}})
    conversation.comes(Kernel("c0ffee1").replies("shutdown_reply", restart=False))
    assert call.result(JUPYTER)["content"]["restart"] is False


def test_what_is_printed_after_the_end_is_nobody_s_reply() -> None:
    """By a thread of the kernel's: its parent is the request that ran last."""
    conversation = talk()
    call = conversation.ask(EXECUTE)
    kernel = Kernel("c0ffee1")
    conversation.comes(kernel.replies(), kernel.is_("idle"), kernel.says("stream", text="late"))
    assert call.done and kinds(conversation.unasked) == ["stream"]


def test_input_is_asked_for_in_the_stream_and_answered_without_a_reply() -> None:
    conversation = talk()
    call = conversation.ask({**EXECUTE, "content": {"code": "input()", "allow_stdin": True}})
    assert conversation.out[0]["content"]["allow_stdin"] is True
    kernel = Kernel("c0ffee1")
    conversation.comes(kernel.is_("busy"), kernel.says("input_request", "stdin", prompt="? ", password=False))
    assert kinds(call.replies) == ["status", "input_request"] and not call.done
    answer = conversation.ask({"header": {"msg_type": "input_reply"}, "content": {"value": "42"}})
    assert conversation.out[-1]["channel"] == "stdin" and answer.done
    conversation.comes(kernel.replies(), kernel.is_("idle"))
    assert call.done


def test_only_executions_are_told_that_nobody_answers_input() -> None:
    sent, _ = JUPYTER.tag(
        {"header": {"msg_type": "complete_request"}, "content": {"code": "pr"}}, NewId(1, "a")
    )
    assert sent["content"] == {"code": "pr"}


@pytest.mark.parametrize("other", [None, 1, True, "", "C0FFEE1", ["c0ffee1"]])
def test_a_key_is_strict(other: Any) -> None:
    assert JUPYTER.key({"header": {"msg_type": "status"}, "parent_header": {"msg_id": other}}) in (
        None,
        "C0FFEE1",
    )


def test_what_was_sent_as_it_is_asks_for_its_id() -> None:
    header = {"msg_id": "x", "msg_type": "execute_request"}
    assert JUPYTER.asks({"header": header}) == JUPYTER.key({"parent_header": header}) == "x"
    assert JUPYTER.asks({"header": {**header, "msg_type": "input_reply"}}) is None


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("text", TypeError),
        ([], TypeError),
        ({}, ValueError),
        ({"header": {}}, ValueError),
        ({"header": {"msg_type": 1}}, ValueError),
        ({"header": "x"}, ValueError),
    ],
)
def test_what_is_no_message_is_a_wrong_argument(message: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        JUPYTER.tag(message, NewId(1, "a"))


def test_a_session_is_made_where_none_is_given() -> None:
    sessions = {Jupyter().tag(EXECUTE, NewId(1, "a"))[0]["header"]["session"] for _ in range(2)}
    assert len(sessions) == 2


# --- comms

OPEN = {
    "header": {"msg_type": "comm_open"},
    "content": {"comm_id": "u-u-i-d", "target_name": "my_comm", "data": {}},
}


def test_a_comm_is_a_subscription() -> None:
    conversation = talk()
    feed = conversation.subscribe(OPEN)
    assert feed.topics == [("comm", "u-u-i-d")], "open at once: the kernel may send on it before it is idle"
    kernel = Kernel("c0ffee1")
    conversation.comes(kernel.says("comm_msg", comm_id="u-u-i-d", data={"n": 1}))
    conversation.comes(kernel.says("comm_msg", comm_id="another", data={}))
    assert [each["content"]["data"] for each in feed.pushes] == [{"n": 1}]
    assert len(conversation.unasked) == 1
    (call,) = conversation.unsubscribe(feed)
    closed = conversation.out[-1]
    assert closed["header"]["msg_type"] == "comm_close" and closed["content"]["comm_id"] == "u-u-i-d"
    conversation.comes(Kernel("c0ffee2").is_("busy"), Kernel("c0ffee2").is_("idle"))
    assert call.done, "to a message of a comm no reply comes, but that it was processed"


def test_a_comm_that_is_given_no_id_gets_one() -> None:
    sent, _ = JUPYTER.tag(
        {"header": {"msg_type": "comm_open"}, "content": {"target_name": "t"}}, NewId(1, "a")
    )
    assert sent["content"] == {"target_name": "t", "comm_id": "a"}


def test_the_kernel_closes_a_comm() -> None:
    conversation = talk()
    feed = conversation.subscribe(OPEN)
    conversation.comes(Kernel("c0ffee1").says("comm_close", comm_id="u-u-i-d", data={}))
    assert feed.ended and feed.error is None


def test_messages_of_comms_never_belong_to_the_request_that_is_their_parent() -> None:
    """A widget's is the cell that ran last, which may be over or not."""
    conversation = talk()
    feed = conversation.subscribe(OPEN)
    call = conversation.ask(EXECUTE)
    kernel = Kernel("c0ffee2")
    conversation.comes(kernel.says("comm_msg", comm_id="u-u-i-d", data={"n": 1}))
    conversation.comes(kernel.says("comm_open", comm_id="new", target_name="jupyter.widget", data={}))
    conversation.comes(
        kernel.replies(), kernel.is_("idle"), kernel.says("comm_msg", comm_id="u-u-i-d", data={"n": 2})
    )
    assert [each["content"]["data"] for each in feed.pushes] == [{"n": 1}, {"n": 2}]
    assert kinds(call.replies) == ["execute_reply", "status"]
    assert kinds(conversation.unasked) == ["comm_open"]


# --- on the wire


def test_v1_is_offered() -> None:
    assert JUPYTER.subprotocols == ("v1.kernel.websocket.jupyter.org",)


def test_what_is_sent_as_it_is_is_filled_in_too() -> None:
    payload = JUPYTER.encode({"header": {"msg_type": "input_reply"}, "content": {"value": "42"}}, V1)
    assert isinstance(payload, bytes)
    message = unpack_v1(payload)
    assert message["channel"] == "stdin" and message["header"]["msg_id"]
    text = JUPYTER.encode({"header": {"msg_type": "input_reply"}}, None)
    assert isinstance(text, str) and json.loads(text)["channel"] == "stdin"


@pytest.mark.parametrize("payload", ["text", b"raw", bytearray(b"raw"), memoryview(b"raw")])
def test_payloads_are_left_to_the_pool(payload: Any) -> None:
    assert JUPYTER.encode(payload, V1) is None


def test_a_message_with_buffers_is_binary_without_v1_too() -> None:
    payload = JUPYTER.encode({**EXECUTE, "buffers": [b"\x00"]}, None)
    assert isinstance(payload, bytes)
    decoded = JUPYTER.decode(payload, None)
    assert decoded is not None and decoded["buffers"] == [b"\x00"]


@every_form
def test_text_is_json_whatever_the_subprotocol(subprotocol: str | None) -> None:
    assert JUPYTER.decode("{}", subprotocol) is None


@every_form
def test_a_payload_that_is_broken_is_a_decode_error(subprotocol: str | None) -> None:
    with pytest.raises(DecodeError):
        JUPYTER.decode(b"\x00\x01", subprotocol)


# --- whatever may come

ASKED = [
    (EXECUTE, {**EXECUTE, "header": {"msg_type": "execute_request", "msg_id": "x"}}),
    (OPEN, {**OPEN, "header": {"msg_type": "comm_open", "msg_id": "x"}}),
    ({"header": {"msg_type": "shutdown_request"}}, {"header": {"msg_type": "shutdown_request"}}),
]


@given(messages, st.sampled_from(ASKED))
def test_whatever_comes_is_looked_at_without_an_exception(message: Any, asked: Any) -> None:
    never_raises(JUPYTER, message, Asked(*asked, 1))
    JUPYTER.unsubscribe("t", message)


@given(st.fixed_dictionaries({"header": messages, "parent_header": messages, "content": messages}))
def test_whatever_its_parts_are_a_message_is_looked_at_without_an_exception(message: Any) -> None:
    never_raises(JUPYTER, message, *(Asked(*asked, 1) for asked in ASKED))


def test_what_is_nested_deeply_is_no_trouble() -> None:
    never_raises(JUPYTER, nested())
    never_raises(JUPYTER, {"header": {"msg_type": "x_reply"}, "content": nested(), "parent_header": nested()})

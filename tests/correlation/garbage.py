"""Messages that fit no shape, and what a correlation must do with them: not raise."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from typing import Any

from hypothesis import strategies as st

from jetsocket.correlation import Asked, Correlation
from jetsocket.correlation.reading import topics_of
from jetsocket.exceptions import JetSocketError


def _split(text: str) -> list[str]:
    return text.split()


# Names and words that mean something in one of the protocols, so that garbage gets as far as it can.
_NAMES = """
    id method params result error jsonrpc code message data subscription channel sessionId type payload event
    success op d requestId requestStatus eventIntent eventType requestType header parent_header msg_id
    msg_type content metadata status execution_state comm_id args arg stream topic symbol req_id reqId name
    challenge salt authentication rpcVersion comment buffers value err targetInfo
"""
_WORDS = """
    subscribe unsubscribe next error complete ping pong connection_ack result event auth_ok auth_required
    auth_invalid subscription eth_subscription success status idle execute_reply comm_msg comm_close iopub
    shell signatureNotification heartbeat test_request session.subscribe log.entryAdded
    Target.detachedFromTarget
"""

_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 12)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(_split(_WORDS))
    | st.sampled_from(
        ["x" * 5000, 10**400, -1, 2**53 + 1, "c0ffee1[0]", "c0ffee1[", "c0ffee1[99999999999999]"]
    )
)
_names = st.sampled_from(_split(_NAMES)) | st.text(max_size=5)

messages = st.recursive(
    _leaves | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names, inner, max_size=6),
    max_leaves=40,
)
"""Whatever JSON can say, and bytes."""


def nested(depth: int = 900) -> Any:
    """JSON as deep as it can be read."""
    return json.loads('{"params":[' * (depth // 2) + "]}" * (depth // 2))


def never_raises(correlation: Correlation, message: Any, *asked: Asked) -> None:
    """Ask all that is asked about what a server sends."""
    for each in correlation.split(message):
        assert isinstance(correlation.key(each), Hashable)
        hash(correlation.key(each))
        for request in asked:
            request.replies += 1
            assert correlation.is_last(each, request) in (True, False)
            _result(correlation, [each], request)
        error = correlation.error(each)
        assert error is None or (isinstance(error, JetSocketError) and str(error) and repr(error))
        for topic in topics_of(correlation.topic(each)):
            hash(topic)
        assert correlation.is_end(each) in (True, False)
        correlation.answer(each)
    hash(correlation.asks(message))


def _result(correlation: Correlation, replies: Sequence[Any], asked: Asked) -> None:
    result = correlation.result(replies, asked)
    correlation.untag(result, asked.message)
    for topic in topics_of(correlation.topic_of(asked.sent, result)):
        hash(topic)

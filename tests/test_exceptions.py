"""The tree of errors: what catches what, what each carries, and that it survives a trip between processes."""

from __future__ import annotations

import builtins
import copy
import json
import pickle
from collections.abc import Callable

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig, exceptions
from jetsocket.exceptions import (
    ConnectionClosedError,
    DecodeError,
    HandshakeError,
    InvalidStateError,
    JetSocketError,
    MessageTooBigError,
    PoolClosedError,
    PoolExhaustedError,
    ProtocolError,
    ReplyError,
    SubscriptionOverflowError,
)
from tests.servers import EchoServer

EXAMPLES: list[JetSocketError] = [
    JetSocketError("m"),
    exceptions.ConnectionError("m"),
    HandshakeError("m", status_code=401, headers={"WWW-Authenticate": "Basic"}, body=b"no"),
    ConnectionClosedError("m", code=1011, reason="oops"),
    ProtocolError("m", code=1002),
    MessageTooBigError("m", limit=10, size=11),
    exceptions.TimeoutError("m", operation="recv", timeout=1.5),
    PoolExhaustedError(
        "m", max_connections=3, timeout=2.0, waiting=4, idle=1, last_connect_error=OSError(111, "no")
    ),
    PoolClosedError("m"),
    InvalidStateError("m", current_state="released", required_states=("lent",)),
    DecodeError("m", payload=b"\xff"),
    ReplyError("m", code=-32601, message="no such method", data={"method": "x"}, reply={"id": 1}),
    SubscriptionOverflowError("m", dropped=3),
]


def _facts(error: JetSocketError) -> dict[str, object]:
    """Attributes, with exceptions in them by their repr: exceptions have no equality."""
    return {key: repr(value) if isinstance(value, Exception) else value for key, value in vars(error).items()}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_survives_a_trip(error: JetSocketError) -> None:
    pickled = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(6)]
    for arrived in (*pickled, copy.copy(error), copy.deepcopy(error)):
        assert type(arrived) is type(error)
        assert arrived.args == error.args
        assert str(arrived) == "m"
        assert _facts(arrived) == _facts(error)


# What does not go with `args`: it may be secret, and `args` end up in logs and databases.
PRIVATE = {"headers", "body", "payload", "data", "reply"}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_can_be_made_of_its_message(error: JetSocketError) -> None:
    arrived = type(error)("m")
    assert str(arrived) == "m"
    assert vars(arrived).keys() == vars(error).keys()


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_made_anew_of_its_args_states_the_same_facts(error: JetSocketError) -> None:
    """As Celery does with what its JSON serializer has left of one."""
    arrived = type(error)(*json.loads(json.dumps(error.args)))
    assert (str(arrived), repr(arrived)) == (str(error), repr(error))
    assert json.dumps(arrived.args) == json.dumps(error.args)
    facts, expected = vars(arrived), vars(error)
    assert facts.keys() == expected.keys()
    for name in facts.keys() - PRIVATE - {"last_connect_error"}:
        assert facts[name] == expected[name]
    for name in facts.keys() & PRIVATE:
        assert not facts[name]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_the_fields_of_the_system_s_errors_stay_empty(error: JetSocketError) -> None:
    """OSError takes two arguments or more for a number and a text of the system's."""
    arrived = type(error)(*error.args)
    for each in (error, arrived, copy.copy(error)):
        if isinstance(each, OSError):
            assert (each.errno, each.strerror, each.filename) == (None, None, None)


def test_a_last_connect_error_of_ours_can_be_made_anew_of_args() -> None:
    refused = HandshakeError("refused", status_code=503, headers={"Set-Cookie": "secret"}, body=b"secret")
    args = _exhausted(refused).args
    assert "secret" not in repr(args)
    arrived = PoolExhaustedError(*json.loads(json.dumps(args))).last_connect_error
    assert isinstance(arrived, HandshakeError)
    assert (str(arrived), arrived.status_code) == ("refused", 503)


def test_of_a_foreign_last_connect_error_args_keep_the_type_only() -> None:
    args = _exhausted(OSError(111, "secret")).args
    assert "secret" not in repr(args)
    arrived = PoolExhaustedError(*json.loads(json.dumps(args))).last_connect_error
    assert str(arrived).startswith("ConnectionRefusedError; ")


def test_what_args_hold_of_a_close_reason_is_fit_to_be_shown() -> None:
    error = ConnectionClosedError("m", code=1011, reason="a\x1b[31m\r\nb" + "x" * 500)
    assert error.reason.startswith("a\x1b[31m\r\nb")
    assert error.args[:2] == ("m", 1011)
    assert error.args[2].startswith("a?[31m  bxx") and len(error.args[2]) == 200


@pytest.mark.parametrize("timeout", [float("inf"), float("nan")])
def test_args_hold_no_number_that_json_has_no_word_for(timeout: float) -> None:
    error = exceptions.TimeoutError("m", operation="recv", timeout=timeout)
    assert json.dumps(error.args, allow_nan=False) == '["m", "recv", null]'


def test_who_would_wait_for_ever_and_is_refused_is_told_in_what_json_can_carry(echo: EchoServer) -> None:
    config = ConnectionPoolConfig(max_connections=1, max_waiting=0)
    with (
        ConnectionPool[object](config, base_uri=echo.uri) as pool,
        pool.acquire("/"),
        pytest.raises(PoolExhaustedError) as caught,
    ):
        pool.acquire("/", float("inf"))
    assert caught.value.timeout is None
    json.dumps(caught.value.args, allow_nan=False)


def test_what_args_hold_of_a_reply_s_text_is_fit_to_be_shown() -> None:
    error = ReplyError("m", "a\x1b" + "x" * 500, "b\r\n" + "y" * 500, data="secret", reply={"id": "secret"})
    assert error.code == "a\x1b" + "x" * 500
    assert error.message == "b\r\n" + "y" * 500
    assert error.args[1].startswith("a?xx") and len(error.args[1]) == 200
    assert error.args[2].startswith("b  yy") and len(error.args[2]) == 200
    assert "secret" not in repr(error.args) + str(error) + repr(error)


@pytest.mark.parametrize("travel", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_a_reply_that_can_not_travel_stays_behind(travel: Callable[[ReplyError], ReplyError]) -> None:
    error = ReplyError("m", 7, "said", data=[1], reply=lambda: None)
    arrived = travel(error)
    assert (arrived.code, arrived.message, arrived.data, arrived.reply) == (7, "said", [1], None)
    assert callable(error.reply)


def test_an_error_without_a_text_of_the_server_s_says_its_own() -> None:
    assert ReplyError("no such symbol").message == "no such symbol"


def test_facts_that_are_set_later_are_in_args_too() -> None:
    error = exceptions.TimeoutError("m", operation="connect", timeout=0.7)
    error.timeout = 2.0
    assert error.args == ("m", "connect", 2.0)
    error.args = ("more", *error.args[1:])
    assert (str(error), copy.copy(error).args) == ("more", ("more", "connect", 2.0))


class Worded(ConnectionClosedError):
    """A subclass of a user's, with arguments and words of its own."""

    def __init__(self) -> None:
        super().__init__("m", 4000, "r")

    def __str__(self) -> str:
        return f"worded: {super().__str__()}"


@pytest.mark.parametrize(
    "travel", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))]
)
def test_the_words_of_a_subclass_are_not_taken_for_its_message(
    travel: Callable[[JetSocketError], JetSocketError],
) -> None:
    arrived = travel(Worded())
    assert str(arrived) == "worded: m"
    assert arrived.args == ("m", 4000, "r")
    assert vars(arrived) == {"code": 4000, "reason": "r"}


def test_every_public_error_has_an_example() -> None:
    assert {type(error).__name__ for error in EXAMPLES} == set(exceptions.__all__)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_text_and_repr_are_the_message_only(error: JetSocketError) -> None:
    assert str(error) == "m"
    assert repr(error) == f"{type(error).__name__}('m')"


@pytest.mark.parametrize(
    ("error", "caught_by"),
    [
        (HandshakeError("m"), exceptions.ConnectionError),
        (HandshakeError("m"), builtins.ConnectionError),
        (ConnectionClosedError("m", code=1006), exceptions.ConnectionError),
        (ProtocolError("m"), exceptions.ConnectionError),
        (MessageTooBigError("m", limit=1), OSError),
        (exceptions.TimeoutError("m"), builtins.TimeoutError),
        (exceptions.TimeoutError("m"), JetSocketError),
        (PoolExhaustedError("m", max_connections=1, timeout=0.0), JetSocketError),
    ],
)
def test_caught_by(error: JetSocketError, caught_by: type[BaseException]) -> None:
    with pytest.raises(caught_by):
        raise error


def test_a_timeout_is_no_connection_error() -> None:
    assert not isinstance(exceptions.TimeoutError("m"), builtins.ConnectionError)


@pytest.mark.parametrize(
    ("code", "normal"), [(1000, True), (1001, True), (1002, False), (1006, False), (4000, False)]
)
def test_normal_closes(code: int, normal: bool) -> None:
    assert ConnectionClosedError("m", code=code).is_normal is normal


def test_defaults() -> None:
    assert (HandshakeError("m").status_code, HandshakeError("m").headers, HandshakeError("m").body) == (
        None,
        {},
        b"",
    )
    assert exceptions.TimeoutError("m").operation == "unknown"
    assert MessageTooBigError("m", limit=1).code == 1009
    assert InvalidStateError("m", current_state="x", required_states=["a"]).required_states == ("a",)


def test_a_last_connect_error_that_cannot_be_pickled_travels_as_its_text() -> None:
    foreign = RuntimeError("boom", lambda: None)
    arrived = pickle.loads(pickle.dumps(_exhausted(foreign)))
    assert isinstance(arrived.last_connect_error, JetSocketError)
    assert "RuntimeError" in str(arrived.last_connect_error)
    assert "boom" in str(arrived.last_connect_error)


def test_an_exhausted_pool_without_a_connect_error_travels_too() -> None:
    error = PoolExhaustedError("m", max_connections=1, timeout=1.0)
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


def test_a_last_connect_error_of_ours_travels_whole() -> None:
    arrived = pickle.loads(pickle.dumps(_exhausted(HandshakeError("m", status_code=503))))
    assert arrived.last_connect_error.status_code == 503


def _exhausted(cause: BaseException) -> PoolExhaustedError:
    return PoolExhaustedError("m", max_connections=1, timeout=1.0, last_connect_error=cause)

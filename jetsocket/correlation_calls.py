"""What a pool's correlation says of messages, and the codec with it: pure, and safe from what a server sends.

A correlation may be the user's, and a server may send anything: what one raises over the other is caught
here, and the message belongs to no asker then.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, NamedTuple, TypeAlias

from jetsocket.correlation.base import Asked, Correlation, NewId
from jetsocket.correlation.reading import topics_of
from jetsocket.exceptions import JetSocketError, ReplyError
from jetsocket.interrupts import is_alarm
from jetsocket.messages import Codec
from jetsocket.user_errors import told

Payload: TypeAlias = str | bytes


class Part(NamedTuple):
    """One message that has come; of a frame there may be several."""

    payload: Payload | None
    """The frame, if it is this one message; None: one of several."""
    message: Any
    """What the codec read of it, before `message_type`; `UNREADABLE` if it could not."""


UNREADABLE: Final = object()


class SeveralError(Exception):
    """A frame is not one message."""


def strict(key: Hashable) -> Hashable:
    """A key as it is compared: `True` is not 1, "7" not 7; but 7.0 is 7, as JSON has only numbers."""
    kind = type(key)
    if kind is int or kind is str or key is None:
        return key
    if kind is float and key.is_integer():  # type: ignore[attr-defined]  # `kind` says that it is a float
        return int(key)  # type: ignore[call-overload,no-any-return]  # likewise
    if kind is tuple:
        return tuple(strict(each) for each in key)  # type: ignore[attr-defined]  # likewise a tuple
    return (kind, key)


def each_topic(value: Hashable | Iterable[Hashable] | None) -> list[Hashable]:
    """The topics that a correlation names, as they are compared."""
    return [strict(each) for each in topics_of(value)]


class Matching:
    """The correlation of a pool, with the codec of its messages. Stateless; all connections share it.

    Attributes:
        correlation: The user's, perhaps.
        codec: The pool's.
        answers: Whether the protocol wants some messages answered at once.
        cancels: Whether it can tell the server that a request was given up.
        has_topics: Whether it has subscriptions.
        takes_last: Whether a request returns the last of its replies.
        read_one: Reads the one message of a frame, or raises: what the codec does, or as there are several;
            None: `parts` is to be asked.
        write: Makes the text of a message that is a dict; None: `encode` is to be asked.
        configures: Whether it greets or logs in on a new connection.
        heartbeat: What is sent after a while of silence; None: nothing but a ping.
    """

    def __init__(self, correlation: Correlation, codec: Codec[Any]) -> None:
        """Look at messages as this correlation does."""
        self.correlation = correlation
        self.codec = codec
        kind, base = type(correlation), Correlation
        self._splits = kind.split is not base.split
        self._decodes = kind.decode is not base.decode
        self._encodes = kind.encode is not base.encode
        read = self._read_unsplit if self._splits else codec.read
        self.read_one: Callable[[Payload], Any] | None = None if self._decodes else read
        self.write: Callable[[Any], str] | None = None if self._encodes else codec.write_dict
        self.answers = kind.answer is not base.answer
        self.cancels = kind.cancel is not base.cancel
        self.has_topics = kind.topic is not base.topic
        self.takes_last = kind.result is base.result
        self.configures = kind.configure is not base.configure
        beat = correlation.heartbeat
        self.heartbeat = None if beat is None else self.encode(beat, None)

    # --- out -------------------------------------------------------------------------------------------

    def tag(self, message: Any, new_id: NewId) -> Asked:
        """What is sent for a request, and the key of its reply; whatever the correlation raises comes out."""
        sent, key = self.correlation.tag(message, new_id)
        if type(key) is not int and type(key) is not str and key is not None:
            key = strict(key)
        return Asked(message, sent, key)

    def asks(self, message: Any) -> Hashable | None:
        """The key of the reply that a message expects which is sent as it is; None: of none."""
        try:
            key = self.correlation.asks(message)
            hash(key)
        except Exception as error:  # of the correlation, over a message of any form
            if is_alarm(error, users_code=True):
                raise
            return None
        return None if key is None else strict(key)

    def encode(self, message: Any, subprotocol: str | None) -> Payload:
        """The payload of a message.

        Raises:
            TypeError: It can't be serialized; so does ValueError, and whatever a serializer raises.
        """
        if self._encodes and (payload := self.correlation.encode(message, subprotocol)) is not None:
            if isinstance(payload, (str, bytes)):
                return payload
            raise TypeError(f"{type(self.correlation).__name__}.encode must return str, bytes or None")
        return self.codec.encode(message)

    def read(self, payload: Payload, subprotocol: str | None) -> Any:
        """What a payload of the caller's says; None if it can't be read."""
        parts = self.parts(payload, subprotocol)
        return parts[0].message if len(parts) == 1 and parts[0].message is not UNREADABLE else None

    # --- in --------------------------------------------------------------------------------------------

    def parts(self, payload: Payload, subprotocol: str | None) -> list[Part]:
        """The messages in a frame."""
        try:
            return self._parts(payload, subprotocol)
        except Exception as error:  # whatever a codec or a correlation makes of what came
            if is_alarm(error, users_code=True):
                raise
            return [Part(payload, UNREADABLE)]

    def _parts(self, payload: Payload, subprotocol: str | None) -> list[Part]:
        message = self.correlation.decode(payload, subprotocol) if self._decodes else None
        if message is None:
            message = self.codec.read(payload)
        if self._splits:
            parts = list(self.correlation.split(message))
            if len(parts) != 1 or parts[0] is not message:
                return [Part(None, part) for part in parts]
        return [Part(payload, message)]

    def _read_unsplit(self, payload: Payload) -> Any:
        message = self.codec.read(payload)
        parts = self.correlation.split(message)
        if type(parts) is tuple and len(parts) == 1 and parts[0] is message:
            return message
        raise SeveralError

    def why_unreadable(self, payload: Payload, subprotocol: str | None) -> str:
        """Why a frame can't be read, to be told: without what is in it."""
        try:
            self._parts(payload, subprotocol)
        except Exception as error:
            if is_alarm(error, users_code=True):
                raise
            return told(error)
        return "it could be, a second time"

    def value_of(self, message: Any, uri: str) -> Any:
        """What the user gets of a message: itself, or what `message_type` makes of it.

        Raises:
            DecodeError: That could not be made.
        """
        return self.codec.typed(message, uri=uri)

    def outcome(self, replies: list[Any], asked: Asked) -> Any:
        """What a request returns.

        Raises:
            ReplyError: One of the replies is an error.
        """
        correlation = self.correlation
        for reply in replies:
            if (error := correlation.error(reply)) is not None:
                raise self._own(_as_reply_error(error, reply), reply, asked)
        reply = replies[-1] if self.takes_last else correlation.result(replies, asked)
        return correlation.untag(reply, asked.message)

    def error_in(self, reply: Any, asked: Asked | None = None) -> ReplyError | None:
        """The error that a reply is; None: it is none. `asked`: the request whose caller is to get it."""
        error = self.correlation.error(reply)
        if error is None:
            return None
        found = _as_reply_error(error, reply)
        return found if asked is None else self._own(found, reply, asked)

    def _own(self, error: ReplyError, reply: Any, asked: Asked) -> ReplyError:
        """An error for its caller, whose own id is put back into the reply that it shows."""
        if error.reply is reply:
            try:
                error.reply = self.correlation.untag(reply, asked.message)
            except Exception as failure:  # of the correlation, over a reply of any form: it stays as it came
                if is_alarm(failure, users_code=True):
                    raise
        return error


def _as_reply_error(error: JetSocketError, reply: Any) -> ReplyError:
    if isinstance(error, ReplyError):
        return error
    wrapped = ReplyError(f"the server answered with an error: {told(error)}", reply=reply)
    wrapped.__cause__ = error
    return wrapped


__all__ = ["UNREADABLE", "Matching", "Part", "SeveralError", "each_topic", "strict"]

"""Between values and what goes over the wire: JSON by default, a model type or the user's own functions.

pydantic is imported only when a ``message_type`` needs it, msgspec when a pool is made; their types are
recognised by their marks, without an import.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar

from jetsocket.exceptions import DecodeError
from jetsocket.interrupts import is_alarm, raise_alarm_behind
from jetsocket.text import with_rule
from jetsocket.user_errors import as_told, place_of
from jetsocket.wire.redaction import raise_alone

__all__ = ["Codec", "Deserializer", "Serializer", "payload_of"]

T = TypeVar("T")
Payload: TypeAlias = str | bytes
Serializer: TypeAlias = Callable[[Any], Payload]
Deserializer: TypeAlias = Callable[[Payload], T]
Describe: TypeAlias = Callable[[Exception], str]


class Codec(Generic[T]):
    """Turns values into payloads and back. Holds no state; threads may share one."""

    __slots__ = ("_describe", "_deserialize", "_serialize", "as_given", "is_json", "is_typed", "read_json")

    def __init__(
        self,
        serialize: Serializer,
        deserialize: Deserializer[T],
        describe: Describe | None = None,
        read_json: Deserializer[Any] | None = None,
        *,
        as_given: bool = True,
        is_typed: bool = False,
    ) -> None:
        """Put a codec together.

        Args:
            serialize: Makes ``str`` (text) or ``bytes`` (binary) of a value.
            deserialize: Makes a value of a payload; whatever it raises becomes a ``DecodeError``.
            describe: Says what an error of ``deserialize`` means, without quoting the payload.
            read_json: Reads JSON, to look into messages; `is_json` tells if it is ``deserialize``.
            as_given: Whether ``serialize`` writes a dict as JSON, with the keys and values that it has.
            is_typed: Whether ``deserialize`` makes values of a message type, from JSON.
        """
        self._serialize = serialize
        self._deserialize = deserialize
        self._describe = describe or _describe_nothing
        self.read_json = read_json or _loads
        self.as_given = as_given
        self.is_typed = is_typed
        self.is_json = deserialize is self.read_json

    @staticmethod
    def for_options(
        serializer: Serializer | None, deserializer: Deserializer[Any] | None, message_type: Any | None
    ) -> Codec[Any]:
        """Choose the codec for a pool's options; a function of the user's wins over ``message_type``.

        Args:
            serializer: The user's, or None.
            deserializer: The user's, or None.
            message_type: A pydantic model, a msgspec Struct, a dataclass or a TypedDict; or None.

        Returns:
            The codec; JSON where nothing is given.

        Raises:
            TypeError: ``message_type`` is of no supported kind.
            ImportError: The library it needs is missing; the message names the extra.
        """
        read = _json_reader()
        base = Codec(_json_text, read, _describe_json) if message_type is None else _typed_codec(message_type)
        return Codec(
            serializer or base._serialize,
            deserializer or base._deserialize,
            None if deserializer else base._describe,
            read,
            as_given=serializer is None or serializer is json.dumps,
            is_typed=message_type is not None and deserializer is None,
        )

    def encode(self, data: Any) -> Payload:
        """Make the payload of a message.

        Args:
            data: ``str`` and bytes-like objects are sent as they are; the serializer gets anything else.

        Returns:
            ``str`` for a text message, ``bytes`` for a binary one.

        Raises:
            TypeError: No serialisable value, or a serializer that returned neither ``str`` nor ``bytes``.
            ValueError: No serialisable value (a circular reference). A user's serializer may raise others.
        """
        if isinstance(data, (str, bytes)):
            return data
        if isinstance(data, (bytearray, memoryview)):
            return bytes(data)
        payload = self._serialize(data)
        if not isinstance(payload, (str, bytes)):
            raise TypeError(
                f"the serializer must return str (sent as text) or bytes (sent as binary), "
                f"not {type(payload).__name__}; nothing was sent"
            )
        return payload

    @property
    def write_dict(self) -> Callable[[dict[str, Any]], str] | None:
        """What `encode` makes of a dict: its JSON, by the default; None: ask `encode`."""
        return _json_text if self._serialize is _json_text else None

    def decode(self, payload: Payload, *, uri: str = "") -> T:
        """Make the value of a message.

        Args:
            payload: The message: ``str`` for text, ``bytes`` for binary.
            uri: Where it came from (redacted), for the error message.

        Returns:
            What the deserializer makes of it.

        Raises:
            DecodeError: The deserializer failed. The message tells the size and, for a message type, what is
                wrong with which of its fields, but never the content, which is in ``payload``. The cause has
                the type of what was raised and the frames of the user's code, and no text of its own.
        """
        try:
            return self._deserialize(payload)
        except Exception as error:  # noqa: BLE001 - whatever the user's code or a library raises
            self._fail(error, payload, uri)

    @property
    def read(self) -> Deserializer[Any]:
        """Makes the value of a message before a message type: to look for what it answers.

        It raises whatever the deserializer does.
        """
        return self.read_json if self.is_typed else self._deserialize

    def typed(self, value: Any, *, uri: str = "") -> T:
        """What `decode` makes of a message that `read` has read, and that may have been changed since.

        Raises:
            DecodeError: It does not fit the message type.
        """
        return self.decode(_json_text(value), uri=uri) if self.is_typed else value

    def decoder(self, uri: str) -> Callable[[Payload], T]:
        """`decode` as a function, for the many messages that come from one place."""
        deserialize, fail = self._deserialize, self._fail
        kind: object = deserialize
        if kind is str and not sys.flags.bytes_warning:  # then it fails for nothing that comes
            return deserialize

        def decode(payload: Payload) -> T:
            try:
                return deserialize(payload)
            except Exception as error:  # noqa: BLE001 - as in `decode`
                fail(error, payload, uri)

        return decode

    def _fail(self, error: Exception, payload: Payload, uri: str) -> NoReturn:
        """Raise what an error of the deserializer means; to be called in the `except` clause."""
        try:
            raise_alarm_behind(error, users_code=True)
            if isinstance(error, DecodeError):  # the user's deserializer says it in its own words
                raise_alone(error, _cause_of(error))
            told = _decode_message(payload, uri, error, self._describe)
            raise_alone(DecodeError(told, payload=payload), as_told(error))
        finally:
            del error  # this frame may be in its traceback: a cycle, which would keep a lease


def _cause_of(error: DecodeError) -> BaseException | None:
    """What led to an error of the user's, as it may be told."""
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None if earlier is None else as_told(earlier)


def _decode_message(payload: Payload, uri: str, error: Exception, describe: Describe) -> str:
    what = f"text message of {len(payload)} characters"
    if isinstance(payload, bytes):
        what = f"binary message of {len(payload)} bytes"
    origin = f" from {uri}" if uri else ""
    why = describe(error)
    if not why:
        place = place_of(error)
        why = f"the deserializer raised {type(error).__name__}" + (f" in {place}" if place else "")
    return f"{what}{origin} could not be decoded: {why}; recv_raw() returns messages undecoded"


def _describe_nothing(_error: Exception) -> str:
    """Say nothing: the text of an unknown error may quote the payload."""
    return ""


def payload_of(data: object, binary: bool | None) -> tuple[str | bytes, bool | None]:
    """What `send_raw` sends, and whether as text (True), as binary (False), or by its type (None)."""
    if isinstance(data, (bytearray, memoryview)):
        data = bytes(data)
    if not isinstance(data, (str, bytes)):
        raise TypeError(f"send_raw takes str or bytes, not {type(data).__name__}; send() serializes")
    if binary is None:
        return data, None
    if not isinstance(binary, bool):
        raise TypeError(f"binary must be True, False or None, not {binary!r}")
    if not binary and isinstance(data, bytes):
        data.decode("utf-8")  # anything else as text would end the connection (RFC 6455 §8.1)
    return data, not binary


# --- JSON, the default


# What json.dumps(data, ensure_ascii=False) does, without making an encoder for each message. msgspec is not
# used here: it writes other bytes (no spaces, NaN as null) and takes other types.
_json_text = json.JSONEncoder(ensure_ascii=False).encode


def _json_reader() -> Deserializer[Any]:
    """What `json.loads` does, or msgspec's reader where it is installed: the same values in less time."""
    try:
        import msgspec
    except ImportError:
        return _loads
    read, unreadable = msgspec.json.decode, (msgspec.DecodeError, UnicodeDecodeError)

    def loads(payload: Payload) -> Any:
        try:
            return read(payload)
        except unreadable as error:
            if is_alarm(error):
                raise
            # NaN, lone surrogates, UTF-16: json takes more; and if it does not, the error is its own
        return json.loads(payload)

    return loads


_raw_decode = json.JSONDecoder().raw_decode


def _loads(payload: Payload) -> Any:
    """`json.loads` in half its time: without its look for spaces before and behind the value."""
    if isinstance(payload, str):
        try:
            value, end = _raw_decode(payload)
        except ValueError as error:
            if is_alarm(error):
                raise
            # json.loads says what is wrong, if anything is
        else:
            if end == len(payload):
                return value
    return json.loads(payload)


def _describe_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        said = error.msg.partition(":")[0]  # what is behind a colon is of the message
        return f"no valid JSON: {said} at index {error.pos}"
    return f"no valid JSON ({type(error).__name__})"


# --- message types


def _typed_codec(message_type: Any) -> Codec[Any]:
    """Choose the library by what the type is; pydantic's own types are checked by pydantic."""
    if isinstance(message_type, type):
        if hasattr(message_type, "__pydantic_validator__"):  # pydantic 2: its models and its dataclasses
            return _pydantic_codec(message_type)
        if hasattr(message_type, "__struct_fields__"):
            return _msgspec_codec(message_type)
        if dataclasses.is_dataclass(message_type) or _is_typeddict(message_type):
            return _plain_class_codec(message_type)
    rule = "message_type must be a pydantic 2 model, a msgspec Struct, a dataclass or a TypedDict"
    hint = "; for any other type give a deserializer"
    raise with_rule(TypeError(f"{rule}, not {message_type!r}{hint}"), rule + hint)


def _is_typeddict(kind: type) -> bool:
    # typing.is_typeddict does not know those of typing_extensions.
    return issubclass(kind, dict) and hasattr(kind, "__required_keys__")


def _plain_class_codec(kind: type) -> Codec[Any]:
    try:
        return _msgspec_codec(kind)
    except ImportError:
        pass  # pydantic reads them as well
    try:
        return _pydantic_codec(kind)
    except ImportError as error:
        raise ImportError(
            f'message_type={kind.__qualname__} needs msgspec: pip install "jetsocket[msgspec]"'
        ) from error


def _msgspec_codec(kind: type) -> Codec[Any]:
    import msgspec

    def encode(data: Any) -> str:
        if hasattr(data, "__struct_fields__") or dataclasses.is_dataclass(data):
            return msgspec.json.encode(data).decode()
        return json.dumps(data, ensure_ascii=False, default=msgspec.to_builtins)

    from jetsocket.decode_errors import describe_msgspec

    return Codec(encode, msgspec.json.Decoder(kind).decode, describe_msgspec(kind))


def _pydantic_codec(kind: type) -> Codec[Any]:
    import pydantic
    import pydantic_core

    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(kind)
    except pydantic.PydanticUserError as error:  # typing.TypedDict before Python 3.12, for one
        raise_alarm_behind(error)
        raise TypeError(f"message_type={kind.__qualname__} cannot be read by pydantic: {error}") from error

    def encode(data: Any) -> str:
        if isinstance(data, pydantic.BaseModel):
            return data.model_dump_json()
        if dataclasses.is_dataclass(data):
            return pydantic_core.to_json(data).decode()
        return json.dumps(data, ensure_ascii=False, default=pydantic_core.to_jsonable_python)

    from jetsocket.decode_errors import describe_pydantic

    return Codec(encode, adapter.validate_json, describe_pydantic(adapter))

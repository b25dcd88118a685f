"""Which reply belongs to which request: what a protocol is asked, and the answers of one without ids."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

from jetsocket.exceptions import JetSocketError

__all__ = ["Asked", "Correlation", "NewId", "Opened", "Topics"]

Topics: TypeAlias = Hashable | Iterable[Hashable] | None
"""One topic, or several in a list or set; None: none. What can be hashed is *one*: a tuple, too."""


class NewId:
    """An id for a request, unused so far: for `Correlation.tag`, which takes the number or the text.

    Attributes:
        number: Grows on each connection, in the order in which requests are sent: from 1, and from 2**30 once
            a lease has sent an id of its own there.
    """

    __slots__ = ("_prefix", "_text", "number")

    def __init__(self, number: int, text: str) -> None:
        """For tests of a correlation; the pool makes those that it sends."""
        self.number = number
        self._text: str | None = text
        self._prefix = ""

    @property
    def text(self) -> str:
        """Unique across connections and processes."""
        if self._text is None:  # made when it is asked for: most protocols take the number
            self._text = f"{self._prefix}-{self.number}"
        return self._text

    def __repr__(self) -> str:
        """Both."""
        return f"<{type(self).__name__} {self.number}, {self.text!r}>"


class Asked:
    """A request under way.

    Attributes:
        message: As the caller gave it.
        sent: As it went out: with an id of ours.
        key: What its replies are told by.
        replies: How many have come.
        notes: What its correlation has to remember of it.
    """

    __slots__ = ("key", "message", "notes", "replies", "sent")

    def __init__(self, message: Any, sent: Any, key: Hashable) -> None:
        """Begin with no reply."""
        self.message = message
        self.sent = sent
        self.key = key
        self.replies = 0
        self.notes: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r}, replies: {self.replies}>"


class Opened(Protocol):
    """A connection that has just been opened: all that `configure` uses of it."""

    def send(self, data: Any, /) -> None:
        """Send one message."""

    def recv(self) -> Any:
        """Receive whatever comes next, decoded."""


class Correlation:
    """Which reply belongs to which request, and which push to which subscription.

    The base of the protocols in this package, and of your own. It is asked about messages and keeps nothing,
    so that one object serves all connections and threads of a pool: what must be remembered of a request
    lives in `Asked.notes`. Only `configure` does I/O.

    Every method has a default. As it stands, this class knows neither replies nor topics: whatever comes is
    `on_push`'s. A protocol with one id field is `ById`, or a few lines::

        class Ticket(Correlation):
            def tag(self, message, new_id):
                return {**message, "ticket": new_id.number}, new_id.number

            def key(self, message):
                return key_of(message.get("ticket")) if isinstance(message, dict) else None

    **Keys** compare as Python's values do: return `key_of` of what a message carries, or `True` is `1`.
    **Whatever may come, comes**: text, numbers, lists, None. A method that raises, or returns what can't be
    hashed, sends that message to `on_push`.

    Attributes:
        subprotocols: Offered in the handshake where ``manager_kwargs`` names none.
        heartbeat: A message for services that want one; sent after `health_check_interval` of silence. None:
            the ping of WebSocket will do.
    """

    subprotocols: Sequence[str] = ()
    heartbeat: Any = None

    # --- a connection, and what goes over it as a whole ------------------------------------------------

    def configure(self, conn: Opened) -> None:
        """Say hello on a new connection, and log in; runs before the user's `configure`.

        Args:
            conn: The connection. Its `recv` gives whatever comes, in order.
        """

    def encode(self, message: Any, subprotocol: str | None) -> str | bytes | None:
        """The payload of a message: `str` for text, `bytes` for binary; None: as the pool writes it.

        Args:
            message: What `tag` made, or what `send` was given.
            subprotocol: Which one the server has chosen.
        """
        return None

    def decode(self, payload: str | bytes, subprotocol: str | None) -> Any | None:
        """The value of a payload; None: as the pool reads it.

        Args:
            payload: `str` for text, `bytes` for binary.
            subprotocol: Which one the server has chosen.

        Raises:
            DecodeError: It is broken.
        """
        return None

    def split(self, message: Any) -> Iterable[Any]:
        """The messages in one frame, in order."""
        return (message,)

    def answer(self, message: Any) -> Any | None:
        """What the protocol wants sent back at once, as for its own pings; None: nothing.

        A message that is answered goes nowhere else.
        """
        return None

    # --- requests --------------------------------------------------------------------------------------

    def tag(self, message: Any, new_id: NewId) -> tuple[Any, Hashable | None]:
        """A copy of a request that carries our id, and the key of its reply.

        Args:
            message: What the caller gave. It stays as it is.
            new_id: The id.

        Returns:
            What to send, and the key; None for that: no reply will come.

        Raises:
            TypeError: No message of this protocol.
            ValueError: Likewise.
        """
        return message, None

    def asks(self, message: Any) -> Hashable | None:
        """Which reply a message expects that goes out as it is (`send`): its key, or None."""
        return self.key(message)

    def key(self, message: Any) -> Hashable | None:
        """Which request a message answers; None: none."""
        return None

    def is_last(self, message: Any, asked: Asked) -> bool:
        """Whether no more replies to this request follow; asked once of each reply, in order of arrival."""
        return True

    def error(self, message: Any) -> JetSocketError | None:
        """The error that a message is, or None.

        Asked of every reply; the first error is raised after the last reply. Also asked of what ends a
        subscription.
        """
        return None

    def result(self, replies: Sequence[Any], asked: Asked) -> Any:
        """What `request` returns; of all replies, of which there is at least one."""
        return replies[-1]

    def untag(self, reply: Any, message: Any) -> Any:
        """A reply with the caller's own id put back.

        Where the caller gave none, a reply keeps the id that it came with: it has the shape that the protocol
        says, and a `message_type` may ask for.

        Args:
            reply: One reply, or what `result` made of several. It stays as it is.
            message: What the caller gave.
        """
        return reply

    def cancel(self, asked: Asked) -> Any | None:
        """What tells the server that a request was given up, so that its other replies are not sent.

        Asked when a caller waits no longer (its time is over, a stream was left), and once more where that
        could not be sent and another reply comes. It has no reply, and the request gets none then.

        Args:
            asked: The request, whose last reply has not come.

        Returns:
            The message, sent as it is; None: there is none, and what still comes is dropped.
        """
        return None

    # --- subscriptions ---------------------------------------------------------------------------------

    def topic(self, message: Any) -> Topics:
        """Which subscriptions a push belongs to."""
        return None

    def topic_of(self, sent: Any, reply: Any) -> Topics:
        """Which topics a subscription opens.

        Args:
            sent: The message that subscribes, as it went out.
            reply: Its reply, or None while none has come: topics that are known then are open at once, and no
                reply is waited for. For a subscribe that is acknowledged several times, what `result` made.
        """
        return None

    def is_end(self, message: Any) -> bool:
        """Whether a push says that the server has ended the subscriptions that it belongs to."""
        return False

    def unsubscribe(self, topic: Hashable, sent: Any) -> Any | None:
        """What ends a subscription to one topic, as a request; None: only the end of the connection does.

        Args:
            topic: One of those that `topic_of` named.
            sent: The message that subscribed, as it went out.
        """
        return None

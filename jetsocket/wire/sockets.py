"""The socket under a stream, its options, and what stands in for it once the stream is closed."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from typing import TypeAlias

from jetsocket.interrupts import is_alarm, suppress

Option: TypeAlias = "tuple[int, int, int | bytes]"
"""Level, name and value, as `setsockopt` takes them."""


class Socket(socket.socket):
    """A socket that closes without a word when the last reference to it goes."""

    # Not a function of Python's: a Ctrl-C that comes inside one would be swallowed, and the descriptor lost.
    __del__ = socket.SocketType.close


class ClosedSocket:
    """What stands in for the socket of a closed stream: every call fails as on a closed descriptor."""

    def recv(self, size: int) -> bytes:
        """Fail."""
        raise OSError(errno.EBADF, "the stream is closed")

    def send(self, data: bytes | memoryview, flags: int) -> int:
        """Fail."""
        raise OSError(errno.EBADF, "the stream is closed")

    def shutdown(self, how: int) -> None:
        """Do nothing."""

    def fileno(self) -> int:
        """-1."""
        return -1

    def close(self) -> None:
        """Do nothing."""


CLOSED = ClosedSocket()


def set_options(sock: socket.socket, family: int, options: Iterable[Option]) -> None:
    """Set on a new socket what every connection has, then what `socket_options` asks for.

    Raises:
        OSError: The kernel refuses one; its text says which.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if family in (socket.AF_INET, socket.AF_INET6):  # to ask the socket, Python makes an enum, in a `try`
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for level, name, value in options:
        try:
            sock.setsockopt(level, name, value)
        except OSError as error:
            if is_alarm(error):
                raise
            raise OSError(
                error.errno, f"socket_options ({level}, {name}, {value!r}): {error.strerror}"
            ) from error


_QUICKACK = getattr(socket, "TCP_QUICKACK", None)  # Linux


def acknowledge(sock: Socket | ClosedSocket) -> None:
    """Have the kernel acknowledge what has come now, not up to 40 ms later with what is sent next.

    A server without TCP_NODELAY holds its next small message back until then (RFC 896, RFC 1122 §4.2.3.2).
    """
    if _QUICKACK is not None and isinstance(sock, Socket) and sock.family != socket.AF_UNIX:
        with suppress(OSError):  # it is closed, or has ended
            sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)


def stopped_answering(error: OSError) -> OSError:
    """The kernel's ETIMEDOUT by another name: TimeoutError means a passed deadline here."""
    return ConnectionAbortedError(error.errno, f"the peer stopped answering: {error.strerror}")

"""The socket under a stream, and what stands in for it once the stream is closed."""

from __future__ import annotations

import errno
import socket


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


def stopped_answering(error: OSError) -> OSError:
    """The kernel's ETIMEDOUT by another name: TimeoutError means a passed deadline here."""
    return ConnectionAbortedError(error.errno, f"the peer stopped answering: {error.strerror}")

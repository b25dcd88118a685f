"""From which of this machine's addresses and ports a connection is made."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from jetsocket.interrupts import is_alarm
from jetsocket.wire.dns import Address, Question, read_address

Source = tuple[str, int]
"""An IP address, "" for any; and a port, 0 for any."""


class SourceError(OSError):
    """There is no connecting from there."""


def reachable_from(source: Source | None, addresses: Sequence[Address]) -> Sequence[Address]:
    """Those of the family of `source`; all of them if none is, so that each can say why not."""
    if source is None or not source[0]:
        return addresses
    family = _family(source[0])
    return [address for address in addresses if address.family == family] or addresses


def bind(sock: socket.socket, family: int, source: Source) -> None:
    """Have `sock`, of that family and not connected yet, connect from `source`. Not one of a Unix socket.

    Raises:
        SourceError: The address is none of this machine's, or of another family than the socket; or the port
            is in use.
    """
    host, port = source
    if family not in (socket.AF_INET, socket.AF_INET6):
        return
    try:
        if port:  # or it could not be used again for a minute after its last connection
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not host:
            sock.bind(("", port))
            return
        if _family(host) != family:
            raise OSError(errno.EAFNOSUPPORT, f"an {'IPv6' if ':' in host else 'IPv4'} address")
        found = read_address(Question(host, port, family))  # for the zone of an IPv6 address
        if not isinstance(found, list):
            raise found
        sock.bind(found[0].sockaddr)
    except OSError as error:
        if is_alarm(error):
            raise
        raise _blaming(source, error) from error.with_traceback(None)  # whose frames lead to the socket


def explained(source: Source | None, error: OSError) -> OSError:
    """What to tell of a connect that failed: that `source` can't be used for it, if that was the reason."""
    if source is None or error.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
        return error
    return _blaming(source, error)  # to this server, a connection from that port is open


def _blaming(source: Source, error: OSError) -> SourceError:
    if isinstance(error, SourceError):
        return error
    return SourceError(error.errno, f"source_address {source!r}: {error.strerror or error}")


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET

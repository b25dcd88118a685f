"""Certificates of a fake server's own: one authority for the process, made when it is first needed."""

from __future__ import annotations

import functools
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trustme

_NAMES = ("localhost", "127.0.0.1", "::1")


@functools.cache
def _authority() -> trustme.CA:
    try:
        import trustme
    except ImportError as error:
        raise ImportError('FakeServer(tls=True) needs trustme: pip install "jetsocket[testing]"') from error
    return trustme.CA()


@functools.cache
def server_context() -> ssl.SSLContext:
    """A server's context, with a certificate for localhost and its addresses.

    Raises:
        ImportError: The extra `testing` is not installed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _authority().issue_cert(*_NAMES).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    """A new context for clients that trusts this authority and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _authority().configure_trust(context)
    return context


def authority_pem() -> bytes:
    """The authority's certificate."""
    return _authority().cert_pem.bytes()


__all__ = ["authority_pem", "client_context", "server_context"]

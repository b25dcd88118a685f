"""URI → connected stream: DNS, TCP, TLS, proxy, within one deadline and cancellable in each stage."""

from __future__ import annotations

from collections.abc import Callable

from jetsocket import exceptions, uris
from jetsocket.interrupts import raise_alarm_behind
from jetsocket.wire.certificates import explain, names_of
from jetsocket.wire.proxy_environment import proxy_for
from jetsocket.wire.reach import unix_address
from jetsocket.wire.stream import Stream
from jetsocket.wire.through_proxy import ThroughProxy
from jetsocket.wire.tls import default_ssl_context


class Dialing(ThroughProxy):
    """The opening of one connection, which another thread can cancel, also while DNS hangs."""

    _meanwhile: Callable[[], object] | None = None

    def open(self, meanwhile: Callable[[], object] | None = None) -> Stream:
        """Connect.

        Args:
            meanwhile: Called in a TLS handshake, if there is one, while the server has yet to answer.

        Returns:
            A stream to the server, encrypted if the target is secure; the caller's from now on.

        Raises:
            TimeoutError: The deadline passed.
            ConnectionError: It failed, or was cancelled. The system's or TLS's error is the `__cause__`, an
                `ssl.SSLCertVerificationError` if the certificate was refused.
            ImportError: `proxy` is the URL of a SOCKS proxy, and the extra `proxy` is not installed.
        """
        self._meanwhile = meanwhile
        try:
            stream = self._connect()
        except BaseException as error:
            if self._stream is not None:
                self._stream.close()
            if not isinstance(error, Exception):
                raise
            raise_alarm_behind(error)  # also what the codec of host names has made an error of its own of
            if self._cancelled:
                raise self._cancellation() from None
            if isinstance(error, OSError) and not isinstance(error, exceptions.JetSocketError):
                raise self._failed(error, "is this process short of descriptors?") from error
            raise
        finally:
            self._stream = self._waker = self._meanwhile = None
        return stream

    def _connect(self) -> Stream:
        self._refuse_if_cancelled()
        if self._instead is not None:
            return self._race(self._look_up(*self._instead))
        if self._unix is not None:
            stream = self._race([unix_address(self._unix)])
        elif (choice := proxy_for(self._target, self._proxy)) is not None:
            stream = self._tunnel(choice)
        else:
            stream = self._race(self._look_up(self._target.host, self._target.port))
        if self._target.secure:
            self._start_tls(stream)
        self._refuse_if_cancelled()
        return stream

    def _start_tls(self, stream: Stream) -> None:
        self._stage = f"doing the TLS handshake with {self._target.host_header}"
        own_name = uris.tls_name(self._target.host)
        name = self._server_hostname or own_name
        if name != own_name:
            self._stage += f" as {name}"
        context = self._ssl_context or default_ssl_context()
        try:
            stream.start_tls(context, name, self._deadline, self._meanwhile)
        except (OSError, ValueError) as error:
            raise_alarm_behind(error)
            if isinstance(error, TimeoutError):
                if not stream.bytes_in:  # a server that waits for a line end does so at a TLS hello
                    self._stage += " (no byte came: does it want ws://?)"
                raise self._timed_out() from None
            session = stream.tls_session
            names = None if session is None else names_of(session)
            raise self._failed(*explain(error, name, names)) from error

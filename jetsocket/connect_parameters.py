"""How a URI is approached: the address that is really dialled, and what is sent there and nowhere else.

What callers ask for is the logical URI: queues, figures and messages go by it. `resolve` says which address
that is at the moment, then `auth` what to show there, or which other address to dial.
"""

from __future__ import annotations

import copy
import inspect
import ssl
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from jetsocket.clock import monotonic
from jetsocket.exceptions import ConnectionError, HandshakeError, JetSocketError, TimeoutError
from jetsocket.interrupts import is_alarm
from jetsocket.manager_kwargs import Options
from jetsocket.uris import Target, parse, same_origin
from jetsocket.user_errors import Misuse, as_told, raise_as_cause, told
from jetsocket.wire.frames import mask_fast
from jetsocket.wire.redaction import raise_alone
from jetsocket.wire.tls import without_certificate

if TYPE_CHECKING:
    from jetsocket.auth.base import Prepared

__all__ = ["Approach", "approach", "load_for", "renews", "straight"]

_REFUSALS = (401, 403)
_LEAST_SECRET = 16  # characters of a path's segment; shorter ones are words


class Approach(NamedTuple):
    """Where to dial for a logical URI, and what to send there.

    Attributes:
        target: The address; its `redacted` is that of the logical URI.
        header: Header fields.
        cookie: Value of the Cookie header.
        subprotocols: What is offered.
        tokens: What is offered besides, as a credential.
        ssl_context: For wss.
        unix: Path of a Unix socket in place of TCP.
        server_hostname: What the certificate has to be for, if not the address's host.
        prepared: What `auth` has given; None: it was not asked.
        secrets: What no message is to show, even if the server repeats it.
    """

    target: Target
    header: Sequence[tuple[str, str]]
    cookie: str | None
    subprotocols: Sequence[str]
    ssl_context: ssl.SSLContext | None
    unix: str | None
    server_hostname: str | None
    tokens: Sequence[str] = ()
    prepared: Prepared | None = None
    secrets: frozenset[str] = frozenset()


def load_for(options: Options) -> None:
    """Load what openers need, in the thread that makes the pool.

    A program that imports the package and makes no pool has no use for it. An import in a thread holds a
    lock. A process that is forked meanwhile has that lock, too, and no thread that releases it: an import of
    the same there would wait for ever. What is loaded is not asked for again: `import_module` takes the lock
    of the module each time, and where an exception strikes it there, no thread ever gets that again.
    """
    needed = [
        "email.utils",  # for dates in Retry-After
        "html",  # for what refusals say
        "jetsocket.wire.upgrade_refusals",
        "jetsocket.wire.websocket",
    ]
    if options.auth is not None or options.resolve is not None:
        needed.append("jetsocket.auth.base")
    for name in needed:
        if name not in sys.modules:
            import_module(name)
    mask_fast()


def straight(options: Options, target: Target, offered: Sequence[str], *, ours: bool) -> Approach:
    """The way to a URI that is dialled as it is; `ours`: credentials may go there."""
    return Approach(
        target,
        headers_for(options, target) if ours else (),
        options.cookie if ours else None,
        offered,
        options.ssl_context,  # for ws, too: a redirect may lead to wss
        options.unix if ours else None,
        options.server_hostname if ours else None,
    )


def approach(
    options: Options, logical: Target, offered: Sequence[str], deadline: float, *, ours: bool
) -> Approach:
    """Ask `resolve` and `auth` for the way to a logical URI.

    Args:
        options: Have them.
        logical: The URI.
        offered: The subprotocols of the pool.
        deadline: Until when it is to be connected (monotonic, s).
        ours: Whether credentials may go to the logical URI; `auth` is not asked else.

    Raises:
        ConnectionError: One of them raised, or gave what can't be used.
        HandshakeError: `auth` was refused a ticket.
        TimeoutError: They took too long.
    """
    from jetsocket.auth.base import Prepared  # not loaded by pools without

    what = f"cannot connect to {logical.redacted}"
    address = logical
    if options.resolve is not None:
        given = _ask(f'{what}: manager_kwargs["resolve"]()', options.resolve, logical, deadline)
        address = _address(given, f'{what}: manager_kwargs["resolve"]() returned', logical)
    prepared = None
    if options.auth is not None and ours:
        bare = address.but(authorization=None)
        given = _ask(f'{what}: manager_kwargs["auth"].prepare()', options.auth.prepare, bare, deadline)
        name = f"{what}: {type(options.auth).__name__}.prepare() returned"
        if not isinstance(given, Prepared):
            raise ConnectionError(f"{name} a {type(given).__name__}; it must be a jetsocket.auth.Prepared")
        prepared = given
        if prepared.uri != address.uri:
            other = _address(prepared.uri, f"{name} a Prepared with", logical)
            if other.authorization is None and same_origin(other, address):
                other = other.but(authorization=address.authorization)
            address = other
    at_home = same_origin(logical, address)
    if at_home and logical.authorization is not None and address.authorization is None:
        address = address.but(authorization=logical.authorization)
    way = straight(options, logical, offered, ours=ours and (at_home or options.cross_origin_headers))
    way = way._replace(target=address, prepared=prepared, secrets=_secrets_in(address, logical))
    if not at_home:
        context = None if options.ssl_context is None else without_certificate(options.ssl_context)
        way = way._replace(cookie=None, ssl_context=context, unix=None, server_hostname=None)
    if prepared is None:
        return way
    names = {name.lower() for name, _ in prepared.pairs()}
    return way._replace(
        header=[*(pair for pair in way.header if pair[0].lower() not in names), *prepared.pairs()],
        cookie=None if "cookie" in names else way.cookie,
        tokens=[each for each in prepared.subprotocols if each not in offered],
    )


def renews(options: Options, error: HandshakeError, prepared: Prepared | None, logical: Target) -> bool:
    """Whether to dial once more after that refusal, with what `auth` prepares then.

    Raises:
        ConnectionError: It raised.
    """
    if prepared is None or options.auth is None or error.status_code not in _REFUSALS:
        return False
    what = f'{error}; then manager_kwargs["auth"].refused()'
    try:
        return bool(_plain(options.auth.refused(prepared)))
    except Exception as fault:  # whatever the user's code raises
        if is_alarm(fault, users_code=True):
            raise
        _fail(fault, what, f"cannot connect to {logical.redacted}")


def _ask(what: str, function: Any, target: Target, deadline: float) -> object:
    """Call the user's code with what is left of the time."""
    before = what.rpartition(": ")[0]
    try:
        given = _plain(function(target.uri, max(0.001, deadline - monotonic())))
    except Exception as error:  # whatever the user's code raises
        if is_alarm(error, users_code=True):
            raise
        _fail(error, what, before)
    if monotonic() >= deadline:
        name = what.rpartition(": ")[2]
        raise TimeoutError(f"{before}: {name} took all of its time; allow more", operation="connect")
    return given


def _plain(given: object) -> object:
    if inspect.isawaitable(given):
        if inspect.iscoroutine(given):
            given.close()  # or Python warns that it was never awaited
        raise Misuse("it returned an awaitable, which is not awaited here; give an ordinary function")
    return given


def _fail(error: Exception, what: str, before: str) -> NoReturn:
    """Raise what the user's code has raised: errors of ours with what was tried, others as the cause."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        failure = copy.copy(error)  # without the frames, which refer to what is secret
        failure.args = (f"{before}: {error}", *error.args[1:])
        raise_alone(failure, error.__cause__)
    if isinstance(error, (Misuse, JetSocketError)):
        raise_alone(ConnectionError(f"{what}: {error}"), as_told(error))
    raise_as_cause(error, what)


def _address(given: object, what: str, logical: Target) -> Target:
    """What is dialled, shown as the logical URI: of the address itself, only the host may be told."""
    if not isinstance(given, str):
        raise ConnectionError(f"{what} a {type(given).__name__}; it must be the URI as a str")
    try:
        target = parse(given)
    except ValueError as error:
        if is_alarm(error):
            raise
        fault = str(error).rpartition(": ")[2]  # without the URI, of which nothing is known
        raise_alone(ConnectionError(f"{what} an invalid URI: {fault}"))
    if same_origin(target, logical):
        return target.but(redacted=logical.redacted)
    from jetsocket.auth.base import origin_shown

    return target.but(redacted=f"{logical.redacted} (at {origin_shown(target.uri)})")


def _secrets_in(address: Target, logical: Target) -> frozenset[str]:
    """What of an address's path may be secret: its long segments, if they are not the logical URI's."""
    segments = address.resource.partition("?")[0].split("/")
    return frozenset(each for each in segments if len(each) >= _LEAST_SECRET and each not in logical.uri)


def headers_for(options: Options, target: Target) -> list[tuple[str, str]]:
    """The user's header fields; what their callable raises is the cause of a ConnectionError.

    Raises:
        ConnectionError: The callable raised, or returned what can't be sent.
    """
    source = options.extra_headers
    if not callable(source):
        return options.headers()
    what = f"cannot connect to {target.redacted}: "
    try:
        given = source()
    except Exception as error:  # whatever the user's code raises
        if is_alarm(error, users_code=True):
            raise
        text = f'{what}manager_kwargs["extra_headers"]() raised {told(error)}; the cause has its traceback'
        raise_alone(ConnectionError(text), as_told(error))
    try:
        return options.checked_headers(given)
    except (TypeError, ValueError) as error:
        if is_alarm(error):
            raise
        raise ConnectionError(f"{what}{error}") from error

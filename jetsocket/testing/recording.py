"""record and replay: what a real server has said, kept in a file, and said again without the server."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.testing.pool import FakePool
from jetsocket.testing.relay import Relay
from jetsocket.testing.tape import Recorded, load, save
from jetsocket.testing.verdicts import add_note
from jetsocket.testing_seam import seam_of

P = TypeVar("P", bound=ConnectionPool[Any])
Mode = Literal["none", "once", "new_episodes", "all"]


@contextmanager
def record(
    pool: P,
    path: str | os.PathLike[str],
    mode: Mode = "once",
    redact: Iterable[str] = (),
    assert_all_called: bool = True,
) -> Iterator[P]:
    """Inside, record what is said over new connections of this pool, or play what was recorded.

    What was idle before is set aside. The file is written at the end, and not when the block has raised.

    Args:
        pool: The pool; it is used as it is.
        path: The file: JSON with one message a line.
        mode: "once": record if there is no file, else play. "none": play only. "new_episodes": play, and
            record what is not there. "all": record everything anew.
        redact: Names of fields that are hidden in the file, besides those that always are: password, secret,
            token, api_key, signature and the like. Values of the query, headers, cookies and userinfo are
            never in it.
        assert_all_called: Whether what was recorded and never asked for is wrong.

    Yields:
        The pool.

    Raises:
        AssertionError: Something was asked for that is not recorded, or was recorded and never asked for; or
            `mode` is "none", and there is no file.
        ValueError: An unknown mode, or the file is no recording.
        TypeError: `pool` is none.
        RuntimeError: The pool is being recorded already.
    """
    if not isinstance(pool, ConnectionPool):
        raise TypeError(f"record takes a ConnectionPool, not {pool!r}")
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
    file, seam = Path(path), seam_of(pool)
    if seam.detour is not None:
        raise RuntimeError(f"pool {pool.name!r} is being recorded already")
    plays = mode in ("none", "new_episodes") or (mode == "once" and file.exists())
    tape = _loaded(file) if mode == "none" else load(file) if plays and file.exists() else []
    records = mode in ("all", "new_episodes") or (mode == "once" and not plays)
    relay = Relay(
        tape,
        records=records,
        redact=redact,
        correlation=seam.correlation,
        assert_all_called=assert_all_called,
        told=str(path),
    )
    relay.start()
    try:
        seam.detour = relay.detour
        try:
            pool.clear()
            yield pool
        finally:
            seam.detour = None
            relay.let_go()
            if not pool.is_closed:
                pool.clear()
    except BaseException as error:
        found = relay.finish()
        if found is not None:
            add_note(error, str(found))
        raise
    found = relay.finish()
    if found is not None:
        raise found
    if records and (relay.has_news or not plays):
        save(file, relay.hidden())


@contextmanager
def replay(
    path: str | os.PathLike[str],
    config: ConnectionPoolConfig | None = None,
    *,
    redact: Iterable[str] = (),
    assert_all_called: bool = True,
    **kwargs: Any,
) -> Iterator[FakePool[Any]]:
    """A `FakePool` whose server says what was recorded.

    Args:
        path: The file that `record` has written.
        config: As for `ConnectionPool`.
        redact: As for `record`.
        assert_all_called: Likewise.
        **kwargs: As for `ConnectionPool`; give the `correlation` that it was recorded with.

    Yields:
        The pool. Rules may be added to its `server`; they are tried first.

    Raises:
        AssertionError: As `record`; or there is no file.
        ValueError: It is no recording.
    """
    relay = Relay(
        _loaded(Path(path)),
        records=False,
        redact=redact,
        correlation=kwargs.get("correlation"),
        assert_all_called=assert_all_called,
        told=str(path),
    )
    with relay, FakePool[Any](relay, config, **kwargs) as pool:
        yield pool


__all__ = ["record", "replay"]


def _loaded(file: Path) -> list[Recorded]:
    try:
        return load(file)
    except FileNotFoundError:
        told = f"nothing is recorded in {str(file)!r}: there is no such file; record it first"
        raise AssertionError(told) from None

"""Tests of what uses WebSockets, without a network: a real server on this machine that is told what to say.

`FakeServer` is scripted and strict, `FakePool` is a pool over one that can also fail at will, `record` and
`replay` keep what a real server has said; `check_limiter` tries a limiter of your own. The names are looked
up when they are used: a session that does not use it pays nothing for the pytest plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jetsocket.testing.decorator import fake_server
    from jetsocket.testing.limiters import check_limiter
    from jetsocket.testing.matching import ANY
    from jetsocket.testing.pool import FakePool
    from jetsocket.testing.recording import record, replay
    from jetsocket.testing.server import FakeServer

__all__ = ["ANY", "FakePool", "FakeServer", "check_limiter", "fake_server", "record", "replay"]

_HOMES = {
    "ANY": "matching",
    "FakePool": "pool",
    "FakeServer": "server",
    "check_limiter": "limiters",
    "fake_server": "decorator",
    "record": "recording",
    "replay": "recording",
}

if not TYPE_CHECKING:  # or every name would be known to type checkers

    def __getattr__(name: str) -> object:
        """Import what is asked for (PEP 562)."""
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'jetsocket.testing' has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"jetsocket.testing.{home}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """What is public."""
        return sorted({*globals(), *__all__})

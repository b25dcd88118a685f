"""The pytest plugin `jetsocket`: fixtures, a marker, and verdicts that fail the test itself.

Imports pytest only, and looks at tests only once a fake server runs: a session that has none pays nothing but
for this module. pytest reads and compiles its source each time where no bytecode may be written: so what
judges is in another one.
Its assertions are not rewritten (PYTEST_DONT_REWRITE): it may be imported before pytest looks for plugins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from jetsocket.testing.judge import Judge
    from jetsocket.testing.judging import Judging
    from jetsocket.testing.pool import FakePool
    from jetsocket.testing.server import FakeServer

_MARKER = (
    "jetsocket(assert_all_called=True, assert_all_expected=True, tls=False, id_field='id', instead_of=None): "
    "how the fixture jetsocket_server is made"
)
_NAME = "jetsocket-judge"
_TEST_RUNS = "PYTEST_CURRENT_TEST"  # pytest sets it in the environment
_OWN = "function"  # the scope of what is one test's


class _Setup:
    """Of which fixture this process is setting up what; where no session runs, nothing."""

    def __init__(self) -> None:
        self.config: pytest.Config | None = None
        self.scopes: list[str] = []


_now = _Setup()


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marker is."""
    config.addinivalue_line("markers", _MARKER)
    config.add_cleanup(_session(config))


def _session(config: pytest.Config) -> Any:
    """Make this session the one that new servers belong to; returns what ends that."""
    before, scopes = _now.config, _now.scopes  # a session may run within a test of another: pytester's
    _now.config, _now.scopes = config, []

    def end() -> None:
        _now.config, _now.scopes = before, scopes

    return end


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Look at tests from the start if one of them has the marker."""
    seen: set[pytest.Item | pytest.Collector] = set()
    for item in items:
        node: Any = item
        while node is not None and node not in seen:  # each module and class once: there may be many tests
            seen.add(node)
            if any(mark.name == "jetsocket" for mark in node.own_markers):
                _judge(config)
                return
            node = node.parent


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Iterator[None]:
    """Note of which scope a fixture is that may start a server."""
    _now.scopes.append(fixturedef.scope)
    try:
        return (yield)
    finally:
        _now.scopes.pop()


def server_started(server: Judging) -> bool:
    """Called by a server that starts: whether it will be judged with a test."""
    if _now.config is None:
        return False
    scope = _OWN if _TEST_RUNS in os.environ else "session"  # made while tests are collected: for all of them
    _judge(_now.config).add(server, _now.scopes[-1] if _now.scopes else scope)
    return True


def _judge(config: pytest.Config) -> Judge:
    from jetsocket.testing.judge import Judge

    judge = config.pluginmanager.get_plugin(_NAME)
    if judge is None:
        judge = Judge(_OWN)
        config.pluginmanager.register(judge, _NAME)
    assert isinstance(judge, Judge)
    return judge


@pytest.fixture
def jetsocket_server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    """A running FakeServer; what is wrong with it at the end of the test fails the test."""
    from jetsocket.testing.judge import options_of
    from jetsocket.testing.server import FakeServer

    with FakeServer(**options_of(request.node)) as server:
        yield server


@pytest.fixture
def jetsocket_pool(jetsocket_server: FakeServer) -> Iterator[FakePool[Any]]:
    """A FakePool over the fixture `jetsocket_server`."""
    from jetsocket.testing.pool import FakePool

    with FakePool(jetsocket_server) as pool:
        yield pool

"""The pytest plugin `jetsocket`: fixtures, a marker, and verdicts that fail the test itself.

Imports pytest only, and looks at tests only once a fake server runs: a session that has none pays nothing.
Its assertions are not rewritten (PYTEST_DONT_REWRITE): it may be imported before pytest looks for plugins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from jetsocket.testing.judging import Judging
    from jetsocket.testing.pool import FakePool
    from jetsocket.testing.server import FakeServer

_MARKER = (
    "jetsocket(assert_all_called=True, assert_all_expected=True, tls=False, id_field='id', instead_of=None): "
    "how the fixture jetsocket_server is made"
)
_OPTIONS = ("assert_all_called", "assert_all_expected", "id_field", "instead_of", "tls")
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


def _judge(config: pytest.Config) -> _Judge:
    judge = config.pluginmanager.get_plugin(_NAME)
    if judge is None:
        judge = _Judge()
        config.pluginmanager.register(judge, _NAME)
    assert isinstance(judge, _Judge)
    return judge


class _Judge:
    """Makes what servers find wrong the failure of the test that ran."""

    def __init__(self) -> None:
        self._servers: list[tuple[Judging, str]] = []

    def add(self, server: Judging, scope: str) -> None:
        """Judge that server from now on."""
        self._servers.append((server, scope))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """A misspelt option of the marker is an error of each test that has it."""
        options_of(item)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
        """The verdict is part of a failure, or the failure itself."""
        is_skipped = call.excinfo is not None and call.excinfo.errisinstance(pytest.skip.Exception)
        is_over = call.when == "call" and not is_skipped
        found = self._verdict(is_over) if is_over or call.excinfo is not None else None
        if not is_over and call.excinfo is not None:
            for server in self._own():
                server.excuse()  # the test did not get to what it would have reached
        if call.when == "teardown":
            self._servers = [(each, of) for each, of in self._servers if of != _OWN and not each.is_over]
        if found is None or is_skipped:
            return (yield)
        if call.excinfo is None and not getattr(item, "_excinfo", None):
            call.excinfo = _raised(found)
            return (yield)
        report = yield
        report.sections.append(("jetsocket", str(found)))
        return report

    def _own(self) -> list[Judging]:
        """The servers that are this test's alone."""
        return [server for server, scope in self._servers if scope == _OWN]

    def _verdict(self, is_over: bool) -> AssertionError | None:
        """What all servers find wrong.

        Args:
            is_over: Whether the test has run: then what was never reached counts, but for servers of more
                than this test.
        """
        found = [each.verdict(final=is_over and scope == _OWN) for each, scope in self._servers]
        errors = [error for error in found if error is not None]
        if not errors:
            return None
        if len(errors) > 1:
            errors[0].args = ("\n".join(map(str, errors)),)
        return errors[0]


def _raised(error: AssertionError) -> pytest.ExceptionInfo[BaseException]:
    """What pytest keeps of an error that was raised."""
    try:
        raise error
    except AssertionError as caught:
        return pytest.ExceptionInfo.from_exception(caught)


def options_of(item: Any) -> dict[str, Any]:
    """What the markers of a test, its class and its module say; the nearest wins.

    Raises:
        UsageError: One of them is misspelt.
    """
    options: dict[str, Any] = {}
    for mark in item.iter_markers("jetsocket"):
        unknown = [str(arg) for arg in mark.args] + [name for name in mark.kwargs if name not in _OPTIONS]
        if unknown:
            raise pytest.UsageError(
                f"@pytest.mark.jetsocket does not take {', '.join(unknown)}; it takes {', '.join(_OPTIONS)}"
            )
        options = {**mark.kwargs, **options}
    return options


@pytest.fixture
def jetsocket_server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    """A running FakeServer; what is wrong with it at the end of the test fails the test."""
    from jetsocket.testing.server import FakeServer

    with FakeServer(**options_of(request.node)) as server:
        yield server


@pytest.fixture
def jetsocket_pool(jetsocket_server: FakeServer) -> Iterator[FakePool[Any]]:
    """A FakePool over the fixture `jetsocket_server`."""
    from jetsocket.testing.pool import FakePool

    with FakePool(jetsocket_server) as pool:
        yield pool

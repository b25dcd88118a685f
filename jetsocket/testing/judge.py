"""What the pytest plugin does in a session with fake servers: their verdicts fail the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from jetsocket.testing.judging import Judging

_OPTIONS = ("assert_all_called", "assert_all_expected", "id_field", "instead_of", "tls")


class Judge:
    """Makes what servers find wrong the failure of the test that ran."""

    def __init__(self, own: str) -> None:
        """Judge none yet; `own` is the scope of what is one test's."""
        self._scope = own
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
            self._servers = [
                (each, of) for each, of in self._servers if of != self._scope and not each.is_over
            ]
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
        return [server for server, scope in self._servers if scope == self._scope]

    def _verdict(self, is_over: bool) -> AssertionError | None:
        """What all servers find wrong.

        Args:
            is_over: Whether the test has run: then what was never reached counts, but for servers of more
                than this test.
        """
        found = [each.verdict(final=is_over and scope == self._scope) for each, scope in self._servers]
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


__all__ = ["Judge", "options_of"]

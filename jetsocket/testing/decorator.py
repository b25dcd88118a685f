"""fake_server: a decorator that gives a test its server, for unittest and wherever fixtures do not reach."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

from jetsocket.testing.server import FakeServer

F = TypeVar("F", bound=Callable[..., Any])


@overload
def fake_server(function: F, /) -> Callable[..., Any]: ...
@overload
def fake_server(**options: Any) -> Callable[[F], Callable[..., Any]]: ...
def fake_server(function: Any = None, /, **options: Any) -> Any:
    """Run a test with a running FakeServer as its last argument; pytest takes that for no fixture.

    Args:
        function: The test, where it is written without parentheses.
        **options: As for `FakeServer`.

    Example:
        >>> class Test(unittest.TestCase):
        ...     @fake_server(assert_all_called=False)
        ...     def test_height(self, server): ...
    """
    if function is not None:
        return _decorated(function, options)
    FakeServer(**options)  # what is wrong with them is told where they are written
    return lambda test: _decorated(test, options)


def _decorated(test: Any, options: dict[str, Any]) -> Any:
    if not inspect.isfunction(test):
        raise TypeError(f"fake_server decorates a test function, not {test!r}")
    signature = inspect.signature(test)
    named = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    if not named:
        raise TypeError(f"{test.__qualname__} has no argument for the server")
    last = named[-1]
    is_named = last.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

    def call(server: FakeServer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # By name: pytest passes fixtures by name, too, and unittest.mock adds its own at the end.
        return test(*args, **kwargs, **{last.name: server}) if is_named else test(*args, server, **kwargs)

    async def wait_for(*args: Any, **kwargs: Any) -> Any:
        with FakeServer(**options) as server:
            return await call(server, args, kwargs)

    def do(*args: Any, **kwargs: Any) -> Any:
        with FakeServer(**options) as server:
            return call(server, args, kwargs)

    wrapper: Callable[..., Any] = wait_for if inspect.iscoroutinefunction(test) else do
    functools.update_wrapper(wrapper, test)
    del wrapper.__wrapped__  # type: ignore[attr-defined]  # update_wrapper has set it; pytest would look behind it
    shown = [each for each in signature.parameters.values() if each is not last]
    wrapper.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]  # inspect reads it
    return wrapper


__all__ = ["fake_server"]

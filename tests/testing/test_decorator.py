"""fake_server: the server is the last argument, and no fixture."""

from __future__ import annotations

import asyncio
import inspect
import unittest
from typing import Any
from unittest import mock

import pytest

from jetsocket import ConnectionPool
from jetsocket.testing import FakeServer, fake_server


def ping(server: FakeServer) -> Any:
    with ConnectionPool(base_uri=server.uri) as pool:
        return pool.request("/", "ping", timeout=5)


class Test(unittest.TestCase):
    @fake_server()
    def test_method(self, server: FakeServer) -> None:
        server.on("ping").reply("1")
        assert ping(server) == 1

    @fake_server
    def test_without_parentheses(self, server: FakeServer) -> None:
        server.on("ping").reply("1")
        assert ping(server) == 1

    @fake_server(assert_all_called=False)
    @mock.patch("os.getcwd")
    def test_with_a_mock_inside(self, getcwd: mock.Mock, server: FakeServer) -> None:
        assert isinstance(getcwd, mock.Mock)
        server.on("ping")

    @mock.patch("os.getcwd")
    @fake_server()
    def test_with_a_mock_outside(self, getcwd: mock.Mock, server: FakeServer) -> None:
        assert isinstance(getcwd, mock.Mock)
        assert isinstance(server, FakeServer)


@fake_server(id_field=None)
@pytest.mark.parametrize("number", [1, 2])
def test_beside_fixtures(number: int, tmp_path: Any, server: FakeServer) -> None:
    """Keeps its docstring."""
    server.on("ping").reply(number)
    assert ping(server) == number
    assert tmp_path.exists()


def test_what_it_looks_like() -> None:
    assert list(inspect.signature(test_beside_fixtures).parameters) == ["number", "tmp_path"]
    assert test_beside_fixtures.__doc__ == "Keeps its docstring."


def test_a_verdict_is_raised_by_the_test() -> None:
    @fake_server()
    def test(server: FakeServer) -> None:
        server.on("ping")

    with pytest.raises(AssertionError, match="never matched"):
        test()


def test_coroutines_and_plain_arguments() -> None:
    @fake_server()
    async def test(number: int, *, server: FakeServer) -> int:
        assert server.port
        await asyncio.sleep(0)
        return number

    assert asyncio.run(test(7)) == 7

    @fake_server()
    def variable(*args: Any) -> Any:
        return args

    assert isinstance(variable(1)[1], FakeServer)


def test_what_can_not_be_decorated() -> None:
    with pytest.raises(TypeError, match="no argument for the server"):
        fake_server(lambda: None)
    with pytest.raises(TypeError, match="decorates a test function"):
        fake_server()(Test)
    with pytest.raises(TypeError, match="assert_all_caled"):
        fake_server(assert_all_caled=False)

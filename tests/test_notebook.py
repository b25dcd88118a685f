"""In a notebook, a pool that is exhausted tells which cells may hold its connections."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from jetsocket import ConnectionPool, PoolExhaustedError
from jetsocket.notebook import what_keeps
from tests.servers import EchoServer

MakePool = Callable[..., ConnectionPool[Any]]


class Shell:
    """What IPython's `get_ipython` returns, as far as it matters."""

    def __init__(self) -> None:
        self.outputs: dict[int, Any] = {}
        self.user_ns = {"Out": self.outputs}


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    made, module = Shell(), types.ModuleType("IPython")
    module.get_ipython = lambda: made  # type: ignore[attr-defined]  # a module made here
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.delattr(sys, "last_traceback", raising=False)
    return made


def refusal(pool: ConnectionPool[Any]) -> str:
    with pytest.raises(PoolExhaustedError) as caught:
        pool.acquire("/", 0.1)
    return str(caught.value)


def test_the_outputs_that_hold_leases_are_named(echo: EchoServer, make_pool: MakePool, shell: Shell) -> None:
    pool = make_pool(echo, max_connections=2)
    shell.outputs.update({1: "text", 3: pool.acquire("/"), 7: [1, pool.acquire("/")], 8: {"a": 1}})
    told = refusal(pool)
    assert "notebook: Out[3] and Out[7] keep a lease" in told
    assert "Out[1]" not in told
    assert "traceback" not in told
    shell.outputs[3].release()
    shell.outputs[7][1].release()


def test_only_leases_that_are_out_and_of_this_pool_are_named(
    echo: EchoServer, make_pool: MakePool, shell: Shell
) -> None:
    class Surprise(dict[str, Any]):
        def values(self) -> Any:
            raise RuntimeError("the user's code, which is not to run here")

    pool, other = make_pool(echo, max_connections=1), make_pool(echo)
    with pool.acquire("/") as released:
        pass
    shell.outputs.update(
        {1: released, 2: other.acquire("/"), 3: Surprise(a=1), 4: {"conn": pool.acquire("/")}}
    )
    assert "notebook: Out[4] keeps a lease" in refusal(pool)
    shell.outputs[2].release()
    shell.outputs[4]["conn"].release()


def test_others_that_may_hold_them_are_named_too(
    echo: EchoServer, make_pool: MakePool, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(echo, max_connections=1)
    shell.outputs[1] = "text"
    lease = pool.acquire("/")
    assert "Out[...] may keep a lease" in refusal(pool)
    try:
        raise ValueError
    except ValueError as error:
        monkeypatch.setattr(sys, "last_traceback", error.__traceback__, raising=False)
    assert "Out[...] or the last traceback (sys.last_traceback) may keep a lease" in refusal(pool)
    lease.release()


def test_elsewhere_no_word_of_it(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=1)
    with pool.acquire("/"):
        assert "this is a notebook" not in refusal(pool)


@pytest.mark.parametrize("found", [None, types.SimpleNamespace(), types.SimpleNamespace(user_ns={})])
def test_an_ipython_that_runs_no_shell_is_no_notebook(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    module = types.ModuleType("IPython")
    monkeypatch.setitem(sys.modules, "IPython", module)
    assert what_keeps(lambda _: True) is None  # it is being imported
    module.get_ipython = lambda: found  # type: ignore[attr-defined]  # a module made here
    assert what_keeps(lambda _: True) is None


def test_ipython_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert what_keeps(lambda _: True) is None
    assert "IPython" not in sys.modules

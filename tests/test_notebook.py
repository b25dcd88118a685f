"""What cells make when they are run again, and which of them may hold a pool's connections.

Also tests: `html_tables`, `contrib/jupyter`.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any
from xml.etree import ElementTree

import pytest

import jetsocket
from jetsocket import ConnectionPool, PoolExhaustedError
from jetsocket.notebook import pools, what_keeps
from tests.servers import EchoServer, wait_until

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


# --- cells that are run again, in a real IPython


class Session:
    """A shell whose cells see `uri` and all public names."""

    def __init__(self, shell: Any, uri: str) -> None:
        self.shell = shell
        self.names = shell.user_ns
        self.names["uri"] = uri
        self.names.update({name: getattr(jetsocket, name) for name in jetsocket.__all__})

    def run(self, cell: str, *, stored: bool = True) -> Any:
        done = self.shell.run_cell(cell, store_history=stored)
        done.raise_error()
        return done.result


@pytest.fixture
def session(echo: EchoServer) -> Iterator[Session]:
    interactive = pytest.importorskip("IPython.core.interactiveshell", reason="needs IPython")
    shell = interactive.InteractiveShell.instance()
    yield Session(shell, echo.uri)
    for pool in pools():
        pool.close()
    shell.reset(new_session=True)
    interactive.InteractiveShell.clear_instance()


MAKE = "pool = ConnectionPool(ConnectionPoolConfig(max_connections=2, acquire_timeout=1), base_uri=uri)"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the pool")
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("shows", ["conn", "pool", "pool.acquire('/')", "None"])
def test_a_cell_run_five_times_leaves_one_pool_with_its_leases(
    session: Session, echo: EchoServer, shows: str, stored: bool
) -> None:
    cell = f"{MAKE}\nconn = pool.acquire('/')\nconn.request([1])\n{shows}"
    for _ in range(5):
        session.run(cell, stored=stored)
    last = session.names["pool"]
    assert [pool for pool in pools() if not pool.is_closed] == [last]
    wait_until(lambda: echo.open_now == len(last.leases()) <= 2)


def test_the_top_levels_lease_comes_back_before_the_cell_is_run_again(session: Session) -> None:
    session.run(MAKE)
    for _ in range(5):  # of 2 connections
        session.run("conn = pool.acquire('/')\nconn.request([1])\nconn")
        assert len(session.names["pool"].leases()) == 1
    session.run("other = pool.acquire('/')")  # another cell: nothing comes back
    assert len(session.names["pool"].leases()) == 2
    session.run("other.release()")
    for _ in range(3):
        session.run("%%time\ntimed = pool.acquire('/')")
        assert len(session.names["pool"].leases()) == 2


def test_what_functions_of_a_cell_acquire_is_theirs(session: Session) -> None:
    session.run(MAKE)
    cell = "def take():\n    return pool.acquire('/')\nheld = [*globals().get('held', []), take()]"
    session.run(cell)
    session.run(cell)
    assert len(session.names["pool"].leases()) == 2


def test_a_pool_made_again_closes_its_predecessor_with_a_warning(session: Session) -> None:
    session.run(MAKE)
    first = session.names["pool"]
    with pytest.warns(UserWarning, match=f"the pool '{first.name}' that an earlier run made at this line is"):
        session.run(MAKE)
    assert first.is_closed
    assert not session.names["pool"].is_closed


def test_a_named_pool_goes_by_its_name_wherever_it_is_made(session: Session) -> None:
    session.run("a = ConnectionPool(base_uri=uri, name='feed')")
    session.run("b = ConnectionPool(base_uri=uri, name='other')")
    with pytest.warns(UserWarning, match="by the name 'feed'"):
        session.run("c = [ConnectionPool(base_uri=uri, name='feed')]")
    assert [session.names[name].is_closed for name in "ab"] == [True, False]


@pytest.mark.filterwarnings("ignore:the pool")
def test_pools_made_in_one_run_all_stay(session: Session) -> None:
    cell = "made = []\nfor _ in range(3):\n    made.append(ConnectionPool(base_uri=uri))\n"
    cell += "named = [ConnectionPool(base_uri=uri, name='n') for _ in range(2)]"
    session.run(cell)
    first = [*session.names["made"], *session.names["named"]]
    assert not any(pool.is_closed for pool in first)
    session.run(cell)
    assert all(pool.is_closed for pool in first)
    assert not any(pool.is_closed for pool in [*session.names["made"], *session.names["named"]])


def test_equal_lines_of_other_cells_are_other_pools(session: Session) -> None:
    session.run("a = ConnectionPool(base_uri=uri)  # the first")
    session.run("b = ConnectionPool(base_uri=uri)  # the second")
    session.run("%%time\nc = ConnectionPool(base_uri=uri)")
    session.run("%%time\nd = ConnectionPool(base_uri=uri)")
    assert not any(session.names[name].is_closed for name in "abcd")


def test_a_function_of_another_cell_makes_pools_for_whichever_calls_it(session: Session) -> None:
    session.run("def make():\n    return ConnectionPool(base_uri=uri)")
    session.run("first = make()")
    session.run("second = make()")
    assert not session.names["first"].is_closed
    before = session.names["first"]
    with pytest.warns(UserWarning, match="an earlier run made at this line is closed"):
        session.run("first = make()")
    assert before.is_closed
    assert not session.names["second"].is_closed


def test_the_magic_shows_the_pools(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.run("%load_ext jetsocket")
    assert repr(session.run("%jetsocket status")) == "no pool is open"
    session.run("pool = ConnectionPool(base_uri=uri, name='<feed>')\nconn = pool.acquire('/')")
    shown = session.run("%jetsocket status")
    assert "ConnectionPool &lt;feed&gt;" in shown._repr_html_()
    assert "name='<feed>'" in repr(shown)
    assert f"connection {session.names['conn'].id} to" in repr(shown)
    assert "<feed>" in repr(session.run("%jetsocket status <feed>"))
    for wrong in ("status none", "", "nonsense"):
        session.shell.run_cell(f"%jetsocket {wrong}")
    told = capsys.readouterr().err
    assert "UsageError: no open pool of this notebook is called 'none'; there are: '<feed>'" in told
    assert told.count("UsageError: say `%jetsocket status`") == 2
    session.run("%unload_ext jetsocket\nconn.release()")


def test_html_is_well_formed_and_shows_no_secret(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, name="a<b&c")
    conn = pool.acquire("/?key=hush")
    conn.request([1])
    for shown in (pool, pool.stats(), conn):
        html = shown._repr_html_()
        root = ElementTree.fromstring(f"<div>{html}</div>")
        assert {each.tag for each in root.iter()} <= {"div", "table", "caption", "tbody", "tr", "th", "td"}
        assert "hush" not in html
        assert "color" not in html  # it takes the page's, light or dark
    assert "a&lt;b&amp;c" in pool._repr_html_()
    assert "test_html_is_well_formed" in pool._repr_html_()
    conn.release()
    assert "released" in conn._repr_html_()

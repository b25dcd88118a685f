"""The pytest plugin, in sessions of its own: whose failure a verdict is, and what it costs others.

Also tests: `judge`.
"""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import jetsocket

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "jetsocket.testing.plugin"

# A checkout that is installed has the plugin by its entry point; it must not be loaded twice.
INSTALLED = any(each.name == "jetsocket" for each in entry_points(group="pytest11"))
LOADED = ["-p", "jetsocket" if INSTALLED else PLUGIN]
STRICT = ["--strict-markers", "-W", "error", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly"]

ASK = """
import pytest
from jetsocket import ConnectionPool

def ask(server, message="x"):
    with ConnectionPool(base_uri=server.uri) as pool:
        try:
            return pool.request("/", message, timeout=5)
        except Exception:
            return "swallowed"
"""


@pytest.fixture(scope="module")
def all_loaded() -> None:
    """All of the package, before a session within this one: what that loads is forgotten at its end."""
    for module in pkgutil.walk_packages(jetsocket.__path__, "jetsocket."):
        if not module.name.endswith(".__main__") and ".contrib." not in module.name:
            importlib.import_module(module.name)


@pytest.fixture
def run(all_loaded: None, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> object:
    """Run a file of tests in this process, in a session of its own."""
    pytester.makepyprojecttoml("[tool.pytest.ini_options]")

    def run_(source: str, *options: str) -> pytest.RunResult:
        monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)  # it is this test's, not that session's
        pytester.makepyfile(ASK + source)
        return pytester.runpytest_inprocess(*LOADED, *STRICT, *options)

    return run_


def test_the_fixtures_pass_a_test(run) -> None:
    result = run("""
def test_server(jetsocket_server):
    jetsocket_server.on("x").reply(7)
    assert ask(jetsocket_server) == 7

def test_pool(jetsocket_pool, jetsocket_server):
    assert jetsocket_pool.server is jetsocket_server
    jetsocket_server.on("x").reply(8)
    assert jetsocket_pool.request("/", "x") == 8
""")
    result.assert_outcomes(passed=2)


def test_a_verdict_fails_the_test_itself(run) -> None:
    result = run("""
def test_unexpected(jetsocket_server):
    jetsocket_server.on("y").optional()
    assert ask(jetsocket_server) == "swallowed"

def test_unreached(jetsocket_server):
    jetsocket_server.on("y")

def test_raised(jetsocket_server):
    jetsocket_server.on("x").callback(lambda message: 1 / 0)
    ask(jetsocket_server)

@pytest.mark.xfail(strict=True, raises=AssertionError)
def test_expected_to_fail(jetsocket_server):
    jetsocket_server.on("y")

def test_the_next_one_is_fine(jetsocket_server):
    pass
""")
    result.assert_outcomes(failed=3, passed=1, xfailed=1)
    result.stdout.fnmatch_lines(
        [
            "*test_unexpected*",
            "E*AssertionError: FakeServer at port *: a message came to / that no rule matches: 'x'",
            "E*nearest rule: on('y'), made at *test_a_verdict_fails_the_test_itself.py:*",
            "E*- 'y'",
            "E*+ 'x'",
            "*test_unreached*",
            "E*AssertionError: *on('y'), made at *: was never matched*",
            "*test_raised*",
            "E*ZeroDivisionError: division by zero",
            "E*AssertionError: *a callback raised ZeroDivisionError*",
        ]
    )
    result.stdout.no_fnmatch_line("*ERROR*")


def test_a_failure_of_the_tests_own_keeps_its_place(run) -> None:
    result = run("""
import unittest
from jetsocket.testing import FakeServer

def test_own(jetsocket_server):
    ask(jetsocket_server)
    assert 1 == 2

@pytest.fixture
def broken(jetsocket_server):
    ask(jetsocket_server, "in setup")
    raise KeyError("own")

def test_setup(broken):
    pass

def test_skips(jetsocket_server):
    jetsocket_server.on("x")
    pytest.skip("no")

class Test(unittest.TestCase):
    def setUp(self):
        self.server = FakeServer().start()
        self.addCleanup(self.server.stop)

    def test_method(self):
        ask(self.server)
        self.assertEqual(1, 2)
""")
    result.assert_outcomes(failed=2, errors=1, skipped=1)
    result.stdout.fnmatch_lines([
        "E*KeyError: 'own'", "*- jetsocket -*", "*no rule matches: 'in setup'*",
        "E*assert 1 == 2", "*- jetsocket -*", "FakeServer at port *: a message came to / that no rule *",
        "E*AssertionError: 1 != 2", "*- jetsocket -*", "*no rule matches: 'x'*",
    ])  # fmt: skip


def test_the_marker_says_how_the_server_is_made(run) -> None:
    result = run("""
pytestmark = pytest.mark.jetsocket(assert_all_called=False)

@pytest.mark.jetsocket(id_field=None)
class TestOptions:
    def test_both(self, jetsocket_server):
        jetsocket_server.on({"op": 1, "id": 5}).reply({"id": 5, "ok": 1})
        jetsocket_server.on("never")
        assert ask(jetsocket_server, {"op": 1, "id": 5}) == {"id": 5, "ok": 1}
        assert jetsocket_server._id_field is None

    @pytest.mark.jetsocket(assert_all_called=True, assert_all_expected=False)
    def test_nearest(self, jetsocket_server):
        jetsocket_server.on("never")

    @pytest.mark.jetsocket(tls=True)
    def test_tls(self, jetsocket_pool):
        jetsocket_pool.server.on("x").reply(1)
        assert jetsocket_pool.request("/", "x") == 1

@pytest.mark.jetsocket(assert_all_caled=False)
def test_misspelt():
    pass

@pytest.mark.jetsocket("strict")
def test_positional(jetsocket_server):
    pass
""")
    result.assert_outcomes(passed=2, failed=1, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*does not take assert_all_caled; it takes assert_all_called, assert_all_expected, id_field, *",
            "*does not take strict; it takes *",
            "*test_nearest*",
        ]
    )


def test_servers_of_ones_own_are_judged_with_the_test(run) -> None:
    result = run("""
from jetsocket.testing import ANY, FakePool, FakeServer

at_import = FakeServer().start()
at_import.on("never")

@pytest.fixture
def own():
    with FakeServer() as server:
        yield server

@pytest.fixture(scope="module")
def shared():
    with FakeServer() as server:
        server.on("in the second test").reply(1)
        yield server

def test_own(own):
    own.on("y")

def test_shared_unexpected(shared):
    ask(shared)

def test_shared(shared):
    assert ask(shared, "in the second test") == 1

def test_in_the_body():
    with pytest.raises(AssertionError, match="never matched"):
        with FakeServer() as server:
            server.on("y")

def test_code_that_closes_its_pool():
    pool = FakePool()
    pool.server.on("y")
    pool.close()

def test_a_pool_in_the_body():
    with pytest.raises(AssertionError, match="never matched"):
        with FakePool() as pool:
            pool.server.on("y")
            pool.close()

def test_last():
    with pytest.raises(AssertionError, match="never"):
        at_import.close()
""")
    result.assert_outcomes(passed=4, failed=3)
    result.stdout.fnmatch_lines(
        [
            "FAILED*::test_own - *",
            "FAILED*::test_shared_unexpected*",
            "FAILED*closes_its_pool*",
        ]
    )


def test_what_comes_in_teardown_is_an_error_of_teardown(run) -> None:
    result = run("""
@pytest.fixture
def app(jetsocket_server):
    yield
    ask(jetsocket_server, "bye")

def test_app(app):
    pass
""")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*no rule matches: 'bye'*"])


def test_with_a_frozen_clock(run) -> None:
    result = run("""
from freezegun import freeze_time

@freeze_time("2020-01-01")
def test_frozen(jetsocket_server):
    jetsocket_server.on("x").delay(0.01).reply(7)
    assert ask(jetsocket_server) == 7
    jetsocket_server.wait_for("x", timeout=1)
""")
    result.assert_outcomes(passed=1)


def test_the_examples_of_the_page_are_tests_that_pass(run, pytester: pytest.Pytester) -> None:
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    result = run("\n".join(blocks))
    result.assert_outcomes(passed=3)


PROJECT = """
import sys
import pytest
from jetsocket.testing import FakeServer

def test_one(jetsocket_server, jetsocket_pool):
    jetsocket_server.on("x").reply(7)
    assert jetsocket_pool.request("/", "x") == 7

@pytest.mark.jetsocket(assert_all_called=False)
def test_two(jetsocket_server):
    jetsocket_server.on("x").reply(7)

def test_three(jetsocket_server):
    jetsocket_server.on("x").reply(7)
"""


def in_a_process(pytester: pytest.Pytester, *options: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=pytester.path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    return result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.once
def test_in_workers_and_with_importlib(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(PROJECT)
    out = in_a_process(
        pytester,
        "-p",
        PLUGIN,
        "-p",
        "xdist",
        "-n",
        "1",
        "--import-mode=importlib",
        "--strict-markers",
        "-W",
        "error",
    )
    assert "1 failed, 2 passed" in out and "was never matched" in out, out


@pytest.mark.slow
@pytest.mark.once
def test_without_the_plugin_servers_are_strict_still(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
import sys
from jetsocket.testing import FakeServer

def test_one():
    assert "jetsocket.testing.plugin" not in sys.modules
    with FakeServer() as server:
        server.on("x").reply(7)

def test_two(jetsocket_server):
    pass
""")
    out = in_a_process(pytester, "-p", "no:jetsocket")
    assert "1 failed, 1 error" in out and "fixture 'jetsocket_server' not found" in out, out
    assert "was never matched" in out


def test_the_plugin_imports_pytest_only() -> None:
    code = (
        "import sys, pytest, jetsocket\n"
        "before = set(sys.modules)\n"
        f"import {PLUGIN}\n"
        "print(sorted(set(sys.modules) - before))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=50
    ).stdout
    assert out.strip() == "['jetsocket.testing', 'jetsocket.testing.plugin']"


def test_what_is_compiled_in_each_session_is_little() -> None:
    """Where no bytecode may be written, pytest does that anew each time: some 3 µs a node of the syntax."""
    package = ROOT / "jetsocket"
    sources = [package / "__init__.py", package / "lazy_names.py"]
    sources += [package / "testing" / "__init__.py", package / "testing" / "plugin.py"]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))]
    assert len(nodes) < 1200

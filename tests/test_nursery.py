"""A script in a forked process is told from one in a new Python by nothing but what is imported."""

from __future__ import annotations

import os
import signal

import pytest

from tests import nursery, scripts

pytestmark = pytest.mark.skipif(not nursery.AVAILABLE, reason="needs fork, waitid and recv_fds")

WAYS = pytest.mark.parametrize("fresh", [False, True], ids=["forked", "new"])


def forked(script: str) -> nursery.Child:
    return nursery.Child(script, (), dict(os.environ))


@WAYS
def test_it_has_arguments_and_an_environment(fresh: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THIS_TEST", "yes")
    script = "import os, sys; print(sys.argv, os.environ['OF_THIS_TEST'], sorted(vars()))"
    out = scripts.run(script, "a", "b c", fresh=fresh).check().out
    assert out.startswith("['-c', 'a', 'b c'] yes ['__annotations__', '__builtins__', '__doc__',")
    assert out.endswith("'__spec__', 'die_if_stuck', 'os', 'sys']\n")


@WAYS
def test_it_is_talked_with(fresh: bool) -> None:
    with scripts.Script("print(input().upper()); print(input() * 2)", fresh=fresh) as running:
        running.say("first")
        assert running.line() == "FIRST"
        running.say("second")
        assert running.line() == "secondsecond"
        assert running.line() == ""
    assert running.ended().out == "FIRST\nsecondsecond\n"


@pytest.mark.slow
@WAYS
@pytest.mark.parametrize(
    ("last", "status", "words"),
    [
        ("sys.exit(7)", 7, ""),
        ("os._exit(8)", 8, ""),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -signal.SIGINT, "KeyboardInterrupt"),
        ("raise ValueError('mine')", 1, "ValueError: mine"),
    ],
)
def test_it_ends_as_it_would(fresh: bool, last: str, status: int, words: str) -> None:
    start = "import atexit, os, signal, sys, time; atexit.register(print, 'end')\n"
    ended = scripts.run(start + last, fresh=fresh)
    assert ended.status == status
    assert ended.out == ("" if "_exit" in last or "SIGTERM" in last else "end\n")
    assert ended.err.splitlines()[-1:] == ([words] if words else [])
    assert "nursery.py" not in ended.err


def test_jetsocket_and_these_tests_it_imports_itself() -> None:
    script = (
        "import sys; print(*[name for name in sys.modules if name.split('.')[0] in ('jetsocket', 'tests')])"
    )
    loaded = scripts.run(script).check().out.split()
    assert sorted(loaded) == ["tests", "tests.nursery", "tests.watchdog"]


def test_they_run_side_by_side() -> None:
    first, second = forked("print(input(), 1)"), forked("print(input(), 2)")
    for child in (second, first):
        child.stdin.write("told\n")
        child.stdin.flush()
    assert [child.stdout.read() for child in (first, second)] == ["told 1\n", "told 2\n"]
    for child in (first, second):
        child.await_end()
        assert child.wait() == child.wait() == 0
        child.kill()  # long gone
        child.close()


@pytest.mark.slow
def test_after_an_answer_that_was_not_waited_for_there_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class StruckError(Exception):
        pass

    def struck(*given: object) -> bytes:
        raise StruckError

    child = forked("input()")
    with monkeypatch.context() as patch, pytest.raises(StruckError):
        patch.setattr(nursery, "_exactly", struck)
        child.wait()
    child.kill()
    child.close()
    assert scripts.run("print('well')").check().out == "well\n"

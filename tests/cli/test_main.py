"""The command line as a whole: help whose examples run, unknown commands, ends.

Also tests: `parsers`, `completion`.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jetsocket.cli import main as main_module
from jetsocket.cli.main import main
from jetsocket.cli.parsers import EXAMPLES, EXIT_CODES, build
from tests.cli.shell import World, commands
from tests.cli.terminal import Ran, run
from tests.conftest import Tls
from tests.scripts import ROOT
from tests.servers import EchoServer


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tls: Tls) -> Iterator[World]:
    with World(monkeypatch, tls) as world:
        yield world


ELSEWHERE = ("serve", "demo", "fleet")  # fleet: test_fleet
RUN = [(name, line) for name, lines in EXAMPLES.items() if name not in ELSEWHERE for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "line"), RUN, ids=[line for _, line in RUN])
def test_the_examples_of_help_run(name: str, line: str, world: World) -> None:
    ran = world.run(line)
    assert ran.code == 0, ran.err
    assert ran.out
    if name == "call" and "hello" in line:
        assert ran.lines[0] == "hello"


def test_what_the_examples_of_serve_and_demo_say_exists() -> None:
    for name in ("serve", "demo"):
        for line in EXAMPLES[name]:
            words = shlex.split(line)
            assert words[:2] == ["jetsocket", name]
            build()[1][name].parse_known_args(words[2:])


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_has_usage_options_examples_and_exit_codes(name: str) -> None:
    ran = run(name, "whatever", "--help")
    text = ran.out.decode()
    assert (ran.code, ran.err) == (0, "")
    assert text.startswith(f"usage: jetsocket {name} ")
    assert all(line in text for line in EXAMPLES[name])
    assert (EXIT_CODES in text and "--quiet" in text) or name == "demo"


def test_help_of_all() -> None:
    for arguments in ([], ["--help"], ["-h"]):
        ran = run(*arguments)
        assert ran.code == 0
        assert all(f"    {name} " in ran.out.decode() for name in EXAMPLES)


def test_the_version() -> None:
    import jetsocket

    assert run("--version").out.decode() == f"jetsocket {jetsocket.__version__}\n"


@pytest.mark.parametrize("arguments", [["dance"], ["--json"], ["-x"], ["demo", "x"]])
def test_what_there_is_not_is_exit_2(arguments: list[str]) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert ran.err or ran.error["exit"] == 2


def test_wrong_usage_is_told_in_json_if_asked_for() -> None:
    ran = run("call", "--json", "-n", "x")
    assert (ran.err, ran.error["exit"]) == ("", 2)
    assert "--help" in ran.error["remedy"]
    assert run("listen", "ws://a b", "--json").error["exit"] == 2


def test_every_command_that_connects_takes_the_common_options() -> None:
    common = {
        "-H", "--header-file", "--subprotocol", "--origin", "-k", "--ca", "--cert", "--key",
        "--server-hostname", "--proxy", "--unix", "-v", "--quiet", "--json",
    }  # fmt: skip
    for name in ("call", "listen", "ping", "check", "bench"):
        known = build()[1][name]._option_string_actions
        assert common <= known.keys()
        assert (known["-q"].dest == "quiet") is (name != "bench")
    for name in ("call", "listen", "bench"):
        assert {"--base64", "-0"} <= build()[1][name]._option_string_actions.keys()


# --- how it ends


def test_ctrl_c_is_130_and_a_closed_pipe_141(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "_run", interrupted)
    assert run("call", "ws://h") == Ran(130, b"", "")

    class Broken(io.BytesIO):
        def write(self, data: object) -> int:
            raise BrokenPipeError

    assert main(["--help"], io.BytesIO(), Broken(), io.StringIO()) == 141
    assert main(["nope", "--json"], io.BytesIO(), Broken(), io.StringIO()) == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device there")
def test_a_full_disk_is_told_once(echo: EchoServer) -> None:
    command = [sys.executable, "-m", "jetsocket", "call", echo.uri, "hello"]
    with open("/dev/full", "wb") as stdout:
        done = subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, cwd=ROOT, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (2, b"jetsocket: No space left on device\n")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals there")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("jetsocket be", ["bench"]),
        ("jetsocket serve n", ["node.py"]),
        ("jetsocket fleet ", ["forget", "status"]),
        ("jetsocket call --correlation g", ["graphql"]),
        ("jetsocket bench --fail-if p9", ["p90\\>", "p95\\>", "p99\\>"]),
        ("jetsocket call --header-file n", ["node.py", "notes"]),
        ("jetsocket call --origin n", []),
        ("jetsocket call -t n", []),
    ],
)
def test_completion(tmp_path: Path, line: str, offered: list[str]) -> None:
    """As bash asks: by environment variables, the answer on descriptor 8."""
    pytest.importorskip("argcomplete")
    answer = tmp_path / "answer"
    for name in ("node.py", "notes"):
        (tmp_path / name).touch()
    env = {
        **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line,
        "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "jetsocket"], env=env, cwd=tmp_path, timeout=60, check=False)
    told = answer.read_text(encoding="utf-8").split()
    assert sorted(each for each in told if not each.startswith("-")) == offered


def test_the_console_script_is_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^jetsocket = "jetsocket\.cli\.console:console"$', text, re.MULTILINE)
    for module in ("cli/console", "__main__"):  # by which argcomplete knows them
        path = ROOT / "jetsocket" / f"{module}.py"
        assert "PYTHON_ARGCOMPLETE_OK" in path.read_text(encoding="utf-8")[:1024]


@pytest.mark.slow
def test_in_the_plain_install_five_commands_work(echo: EchoServer) -> None:
    """In a Python where no package of an extra can be imported."""
    script = f"""
import sys
for name in ("rich", "argcomplete", "prompt_toolkit", "websockets", "trustme", "msgspec", "requests"):
    sys.modules[name] = None
from jetsocket.cli.main import main
uri = {echo.uri!r}
codes = [main(line.split()) for line in (
    f"call {{uri}} hello", f"listen {{uri}} --send hello -n 1", f"ping {{uri}} -c 1", f"check {{uri}}",
    f"bench {{uri}} -n 5",
)]
codes += [main(["serve"]), main(["demo"])]
print(codes)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 2, 2]"
    assert done.stderr.count("pip install") == 2


def test_arguments_of_commands_are_read_back_from_json() -> None:
    assert json.loads(run("call", "x", "--json").out)["type"] == "error"


def test_commands_in_a_page() -> None:
    page = "```console\n$ jetsocket call a \\\n    b\nhello\n$ x | jetsocket call c -\n```\ntext\n"
    found = commands(page)
    assert found == [("jetsocket call a b", ["hello"]), ("x | jetsocket call c -", [])]

"""docs/terminal.md: its commands print what is shown. docs/terminal-reference.md: exit codes as in --help."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from jetsocket.cli.parsers import EXIT_CODES
from tests.cli.shell import World, commands
from tests.conftest import Tls
from tests.scripts import ROOT

PAGE = (ROOT / "docs" / "terminal.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "terminal-reference.md").read_text(encoding="utf-8")
COMMANDS = commands(PAGE)
ERRORS = {"no_such_method": 1, "a path": 2}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tls: Tls) -> Iterator[World]:
    with World(monkeypatch, tls) as world:
        yield world


def pattern(line: str) -> str:
    """What a line may look like: other figures, other blanks; … stands for anything."""
    words = re.sub(r"\d[\d,.]*(?: (?:us|ms|s)\b)?", "#", line)
    words = re.escape(re.sub(r"\s+", " ", words))
    return words.replace("\\#", "#").replace("#", r"\d[\d,.]*(?: (?:us|ms|s)\b)?").replace("…", ".*")


@pytest.mark.slow
@pytest.mark.parametrize(("line", "shown"), COMMANDS, ids=[line for line, _ in COMMANDS])
def test_a_command_prints_what_is_shown(line: str, shown: list[str], world: World) -> None:
    ran = world.run(line)
    expected = next((code for words, code in ERRORS.items() if words in line), 0)
    assert ran.code == expected, ran.err
    printed = [*re.split("[\n\0]", ran.out.decode())[:-1], *ran.err.splitlines()]
    if " | head -n 1" in line:
        printed = printed[:1]
    assert len(printed) == len(shown), printed
    for there, here in zip(printed, shown, strict=True):
        assert re.fullmatch(pattern(here), re.sub(r"\s+", " ", there)), (there, here)


def test_there_are_commands_of_all_kinds() -> None:
    assert {line.split("jetsocket ", 1)[1].split()[0] for line, _ in COMMANDS} == {
        "call", "listen", "check", "ping", "bench",
    }  # fmt: skip


def test_the_table_of_exit_codes_is_that_of_help() -> None:
    told = re.findall(r"^ +(\d+) ", EXIT_CODES, re.MULTILINE)
    assert re.findall(r"^\| (\d+) \|", REFERENCE.split("## Exit codes")[1], re.MULTILINE) == told

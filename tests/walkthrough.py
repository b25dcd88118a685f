"""Walks through docs/tutorial.md: writes its files, runs its commands, compares what they print."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from tests.scripts import ROOT

PAGE = ROOT / "docs" / "tutorial.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PORT = "8765"
_AT_ITS_END = ", at its end"
_IN_PLACE_OF = re.compile(r"(\S+), in place of (.+) …")


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of each block, in order."""
    for found in _BLOCK.finditer(page):
        yield found[1], found[2]


def shown_as(printed: str) -> Callable[[str], bool]:
    """Whether a page may show that: … stands for anything, and times are other times."""
    words = re.escape(printed.strip()).replace("…", ".*?")
    return re.compile(re.sub(r"\d+\\\.\d+s\b", r"\\d+\\.\\d+s", words), re.DOTALL).fullmatch  # type: ignore[return-value]  # a match is as good as True


class Walk:
    """One reader in one folder.

    Args:
        folder: Where the reader begins.
        env: The environment of the commands.
        instead: What stands for what in the commands: paths, say.
    """

    def __init__(self, folder: Path, env: Mapping[str, str], instead: Mapping[str, str]) -> None:
        self.folder = folder
        self.printed: list[str] = []
        self._env = dict(env)
        self._instead = dict(instead)
        self._running: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Walk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._running:
            child.send_signal(signal.SIGINT)
        for child in self._running:
            child.communicate(timeout=20)

    def go(self, page: str) -> None:
        """Do all that the page says."""
        for language, text in blocks(page):
            if language == "python":
                self._write(text)
            else:
                assert language == "console", text
                for command in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                    line, _, shown = command.partition("\n")
                    self._run(line, shown)

    def _write(self, text: str) -> None:
        """Write a file, add to one, or change a line of one, as the comment in the first line says."""
        first, _, code = text.partition("\n")
        name = first.removeprefix("# ")
        if name.endswith(_AT_ITS_END):
            path = self.folder / name.removesuffix(_AT_ITS_END)
            path.write_text(path.read_text(encoding="utf-8") + "\n\n" + code, encoding="utf-8")
        elif found := _IN_PLACE_OF.fullmatch(name):
            path = self.folder / found[1]
            line = re.compile(rf"^ *{re.escape(found[2])} .*\n", re.MULTILINE)
            changed, count = line.subn(lambda _: code, path.read_text(encoding="utf-8"))
            assert count == 1, name
            path.write_text(changed, encoding="utf-8")
        else:
            path = self.folder / name
            assert path.suffix == ".py" and not path.exists(), name
            path.write_text(text, encoding="utf-8")

    def _run(self, line: str, shown: str) -> None:
        for there, here in self._instead.items():
            line, shown = line.replace(there, here), shown.replace(there, here)
        words = shlex.split(line)
        if words[0] == "cd":
            self.folder /= words[1]
        elif words[0] == ".":  # an environment that is activated
            self._env["PATH"] = f"{(self.folder / words[1]).parent}:{self._env['PATH']}"
        elif words[:2] == ["jetsocket", "serve"]:
            self._serve(line)
        else:
            ran = subprocess.run(
                ["sh", "-c", line],
                cwd=self.folder,
                env=self._env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=200,
                check=False,
            )
            told = f"$ {line}\n{ran.stdout}\n--- shown is\n{shown}"
            assert words[0] == "pip" or shown_as(shown)(ran.stdout.strip()), (
                told
            )  # pip may tell of its indexes
            assert (ran.returncode == 0) == ("failed" not in shown), told
        self.printed.append(shown)

    def _serve(self, line: str) -> None:
        """Start what runs in another terminal, at any free port, and go on when it has said where."""
        assert _PORT in line
        child = subprocess.Popen(
            ["sh", "-c", f"exec {line.replace(_PORT, '0')}"],
            cwd=self.folder,
            env=self._env,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._running.append(child)
        assert child.stdout is not None
        found = re.fullmatch(r"ws://127\.0\.0\.1:(\d+)\n", child.stdout.readline())
        assert found is not None
        self._instead[_PORT] = found[1]


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would say something else to the programs."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))
    } | more

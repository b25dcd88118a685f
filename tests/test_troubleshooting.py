"""docs/troubleshooting.md, docs/terminal-reference.md: each text that the package can tell, and no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from jetsocket import ConnectionPool, PoolClosedError
from tests import told
from tests.scripts import ROOT
from tests.servers import refusing_port

_TABLE = re.compile(r"^\| message \|[^\n]*\n\|[-|]+\n((?:\|[^\n]*\n)+)", re.MULTILINE)
_SPAN = re.compile(r"`` (.+?) ``|`([^`]+)`")


def texts_on(name: str) -> list[str]:
    """The texts in the first column of the tables of messages on a page."""
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    rows = [row for table in _TABLE.findall(page) for row in table.splitlines()]
    cells = [re.split(r"(?<!\\)\|", row)[1].replace("\\|", "|") for row in rows]
    return [double or single for cell in cells for double, single in _SPAN.findall(cell)]


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "of"),
    [("troubleshooting.md", told.of_the_library), ("terminal-reference.md", told.of_the_commands)],
    ids=["the library", "the commands"],
)
def test_the_page_has_each_text_and_no_other(name: str, of: Callable[[], dict[str, str]]) -> None:
    source, page = of(), texts_on(name)
    missing = [f"{place}: {text}" for text, place in source.items() if text not in page]
    assert not missing, f"docs/{name} lacks these; write what they mean, and what to do:\n" + "\n".join(
        missing
    )
    gone = [text for text in page if text not in source]
    assert not gone, f"docs/{name} has these, which nothing in the package says:\n" + "\n".join(gone)


SOURCE = '''
"""A module whose own words are no message."""
import logging
def fail(what, log):
    """Neither are a function's."""
    assert what, "nor is an assertion"
    log.debug("nor is what only DEBUG lines say")
    advice = "do this, or do that"
    log.warning("[%s] connection %d is closed: %s", 1, 2, 3)
    raise ValueError(f"{what} failed: {what!r}; " + advice) from None
def other(names):
    raise TypeError("two words" f" of {names}, and {len(names)} "
                    "in two lines")
class Thing:
    help = "Look at all that is there"
    def __repr__(self):
        return "a thing to look at"
    def add_arguments(self, parser):
        parser.add_argument("--all", help="look at all that is there", metavar="this | that | all")
        parser.add_argument("a usual argument is told", type=int)
    def show(self, text):
        return f"<p>{text} with words around</p>" or "a < b but no markup"
MEASURES = (Measure("size", "how large a thing is"),)
'''


COMMAND = """
def run(given):
    remedy = "do something about it"
    line = f"chain {given}"
    if given:
        raise UsageError(f"where is {given}", remedy)
    return Outcome(2, _why())
def _why():
    return "what is wrong"
"""


def test_texts_are_read_out_of_a_source_as_a_page_shows_them(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(SOURCE, encoding="utf-8")
    assert [text for _, text in told.texts(path)] == [
        "do this, or do that",
        "connection … is closed: …",
        "two words of …, and … in two lines",
        "a usual argument is told",
        "a < b but no markup",
    ]
    assert {text for _, text in told.of_raises_and_logs(path)} == {
        "connection … is closed: …",
        "two words of …, and … in two lines",
    }
    path.write_text(COMMAND, encoding="utf-8")
    assert [text for _, text in told.of_a_command(path)] == [
        "do something about it",
        "where is …",
        "what is wrong",
    ]
    assert "chain …" in [text for _, text in told.of_a_command(path, least=1)]


def test_errors_that_are_really_raised_are_found_on_the_page() -> None:
    texts = [text for text in texts_on("troubleshooting.md") if len(text.replace("…", "")) > 20]

    def found(error: Exception) -> list[str]:
        said = " ".join(str(error).split())
        return [text for text in texts if re.search(re.escape(text).replace("…", ".+"), said)]

    with refusing_port() as port, ConnectionPool(base_uri=f"ws://127.0.0.1:{port}") as pool:
        with pytest.raises(ConnectionError) as refused:
            pool.acquire("/")
        with pytest.raises(ValueError, match="invalid") as invalid:
            pool.acquire("http://h/")
    with pytest.raises(PoolClosedError) as closed:
        pool.acquire("/")
    assert "is the server running, and reachable from here?" in found(refused.value)
    assert "the scheme … is HTTP's; say …" in found(invalid.value)
    assert "pool … is …: it gives no more leases; make a new pool" in found(closed.value)

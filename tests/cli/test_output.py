"""What goes to which stream, and how it looks there."""

from __future__ import annotations

import io
import os
import sys

import pytest

from jetsocket.cli.exits import Outcome
from jetsocket.cli.output import PipeClosedError, Streams, Terminal, is_terminal, wants_colours
from tests.cli.terminal import Screen, terminal

EVIL = "a\x1b[2J\x07\x9b\u202eb\r"
FAILED = Outcome(3, f"cannot: {EVIL}", "do this")


def test_a_message_is_a_line() -> None:
    there, out, err = terminal()
    there.message("grüße")
    there.message(EVIL)  # as it is: who reads is a program
    assert out.getvalue() == f"grüße\n{EVIL}\n".encode()
    assert err.getvalue() == ""


def test_control_characters_are_escaped_on_a_terminal_and_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    there, out, err = terminal(on_screen=True, verbose=True)
    there.message(f"{EVIL}\n\tnext")
    there.value({"a": EVIL})
    there.note(EVIL)
    there.detail(EVIL)
    there.fail(FAILED, where=EVIL)
    there.line(EVIL)
    for shown in (out.getvalue().decode(), err.getvalue()):
        assert not set(shown) & set("\x1b\x07\x9b\u202e\r"), repr(shown)
        assert r"\x1b[2J\x07\x9b\u202eb\r" in shown or r"\u001b" in shown
    assert "\n\tnext\n" in out.getvalue().decode()


def test_stderr_is_escaped_in_a_pipe_too() -> None:
    there, _, err = terminal()
    there.fail(FAILED)
    assert err.getvalue() == "jetsocket: cannot: a\\x1b[2J\\x07\\x9b\\u202eb\\r\n  → do this\n"


def test_binary_goes_to_a_pipe_as_it_is() -> None:
    there, out, _ = terminal()
    there.message(b"\x89PNG\r\n\0")
    assert out.getvalue() == b"\x89PNG\r\n\0"


def test_binary_on_a_terminal_is_told_in_hex_or_base64() -> None:
    there, out, _ = terminal(on_screen=True)
    there.message(b"\x1b[2J")
    assert out.getvalue() == b"<4 B of binary: 1b 5b 32 4a>\n"
    there, out, _ = terminal(on_screen=True, as_base64=True)
    there.message(b"\x1b[2J")
    assert out.getvalue() == b"G1sySg==\n"


def test_nul_in_place_of_line_feeds() -> None:
    there, out, _ = terminal(null=True)
    for payload in ("a\nb", b"\xff", "c"):
        there.message(payload)
    there.value([1])
    assert out.getvalue() == b"a\nb\0\xff\0c\0[1]\0"


def test_ndjson_has_its_type_first_and_no_control_character() -> None:
    there, out, err = terminal(on_screen=True, as_json=True)
    there.message(EVIL, line=3)
    there.message(b"\xff")
    there.value({"a": [EVIL]})
    assert there.fail(FAILED, where="line 3") == 3
    lines = out.getvalue().decode("ascii").splitlines()
    assert [line.split(",")[0] for line in lines] == [
        '{"type": "message"', '{"type": "message"', '{"type": "message"', '{"type": "error"',
    ]  # fmt: skip
    assert '"base64": "/w=="' in lines[1] and '"line": 3' in lines[0]
    assert out.getvalue().isascii() and b"\x1b" not in out.getvalue() and b"\x7f" not in out.getvalue()
    assert err.getvalue() == ""


def test_quiet_and_verbose() -> None:
    there, _, err = terminal(quiet=True, verbose=True)
    there.note("a")
    there.detail("b")
    assert err.getvalue() == ""
    assert there.fail(Outcome(4, "c")) == 4
    assert err.getvalue() == "jetsocket: c\n"
    there, _, err = terminal()
    there.detail("b")
    there.note("a")
    assert err.getvalue() == "a\n"


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    there, out, err = terminal(on_screen=True)
    there.line("a", "bold")
    there.fail(Outcome(3, "b"))
    assert out.getvalue() == b"\x1b[1ma\x1b[0m\n"
    assert err.getvalue() == "\x1b[31mjetsocket: b\x1b[0m\n"
    there, out, err = terminal()
    there.line("a", "bold")
    assert out.getvalue() == b"a\n"


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm", "NO_COLOR": "0"}, False),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_no_color_and_dumb_terminals(environ: dict[str, str], wanted: bool) -> None:
    assert wants_colours(environ) is wanted


class Broken(io.BytesIO):
    """A pipe that nobody reads."""

    def write(self, data: object) -> int:
        raise BrokenPipeError


def test_a_closed_pipe_is_told_each_time() -> None:
    there = Terminal(Streams(io.BytesIO(), Broken(), io.StringIO()))
    for _ in range(2):
        with pytest.raises(PipeClosedError):
            there.message("a")
    assert not there.is_read()


@pytest.mark.skipif(sys.platform == "win32", reason="no poll() there")
def test_whether_a_pipe_is_read_is_known_without_writing() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as stdout:
        there = Terminal(Streams(io.BytesIO(), stdout, io.StringIO()))
        assert there.is_read()
        os.close(reading)
        assert not there.is_read()


def test_without_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under pythonw, or after `>&-`."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    there = Terminal(Streams())
    there.note("a")
    assert there.fail(Outcome(3, "b")) == 3
    with pytest.raises(PipeClosedError):
        there.message("a")


def test_a_stderr_that_knows_ascii_only() -> None:
    raw = io.BytesIO()
    there = Terminal(Streams(io.BytesIO(), io.BytesIO(), io.TextIOWrapper(raw, "ascii")))
    there.fail(Outcome(3, "größer", "so"))
    assert raw.getvalue() == b"jetsocket: gr\\xf6\\xdfer\n  \\u2192 so\n"


def test_a_closed_stream_is_no_terminal() -> None:
    closed = io.StringIO()
    closed.close()
    assert is_terminal(Screen())
    assert not is_terminal(closed) and not is_terminal(None)


def test_a_live_bar_needs_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert terminal(on_screen=True)[0].is_live
    for there in (
        terminal()[0],
        terminal(on_screen=True, quiet=True)[0],
        terminal(on_screen=True, as_json=True)[0],
    ):
        assert not there.is_live
    monkeypatch.setenv("TERM", "dumb")
    assert not terminal(on_screen=True)[0].is_live

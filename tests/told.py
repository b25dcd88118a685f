"""What the library can tell: the texts of its errors, warnings and log lines, read out of its source.

A text is a literal of at least three words, or of two where it stands in a `raise`, with … for each value
that is put in. Long messages are put together from several, of which each is one text here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from jetsocket.cli.exits import _WORDS
from tests.scripts import ROOT

PACKAGE = ROOT / "jetsocket"
_FOR_PEOPLE = {"__repr__", "__str__", "_repr_html_"}  # what an object is shown as: no message
_NO_MESSAGE = {
    "debug",
    "compile",
    "pattern",  # as "compile"
    "addinivalue_line",
    "TypeAlias",
    "Measure",  # a metric's: shown beside its name wherever metrics are looked at
    "add_argument_group",  # usage
    "Line",  # of the demo's table, and below what it says meanwhile: it is looked at
    "print",
    "show",
}
_LOGGED = {"warning", "error", "exception"}
_FOR_USAGE = {"help", "metavar"}  # what `COMMAND --help` says: those who read it have asked for it
_MARKUP = re.compile(r"\s*</?[a-z]")  # it is looked at, and what it shows comes out of other texts
_WORD = re.compile(r"[A-Za-z]{2,}")
_PLACEHOLDER = re.compile(r"%(?:\.\d)?[sdgr]")


def shown(text: str) -> str:
    """A text as a page shows it: in one line, without what only joins it to others."""
    text = _PLACEHOLDER.sub("…", text).removeprefix("[…] ")
    text = re.sub(r"\s+", " ", re.sub(r"…(?:\s*…)+", "…", text)).strip()
    return text.strip(";,. ").removeprefix(": ").removesuffix(":").strip()


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of all that a file can tell."""
    yield from _within(ast.parse(path.read_text(encoding="utf-8")), least=3)


def of_a_command(path: Path, least: int = 3) -> Iterator[tuple[int, str]]:
    """Line and text of what a file of the commands can tell, wherever it is put together.

    Of what is given to those that make an error, texts of two words, too.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set(_within(tree, least))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name_of(node.func) in _MAKERS:
            found.update(_within(node, least=min(least, 2)))
    yield from sorted(found)


def of_raises_and_logs(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of what a file raises and logs."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        is_logged = isinstance(node, ast.Call) and _name_of(node.func) in _LOGGED
        if isinstance(node, ast.Raise) or is_logged:
            yield from _within(node, least=2)


def _within(node: ast.AST, least: int) -> Iterator[tuple[int, str]]:
    if isinstance(node, (ast.Constant, ast.JoinedStr)):
        text = _text_of(node)
        if len(_WORD.findall(text)) >= least and " " in text.strip() and not _MARKUP.match(text):
            yield node.lineno, shown(text)
    for child in ast.iter_child_nodes(node):
        if not _is_silent(child) and not (
            isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)
        ):
            yield from _within(child, 2 if isinstance(child, ast.Raise) else least)


def _text_of(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)


def _is_silent(node: ast.AST) -> bool:
    """Whether what is in there is told to no reader: docstrings, assertions, types, DEBUG lines, usage."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.AnnAssign):
        return _name_of(node.annotation) in _NO_MESSAGE
    if isinstance(node, ast.Call):
        return _name_of(node.func) in _NO_MESSAGE
    if isinstance(node, ast.FunctionDef):
        return node.name in _FOR_PEOPLE
    if isinstance(node, ast.keyword):
        return node.arg in _FOR_USAGE
    if isinstance(node, ast.Assign):
        return all(_name_of(target) in _FOR_USAGE for target in node.targets)
    return isinstance(node, ast.Assert)


def _name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


# --- of the package


_EXEMPT = {
    "text/plain; charset=utf-8": "a header of the fake server's",
    "jetsocket(assert_all_called=True, assert_all_expected=True, tls=False, id_field='id', instead_of=None):"
    " how the fixture jetsocket_server is made": "the description of a marker, for `pytest --markers`",
}
_CONTRIB = PACKAGE / "contrib"
_PAGES = {_CONTRIB / "status", _CONTRIB / "django/panels.py"}  # what they show is looked at: no message
_STEPS = {"certificates.py", "steps.py"}  # what they tell of a step is put together of single words
_ASKED_FOR = {"parsers.py", "demo_server.py"}  # usage; a process that is heard by the demo only
_COMMAND_EXEMPT = {
    "IP Address": "a kind of name in a certificate, as Python calls it",
    "only an exception ends the wait": "of an AssertionError that nothing raises",
    "calls, … wrong, … retried": "the demo's progress, which is looked at",
}
_MAKERS = frozenset({"UsageError", "ArgumentTypeError", "Outcome"})


def of_the_library() -> dict[str, str]:
    """All texts of the library, each with the place where it is first."""
    files = (path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "cli")
    return _placed(
        (path, of_raises_and_logs(path) if _PAGES & {path, *path.parents} else texts(path)) for path in files
    )


def of_the_commands() -> dict[str, str]:
    """All that the commands can tell at a terminal and that is not the library's."""
    files = sorted((PACKAGE / "cli").glob("*.py"))
    told = {path: of_a_command(path, 1 if path.name in _STEPS else 3) for path in files}
    return _placed((path, found) for path, found in told.items() if path.name not in _ASKED_FOR)


def _placed(found: Iterable[tuple[Path, Iterable[tuple[int, str]]]]) -> dict[str, str]:
    placed: dict[str, str] = {}
    librarys = {shown(theirs) for theirs, _ in _WORDS}
    for path, told in found:
        for line, text in told:
            # What is said in the library's words in exits.py is there to be put into those of a command.
            is_librarys = path.name == "exits.py" and (text in librarys or "manager_kwargs" in text)
            if text not in _EXEMPT and text not in _COMMAND_EXEMPT and not is_librarys:
                placed.setdefault(text, f"{path.relative_to(ROOT)}:{line}")
    return placed

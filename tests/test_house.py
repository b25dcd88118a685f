"""The house is in order: what lies at the top, what a file says of itself, and whom it may ask."""

from __future__ import annotations

import ast
import functools
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import websocket

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jetsocket"
MODULES = sorted(PACKAGE.rglob("*.py"))
TOP = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "docs",
    "jetsocket",
    "pyproject.toml",
    "setup.cfg",
    "tests",
}


def tracked_files() -> list[str]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # A checkout may belong to another user than the one who tests.
    command = [git, "-c", f"safe.directory={ROOT}", "ls-files"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


def named(paths: Iterable[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def test_nothing_else_lies_at_the_top() -> None:
    assert {name.split("/")[0] for name in tracked_files()} <= TOP


def test_nothing_that_is_made_is_tracked() -> None:
    made = ("__pycache__", "_build/", ".venv", ".egg-info", ".coverage")
    assert [name for name in tracked_files() if any(part in name for part in made)] == []


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_a_file_says_what_lives_there() -> None:
    assert named(path for path in MODULES if not ast.get_docstring(parsed(path))) == []


def test_a_file_is_not_too_long() -> None:
    """400 lines: does it hold one idea?"""
    assert named(path for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > 400) == []


def test_a_file_has_its_test() -> None:
    """`jetsocket/wire/dial.py` is tested in `tests/wire/test_dial.py`, or where that is said."""
    elsewhere = also_tested()

    def is_tested(path: Path) -> bool:
        mirrored = ROOT / "tests" / path.relative_to(PACKAGE).parent / f"test_{path.stem.strip('_')}.py"
        return mirrored.exists() or path.relative_to(PACKAGE).with_suffix("") in elsewhere

    assert named(path for path in MODULES if path.name != "__init__.py" and not is_tested(path)) == []


def also_tested() -> frozenset[Path]:
    """What tests say that they test besides the file they are named after: "Also tests: `half`, `other`." """
    found: set[Path] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        if "\nAlso tests: " not in path.read_text(encoding="utf-8"):
            continue  # to parse them all takes seconds
        for told in re.findall(
            r"^Also tests: ([^.]*)\.$", ast.get_docstring(parsed(path)) or "", re.MULTILINE
        ):
            here = path.parent.relative_to(ROOT / "tests")
            found |= {here / name for name in re.findall(r"`([\w/]+)`", told)}
    return frozenset(found)


def test_nobody_asks_the_front_door() -> None:
    """`from jetsocket import X` would go around the floors, unless X is itself a module on one of them."""
    below = {module.stem for module in PACKAGE.glob("*.py")} | {"wire"}
    asked = [
        f"{path.relative_to(ROOT)} asks for {alias.name}"
        for path in MODULES
        if path.name not in ("__init__.py", "__main__.py")
        and path.relative_to(PACKAGE).parts[0] not in ("contrib", "testing")  # they stand where users stand
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and node.module == "jetsocket"
        for alias in node.names
        if alias.name not in below
    ]
    assert asked == []


# --- the state of a pool changes under its lock

NO_METHODS_OF_THE_STATE = {"__init__", "locking", "line", "idle_queues"}
STATE = sorted({path.stem for path in (PACKAGE / "state").glob("*.py")} - NO_METHODS_OF_THE_STATE)
NEED_NO_LOCK = {
    "__init__": "no other thread knows the state yet",
    "end_as": "likewise",
    "_condition": "`locking` asks, inside a step",
    "claim": "removes from a dict in one call",
    "dropped": "copies in single calls",
    "closed_error": "reads and makes an error",
    "_over": "makes an error",
}
CHANGED_UNDER_THE_LOCK = {
    "line",
    "idle",
    "troubles",
    "slots",
    "entries",
    "closing",
    "dials",
    "queued",
    "floors",
}
CHANGES = ("add", "append", "clear", "count_", "discard", "extend", "forget", "join", "leave", "move", "note")
CHANGES += (
    "pace",
    "pop",
    "put",
    "rebuild",
    "rejoin",
    "release",
    "acquire",
    "remove",
    "setdefault",
    "take",
    "update",
)


def methods_of_the_state() -> list[tuple[str, ast.FunctionDef]]:
    return [
        (module, method)
        for module in STATE
        for cls in parsed(PACKAGE / "state" / f"{module}.py").body
        if isinstance(cls, ast.ClassDef) and cls.name in (module.title().replace("_", ""), "State")
        for method in cls.body
        if isinstance(method, ast.FunctionDef)
    ]


def test_a_method_of_the_state_is_a_step_or_asserts_that_the_lock_is_held() -> None:
    neither, both = [], []
    for module, method in methods_of_the_state():
        marks = {ast.unparse(each) for each in method.decorator_list}
        statements = method.body[1:] if ast.get_docstring(method) else method.body
        asserts = bool(statements) and ast.unparse(statements[0]) == "assert self.lock.locked()"
        is_step = bool(marks & {"step", "written_out", "abstractmethod"})
        if not (is_step or asserts or method.name in NEED_NO_LOCK):
            neither.append(f"{module}.{method.name}")
        if is_step and asserts:
            both.append(f"{module}.{method.name}")
    assert (neither, both) == ([], [])


def test_that_looks_at_all_of_them() -> None:
    found = {module for module, _ in methods_of_the_state()}
    assert found == set(STATE)
    assert {method.name for _, method in methods_of_the_state()} >= NEED_NO_LOCK.keys()


def test_the_lists_of_a_state_change_in_its_own_methods() -> None:
    """`Line`, `Idle` and the others know no lock: the methods that use them hold it, see above."""
    changed = [
        f"{ast.unparse(node)} in line {node.lineno} of {path.relative_to(ROOT)}"
        for path in MODULES
        if path.parent != PACKAGE / "state"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith(CHANGES)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr in CHANGED_UNDER_THE_LOCK
        and ast.unparse(node.value.value) in ("state", "self.state", "self._state", "lending.state")
    ]
    assert changed == []


# --- websocket-client: only what it documents or exports


def private_uses(tree: ast.Module) -> Iterator[str]:
    """Underscored names of the `websocket` package that `tree` uses, by any way of importing them."""
    known: set[str] = set()  # local names that came from the package
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "websocket":
            yield from (part for part in (node.module or "").split(".") if is_private(part))
            yield from (alias.name for alias in node.names if is_private(alias.name))
            known |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "websocket":
                    yield from (part for part in alias.name.split(".") if is_private(part))
                    known.add(alias.asname or "websocket")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and root_name(node) in known:
            yield node.attr
        if isinstance(node, ast.ClassDef) and any(root_name(base) in known for base in node.bases):
            yield from inherited_private_uses(node)


def root_name(node: ast.expr) -> str | None:
    """`a` for the expressions a, a.b and a.b.c."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


@functools.cache
def inherited_names() -> frozenset[str]:
    return frozenset(name for name in dir(websocket.WebSocket()) if is_private(name))


def inherited_private_uses(cls: ast.ClassDef) -> Iterator[str]:
    """Private names of websocket.WebSocket that a subclass overrides or uses."""
    inherited = inherited_names()
    for node in ast.walk(cls):
        if isinstance(node, ast.FunctionDef) and node.name in inherited:
            yield node.name
        if isinstance(node, ast.Attribute) and node.attr in inherited and root_name(node) == "self":
            yield node.attr


def test_no_underscored_name_of_websocket_client_is_used() -> None:
    uses = [f"{path.relative_to(ROOT)}: {name}" for path in MODULES for name in private_uses(parsed(path))]
    assert uses == []


@pytest.mark.parametrize(
    "source",
    [
        "import websocket\nwebsocket._core",
        "import websocket as w\nw._abnf.ABNF",
        "import websocket._core",
        "from websocket._abnf import ABNF",
        "from websocket import _http",
        "from websocket import ABNF as A\nA._private",
        "import websocket\nclass W(websocket.WebSocket):\n def f(self): self._recv(1)",
        "from websocket import WebSocket as B\nclass W(B):\n def _send(self): pass",
    ],
)
def test_that_search_finds(source: str) -> None:
    assert list(private_uses(ast.parse(source)))


def test_that_search_lets_honest_code_pass() -> None:
    source = "import websocket\nclass W(websocket.WebSocket):\n def f(self): self._own = websocket.ABNF"
    assert list(private_uses(ast.parse(source))) == []

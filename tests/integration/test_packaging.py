"""What is released: wheel and sdist, each extra in an environment of its own, types as a user sees them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email.message import Message
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.integration.running import NODE_MODULES, ROOT
from tests.servers import EchoServer
from tests.walkthrough import PAGE as TUTORIAL
from tests.walkthrough import Walk, environment

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

FOR_DEVELOPERS = {"bench", "docs", "integration", "lint", "release", "soak", "test"}

# What a user of each extra does first. Each is run beside a server, whose URI is its argument.
PLAIN = """
import sys
from jetsocket import ConnectionPool
with ConnectionPool(base_uri=sys.argv[1]) as pool:
    assert pool.request("/", {"id": 1, "hello": "there"}, timeout=10) == {"id": 1, "hello": "there"}
"""
DEMO = """
import subprocess, sys
command = [sys.executable, "-m", "jetsocket", "demo", "--calls", "200", "--threads", "4"]
subprocess.run(command, check=True, timeout=60)
"""
EXAMPLES = {
    "celery": """
import sys
from celery import Celery, signals
from jetsocket import ConnectionPool
from jetsocket.contrib.celery import setup
app = Celery("example")
app.conf.task_always_eager = True
with ConnectionPool(base_uri=sys.argv[1]) as pool:
    setup(app, pool, prewarm={"/": 1})
    @app.task
    def ask(number):
        return pool.request("/", [number], timeout=10)
    assert ask.delay(1).get() == [1]
    signals.worker_process_shutdown.send(sender=None)
    assert pool.is_closed
""",
    "cli": "import argcomplete\n" + DEMO,
    "demo": DEMO,
    "flask": """
import sys
from flask import Flask
from jetsocket.contrib.flask import JetSocket
app = Flask("example")
app.config["JETSOCKET_BASE_URI"] = sys.argv[1]
jet = JetSocket(app)
@app.get("/")
def view():
    return jet.pool.request("/", [1], timeout=10)
assert app.test_client().get("/").json == [1]
jet.close_all()
""",
    "http": """
import http.server, sys, threading
from jetsocket import ConnectionPool
from jetsocket.auth import TicketAuth

class Office(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = b'{"ticket": "t1"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

office = http.server.HTTPServer(("127.0.0.1", 0), Office)
threading.Thread(target=office.serve_forever, daemon=True).start()
auth = TicketAuth("http://127.0.0.1:%d/" % office.server_port)
with ConnectionPool(base_uri=sys.argv[1], manager_kwargs={"auth": auth, "proxy": None}) as pool:
    assert pool.request("/", [1], timeout=10) == [1]
""",
    "django": """
import sys
from django.conf import settings
settings.configure(JETSOCKET={"default": {"BASE_URI": sys.argv[1]}})
from jetsocket.contrib.django import pool, pools
assert pool.request("/", [1], timeout=10) == [1]
pools.close_all()
""",
    "jupyter": """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.user_ns["uri"] = sys.argv[1]
for cell in (
    "%load_ext jetsocket",
    "from jetsocket import ConnectionPool",
    "pool = ConnectionPool(base_uri=uri)",
    "assert pool.request('/', [1], timeout=10) == [1]",
    "shown = get_ipython().run_line_magic('jetsocket', 'status')",
    "assert 'idle=1' in repr(shown)",
    "pool.close()",
):
    shell.run_cell(cell).raise_error()
""",
    "msgspec": """
import msgspec, sys
from jetsocket import ConnectionPool
class Hello(msgspec.Struct):
    n: int
with ConnectionPool(base_uri=sys.argv[1], manager_kwargs={"message_type": Hello}) as pool:
    assert pool.request("/", {"n": 1}, timeout=10) == Hello(1)
""",
    "opentelemetry": """
import sys
from jetsocket import ConnectionPool
from jetsocket.contrib.opentelemetry import instrument
with ConnectionPool(base_uri=sys.argv[1]) as pool:
    instrument(pool)
    assert pool.request("/", [1], timeout=10) == [1]
""",
    "prometheus": """
import sys
from prometheus_client import CollectorRegistry, generate_latest
from jetsocket import ConnectionPool
from jetsocket.contrib.prometheus import PoolCollector
registry = CollectorRegistry()
with ConnectionPool(base_uri=sys.argv[1]) as pool:
    registry.register(PoolCollector(pool))
    assert pool.request("/", [1], timeout=10) == [1]
    assert b"jetsocket_connection_count" in generate_latest(registry)
""",
    "proxy": """
import sys
from jetsocket import ConnectionError, ConnectionPool
with ConnectionPool(base_uri=sys.argv[1], manager_kwargs={"proxy": "socks5://127.0.0.1:1"}) as pool:
    try:
        pool.request("/", [1], timeout=10)
    except ConnectionError as error:
        assert "socks5" in str(error)
    else:
        raise AssertionError("there is no proxy")
""",
    "pydantic": """
import pydantic, sys
from jetsocket import ConnectionPool
class Hello(pydantic.BaseModel):
    n: int
with ConnectionPool(base_uri=sys.argv[1], manager_kwargs={"message_type": Hello}) as pool:
    assert pool.request("/", {"n": 1}, timeout=10) == Hello(n=1)
""",
    "redis": """
import socket, sys
from jetsocket import ConnectionError, ConnectionPool
from jetsocket.contrib.redis import RedisLimiter
with socket.socket() as closed:
    closed.bind(("127.0.0.1", 0))
    url = "redis://127.0.0.1:%d" % closed.getsockname()[1]
    for on_error in ("open", "closed"):
        limiter = RedisLimiter(url, "example", limit=2, on_error=on_error)
        with ConnectionPool(base_uri=sys.argv[1], limiter=limiter) as pool:
            try:
                assert pool.request("/", [1], timeout=10) == [1]
            except ConnectionError as error:
                assert on_error == "closed" and "Redis at 127.0.0.1" in str(error)
            else:
                assert on_error == "open"
""",
    "speed": PLAIN
    + """
assert "websockets.speedups" in sys.modules
""",
    "testing": """
from jetsocket import ConnectionPool
from jetsocket.testing import FakeServer
with FakeServer(tls=True) as server:
    server.on({"method": "height"}).reply({"result": 7})
    with ConnectionPool(base_uri=server.uri, manager_kwargs={"ssl_context": server.ssl_context}) as pool:
        assert pool.request("/", {"id": 1, "method": "height"}, timeout=10)["result"] == 7
""",
}
EXAMPLES["all"] = "".join(EXAMPLES.values())

# What the plain install says of an extra that is missing.
MISSING = """
import subprocess, sys
from typing import TypedDict
from jetsocket import ConnectionPool
from jetsocket.auth import TicketAuth

def told(do):
    try:
        do()
    except ImportError as error:
        return str(error)
    raise AssertionError("nothing is missing")

def pool(**options):
    return lambda: ConnectionPool(manager_kwargs=options)

class Hello(TypedDict):
    n: int

assert "jetsocket[http]" in told(lambda: TicketAuth("https://h/"))
assert "jetsocket[proxy]" in told(pool(proxy="socks5://127.0.0.1:1"))
assert "jetsocket[msgspec]" in told(pool(message_type=Hello))
command = [sys.executable, "-m", "jetsocket", "demo"]
done = subprocess.run(command, capture_output=True, text=True)
assert done.returncode == 2 and "jetsocket[demo]" in done.stderr, done
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make release` builds, from a copy of the sources as they are."""
    make = shutil.which("make")
    if make is None or find_spec("build") is None:
        pytest.skip("needs make and the extra release")
    made = tmp_path_factory.mktemp("dist")
    stamp = Path(sys.prefix) / ".has-release"
    command = [make, "release", f"VENV={sys.prefix}", f"DIST={made}", f"--assume-old={stamp}"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2  # by twine: what PyPI would show
    return made


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return next(dist.glob("*.whl"))


def run(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def install(tmp_path: Path) -> Callable[[str], Path]:
    """Make an environment with that and what it needs, and nothing else; returns its Python."""

    def install(what: str) -> Path:
        where = tmp_path / "env"
        run([sys.executable, "-m", "venv", "--without-pip", where], tmp_path)
        python = where / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
        run([*pip, "install", "--quiet", what], tmp_path)
        run([*pip, "check"], tmp_path)
        return python

    return install


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as opened:
        name = next(each for each in opened.namelist() if each.endswith(".dist-info/METADATA"))
        return Parser().parsestr(opened.read(name).decode())


# --- what is in it


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    files = [path for path in (ROOT / "jetsocket").rglob("*") if path.suffix in (".py", ".lua")]
    ours = {str(path.relative_to(ROOT)) for path in files}
    assert {name for name in names if ".dist-info/" not in name} == ours | {"jetsocket/py.typed"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_sdist_has_what_the_tests_need(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {
        "pyproject.toml",
        "setup.cfg",
        "Makefile",
        "tests/conftest.py",
        "docs/index.md",
        "LICENSE",
    } <= names
    assert not any("_build/" in name or "__pycache__" in name for name in names)


def test_the_metadata_are_complete(wheel: Path) -> None:
    told = metadata_of(wheel)
    assert (told["Name"], told["Version"]) == ("jetsocket", wheel.name.split("-")[1])
    for field in ("Summary", "Author", "Maintainer", "License-Expression", "License-File", "Keywords"):
        assert told[field], field
    assert told["Requires-Python"] == ">=3.10"
    assert told["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in told.get_all("Classifier", [])
    assert set(told.get_all("Provides-Extra", [])) == EXAMPLES.keys() | FOR_DEVELOPERS
    plain = [each for each in told.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert [re.match(r"[\w-]+", each)[0] for each in plain] == ["websocket-client"]  # type: ignore[index]  # each has a name


def test_all_has_what_every_extra_for_users_has(wheel: Path) -> None:
    needed: dict[str, set[str]] = {}
    for each in metadata_of(wheel).get_all("Requires-Dist", []):
        what, _, when = each.partition(";")
        for extra in re.findall(r"extra == ['\"]([\w-]+)['\"]", when):
            needed.setdefault(extra, set()).add(what.strip())
    assert needed["all"] == set().union(*(needed[extra] for extra in EXAMPLES if extra != "all"))
    assert needed["demo"] == needed["cli"] > needed["testing"]


# --- whether it works


def test_the_plain_install_works_and_names_what_is_missing(
    install: Callable[[str], Path], wheel: Path, echo: EchoServer, tmp_path: Path
) -> None:
    python = install(str(wheel))
    run([python, "-c", PLAIN, echo.uri], tmp_path)
    run([python, "-c", MISSING], tmp_path)


def test_the_sdist_can_be_installed(
    install: Callable[[str], Path], dist: Path, echo: EchoServer, tmp_path: Path
) -> None:
    python = install(str(next(dist.glob("*.tar.gz"))))
    run([python, "-c", PLAIN, echo.uri], tmp_path)


@pytest.mark.parametrize("extra", EXAMPLES)
def test_each_extra_brings_what_its_example_needs(
    install: Callable[[str], Path], wheel: Path, echo: EchoServer, tmp_path: Path, extra: str
) -> None:
    python = install(f"{wheel}[{extra}]")
    run([python, "-W", "error", "-c", EXAMPLES[extra], echo.uri], tmp_path)


def test_the_tutorial_goes_from_an_empty_folder_to_tested_code(wheel: Path, tmp_path: Path) -> None:
    """All of it, with what it installs; the rest is in tests/test_tutorial.py, too."""
    programs, folder = tmp_path / "bin", tmp_path / "empty"
    programs.mkdir()
    folder.mkdir()
    (programs / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    (programs / "python3").chmod(0o755)
    env = environment()
    env["PATH"] = f"{programs}:{env['PATH']}"
    page = TUTORIAL.read_text(encoding="utf-8")
    with Walk(folder, env, {"/path/to/jetsocket[testing]": f"{wheel}[testing]"}) as walk:
        walk.go(page)
    assert len(walk.printed) == page.count("\n$ ")
    assert (folder / "heights" / ".venv").is_dir()


# --- what it costs


@pytest.mark.parametrize("extras", ["", "[all]"], ids=["plain", "all"])
def test_importing_costs_little_beside_websocket_client(
    install: Callable[[str], Path], wheel: Path, tmp_path: Path, extras: str
) -> None:
    """Side by side, the shortest CPU time of each: what else this machine does only adds to them.

    And adds more to what has more code: beside 20 other processes, 1.6 becomes 2.2. With the extras,
    `import websocket` takes longer by itself: it imports one of them.
    """
    python = install(f"{wheel}{extras}")
    codes = ("import websocket", "from jetsocket import ConnectionPool", "import jetsocket")
    took: dict[str, list[float]] = {code: [] for code in codes}
    for _ in range(15):
        for code in codes:
            timed = f"from time import process_time as t\nbegan = t()\n{code}\nprint(t() - began)"
            took[code].append(float(run([python, "-c", timed], tmp_path).stdout))
    beside, pool, bare = (min(took[code]) for code in codes)
    is_idle = os.getloadavg()[0] < 1.5  # of which these are 1
    assert pool <= (1.8 if is_idle else 2.8) * beside, took
    assert bare <= beside * 10 / 38, took


# --- types


TYPED = ROOT / "tests" / "integration" / "apps" / "typed_user.py"
WRONG = {number for number, line in enumerate(TYPED.read_text().splitlines(), 1) if line.endswith("# wrong")}


def test_mypy_refuses_the_wrong_lines_and_no_others(
    install: Callable[[str], Path], wheel: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mypy", reason="needs mypy (the extra lint)")
    python = install(str(wheel))
    shutil.copy(TYPED, tmp_path)
    command = ["-m", "mypy", "--strict", "--no-incremental", f"--python-executable={python}", TYPED.name]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    found = re.findall(rf"^{TYPED.name}:(\d+): error: ", done.stdout, re.MULTILINE)
    assert set(map(int, found)) == WRONG, done.stdout + done.stderr
    assert len(WRONG) > 15


def test_pyright_refuses_the_wrong_lines_and_no_others(
    install: Callable[[str], Path], wheel: Path, tmp_path: Path
) -> None:
    pyright, node = NODE_MODULES / "pyright" / "index.js", shutil.which("node")
    if node is None or not pyright.exists():
        pytest.skip("needs pyright, which `make integration` installs from npm")
    python = install(str(wheel))
    shutil.copy(TYPED, tmp_path)
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps({"include": [TYPED.name], "typeCheckingMode": "strict"})
    )
    command = [node, str(pyright), "--outputjson", "--pythonpath", str(python)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)["generalDiagnostics"]
    found = {each["range"]["start"]["line"] + 1 for each in told if each["severity"] == "error"}
    assert found == WRONG, json.dumps(told, indent=1)

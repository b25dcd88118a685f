"""What `import jetsocket` loads, and what its names load when they are asked for.

Also tests: `logs`.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest

import jetsocket
import jetsocket.correlation
from jetsocket import ConnectionPool
from jetsocket.lazy_names import lazy_names
from tests.servers import EchoServer, RawServer, answer

PACKAGES = [jetsocket, jetsocket.correlation]
every_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)


def loaded_by(code: str, first: str = "") -> set[str]:
    """The modules that a new interpreter loads for that, beyond what it has loaded `first`."""
    counted = f"before = set(sys.modules)\n{code}\nprint(json.dumps([*set(sys.modules) - before]))"
    script = f"import sys, json\n{first}\n{counted}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def imported_for_type_checkers(package: ModuleType) -> dict[str, str]:
    """Names and modules of what is imported under `TYPE_CHECKING`."""
    assert package.__file__ is not None
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


# --- what is loaded


def test_the_package_alone_loads_next_to_nothing() -> None:
    loaded = loaded_by("import jetsocket; jetsocket.__version__")
    assert {name for name in loaded if name.startswith("jetsocket")} == {"jetsocket", "jetsocket.lazy_names"}
    assert len(loaded) < 12, sorted(loaded)  # of `collections.abc` and `importlib`


@pytest.mark.slow
def test_a_pool_loads_no_extra_but_what_websocket_client_does() -> None:
    """And none of the protocols, and no metadata of packages, which take long to read."""
    loaded = loaded_by("from jetsocket import ConnectionPool", first="import websocket")
    roots = {name.partition(".")[0] for name in loaded}
    assert roots - sys.stdlib_module_names == {"jetsocket"}
    assert "importlib.metadata" not in loaded
    protocols = {name for name in loaded if name.startswith("jetsocket.correlation.")}
    assert protocols == {"jetsocket.correlation.base", "jetsocket.correlation.reading"}


@pytest.mark.slow
def test_what_only_a_pool_needs_is_loaded_when_one_is_made() -> None:
    """Who imports the class, for a type hint or a view that is never called, does not pay for it."""
    loaded = loaded_by("from jetsocket import ConnectionPool", first="import websocket")
    later = {"jetsocket.wire.websocket", "jetsocket.stats", "jetsocket.info", "encodings.idna"}
    later |= {"jetsocket.lending", "jetsocket.housekeeper", "jetsocket.opening", "jetsocket.state.borrowing"}
    assert not (later | {"random", "jetsocket.wire.proxy_url"}) & loaded
    make = "from jetsocket import ConnectionPool; pool = ConnectionPool()"
    assert later <= loaded_by(make, first="import websocket")


def test_what_masks_in_c_is_loaded_with_the_first_connection() -> None:
    code = """
import contextlib, socket
from jetsocket.wire import frames
from jetsocket.wire.websocket import WebSocket
with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
assert frames._mask is frames.mask_in_python and "websockets" not in sys.modules
with contextlib.suppress(ConnectionError):
    WebSocket().connect(f"ws://127.0.0.1:{port}/", proxy=None, timeout=5)
from websockets.speedups import apply_mask
assert frames._mask is apply_mask
"""
    loaded_by(code)


@pytest.mark.slow
def test_openers_import_nothing() -> None:
    """They are threads: a child that was forked meanwhile would wait for the import for ever."""
    says = [("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"), ("Content-Type", "text/html")]
    with RawServer(answer("503 Busy", says, b"<p>come &amp; go</p>")) as server:
        code = """
import contextlib
with contextlib.suppress(ConnectionError):
    pool.acquire("/")
pool.close()
"""
        make = f"""
from jetsocket import ConnectionPool
options = {{"resolve": lambda uri, timeout: uri, "auth": ("me", "pw")}}
pool = ConnectionPool(base_uri={server.uri!r}, manager_kwargs=options)
"""
        loaded = loaded_by(code, first=make)
    assert server.accepted == 1
    assert {name.partition(".")[0] for name in loaded} <= {"encodings", "stringprep", "unicodedata"}


def test_borrowers_import_nothing() -> None:
    """They may be where an import can't be made: in a handler of signals, in a child, at the end."""
    with EchoServer() as server:
        code = """
with pool.acquire("/") as conn:
    conn.send({"id": 1})
    conn.recv()
    conn.request({"id": 2})
    conn.ping()
pool.request("/", {"id": 3})
with pool.subscribe("/feed", None, reconnect=True) as feed:
    pass
pool.stats(), pool.leases(), pool.connections(), pool.limits(), repr(pool)
pool.prewarm("/", 1)
pool.resize(2)
pool.clear()
pool.drain(5)
pool.close()
"""
        make = f"from jetsocket import ConnectionPool\npool = ConnectionPool(base_uri={server.uri!r})"
        assert not {name for name in loaded_by(code, first=make) if name.startswith("jetsocket")}
        assert server.messages == 3


def test_the_arguments_of_a_pool_have_types_that_can_be_asked_for() -> None:
    """As what builds objects for others does: the names in its annotations are there, loaded or not."""
    assert {"config", "correlation", "on_push", "limiter"} <= get_type_hints(ConnectionPool.__init__).keys()


# --- what the names are


@every_package
def test_every_public_name_is_there(package: ModuleType) -> None:
    public = set(package.__all__)
    assert imported_for_type_checkers(package).keys() == public
    assert public <= set(dir(package))
    for name, home in imported_for_type_checkers(package).items():
        assert getattr(package, name) is getattr(sys.modules[home], name)
        assert vars(package)[name] is getattr(package, name)  # from now on it is found without a call


@every_package
def test_dir_names_each_once_and_loads_none(package: ModuleType) -> None:
    name = package.__name__
    code = f"import {name} as package\nnames = dir(package)\nassert names == sorted(set(names))\n"
    loaded = loaded_by(code + "assert set(package.__all__) <= set(names)")
    assert not any(each.startswith("jetsocket.exc") or each.endswith((".pool", ".base")) for each in loaded)


def test_a_star_brings_all_of_them() -> None:
    code = "import jetsocket\nfrom jetsocket import *\nassert set(jetsocket.__all__) <= set(globals())"
    assert "jetsocket.pool" in loaded_by(code)


def test_modules_are_there_without_being_imported() -> None:
    """As when they were all loaded at once."""
    code = "import jetsocket\njetsocket.correlation.JsonRpc\njetsocket.exceptions.DecodeError"
    assert {"jetsocket.correlation.jsonrpc", "jetsocket.exceptions"} <= loaded_by(code)


@every_package
def test_another_name_is_an_attribute_error(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'Pool'"):
        _ = package.Pool


def test_an_import_that_fails_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("shop")
    monkeypatch.setitem(sys.modules, "shop", package)
    load, names = lazy_names("shop", {"shop.no_such_module": ["Till"]})
    with pytest.raises(ModuleNotFoundError, match=r"shop\.no_such_module"):
        load("Till")
    assert "Till" in names()


def test_nothing_is_printed_unless_logging_is_configured() -> None:
    """Python's last resort prints warnings of loggers that have no handler."""
    script = "from jetsocket.logs import POOL_LOG, WIRE_LOG\nPOOL_LOG.error('a')\nWIRE_LOG.error('b')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""

"""A Jupyter server, and a kernel behind its channels: outputs, errors, input, comms; as JSON and as v1."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any

import pytest

from jetsocket import ConnectionPool, HandshakeError, ReplyError
from jetsocket.correlation import Jupyter
from tests.crowds import crowd, errors
from tests.faults import conftest
from tests.integration.running import free_port, running, wait_for_port
from tests.servers import LOCALHOST

pytest.importorskip("jupyter_server")
pytest.importorskip("ipykernel")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

report = conftest.report

PoolFactory = Callable[..., ConnectionPool[Any]]

TOKEN = "a-secret-of-this-test-s-own"
WAIT = 60.0  # s; a kernel takes long to start on a busy machine
V1 = "v1.kernel.websocket.jupyter.org"
CONNECTIONS, THREADS, ROUNDS = 2, 8, 3

COMM_TARGET = """
def opened(comm, message):
    def got(message):
        n = message["content"]["data"]["n"]
        comm.send({"twice": n * 2}, buffers=[bytes(reversed(message["buffers"][0]))])
        if n == 3:
            comm.close()
    comm.on_msg(got)
    comm.send({"hello": message["content"]["data"]["name"]})
get_ipython().kernel.comm_manager.register_target("doubling", opened)
"""


class PlainJupyter(Jupyter):
    """For servers that know JSON only: asks for no subprotocol."""

    subprotocols: Sequence[str] = ()


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of the channels of a running kernel."""
    port, directory = free_port(), tmp_path_factory.mktemp("jupyter")
    command = [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", f"--port={port}"]
    command += [
        f"--ServerApp.ip={LOCALHOST}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={directory}",
    ]
    names = ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")
    environment = {name: str(directory / name) for name in names} | {"JUPYTER_TOKEN": TOKEN}
    with running(command, directory / "server.log", **environment) as process:
        wait_for_port(port, process)
        kernels = f"http://{LOCALHOST}:{port}/api/kernels"
        made = json.loads(api(kernels, "POST"))
        try:
            yield f"ws://{LOCALHOST}:{port}/api/kernels/{made['id']}/channels"
        finally:
            api(f"{kernels}/{made['id']}", "DELETE")


def api(url: str, method: str) -> bytes:
    request = urllib.request.Request(
        url, method=method, headers=HEADERS, data=b"{}" if method == "POST" else None
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=WAIT) as answer:
        body: bytes = answer.read()
        return body


HEADERS = {"Authorization": f"token {TOKEN}"}


@pytest.fixture(params=["v1", "JSON"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def kernel_pool(channels: str, form: str, make_pool: PoolFactory) -> PoolFactory:
    """A factory of pools of connections to the kernel, with one of the forms of the wire."""

    def make(**given: Any) -> ConnectionPool[Any]:
        correlation = Jupyter() if form == "v1" else PlainJupyter()
        kwargs = {"extra_headers": HEADERS}
        pool = make_pool(
            channels, correlation=correlation, manager_kwargs=kwargs, acquire_timeout=WAIT, **given
        )
        with pool.acquire("") as conn:
            assert conn.subprotocol == (V1 if form == "v1" else None)
        return pool

    return make


def execute(code: str, **content: Any) -> dict[str, Any]:
    return {"header": {"msg_type": "execute_request"}, "content": {"code": code, **content}}


def kinds(messages: list[Any]) -> list[str]:
    return [message["header"]["msg_type"] for message in messages]


def test_a_cell_with_outputs_an_error_and_input(kernel_pool: PoolFactory) -> None:
    with kernel_pool().acquire("") as conn:
        info = conn.request({"header": {"msg_type": "kernel_info_request"}}, WAIT)
        assert info["content"]["language_info"]["name"] == "python"
        assert info["content"]["language_info"]["version"] == ".".join(map(str, sys.version_info[:3]))

        code = "import sys\nfor n in range(20): print(n, flush=True)\nprint('wrong', file=sys.stderr)\n6 * 7"
        came = [*conn.stream(execute(code), WAIT)]
        printed = {"stdout": "", "stderr": ""}
        for message in came:
            if message["header"]["msg_type"] == "stream":
                printed[message["content"]["name"]] += message["content"]["text"]
        assert printed == {"stdout": "".join(f"{n}\n" for n in range(20)), "stderr": "wrong\n"}
        (result,) = (each for each in came if each["header"]["msg_type"] == "execute_result")
        assert result["content"]["data"]["text/plain"] == "42"
        assert kinds(came).count("execute_reply") == 1 and kinds(came).count("status") == 2

        with pytest.raises(ReplyError, match="division by zero") as raised:
            conn.request(execute("1 / 0"), WAIT)
        assert raised.value.code == "ZeroDivisionError"
        assert "ZeroDivisionError" in "".join(raised.value.data)  # the traceback, in colours

        got = []
        for message in conn.stream(execute("print('hello', input('who? '))", allow_stdin=True), WAIT):
            got.append(message)
            if message["header"]["msg_type"] == "input_request":
                assert message["content"]["prompt"] == "who? "
                conn.send({"header": {"msg_type": "input_reply"}, "content": {"value": "jetsocket"}})
        printed_text = "".join(each["content"].get("text", "") for each in got)
        assert "hello jetsocket\n" in printed_text  # which the kernel may send in parts
        assert (
            conn.request(execute("2 ** 10", user_expressions={"it": "_"}), WAIT)["content"]["status"] == "ok"
        )


def test_a_comm_carries_bytes_both_ways_until_the_kernel_closes_it(kernel_pool: PoolFactory) -> None:
    with kernel_pool().acquire("") as conn:
        conn.request(execute(COMM_TARGET), WAIT)
        opens = {
            "header": {"msg_type": "comm_open"},
            "content": {"target_name": "doubling", "data": {"name": "me"}},
        }
        with conn.subscribe(opens, timeout=WAIT) as comm:
            assert comm.get(WAIT)["content"]["data"] == {"hello": "me"}
            came = []
            for n in (1, 2, 3):
                content = {"comm_id": comm.topic[1], "data": {"n": n}}
                sent = {
                    "header": {"msg_type": "comm_msg"},
                    "content": content,
                    "buffers": [bytes(range(n, 256))],
                }
                conn.request(sent, WAIT)
                message = comm.get(WAIT)
                came.append(message["content"]["data"]["twice"])
                assert [bytes(each) for each in message["buffers"]] == [bytes(reversed(range(n, 256)))]
            assert came == [2, 4, 6]
            assert [*comm] == []


@pytest.mark.parametrize("max_in_flight", [1, 8])
def test_each_thread_gets_what_its_own_cell_has_made(
    kernel_pool: PoolFactory, max_in_flight: int, form: str, report: conftest.Report
) -> None:
    pool = kernel_pool(max_connections=CONNECTIONS, max_in_flight=max_in_flight)

    def one(number: int) -> int:
        right = 0
        for count in range(ROUNDS):
            n = number * ROUNDS + count
            message = execute(f"print({n})", user_expressions={"it": f"{n} ** 2"})
            message["header"]["msg_id"] = "the same for all"
            reply = pool.request("", message, timeout=WAIT)
            assert reply["parent_header"]["msg_id"] == "the same for all"
            right += reply["content"]["user_expressions"]["it"]["data"] == {"text/plain": str(n * n)}
            with pytest.raises(ReplyError, match=f"no {n}"):
                pool.request("", execute(f"raise LookupError('no {n}')", stop_on_error=False), timeout=WAIT)
            right += 1
        return right

    begun = monotonic()
    outcomes = crowd(THREADS, one, WAIT)
    took = monotonic() - begun
    assert errors(outcomes) == []
    cells, stats = sum(outcome.value for outcome in outcomes), pool.stats()
    assert cells == THREADS * ROUNDS * 2
    assert stats.total_connections <= CONNECTIONS and stats.late_replies == stats.in_flight == 0
    report(
        f"Jupyter server, {form}, {max_in_flight} in flight",
        cells=cells,
        connections=stats.total_connections,
        messages=stats.total_messages_received,
        cells_per_s=round(cells / took),
    )


def test_a_wrong_token_is_refused(channels: str, make_pool: PoolFactory) -> None:
    pool = make_pool(
        channels, correlation=Jupyter(), manager_kwargs={"extra_headers": {"Authorization": "token no"}}
    )
    with pytest.raises(HandshakeError) as refused:
        pool.request("", execute("1"), timeout=WAIT)
    assert refused.value.status_code == 403

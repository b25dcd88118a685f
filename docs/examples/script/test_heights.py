"""Its tests: `pytest test_heights.py`, without a network."""

import pytest
from heights import main


@pytest.fixture(autouse=True)
def service(jetsocket_server, monkeypatch):
    monkeypatch.setenv("HEIGHTS_BASE_URI", jetsocket_server.uri)
    return jetsocket_server


def test_each_block_has_its_line(service, capsys):
    service.on({"method": "height"}).callback(
        lambda message: {"jsonrpc": "2.0", "result": message["params"][0] * 2}
    )
    assert main(["21", "22", "23"]) == 0
    assert capsys.readouterr().out == "21 42\n22 44\n23 46\n"


def test_what_the_service_refuses_is_told_and_the_others_come(service, capsys):
    refusal = {"jsonrpc": "2.0", "error": {"code": -32000, "message": "no such block"}}
    service.on({"method": "height", "params": [22]}).reply(refusal)
    service.on({"method": "height"}).reply({"jsonrpc": "2.0", "result": 42})
    assert main(["21", "22"]) == 1
    told = capsys.readouterr()
    assert told.out == "21 42\n"
    assert told.err.startswith("22: ")
    assert "no such block" in told.err

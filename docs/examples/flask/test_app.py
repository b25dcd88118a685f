"""Its tests: `pytest test_app.py`, without a network."""

import pytest
from app import create_app, jet


@pytest.fixture
def client(jetsocket_server):
    app = create_app({"TESTING": True, "JETSOCKET_BASE_URI": jetsocket_server.uri})
    with app.app_context():
        yield app.test_client()
        jet.close_all()


def test_height(client, jetsocket_server):
    jetsocket_server.on({"method": "height", "params": [21]}).reply({"jsonrpc": "2.0", "result": 42})
    assert client.get("/height/21").json == {"height": 42}


def test_a_service_that_hangs_up_is_a_503(client, jetsocket_server):
    jetsocket_server.on({"method": "height"}).drop()
    assert client.get("/height/21").status_code == 503

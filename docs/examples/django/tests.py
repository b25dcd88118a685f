"""Its tests: `python manage.py test`, without a network."""

from django.test import SimpleTestCase

from jetsocket.testing import fake_server


class Height(SimpleTestCase):
    """The view, beside a service that does what the test says."""

    def asking(self, server):
        """Have the pool lead to that server."""
        section = {"BASE_URI": server.uri, "CORRELATION": "jetsocket.correlation.JsonRpc"}
        return self.settings(JETSOCKET={"default": section})

    @fake_server()
    def test_height(self, server):
        """The service's answer comes through."""
        server.on({"method": "height", "params": [21]}).reply({"jsonrpc": "2.0", "result": 42})
        with self.asking(server):
            assert self.client.get("/height/21").json() == {"height": 42}

    @fake_server()
    def test_a_service_that_hangs_up_is_a_503(self, server):
        """So does its failure."""
        server.on({"method": "height"}).drop()
        with self.asking(server):
            assert self.client.get("/height/21").status_code == 503

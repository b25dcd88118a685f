"""A service to try it with: `jetsocket serve --port 8765 node.py`."""

server.on({"method": "height"}).callback(  # noqa: F821  # `jetsocket serve` puts it there
    lambda message: {"jsonrpc": "2.0", "result": message["params"][0] * 2}
)

"""WebSocket servers of others, each run as `python -m tests.integration.peers NAME`, with compression on.

All of them echo, and understand the same few text messages (`/close CODE REASON`, and where the server's
interface allows it `/view`, `/ping`, `/fragments`, and `/end`, closing without a code). The first line of
output is the port; the end of the input is the end of the process.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

PIECES = ["The first piece, ", "", "the second piece, " * 20, "and the last."]


def listen() -> socket.socket:
    """A listening socket, its port announced: who connects early waits in its backlog."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(listener.getsockname()[1], flush=True)
    return listener


def closing(message: str) -> tuple[int, str]:
    """What `/close 4001 because of this` asks for."""
    _, code, reason = message.split(" ", 2)
    return int(code), reason


def websockets_threads() -> None:
    """The threaded server of websockets."""
    from websockets.sync.server import ServerConnection, serve

    def pieces(conn: ServerConnection) -> Any:
        for piece in PIECES:
            yield piece
            conn.ping()

    def handler(conn: ServerConnection) -> None:
        for message in conn:
            if not isinstance(message, str) or not message.startswith("/"):
                conn.send(message)
            elif message == "/view":
                conn.send(json.dumps([extension.name for extension in conn.protocol.extensions]))
            elif message == "/ping":
                conn.send("ponged" if conn.ping().wait(5) else "no pong")
            elif message == "/fragments":
                conn.send(pieces(conn))
            else:
                conn.close(*closing(message))

    with serve(handler, sock=listen(), compression="deflate") as server:
        server.serve_forever()


def websockets_asyncio() -> None:
    """The asyncio server of websockets."""
    from websockets.asyncio.server import ServerConnection, serve

    async def pieces(conn: ServerConnection) -> Any:
        for piece in PIECES:
            yield piece
            await conn.ping()

    async def handler(conn: ServerConnection) -> None:
        async for message in conn:
            if not isinstance(message, str) or not message.startswith("/"):
                await conn.send(message)
            elif message == "/view":
                await conn.send(json.dumps([extension.name for extension in conn.protocol.extensions]))
            elif message == "/ping":
                await asyncio.wait_for(await conn.ping(), 5)
                await conn.send("ponged")
            elif message == "/fragments":
                await conn.send(pieces(conn))
            else:
                await conn.close(*closing(message))

    async def main() -> None:
        async with serve(handler, sock=listen(), compression="deflate") as server:
            await server.serve_forever()

    asyncio.run(main())


async def asgi_app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """The echo for every server of ASGI, which knows no pings, fragments or extensions."""
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    while (event := await receive())["type"] != "websocket.disconnect":
        text = event.get("text")
        if event["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif text is not None and text.startswith("/"):
            code, reason = closing(text)
            await send({"type": "websocket.close", "code": code, "reason": reason})
        elif text is not None:
            await send({"type": "websocket.send", "text": text})
        else:
            await send({"type": "websocket.send", "bytes": event["bytes"]})


def uvicorn(backend: str) -> Callable[[], None]:
    """Uvicorn with one of its backends for WebSocket."""

    def run() -> None:
        import uvicorn

        config = uvicorn.Config(asgi_app, ws=backend, ws_per_message_deflate=True, log_level="warning")
        uvicorn.Server(config).run(sockets=[listen()])

    return run


def hypercorn() -> None:
    """Hypercorn, on asyncio."""
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    listener = listen()
    config.bind = [f"fd://{listener.fileno()}"]
    config.websocket_max_message_size = 16 << 20
    asyncio.run(serve(asgi_app, config))


def aiohttp() -> None:
    """The server of aiohttp."""
    from aiohttp import WSMsgType, web

    async def handler(request: web.Request) -> web.WebSocketResponse:
        conn = web.WebSocketResponse(compress=True, autoping=False)
        await conn.prepare(request)
        async for message in conn:
            if message.type is WSMsgType.BINARY:
                await conn.send_bytes(message.data)
            elif message.type is WSMsgType.PING:
                await conn.pong(message.data)
            elif message.type is WSMsgType.PONG:
                await conn.send_str("ponged")
            elif not message.data.startswith("/"):
                await conn.send_str(message.data)
            elif message.data == "/view":
                await conn.send_str(json.dumps(["permessage-deflate"] if conn.compress else []))
            elif message.data == "/ping":
                await conn.ping(b"aiohttp's")
            else:
                code, reason = closing(message.data)
                await conn.close(code=code, message=reason.encode())
        return conn

    app = web.Application()
    app.router.add_get("/", handler)
    web.run_app(app, sock=listen(), print=None)


def tornado() -> None:
    """The server of Tornado."""
    from tornado.httpserver import HTTPServer
    from tornado.web import Application
    from tornado.websocket import WebSocketHandler

    class Handler(WebSocketHandler):
        def get_compression_options(self) -> dict[str, Any]:
            return {}

        def on_message(self, message: str | bytes) -> None:
            if not isinstance(message, str) or not message.startswith("/"):
                self.write_message(message, binary=isinstance(message, bytes))
            elif message == "/ping":
                self.ping(b"tornado's")
            elif message == "/end":
                self.close()
            else:
                self.close(*closing(message))

        def on_pong(self, data: bytes) -> None:
            self.write_message("ponged")

    async def main() -> None:
        listener = listen()
        listener.setblocking(False)
        HTTPServer(Application([("/", Handler)])).add_socket(listener)
        await asyncio.Event().wait()

    asyncio.run(main())


PEERS = {
    "websockets-threads": websockets_threads,
    "websockets-asyncio": websockets_asyncio,
    "uvicorn-websockets": uvicorn("websockets"),
    "uvicorn-websockets-sansio": uvicorn("websockets-sansio"),
    "uvicorn-wsproto": uvicorn("wsproto"),
    "hypercorn": hypercorn,
    "aiohttp": aiohttp,
    "tornado": tornado,
}


def end_with_input() -> None:
    """End this process when whoever started it lets go, however that happens."""
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_input, daemon=True).start()
    PEERS[sys.argv[1]]()

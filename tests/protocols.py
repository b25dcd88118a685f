"""The services that docs/correlation.md and docs/protocols talk to, as their specifications say."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import responses

from tests.servers import Connection

Service = Callable[[Connection], None]

EXCHANGE = "stream.example.com"
SUBPROTOCOLS = ("graphql-transport-ws", "obswebsocket.json")


def choose(_conn: Any, offered: Any) -> Any:
    """Which of the offered subprotocols the services speak; the kernel's here has only JSON."""
    return next((each for each in offered if each in SUBPROTOCOLS), None)


def say(conn: Connection, *messages: Any) -> None:
    for message in messages:
        conn.send(json.dumps(message))


def heard(conn: Connection) -> Iterator[Any]:
    return map(json.loads, conn)


# --- JSON-RPC


class Node:
    """An Ethereum node; at `/restarting` it ends its first connection after three heads."""

    def __init__(self) -> None:
        self._restarts = itertools.count()

    def __call__(self, conn: Connection) -> None:
        assert conn.request is not None
        restarts = conn.request.path == "/restarting" and next(self._restarts) == 0
        late: list[Any] = []
        for message in heard(conn):
            if isinstance(message, list):
                say(conn, [self._answer(each) for each in reversed(message) if "id" in each])
                continue
            method = message["method"]
            if method == "debug_traceBlock":  # takes so long that its caller gives up
                late.append(message)
                continue
            say(conn, *({"jsonrpc": "2.0", "id": each["id"], "result": "a trace"} for each in late))
            late.clear()
            say(conn, self._answer(message))
            if method == "eth_subscribe":
                say(conn, *(self._head(number) for number in range(3)))
                if restarts:
                    conn.close(1012)
            elif method == "admin_addPeer":
                say(conn, {"jsonrpc": "2.0", "method": "admin_peerEvent", "params": {"peer": "added"}})

    @staticmethod
    def _answer(message: Any) -> Any:
        method, params = message["method"], message.get("params") or [None]
        results = {
            "eth_blockNumber": "0x10",
            "eth_chainId": "0x1",
            "eth_getBlockByNumber": {"number": params[0]},
            "eth_subscribe": "0x9cef478923ff08bf",
            "eth_unsubscribe": True,
            "admin_addPeer": True,
        }
        answer = {"jsonrpc": "2.0", "id": message["id"]}
        if method in results:
            return {**answer, "result": results[method]}
        return {**answer, "error": {"code": -32601, "message": f"the method {method} does not exist"}}

    @staticmethod
    def _head(number: int) -> Any:
        params = {"subscription": "0x9cef478923ff08bf", "result": {"number": hex(number)}}
        return {"jsonrpc": "2.0", "method": "eth_subscription", "params": params}


def aria2(conn: Connection) -> None:
    for message in heard(conn):
        notice = {
            "jsonrpc": "2.0",
            "method": "aria2.onDownloadStart",
            "params": [{"gid": "2089b05ecca3d829"}],
        }
        say(conn, notice, {"jsonrpc": "2.0", "id": message["id"], "result": "2089b05ecca3d829"})


def tickets(conn: Connection) -> None:
    """The protocol of one's own: replies carry the ticket; `more` says that another one follows."""
    for message in heard(conn):
        if "ask" not in message:
            say(conn, {"ticket": message["ticket"], "refused": "ask something"})
            continue
        for number in range(1, message.get("pages", 1) + 1):
            more = number < message.get("pages", 1)
            say(conn, {"ticket": message["ticket"], "page": number, "more": more})


# --- browsers


def browser(conn: Connection) -> None:
    assert conn.request is not None
    bidi = conn.request.path.startswith("/session")
    for message in heard(conn):
        method, params = message["method"], message.get("params", {})
        where = {name: message[name] for name in ("sessionId",) if name in message}
        results: dict[str, Any] = {
            "Target.createTarget": {"targetId": "5E1D"},
            "Target.attachToTarget": {"sessionId": "A7F2"},
            "Target.closeTarget": {"success": True},
            "Runtime.evaluate": {"result": {"type": "number", "value": 42}},
            "browsingContext.getTree": {"contexts": [{"context": "c1", "url": "about:blank"}]},
            "session.subscribe": {"subscription": "s1"},
        }
        if method == "Page.navigate":
            request = {"url": params["url"]}
            event = {"method": "Network.requestWillBeSent", "params": {"request": request}, **where}
            done = {"method": "Network.loadingFinished", "params": {"requestId": "1"}, **where}
            say(conn, event, {"id": message["id"], "result": {"frameId": "F"}, **where}, done)
        elif method == "DOM.describeNode":
            error = {"code": -32000, "message": "Could not find node with given id"}
            say(conn, {"id": message["id"], "error": error, **where})
        else:
            kind = {"type": "success"} if bidi else {}
            say(conn, {**kind, "id": message["id"], "result": results.get(method, {}), **where})
        if method == "session.subscribe":
            entry = {"level": "info", "text": "hello"}
            say(conn, {"type": "event", "method": "log.entryAdded", "params": entry})


# --- Jupyter


def kernel(conn: Connection) -> None:
    messages = heard(conn)
    for message in messages:
        parent = message["header"]

        def tell(kind: str, parent: Any = parent, **content: Any) -> None:
            header = {"msg_type": kind, "msg_id": "theirs"}
            say(conn, {"header": header, "parent_header": parent, "content": content, "channel": "iopub"})

        tell("status", execution_state="busy")
        code = message["content"].get("code")
        if parent["msg_type"] == "comm_open":
            tell("comm_msg", comm_id=message["content"]["comm_id"], data={"value": 7})
        elif code == "1 / 0":
            failed = {"ename": "ZeroDivisionError", "evalue": "division by zero", "traceback": ["…"]}
            tell("error", **failed)
            tell("execute_reply", status="error", **failed)
        elif code is not None:
            if "input(" in code:
                tell("input_request", prompt="name? ", password=False)
                said = next(messages)["content"]["value"]
                tell("stream", name="stdout", text=f"hello {said}\n")
            else:
                tell("stream", name="stdout", text="42\n")
            tell("execute_reply", status="ok", execution_count=1)
        tell("status", execution_state="idle")


# --- GraphQL


def graphql(conn: Connection) -> None:
    for message in heard(conn):
        kind, query = message["type"], message.get("payload", {}).get("query", "")
        number = {"id": message.get("id")}
        if kind == "connection_init":
            say(conn, {"type": "connection_ack"}, {"type": "ping"})
        elif kind == "subscribe" and query.startswith("subscription"):
            for stars in (3, 5):
                data = {"reviews": {"stars": stars}}
                say(conn, {"type": "next", **number, "payload": {"data": data}})
            say(conn, {"type": "complete", **number})
        elif kind == "subscribe" and "hero" in query:
            data = {"hero": {"name": "R2-D2"}}
            say(conn, {"type": "next", **number, "payload": {"data": data}}, {"type": "complete", **number})
        elif kind == "subscribe":
            errors = [{"message": "no such field", "extensions": {"code": "GRAPHQL_VALIDATION_FAILED"}}]
            say(conn, {"type": "error", **number, "payload": errors})


# --- at home, and on stage


def home_assistant(conn: Connection) -> None:
    say(conn, {"type": "auth_required", "ha_version": "2026.1"})
    for message in heard(conn):
        kind = message["type"]
        if kind == "auth":
            say(
                conn,
                {"type": "auth_ok"} if message["access_token"] == "a token" else {"type": "auth_invalid"},
            )
            continue
        result: Any = None
        if kind == "get_states":
            result = [{"entity_id": "light.kitchen", "state": "off"}]
        done = {"id": message["id"], "type": "result", "success": True, "result": result}
        if kind == "call_service" and message["service"] == "turn_of":
            error = {"code": "not_found", "message": "Service light.turn_of not found."}
            say(conn, {"id": message["id"], "type": "result", "success": False, "error": error})
        else:
            say(conn, done)
        if kind == "subscribe_events":
            for state in ("on", "off"):
                data = {"entity_id": "light.kitchen", "new_state": {"state": state}}
                say(conn, {"id": message["id"], "type": "event", "event": {"data": data}})


def obs(conn: Connection) -> None:
    say(conn, {"op": 0, "d": {"rpcVersion": 1}})
    for message in heard(conn):
        op, d = message["op"], message["d"]
        if op == 1:
            say(conn, {"op": 2, "d": {"negotiatedRpcVersion": 1}})
        elif op == 3:
            say(conn, {"op": 2, "d": {"negotiatedRpcVersion": 1}})
            if d["eventSubscriptions"] & 1 << 16:
                for _ in range(2):
                    meters = {"eventIntent": 1 << 16, "eventType": "InputVolumeMeters"}
                    say(conn, {"op": 5, "d": {**meters, "eventData": {"inputs": []}}})
        elif op == 6:
            request = {name: d[name] for name in ("requestType", "requestId")}
            if d["requestType"] == "SetCurrentProgramScene":
                status = {"result": False, "code": 600, "comment": "No source was found by that name."}
                say(conn, {"op": 7, "d": {**request, "requestStatus": status}})
            else:
                scenes = {"scenes": [{"sceneName": "Intro"}]}
                status = {"result": True, "code": 100}
                say(conn, {"op": 7, "d": {**request, "requestStatus": status, "responseData": scenes}})
        elif op == 8:
            results = [
                {"requestType": each["requestType"], "requestStatus": {"result": True, "code": 100}}
                for each in d["requests"]
            ]
            say(conn, {"op": 9, "d": {"requestId": d["requestId"], "results": results}})


# --- exchanges


def binance_api(conn: Connection) -> None:
    for message in heard(conn):
        if message["method"] == "time":
            say(conn, {"id": message["id"], "status": 200, "result": {"serverTime": 1764417600000}})
        else:
            error = {"code": -1121, "msg": "Invalid symbol."}
            say(conn, {"id": message["id"], "status": 400, "error": error})


def binance_streams(conn: Connection) -> None:
    for message in heard(conn):
        say(conn, {"result": None, "id": message["id"]})
        if message["method"] == "SUBSCRIBE":
            for stream in message["params"]:
                say(conn, {"stream": stream, "data": {"e": "trade", "p": "91000.01"}})


def okx(conn: Connection) -> None:
    for text in conn:
        if text == "ping":
            conn.send("pong")
            continue
        message = json.loads(text)
        for arg in message["args"]:
            say(conn, {"id": message["id"], "event": message["op"], "arg": arg, "connId": "a4d3ae55"})
        if message["op"] == "subscribe":
            for arg in message["args"]:
                say(conn, {"arg": arg, "data": [{"last": "91000.1"}]})


def services() -> dict[str, Service]:
    """Who answers at which host: by the Host header, or by the URI's host and port where that has none."""
    return {
        "node.example.com": Node(),
        "tickets.example.com": tickets,
        "localhost:6800": aria2,
        "localhost:9222": browser,
        "localhost:8888": kernel,
        "api.example.com": graphql,
        "homeassistant.local:8123": home_assistant,
        "localhost:4455": obs,
        "ws-api.binance.com": binance_api,
        "stream.binance.com:9443": binance_streams,
        "ws.okx.com:8443": okx,
    }


ENCRYPTED = ("stream.binance.com:9443", "ws.okx.com:8443")
"""Those whose port is another than 443 and that are reached by wss all the same."""


# --- what is got by HTTP


def give_out_tickets(http: responses.RequestsMock) -> None:
    """The services of docs/credentials.md that say how the exchange is to be dialled."""
    http.post(f"https://{EXCHANGE}/tickets", json={"data": {"ticket": "t1"}})
    http.post(f"https://{EXCHANGE}/login", headers={"Set-Cookie": "sessionid=s1; Path=/"})
    transports = [{"transport": "WebSockets", "transferFormats": ["Text"]}]
    negotiated = {"negotiateVersion": 1, "connectionToken": "c1", "availableTransports": transports}
    http.post(f"https://{EXCHANGE}/hub/negotiate", json=negotiated)
    address = f"wss://{EXCHANGE}/link/?ticket=t1"
    http.post("https://slack.com/api/apps.connections.open", json={"ok": True, "url": address})
    data = {"token": "t1", "instanceServers": [{"endpoint": f"wss://{EXCHANGE}/endpoint"}]}
    http.post("https://api.kucoin.com/api/v1/bullet-public", json={"code": "200000", "data": data})

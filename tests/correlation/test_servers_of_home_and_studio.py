"""Home Assistant and OBS through a pool: servers that are as strict as the specifications of both."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from jetsocket import ConnectionPool, HandshakeError, ReplyError
from jetsocket.correlation import HomeAssistant, Obs
from jetsocket.exceptions import ConnectionError
from tests.crowds import crowd, errors
from tests.servers import Connection, EchoServer, wait_until

PoolFactory = Callable[..., ConnectionPool[Any]]

WAIT = 10.0  # s
CONNECTIONS, THREADS, ROUNDS = 2, 8, 10
TOKEN, PASSWORD = "a long-lived token", "supersecretpassword"


class Home:
    """Home Assistant's API, and an entity for each number.

    By https://developers.home-assistant.io/docs/api/websocket: it speaks first; each id is greater
    than the one before; a client that supports it gets several messages in one frame.

    Attributes:
        logins: Connections that have been let in.
        reused: Ids that did not grow.
    """

    def __init__(self) -> None:
        self.logins = self.reused = 0
        self.lock = threading.Lock()
        self.lights: dict[str, str] = {}
        self.listeners: dict[tuple[Connection, int], str] = {}

    def __call__(self, conn: Connection) -> None:
        conn.send(json.dumps({"type": "auth_required", "ha_version": "2026.11.1"}))
        auth = json.loads(conn.recv())
        if auth != {"type": "auth", "access_token": TOKEN}:
            conn.send(json.dumps({"type": "auth_invalid", "message": "Invalid access token or password"}))
            conn.close()
            return
        with self.lock:
            self.logins += 1
        conn.send(json.dumps({"type": "auth_ok", "ha_version": "2026.11.1"}))
        last, coalesces = 0, False
        for text in conn:
            message = json.loads(text)
            number = message["id"]
            if number <= last:
                self.reused += 1
                error = {"code": "id_reuse", "message": "Identifier values have to increase."}
                conn.send(json.dumps({"id": number, "type": "result", "success": False, "error": error}))
                continue
            last = number
            with self.lock:
                coalesces |= message.get("features", {}).get("coalesce_messages") == 1
                answers = self.answers(conn, message)
                if coalesces and len(answers) > 1:
                    conn.send(json.dumps(answers))
                else:
                    for each in answers:
                        conn.send(json.dumps(each))
        with self.lock:
            self.listeners = {key: kind for key, kind in self.listeners.items() if key[0] is not conn}

    def answers(self, conn: Connection, message: dict[str, Any]) -> list[dict[str, Any]]:
        """What goes out on this connection, in order; events on others are sent at once."""
        number, kind = message["id"], message["type"]
        result = {"id": number, "type": "result", "success": True, "result": None}
        if kind == "ping":
            return [{"id": number, "type": "pong"}]
        if kind == "get_states":
            states = [{"entity_id": each, "state": state} for each, state in sorted(self.lights.items())]
            return [{**result, "result": states}]
        if kind == "call_service":
            entity = message["target"]["entity_id"]
            self.lights[entity] = message["service"].removeprefix("turn_")
            answers = [{**result, "result": {"context": {"id": entity}, "response": None}}]
            for (listener, listening), event_type in self.listeners.items():
                data = {"entity_id": entity, "new_state": self.lights[entity]}
                event = {"id": listening, "type": "event", "event": {"event_type": event_type, "data": data}}
                if listener is conn:
                    answers.insert(0, event)  # before the result: allowed, and it happens
                else:
                    listener.send(json.dumps(event))
            return answers
        if kind == "subscribe_events":
            self.listeners[conn, number] = message["event_type"]
            return [result]
        if kind == "render_template":  # the first rendering may come before the result
            self.listeners[conn, number] = "template"
            return [{"id": number, "type": "event", "event": {"result": message["template"]}}, result]
        if kind == "unsubscribe_events" and self.listeners.pop((conn, message["subscription"]), None):
            return [result]
        unknown = kind != "supported_features"
        error = {"code": "unknown_command", "message": f"Unknown command: {kind}"}
        return [{**result, "success": False, "error": error} if unknown else result]


def test_a_home_with_many_hands(make_pool: PoolFactory) -> None:
    home, unasked = Home(), []
    with EchoServer(home) as server:
        pool = make_pool(
            server,
            correlation=HomeAssistant(TOKEN),
            on_push=lambda uri, message: unasked.append(message),
            max_connections=CONNECTIONS,
            max_in_flight=4,
        )
        changes = {"type": "subscribe_events", "event_type": "state_changed"}

        def one(number: int) -> int:
            right = 0
            for each in range(ROUNDS):
                entity = f"light.number_{number}_{each}"
                calls = {"type": "call_service", "domain": "light", "service": "turn_on", "id": 1}
                reply = pool.request("/api/websocket", {**calls, "target": {"entity_id": entity}}, WAIT)
                right += reply["result"]["context"]["id"] == entity and reply["id"] == 1
                with pytest.raises(ReplyError, match=f"Unknown command: no_{number}") as refused:
                    pool.request("/api/websocket", {"type": f"no_{number}"}, WAIT)
                right += refused.value.code == "unknown_command"
                right += pool.request("/api/websocket", {"type": "ping"}, WAIT)["type"] == "pong"
            return right

        with pool.subscribe("/api/websocket", changes, timeout=WAIT) as events:
            outcomes = crowd(THREADS, one)
            assert errors(outcomes) == []
            changed = {events.get(WAIT)["event"]["data"]["entity_id"] for _ in range(THREADS * ROUNDS)}
        assert sum(outcome.value for outcome in outcomes) == THREADS * ROUNDS * 3
        states = pool.request("/api/websocket", {"type": "get_states"}, WAIT)["result"]
        assert {state["entity_id"] for state in states} == changed and len(changed) == THREADS * ROUNDS
        assert home.listeners == {}
        assert (home.reused, unasked, pool.stats().late_replies) == (0, [], 0)
        assert home.logins == server.opened == pool.stats().total_connections <= CONNECTIONS


def test_a_home_that_coalesces_and_sends_events_before_the_result(make_pool: PoolFactory) -> None:
    home = Home()
    with EchoServer(home) as server:
        pool = make_pool(server, correlation=HomeAssistant(lambda: TOKEN), max_connections=1)
        with pool.acquire("/api/websocket") as conn:
            features = {"type": "supported_features", "features": {"coalesce_messages": 1}}
            assert conn.request(features, WAIT)["success"]
            with conn.subscribe({"type": "render_template", "template": "hello"}, timeout=WAIT) as rendered:
                assert rendered.get(WAIT)["event"] == {"result": "hello"}
                target = {"entity_id": "light.kitchen"}
                turns = {"type": "call_service", "domain": "light", "service": "turn_off", "target": target}
                assert conn.request(turns, WAIT)["result"]["context"]["id"] == "light.kitchen"
                assert rendered.get(WAIT)["event"]["data"]["new_state"] == "off"
            assert home.listeners == {}


def test_a_home_that_does_not_let_in(make_pool: PoolFactory) -> None:
    with EchoServer(Home()) as server:
        pool = make_pool(server, correlation=HomeAssistant("a wrong one"))
        with pytest.raises((ConnectionError, ReplyError), match="Invalid access token") as refused:
            pool.request("/api/websocket", {"type": "ping"}, WAIT)
        assert "a wrong one" not in str(refused.value) and not isinstance(refused.value, HandshakeError)


class Studio:
    """obs-websocket 5 with a password, and scenes.

    By https://github.com/obsproject/obs-websocket/blob/master/docs/generated/protocol.md: it says hello,
    checks the password, sends the events a client has subscribed to; Reidentify is answered without an id.

    Attributes:
        masks: Which categories of events each connection has subscribed to.
        identified: How often one was, the first time.
    """

    SCENES, METERS = 1 << 2, 1 << 16

    def __init__(self) -> None:
        self.identified = 0
        self.masks: dict[Connection, int] = {}
        self.lock = threading.Lock()
        self.scene = "first"

    def __call__(self, conn: Connection) -> None:
        salt, challenge = "salt of this one", str(id(conn))
        asked = {"salt": salt, "challenge": challenge}
        hello = {"obsWebSocketVersion": "5.5.0", "rpcVersion": 1, "authentication": asked}
        conn.send(json.dumps({"op": 0, "d": hello}))
        said = json.loads(conn.recv())
        secret = base64.b64encode(hashlib.sha256((PASSWORD + salt).encode()).digest())
        proof = base64.b64encode(hashlib.sha256(secret + challenge.encode()).digest()).decode()
        if said["op"] != 1 or said["d"].get("authentication") != proof:
            conn.close(4009, "Authentication failed.")
            return
        with self.lock:
            self.masks[conn] = said["d"].get("eventSubscriptions", 0xFFF)
            self.identified += 1
        conn.send(json.dumps({"op": 2, "d": {"negotiatedRpcVersion": 1}}))
        try:
            for text in conn:
                self.serve(conn, json.loads(text))
        finally:
            with self.lock:
                del self.masks[conn]

    def serve(self, conn: Connection, message: dict[str, Any]) -> None:
        asked = message["d"]
        with self.lock:
            if message["op"] == 3:
                self.masks[conn] = asked["eventSubscriptions"]
                conn.send(json.dumps({"op": 2, "d": {"negotiatedRpcVersion": 1}}))
            elif message["op"] == 6:
                response = {**self.response(asked), "requestId": asked["requestId"]}
                conn.send(json.dumps({"op": 7, "d": response}))
            elif message["op"] == 8:
                results = [self.response(each) for each in asked["requests"]]
                response = {"requestId": asked["requestId"], "results": results}
                conn.send(json.dumps({"op": 9, "d": response}))

    def response(self, asked: dict[str, Any]) -> dict[str, Any]:
        kind, given = asked["requestType"], asked.get("requestData", {})
        response = {"requestType": kind, "requestStatus": {"result": True, "code": 100}}
        if kind == "SetCurrentProgramScene":
            self.scene = given["sceneName"]
            self.tell(self.SCENES, "CurrentProgramSceneChanged", {"sceneName": self.scene})
            return response
        if kind == "GetSceneItemList":
            return {**response, "responseData": {"sceneItems": [given["sceneName"]]}}
        status = {"result": False, "code": 204, "comment": f"no request type {kind}"}
        return {**response, "requestStatus": status}

    def tell(self, intent: int, kind: str, data: dict[str, Any]) -> None:
        event = {"op": 5, "d": {"eventType": kind, "eventIntent": intent, "eventData": data}}
        for conn, mask in self.masks.items():
            if mask & intent:
                conn.send(json.dumps(event))


def test_a_studio_with_many_hands(make_pool: PoolFactory) -> None:
    studio, events = Studio(), []
    with EchoServer(studio, subprotocols=["obswebsocket.json"]) as server:
        pool = make_pool(
            server,
            correlation=Obs(PASSWORD),
            on_push=lambda uri, message: events.append(message["d"]["eventData"]["sceneName"]),
            max_connections=CONNECTIONS,
            max_in_flight=4,
        )
        assert pool.prewarm("/", CONNECTIONS) == CONNECTIONS

        def one(number: int) -> int:
            right = 0
            for each in range(ROUNDS):
                name = f"scene {number}.{each}"
                lists = {"requestType": "GetSceneItemList", "requestData": {"sceneName": name}}
                reply = pool.request("/", {**lists, "requestId": "mine"}, WAIT)["d"]
                right += reply["responseData"] == {"sceneItems": [name]} and reply["requestId"] == "mine"
                changes = {"requestType": "SetCurrentProgramScene", "requestData": {"sceneName": name}}
                right += pool.request("/", {"op": 6, "d": changes}, WAIT)["d"]["requestStatus"]["result"]
                with pytest.raises(ReplyError, match=f"no request type No{number}") as refused:
                    pool.request("/", {"requestType": f"No{number}"}, WAIT)
                right += refused.value.code == 204
                batch = pool.request("/", {"requests": [lists, {"requestType": "No"}]}, WAIT)["d"]["results"]
                right += [result["requestStatus"]["code"] for result in batch] == [100, 204]
            return right

        outcomes = crowd(THREADS, one)
        assert errors(outcomes) == []
        assert sum(outcome.value for outcome in outcomes) == THREADS * ROUNDS * 4
        wait_until(lambda: len(events) >= CONNECTIONS * THREADS * ROUNDS, WAIT)
        expected = [f"scene {number}.{each}" for number in range(THREADS) for each in range(ROUNDS)]
        assert sorted(events) == sorted(expected * CONNECTIONS)  # once for each connection
        assert studio.identified == server.opened == pool.stats().total_connections == CONNECTIONS
        assert pool.stats().late_replies == 0


def test_a_studio_s_meters_end_with_their_subscription(make_pool: PoolFactory) -> None:
    studio = Studio()
    with EchoServer(studio, subprotocols=["obswebsocket.json"]) as server:
        pool = make_pool(server, correlation=Obs(PASSWORD), max_connections=1)
        reidentify = {"op": 3, "d": {"eventSubscriptions": Studio.METERS}}
        with pool.subscribe("/", reidentify, timeout=WAIT) as meters:
            wait_until(lambda: Studio.METERS in studio.masks.values(), WAIT)
            for number in range(5):
                with studio.lock:
                    studio.tell(Studio.SCENES, "SceneCreated", {"n": number})
                    studio.tell(Studio.METERS, "InputVolumeMeters", {"n": number})
            assert [meters.get(WAIT)["d"]["eventData"]["n"] for _ in range(5)] == [0, 1, 2, 3, 4]
        wait_until(lambda: [*studio.masks.values()] == [0xFFF], WAIT)
        reply = pool.request(
            "/", {"requestType": "GetSceneItemList", "requestData": {"sceneName": "a"}}, WAIT
        )
        assert reply["d"]["responseData"] == {"sceneItems": ["a"]}
        assert server.opened == 1


def test_a_studio_that_wants_another_password(make_pool: PoolFactory) -> None:
    with EchoServer(Studio(), subprotocols=["obswebsocket.json"]) as server:
        wrong = make_pool(server, correlation=Obs("no"))
        with pytest.raises(ConnectionError, match="4009"):
            wrong.request("/", {"requestType": "GetVersion"}, WAIT)
        none = make_pool(server, correlation=Obs())
        with pytest.raises((ConnectionError, ReplyError), match="wants a password"):
            none.request("/", {"requestType": "GetVersion"}, WAIT)

"""A JSON-RPC server for the tests of what watches pools."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def json_rpc(asked: list[Any]) -> Callable[[Any], None]:
    """Answers each call with its method, "fail" with an error; what it was asked is added to `asked`."""

    def serve(conn: Any) -> None:
        for text in conn:
            message = json.loads(text)
            asked.append(message)
            if "id" in message:
                failed = message["method"] == "fail"
                end = {"error": {"code": -1, "message": "no"}} if failed else {"result": message["method"]}
                conn.send(json.dumps({"jsonrpc": "2.0", "id": message["id"], **end}))

    return serve


__all__ = ["json_rpc"]

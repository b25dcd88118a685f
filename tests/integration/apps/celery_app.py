"""A Celery app whose tasks ask a WebSocket server."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import worker_init

from tests.integration.apps.settings import BROKER_VARIABLE, CAP, SERIALIZER_VARIABLE

app = Celery("tests", broker=os.environ[BROKER_VARIABLE], backend=os.environ[BROKER_VARIABLE])
app.conf.result_serializer = os.environ[SERIALIZER_VARIABLE]  # with pickle, errors come back as they were
app.conf.result_accept_content = ["json", "pickle"]
app.conf.worker_max_tasks_per_child = 15
app.conf.worker_hijack_root_logger = False
app.conf.broker_connection_retry_on_startup = True


@worker_init.connect
def use_the_pool_before_the_fork(**_: object) -> None:
    """In the parent of all children: one connection idle, one lent for ever."""
    from tests.integration.apps import shared

    assert shared.POOL.stats().total_connections == CAP - 1


@app.task
def ask(ident: str) -> dict[str, Any]:
    from tests.integration.apps import shared

    return shared.ask(ident)


@app.task
def exhaust() -> None:
    """Raise PoolExhaustedError."""
    from tests.integration.apps import shared

    held = [shared.POOL.acquire("/") for _ in range(CAP)]
    try:
        shared.POOL.acquire("/", timeout=0.01)
    finally:
        for conn in held:
            conn.release()


@app.task
def fail_to_connect(port: int) -> None:
    """Raise ConnectionError, with the system's error as its cause."""
    from tests.integration.apps import shared

    shared.POOL.acquire(f"ws://127.0.0.1:{port}/", timeout=5)


@app.task
def misread(payload: str) -> None:
    """Raise DecodeError."""
    from tests.integration.apps import shared

    shared.POOL._codec.decode(payload)

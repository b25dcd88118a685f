"""No test begins beside a thread that another one's pools have begun."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.conftest import FAILED
from tests.servers import wait_until

_PATIENCE = 10.0  # s; it looks once a second whether anything is left to be looked at


def _samplers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "jetsocket-status"]


@pytest.fixture(autouse=True)
def no_sampler_from_elsewhere(request: pytest.FixtureRequest) -> Iterator[None]:
    """What samples for a page that is gone ends by itself."""
    _await_the_end("another test")
    yield
    if not request.node.stash.get(FAILED, False):
        _await_the_end("this test")


def _await_the_end(whose: str) -> None:
    if _samplers():
        sys.last_traceback = sys.last_value = sys.last_exc = None  # of a test that has failed, with its pages
        gc.collect()
        wait_until(lambda: not _samplers(), _PATIENCE, f"the sampler of {whose} ends")

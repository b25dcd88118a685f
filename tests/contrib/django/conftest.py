"""Django with settings that the tests override."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers import wait_until

django = pytest.importorskip("django")
from django.conf import settings  # noqa: E402  # behind importorskip

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["testserver"],
        SECRET_KEY="of the tests",
        INSTALLED_APPS=["jetsocket.contrib.django"],
        ROOT_URLCONF="tests.contrib.django.urls",
        USE_TZ=True,
        JETSOCKET={},
    )
    django.setup()


class Sections:
    """Sets ``settings.JETSOCKET`` for one test, as a project's tests do."""

    def __init__(self) -> None:
        self._overrides: list[Any] = []

    def __call__(self, **sections: Any) -> None:
        from django.test import override_settings

        override = override_settings(JETSOCKET=sections)
        override.enable()
        self._overrides.append(override)

    def end(self) -> None:
        for override in reversed(self._overrides):
            override.disable()


@pytest.fixture
def use() -> Iterator[Sections]:
    """``use(default={"BASE_URI": …})``: these are the settings now."""
    from jetsocket.contrib.django import pools

    sections = Sections()
    yield sections
    sections.end()
    pools.close_all()
    if (status_page := sys.modules.get("jetsocket.contrib.django.status_page")) is not None:
        status_page._page.cache_clear()
        gc.collect()
        wait_until(lambda: all(each.name != "jetsocket-status" for each in threading.enumerate()), 10)

"""Without Celery, the error says which extra brings it. What it does is tried in tests/integration."""

from __future__ import annotations

import importlib
import sys

import pytest


def test_without_celery_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "jetsocket.contrib.celery", raising=False)
    monkeypatch.setitem(sys.modules, "celery", None)
    with pytest.raises(ImportError, match=r'needs Celery: pip install "jetsocket\[celery\]"'):
        importlib.import_module("jetsocket.contrib.celery")

"""Fixtures that the integration tests share with the suites of faults."""

from __future__ import annotations

from tests.faults.conftest import depth, report

__all__ = ["depth", "report"]

"""In debug, a view that leaves a connection lent is told of: only the garbage collector may give it back."""

from __future__ import annotations

import logging
from threading import current_thread
from typing import Any

from flask import Flask, request, request_started

from jetsocket import LeaseInfo
from jetsocket.contrib.flask.pools import Pools

__all__ = ["Leftovers"]

_LOG = logging.getLogger("jetsocket.contrib.flask")
_BEFORE = "jetsocket.lent_before"  # in the request's environ


class Leftovers:
    """Warns of leases that are still out when a request has ended, while the application is in debug."""

    def __init__(self, app: Flask, pools: Pools) -> None:
        """Look for them from now on."""
        self._pools = pools
        request_started.connect(
            self._begin, app
        )  # it refers weakly; the application does not, so this lives on
        app.teardown_request(self._end)

    def _begin(self, sender: Flask, **_: Any) -> None:
        if sender.debug:
            request.environ[_BEFORE] = {_identity(lease) for lease in self._lent_here()}

    def _end(self, _error: BaseException | None = None) -> None:
        before = request.environ.get(_BEFORE)
        if before is None:
            return
        for lease in self._lent_here():
            if _identity(lease) not in before:
                _LOG.warning(
                    "The view %r (%s) has ended, and this is still lent: %s. Use `with`, or release() it.",
                    request.endpoint,
                    request.method,
                    lease,
                )

    def _lent_here(self) -> list[LeaseInfo]:
        """What is lent to this thread."""
        name = current_thread().name
        return [
            lease for pool in self._pools.made().values() for lease in pool.leases() if lease.thread == name
        ]


def _identity(lease: LeaseInfo) -> tuple[int, str]:
    return lease.id, lease.where

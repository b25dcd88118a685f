"""A view for load balancers: whether each pool's server can be reached."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from jetsocket import JetSocketError, PoolExhaustedError
from jetsocket.contrib.django.pools import pools
from jetsocket.interrupts import is_alarm

__all__ = ["health"]

_PATIENCE = 2.0  # s, for each pool


@never_cache  # type: ignore[untyped-decorator]  # Django has no types
@require_safe  # type: ignore[untyped-decorator]  # likewise
def health(_request: HttpRequest) -> JsonResponse:
    """Take a connection of each pool to its base URI, and have the server answer a ping on it.

    Returns:
        ``{"default": "ok"}``, or "busy" if all connections were in use for 2 s; 503 if one is "down".
    """
    found = {}
    for alias in pools:
        try:
            with pools[alias].acquire("", timeout=_PATIENCE) as conn:
                conn.ping(_PATIENCE)
            found[alias] = "ok"
        except PoolExhaustedError as error:
            if is_alarm(error):
                raise
            found[alias] = "busy" if error.holders else "down"
        except (JetSocketError, ValueError) as error:
            if is_alarm(error):
                raise
            found[alias] = "down"
    return JsonResponse(found, status=503 if "down" in found.values() else 200)

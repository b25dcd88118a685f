"""A view, one that is async, and one for the load balancer."""

import asyncio

from asgiref.sync import sync_to_async
from django.http import JsonResponse
from django.urls import path

from jetsocket import JetSocketError
from jetsocket.contrib.django import pool
from jetsocket.contrib.django.views import health


def height(request, block):
    """How high a block is, as the service says."""
    try:
        reply = pool.request("/", {"method": "height", "params": [block]}, timeout=2.0)
    except JetSocketError:
        return JsonResponse({"error": "the service does not answer"}, status=503)
    return JsonResponse({"height": reply["result"]})


async def many(request, count):
    """So many heights, each asked in a thread of its own, for the pool blocks: a view for uvicorn."""
    ask = sync_to_async(pool.request, thread_sensitive=False)
    asked = [ask("/", {"method": "height", "params": [block]}, timeout=2.0) for block in range(count)]
    return JsonResponse({"heights": [reply["result"] for reply in await asyncio.gather(*asked)]})


urlpatterns = [
    path("height/<int:block>", height),
    path("heights/<int:count>", many),
    path("health", health),
]

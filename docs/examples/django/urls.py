"""One view, and one for the load balancer."""

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


urlpatterns = [path("height/<int:block>", height), path("health", health)]

"""A Django app that asks a WebSocket server in every request."""

from __future__ import annotations

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, JsonResponse
from django.urls import path

from tests.integration.apps.shared import ask

settings.configure(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=__name__, SECRET_KEY="not used", DEBUG=False)
django.setup()


def view(request: HttpRequest, ident: str) -> JsonResponse:
    return JsonResponse(ask(ident))


urlpatterns = [path("<ident>", view)]
application = WSGIHandler()

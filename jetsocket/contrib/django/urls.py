"""``path("pools/", include("jetsocket.contrib.django.urls"))``: the status page, closed unless permitted."""

from __future__ import annotations

from django.urls import path

from jetsocket.contrib.django.status_page import status

__all__ = ["app_name", "urlpatterns"]

app_name = "jetsocket"
urlpatterns = [path("", status, name="status"), path("<path:path>", status)]

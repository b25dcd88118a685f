"""``path("pools/", include("jetsocket.contrib.django.urls"))``: the status page, closed unless permitted."""

from __future__ import annotations

from jetsocket.contrib.django.status_page import status

try:
    from django.urls import path
except ImportError as error:
    raise ImportError('jetsocket.contrib.django needs Django: pip install "jetsocket[django]"') from error

__all__ = ["app_name", "urlpatterns"]

app_name = "jetsocket"
urlpatterns = [path("", status, name="status"), path("<path:path>", status)]

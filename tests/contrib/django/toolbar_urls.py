"""The URLs of a project with the debug toolbar."""

from django.http import HttpRequest
from django.urls import include, path

urlpatterns = [path("__debug__/", include("debug_toolbar.urls"))]


def show(_request: HttpRequest) -> bool:
    """For whom the toolbar is."""
    return True

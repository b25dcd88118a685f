"""The URLs of the tests' project."""

from django.urls import include, path

from jetsocket.contrib.django.views import health

urlpatterns = [path("health", health), path("pools/", include("jetsocket.contrib.django.urls"))]

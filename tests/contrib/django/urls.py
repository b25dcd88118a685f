"""The URLs of the tests' project."""

from django.urls import path

from jetsocket.contrib.django.views import health

urlpatterns = [path("health", health)]

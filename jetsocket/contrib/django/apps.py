"""The application for ``INSTALLED_APPS``: it registers the checks and the command."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register

from jetsocket.contrib.django import checks

__all__ = ["JetSocketConfig"]


class JetSocketConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """``INSTALLED_APPS += ["jetsocket.contrib.django"]``."""

    name = "jetsocket.contrib.django"
    label = "jetsocket"
    verbose_name = "JetSocket"

    def ready(self) -> None:
        """Register the checks."""
        register(checks.check_settings, checks.TAG)

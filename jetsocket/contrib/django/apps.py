"""The application for ``INSTALLED_APPS``: it registers the checks and the command."""

from __future__ import annotations

from jetsocket.contrib.django import checks

try:
    from django.apps import AppConfig
    from django.core.checks import register
except ImportError as error:
    raise ImportError('jetsocket.contrib.django needs Django: pip install "jetsocket[django]"') from error

__all__ = ["JetSocketConfig"]


class JetSocketConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """``INSTALLED_APPS += ["jetsocket.contrib.django"]``."""

    name = "jetsocket.contrib.django"
    label = "jetsocket"
    verbose_name = "JetSocket"

    def ready(self) -> None:
        """Register the checks."""
        register(checks.check_settings, checks.TAG)

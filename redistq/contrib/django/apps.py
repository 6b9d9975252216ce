"""The app that INSTALLED_APPS names; it takes ``settings.REDISTQ``."""

from __future__ import annotations

from django.apps import AppConfig

from .options import configure_from_settings


class RedistqConfig(AppConfig):  # type: ignore[misc]
    """Configures where tasks go, once Django is set up."""

    name = "redistq.contrib.django"
    label = "redistq"
    verbose_name = "redistq"

    def ready(self) -> None:
        """Take the settings; nothing is connected yet."""
        configure_from_settings()

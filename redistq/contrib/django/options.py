"""``settings.REDISTQ``: where tasks go, and whether they wait for the transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import ConfigurationError
from ...producer.active import configure
from ...protocol.keys import DEFAULT_QUEUE

_OWN = ("URL", "QUEUE", "ON_COMMIT")


def options() -> Mapping[str, Any]:
    """Return what the settings say; raises ConfigurationError for what is no mapping."""
    from django.conf import settings

    found = getattr(settings, "REDISTQ", {})
    if not isinstance(found, Mapping):
        raise ConfigurationError(
            "settings.REDISTQ is a dict, such as {'URL': 'redis://localhost:6379/0'}, not "
            f"{found!r:.60}"
        )
    return found


def configure_from_settings() -> None:
    """Let tasks go where the settings say; raises ConfigurationError for an unknown one."""
    found = options()
    others = {name: value for name, value in found.items() if name not in _OWN}
    for name in others:
        if not name.isupper():
            raise ConfigurationError(f"settings.REDISTQ has names in capitals, not {name!r}")
    lower = {name.lower(): value for name, value in others.items()}
    if found or lower:
        configure(found.get("URL"), stream=queue_name(), **lower)


def queue_name() -> str:
    """Return the queue of tasks where nothing else is said."""
    return str(options().get("QUEUE") or DEFAULT_QUEUE)


def on_commit(call: Callable[[], Any], using: str | None = None) -> None:
    """Call that once the transaction has been committed; at once where there is none, or where
    the settings say ``ON_COMMIT: False``. After a rollback it is never called."""
    if options().get("ON_COMMIT", True):
        from django.db import transaction

        transaction.on_commit(call, using=using)
    else:
        call()

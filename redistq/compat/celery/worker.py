"""What an app's receivers hear of a worker process: worker_process_init, ready and shutdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...handlers import Registry
from . import signals

if TYPE_CHECKING:
    from .app import Celery


def attach(app: Celery, registry: Registry) -> None:
    """Send the signals of a worker process at its start and its end."""

    def celery_signals() -> Iterator[None]:
        signals.worker_init.send(sender=app)
        signals.worker_process_init.send(sender=app)
        signals.worker_ready.send(sender=app)
        try:
            yield
        finally:
            signals.worker_shutdown.send(sender=app)
            signals.worker_process_shutdown.send(sender=app)
            app.close()

    registry.lifespan(celery_signals)

"""What a worker of a Django project runs: the tasks of its installed apps.

``python manage.py redistq_worker`` starts it with ``redistq.contrib.django.handlers:project``; each
worker process sets Django up by ``DJANGO_SETTINGS_MODULE`` and imports the ``tasks`` module of each
installed app. Database connections that are broken or too old are closed before and after each
task, as Django does around a request.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from ...errors import ConfigurationError
from ...handlers import Handler, Registry, default_registry
from ...middleware import Middleware
from .backend import tasks_of_backends


class FreshConnections(Middleware):
    """Closes a thread's connections that are broken or too old, around each task."""

    def run(self, context: Any, payload: Any) -> Generator[None, Any, None]:
        """Stand around a plain function."""
        from django.db import close_old_connections, reset_queries

        reset_queries()
        close_old_connections()
        try:
            yield
        finally:
            close_old_connections()


class FreshConnectionsAsync(Middleware):
    """The same around ``async def`` handlers, in the thread that has their connections."""

    async def run(self, context: Any, payload: Any, next: Any) -> Any:
        """Stand around a coroutine."""
        from asgiref.sync import sync_to_async
        from django.db import close_old_connections

        close = sync_to_async(close_old_connections)
        await close()
        try:
            return await next(payload)
        finally:
            await close()


class Project:
    """The handlers of a Django project, found when a worker asks for them."""

    def __redistq_registry__(self) -> Registry:
        """Return them; raises ConfigurationError where there are none."""
        import django
        from django.apps import apps
        from django.utils.module_loading import autodiscover_modules

        if not apps.ready:
            django.setup()
        autodiscover_modules("tasks")
        registry = default_registry.surrounded(())
        for handler in (*default_registry.values(), *tasks_of_backends()):
            registry.add_handler(_fresh(handler))
        if not registry:
            raise ConfigurationError(
                "no installed app has a task: decorate a function in its module tasks with @task "
                "(from redistq.contrib.django import task)"
            )
        return registry


_SYNC, _ASYNC = FreshConnections(), FreshConnectionsAsync()


def _fresh(handler: Handler) -> Handler:
    layer = _ASYNC if handler.is_async else _SYNC
    return replace(handler, middleware=(layer, *handler.middleware))


project = Project()

"""The app that is current in this process, and tasks that belong to whichever it is.

Also what signatures need of the modules that stand on them: those put it here when the app's
module is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import Celery
    from .task import Task


class Late:
    """What is put here by the modules that define it."""

    make_app: Callable[[str], Celery]
    send: Callable[[Any, Any], Any]
    """Send what a signature stands for."""
    run: Callable[[Any, Any], Any]
    """Run it here."""


late = Late()
apps: list[Celery] = []
"""The apps of this process; the last is the current one."""
shared: list[tuple[Callable[..., Any], dict[str, Any]]] = []
"""The functions of shared tasks, which each app makes a task of, and their options."""


def current_app() -> Celery:
    """Return the app that was made last, or one of redistq's defaults."""
    if not apps:
        late.make_app("default")
    return apps[-1]


def shared_task(*args: Any, **options: Any) -> Any:
    """Make a task of a function in every app; it is that of the current app where it is used."""
    if len(args) == 1 and callable(args[0]):
        return SharedTask(args[0], options)
    return lambda function: SharedTask(function, options)


class SharedTask:
    """A task of whatever app is current."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        shared.append((function, options))
        vars(self).update(
            __wrapped__=function,
            __doc__=function.__doc__,
            __name__=function.__name__,
            __module__=function.__module__,
            _task_name=options.get("name"),
        )
        for app in apps:
            app.add_task(function, options)

    def _get(self) -> Task:
        app = current_app()
        return app.tasks[self._task_name or app.name_of(self.__wrapped__)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._get(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._get(), name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._get()(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self._get())

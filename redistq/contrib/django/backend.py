"""RedistqBackend: tasks of ``django.tasks`` (Django 6), or of the package ``django_tasks``.

``TASKS = {"default": {"BACKEND": "redistq.contrib.django.backend.RedistqBackend"}}``. Tasks are
added when the transaction is committed, run by ``manage.py redistq_worker``, and their results read
from the server.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ...context import TaskContext
from ...errors import UnknownTask
from ...handlers import Handler, RetryPolicy
from ...producer import TaskProducer
from ...producer.results import TaskStatus
from ...protocol.codec import DEFAULT_MAX_BYTES, encode_payload, loads
from ...protocol.commands import Commands
from ...protocol.keys import new_task_id
from .options import on_commit, options, queue_name

if TYPE_CHECKING:
    RedistqBackend: type[Any]

PACKAGES = ("django.tasks", "django_tasks")
"""Where tasks may be defined, the one of Django itself first."""
DEFAULT_QUEUE = "default"
"""The queue of Django's tasks that stands for redistq's own default one."""
_SETTINGS = frozenset({"url", "enqueue_on_commit", "retries", "timeout", "result_ttl"})
_WORDS = {"running": "RUNNING", "succeeded": "SUCCESSFUL", "failed": "FAILED"}
_WORDS |= {"cancelled": "FAILED", "expired": "FAILED"}
_made: list[Any] = []
"""The backends of this process."""


def package() -> str:
    """Return which package has the tasks; raises ImportError for none."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            return name
    raise ImportError(
        "this Django has no django.tasks: update to Django 6, or pip install django-tasks; "
        "redistq.contrib.django.task needs neither"
    )


@cache
def parts_of(name: str) -> Any:
    """Return what a package of tasks has, under one name each."""
    base = importlib.import_module(f"{name}.base")
    errors = importlib.import_module(f"{name}.exceptions")
    signals = importlib.import_module(f"{name}.signals")
    return SimpleNamespace(
        base_backend=importlib.import_module(f"{name}.backends.base").BaseTaskBackend,
        invalid=errors.InvalidTaskError,
        unknown=errors.TaskResultDoesNotExist,
        signals=signals,
        **{n: getattr(base, n) for n in ("TaskContext", "TaskError", "TaskResult")},
        status=base.TaskResultStatus,
    )


class Operations:
    """What a backend does, whichever package its base class is of."""

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True
    parts: Any
    alias: str
    queues: Any
    options: dict[str, Any]

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)  # type: ignore[call-arg]
        from django.core.exceptions import ImproperlyConfigured

        if unknown := sorted(self.options.keys() - _SETTINGS):
            raise ImproperlyConfigured(
                f"TASKS[{alias!r}]['OPTIONS'] has no {unknown[0]!r}; it takes "
                f"{', '.join(sorted(_SETTINGS))}"
            )
        self.known: dict[str, Any] = {}
        """Tasks by the path of their function, as they were defined."""
        self._producers: dict[str, TaskProducer] = {}
        _made.append(self)

    def validate_task(self, task: Any) -> None:
        """Check a task, and note it: each is checked when it is made."""
        super().validate_task(task)  # type: ignore[misc]
        self.known.setdefault(task.module_path, task)

    # -- adding ----------------------------------------------------------------------------------

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Add a task when the transaction is committed; return its result, which is READY."""
        self.validate_task(task)
        result = self._result(task, new_task_id(), args=list(args), kwargs=dict(kwargs))
        payload = {"args": result.args, "kwargs": result.kwargs}
        payload = loads(encode_payload(task.module_path, payload, DEFAULT_MAX_BYTES))
        given: dict[str, Any] = {"task_id": result.id}
        if task.run_after is not None:
            given["execute_at"] = task.run_after
        if number := round(task.priority / 10):
            given["priority"] = number

        def add() -> None:
            producer = self._producer(task.queue_name)
            if "execute_at" in given:
                producer.schedule_task(task.module_path, payload, **given)
            else:
                producer.add_task(task.module_path, payload, **given)
            object.__setattr__(result, "enqueued_at", datetime.now(UTC))
            self.parts.signals.task_enqueued.send(type(self), task_result=result)

        if self.options.get("enqueue_on_commit", options().get("ON_COMMIT", True)):
            on_commit(add)
        else:
            add()
        return result

    def _producer(self, name: str) -> TaskProducer:
        if name not in self._producers:
            stream = queue_name() if name == DEFAULT_QUEUE else name
            url = self.options.get("url") or options().get("URL")
            self._producers[name] = TaskProducer(url=url, stream=stream)
        return self._producers[name]

    def close(self) -> None:
        """Close the connections; they are made again when they are needed."""
        for producer in self._producers.values():
            producer.close()
        self._producers = {}

    # -- looking ---------------------------------------------------------------------------------

    def get_result(self, result_id: str) -> Any:
        """Return how a task stands; raises TaskResultDoesNotExist.

        Arguments are those of tasks that have not succeeded; of others they are not kept.
        """
        for name in sorted(self.queues or {DEFAULT_QUEUE}):
            producer = self._producer(name)
            try:
                status = producer.get_task(result_id)
            except UnknownTask:
                continue
            if status.name is None:
                status = _in_stream(producer, status)
            return self._of_status(status, name)
        raise self.parts.unknown(result_id)

    def _of_status(self, status: TaskStatus, queue: str) -> Any:
        from django.utils.module_loading import import_string

        task = self.known.get(status.name or "")
        if task is None and status.name is None:  # it has begun to run or ended just now
            raise self.parts.unknown(status.id)
        task = task or import_string(status.name)
        payload = status.payload if isinstance(status.payload, dict) else {}
        done, ran = status.finished_at, timedelta(seconds=status.run_time or 0)
        result = self._result(
            task.using(queue_name=queue),
            status.id,
            status=getattr(self.parts.status, _WORDS.get(status.state, "READY")),
            args=list(payload.get("args") or []),
            kwargs=dict(payload.get("kwargs") or {}),
            started_at=done - ran if done else None,
            finished_at=done,
            errors=self._errors(status),
            worker_ids=[status.worker] * (status.attempt or 1) if status.worker else [],
        )
        object.__setattr__(result, "_return_value", status.result)
        return result

    def _errors(self, status: TaskStatus) -> list[Any]:
        if status.state in ("cancelled", "expired"):
            kind = "Cancelled" if status.state == "cancelled" else "Expired"
            return [self._error(f"redistq.errors.Task{kind}", status.why)]
        error = status.error
        if error is None:
            return []
        report = error.get("bridge") or {}
        path = f"{report.get('module') or 'builtins'}.{error.get('type')}"
        return [self._error(path, str(error.get("traceback") or error.get("message")))]

    def _error(self, path: str, words: str) -> Any:
        return self.parts.TaskError(exception_class_path=path, traceback=words)

    def _result(self, task: Any, task_id: str, **given: Any) -> Any:
        usual: dict[str, Any] = {"status": self.parts.status.READY, "args": [], "kwargs": {}}
        usual |= dict.fromkeys(
            ("enqueued_at", "started_at", "finished_at", "last_attempted_at"), None
        )
        usual |= {"errors": [], "worker_ids": [], "backend": self.alias}
        if given.get("started_at"):
            usual["last_attempted_at"] = given["started_at"]
        return self.parts.TaskResult(task=task, id=task_id, **{**usual, **given})

    # -- running ---------------------------------------------------------------------------------

    def handlers(self) -> Iterable[Handler]:
        """Return the handlers of the tasks that are known."""
        settings = {n: self.options[n] for n in ("timeout", "result_ttl") if n in self.options}
        policy = RetryPolicy(retries=self.options.get("retries", 0))
        for path, task in self.known.items():
            yield Handler.of(path, self._runner(task), policy=policy, **settings)

    def _runner(self, task: Any) -> Any:
        import inspect

        def begin(payload: Any, context: TaskContext) -> tuple[Any, list[Any], dict[str, Any]]:
            args, kwargs = payload.get("args") or [], payload.get("kwargs") or {}
            now = datetime.now(UTC)
            result = self._result(
                task,
                context.task_id,
                status=self.parts.status.RUNNING,
                args=args,
                kwargs=kwargs,
                started_at=now,
                worker_ids=[context.worker] * context.attempt,
            )
            self.parts.signals.task_started.send(type(self), task_result=result)
            if task.takes_context:
                args = [self.parts.TaskContext(task_result=result), *args]
            return result, args, kwargs

        def end(result: Any, context: TaskContext, value: Any, error: Any = None) -> None:
            word = "SUCCESSFUL" if error is None else "FAILED"
            object.__setattr__(result, "status", getattr(self.parts.status, word))
            object.__setattr__(result, "finished_at", datetime.now(UTC))
            object.__setattr__(result, "_return_value", value)
            if error is not None:
                from ...compat.errors import report_of

                context._report = report_of(error)
                path = f"{type(error).__module__}.{type(error).__qualname__}"
                result.errors.append(self._error(path, str(error)))
            self.parts.signals.task_finished.send(type(self), task_result=result)

        def run(payload: Any, context: TaskContext) -> Any:
            result, args, kwargs = begin(payload, context)
            try:
                value = task.func(*args, **kwargs)
            except Exception as error:
                end(result, context, None, error)
                raise
            end(result, context, value)
            return value

        async def arun(payload: Any, context: TaskContext) -> Any:
            result, args, kwargs = begin(payload, context)
            try:
                value = await task.func(*args, **kwargs)
            except Exception as error:
                end(result, context, None, error)
                raise
            end(result, context, value)
            return value

        found = arun if inspect.iscoroutinefunction(task.func) else run
        found.__module__, found.__qualname__ = task.func.__module__, task.func.__qualname__
        return found


def _in_stream(producer: TaskProducer, status: TaskStatus) -> TaskStatus:
    """Return how a task stands that is queued or runs: its name and payload are in the stream
    alone. Where it has left that meanwhile, its record has them."""
    watched = Commands.read_watch(producer.broker.call(producer.commands.watch(status.id)))
    entry = watched.record.get("entry")
    for _, flat in producer.broker.call(producer.commands.entry(entry)) if entry else ():
        found = dict(zip(flat[::2], flat[1::2], strict=False))
        payload: Any = None
        with contextlib.suppress(ValueError):  # it is sealed
            payload = loads(found[b"payload"])
        return replace(status, name=found[b"name"].decode(), payload=payload)
    return producer.get_task(status.id)


@cache
def backend_class(name: str) -> type[Any]:
    """Return the backend whose base class is of that package."""
    parts = parts_of(name)
    return type("RedistqBackend", (Operations, parts.base_backend), {"parts": parts})


def tasks_of_backends() -> list[Handler]:
    """Return the handlers of the tasks of all backends of this process that are redistq's."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            from django.conf import settings

            for alias in getattr(settings, "TASKS", None) or {}:
                importlib.import_module(name).task_backends[alias]  # makes it, where it is not yet
            break
    return [handler for backend in _made for handler in backend.handlers()]


def __getattr__(name: str) -> Any:
    if name == "RedistqBackend":
        return backend_class(package())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

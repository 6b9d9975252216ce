"""``@task`` of contrib.django, and the backend of django.tasks, in this process."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import django
import pytest
import redis
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from support.workers import until

from redistq import ConfigurationError, TaskWorker
from redistq.errors import ArgumentError
from redistq.producer import active

pytest.importorskip("django_tasks", reason="pip install django-tasks: it is in the extra test")

BACKEND = "redistq.contrib.django.backend.RedistqBackend"
MODULE = "django_shop_tasks"
ONE: dict[str, Any] = {"thread_count": 1}
"""One thread, whose connections the next task would find."""
SOURCE = """
import asyncio
from django.db import connection
from django_tasks import task as django_task
from redistq.contrib.django import task

connections = []


@task
def add(a: int, b: int = 1) -> int:
    connections.append(connection.connection)
    with connection.cursor() as cursor:
        return cursor.execute("select ?", [a + b]).fetchone()[0] if False else a + b


@task(name="asks")
def asks() -> int:
    connections.append(connection.connection)
    with connection.cursor() as cursor:
        cursor.execute("select 7")
        found = cursor.fetchone()[0]
    connections.append(connection.connection)
    return found


@task
async def waits(n: int) -> int:
    await asyncio.sleep(0)
    return n


@django_task
def double(n):
    return 2 * n


@django_task(priority=50, takes_context=True)
def attempts(context, key):
    return [context.attempt, context.task_result.id, key]


@django_task
async def later(n):
    await asyncio.sleep(0)
    return n


@django_task
def fails(n):
    raise ValueError("no good", n)
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Django, set up once in this process, and a module of tasks."""
    if not settings.configured:
        settings.configure(
            SECRET_KEY="x",
            INSTALLED_APPS=["redistq.contrib.django"],
            DATABASES={
                "default": {
                    "ENGINE": "django.db.backends.sqlite3",
                    "NAME": str(tmp_path_factory.mktemp("db") / "db.sqlite3"),
                }
            },
            USE_TZ=True,
            TASKS={"default": {"BACKEND": BACKEND, "QUEUES": ["default", "mail"]}},
        )
        django.setup()
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    exec(compile(SOURCE, "django_shop_tasks.py", "exec"), module.__dict__)
    return module


@pytest.fixture
def here(shop: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The tasks go to the test's server."""
    from django_tasks import default_task_backend

    from redistq.contrib.django.options import configure_from_settings

    monkeypatch.setattr(settings, "REDISTQ", {"URL": url, "QUEUE": "shop"}, raising=False)
    configure_from_settings()
    shop.connections.clear()
    yield shop
    active.target().producer().close()
    default_task_backend.close()
    monkeypatch.setattr(active, "_program", None)


@pytest.fixture
def worker(here: Any, url: str) -> Iterator[TaskWorker]:
    """A worker of the project, in threads of this process."""
    from redistq.contrib.django.handlers import project

    registry = project.__redistq_registry__()
    with TaskWorker(url=url, queues=("shop", "mail"), task_handlers=registry, **ONE) as worker:
        yield worker


def rolled_back(call: Callable[[], Any]) -> Any:
    """What a call returned, in a transaction that was rolled back."""
    from django.db import transaction

    with transaction.atomic():
        found = call()
        transaction.set_rollback(True)
    return found


def close_connections() -> None:
    """Leave no connection of this thread."""
    from django.db import connections

    connections.close_all()


# -- @task -----------------------------------------------------------------------------------------


def test_a_task_is_added_on_commit(here: Any, worker: TaskWorker, db: redis.Redis) -> None:
    """With the arguments as they were at the call, not before the commit, once."""
    from django.db import transaction

    with transaction.atomic():
        handle = here.add.enqueue(2, b=3)
        assert db.exists(f"task:shop:{handle.id}") == 0
        rolled_back(lambda: here.add.enqueue(7, b=7))
    assert handle.result(timeout=10) == 5
    assert here.add.enqueue(1).result(timeout=10) == 2
    assert here.add(4) == 5
    assert here.add.task_name == f"{MODULE}.add"
    assert int(db.hget("counters:shop", "succeeded") or 0) == 2
    close_connections()


def test_delay_waits_for_nothing(here: Any, worker: TaskWorker) -> None:
    """It is redistq's own."""
    from django.db import transaction

    with transaction.atomic():
        assert here.add.delay(1, 1).result(timeout=10) == 2
    close_connections()


def test_on_commit_can_be_turned_off(
    here: Any, url: str, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all tasks, by the settings."""
    from django.db import transaction

    monkeypatch.setattr(settings, "REDISTQ", {"URL": url, "QUEUE": "shop", "ON_COMMIT": False})
    with transaction.atomic():
        handle = here.add.enqueue(1)
        assert db.exists(f"task:shop:{handle.id}") == 1
    close_connections()


def test_options_of_a_task(here: Any, db: redis.Redis) -> None:
    """Those of add_task, and which database's transaction is waited for."""
    handle = here.add.using(delay=3600, task_id="mine", database="default").enqueue(1)
    assert (handle.id, handle.state) == ("mine", "delayed")
    with pytest.raises(ConfigurationError, match="did you mean 'delay'"):
        here.add.using(dely=1)


def test_what_does_not_fit_is_said_at_the_call(here: Any, db: redis.Redis) -> None:
    """Not at the commit."""
    with pytest.raises(TypeError, match="unexpected keyword"):
        here.add.enqueue(1, c=2)
    with pytest.raises((ArgumentError, TypeError)):
        here.add.enqueue(object())
    assert db.exists("shop") == 0


def test_await_in_views(here: Any, worker: TaskWorker) -> None:
    """aenqueue, in an event loop; an async task."""

    async def view() -> Any:
        handle = await here.waits.aenqueue(5)
        return await handle.aresult(10)

    assert asyncio.run(view()) == 5


def test_connections_are_fresh_for_each_task(here: Any, worker: TaskWorker) -> None:
    """A task finds none open, and leaves none, as requests do."""
    for _ in range(3):
        assert here.asks.enqueue().result(timeout=10) == 7
    assert here.connections[::2] == [None, None, None]
    assert all(found is not None for found in here.connections[1::2])


# -- the backend -----------------------------------------------------------------------------------


def finished(result: Any) -> Any:
    """A result, once its task has ended."""

    def done() -> bool:
        result.refresh()
        return bool(result.is_finished)

    until(done, "the task to end")
    return result


def test_a_django_task_runs_and_its_result_is_read(here: Any, worker: TaskWorker) -> None:
    """READY, then SUCCESSFUL with what it returned."""
    result = here.double.enqueue(4)
    assert result.args == [4]
    assert result.enqueued_at is not None
    assert finished(result).return_value == 8
    assert (result.status, result.attempts) == ("SUCCESSFUL", 1)
    assert result.started_at <= result.finished_at
    found = here.double.get_result(result.id)
    assert (found.return_value, found.task) == (8, here.double)


def test_contexts_queues_async_and_due_times(here: Any, worker: TaskWorker) -> None:
    """What Django lets a task ask for."""
    from django.utils import timezone

    result = here.attempts.enqueue(key="k")
    assert finished(result).return_value == [1, result.id, "k"]
    assert finished(here.later.enqueue(3)).return_value == 3
    mail = here.double.using(queue_name="mail").enqueue(5)
    assert finished(mail).return_value == 10
    due = here.double.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(1)
    due.refresh()
    assert due.status == "READY"
    assert asyncio.run(here.double.aenqueue(6)).args == [6]


def test_a_django_task_that_fails(here: Any, worker: TaskWorker) -> None:
    """Once, with its error, and the signals of its end."""
    from django_tasks.signals import task_finished

    heard = threading.Event()

    def on_end(sender: Any, task_result: Any, **_: Any) -> None:
        heard.set()

    task_finished.connect(on_end)
    result = finished(here.fails.enqueue(3))
    assert (result.status, result.attempts) == ("FAILED", 1)
    (error,) = result.errors
    assert error.exception_class is ValueError
    assert "in fails\nValueError" in error.traceback
    assert heard.is_set()
    with pytest.raises(ValueError, match="failed"):
        _ = result.return_value


def test_a_django_task_is_added_on_commit(here: Any, db: redis.Redis) -> None:
    """And not at all after a rollback."""
    from django.db import transaction
    from django_tasks.exceptions import TaskResultDoesNotExist

    result = rolled_back(lambda: here.double.enqueue(1))
    with pytest.raises(TaskResultDoesNotExist):
        here.double.get_result(result.id)
    assert db.exists("shop") == 0
    with transaction.atomic():
        result = here.double.enqueue(1)
        assert result.enqueued_at is None
    assert result.enqueued_at is not None
    assert db.xlen("shop") == 1
    close_connections()


def test_options_of_the_backend_are_checked(shop: Any) -> None:
    """A misspelt one is no silent default."""
    from redistq.contrib.django.backend import RedistqBackend

    with pytest.raises(ImproperlyConfigured, match="enqueue_on_comit"):
        RedistqBackend("x", {"OPTIONS": {"enqueue_on_comit": False}})


def test_frameworks_are_imported_by_their_own_modules_alone(tmp_path: Path) -> None:
    """redistq itself, its worker and the bridges load none of them."""
    import subprocess

    code = (
        "import sys, redistq.worker, redistq.compat.celery, redistq.compat.rq, redistq.contrib\n"
        "found = {'django', 'celery', 'rq', 'kombu', 'fastapi', 'starlette'} & {*sys.modules}\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

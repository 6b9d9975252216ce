"""What the bridge does in its own way: configuration, refusals, schedules, limits, revoking."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from support.workers import command, until, worker_commands

from redistq import TaskFailed, TaskProducer, TaskWorker
from redistq.compat.celery import (
    AsyncResult,
    Celery,
    Ignore,
    NotSupported,
    Reject,
    SoftTimeLimitExceeded,
    Task,
    chain,
    chord,
    crontab,
    current_task,
    group,
    shared_task,
    signals,
    signature,
)
from redistq.compat.celery.canvas import maybe_signature
from redistq.compat.celery.exceptions import ChordError, TaskRevokedError, TimeoutError
from redistq.errors import ConfigurationError, PayloadError, UnknownTask


@pytest.fixture
def app(url: str) -> Iterator[Celery]:
    """An app of its own, and the current one."""
    app = Celery("project", broker=url)
    yield app
    app.close()


@contextmanager
def working(app: Celery, *queues: str, **options: Any) -> Iterator[TaskWorker]:
    """A worker of the app's tasks."""
    where = {"queues": queues} if queues else {}
    url = app.conf.broker_url
    with TaskWorker(url=url, task_handlers=app.registry, **where, **options) as worker:
        yield worker


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("task_serializer", "pickle", "unpickling runs"),
        ("accept_content", ["json", "pickle"], "unpickling runs"),
        ("result_serializer", "yaml", "arguments and results are JSON"),
        ("broker_url", "amqp://guest@localhost//", "Redis or Valkey"),
        ("result_backend", "db+sqlite:///x", "broker's server"),
        ("task_annotations", {"*": {}}, "write the options at the tasks"),
        ("task_serialiser", "json", "did you mean task_serializer?"),
        ("made_up", 1, "docs/migrating.md"),
    ],
)
def test_a_setting_that_cannot_hold_names_the_next_step(
    setting: str, value: Any, said: str
) -> None:
    """Nothing of a configuration is passed over in silence."""
    with pytest.raises(NotSupported, match=said.replace("?", r"\?")):
        Celery("x", set_as_current=False).conf.update({setting: value})


def test_settings_that_need_not_hold_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """Each with its reason, once it is set."""
    with caplog.at_level("INFO", "redistq"):
        Celery("x", set_as_current=False).conf.task_acks_late = True
    assert "task_acks_late changes nothing here: tasks are always acknowledged" in caplog.text


def test_settings_of_a_namespace(url: str) -> None:
    """As Django's settings have them."""
    app = Celery("x", set_as_current=False)
    app.config_from_object(
        {"CELERY_BROKER_URL": url, "CELERY_TASK_ALWAYS_EAGER": True, "DEBUG": True},
        namespace="CELERY",
    )
    assert (app.conf.broker_url, app.conf["task_always_eager"]) == (url, True)
    with pytest.raises(ConfigurationError, match="namespace='CELERY'"):
        app.config_from_object({"CELERY_BROKER_URL": url})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda t: t.apply_async(serializer="pickle"), "unpickling runs"),
        (lambda t: t.apply_async(headers={"a": 1}), "give it as an argument"),
        (lambda t: t.apply_async(routing_key="a.b"), "queue="),
        (lambda t: t.apply_async(nonsense=1), "leave it out"),
        (lambda t: t.apply_async().forget(), "result_expires"),
        (lambda t: t.s().freeze(), "task_id"),
        (lambda t: t.app.control.inspect(), "TaskMonitor"),
        (lambda t: t.app.worker_main(), "python -m redistq.worker"),
        (lambda t: signals.task_received, "task_prerun"),
        (lambda t: (t.s() | t.s().set(queue="other"))(), "belong to one queue"),
        (lambda t: group([t.s()]).set(link=t.s()).apply_async(), "chord"),
        (lambda t: t.app.task(lambda: 1, name="x", nonsense=1), "leave it out"),
        (lambda t: t.app.task(serializer="pickle")(lambda: 1), "unpickling runs"),
        (lambda t: crontab(day_of_month="1", day_of_week="mon"), "one of them"),
    ],
)
def test_what_is_not_supported_names_the_next_step(app: Celery, call: Any, said: str) -> None:
    """It raises where it is written, and sends nothing."""

    @app.task
    def nothing() -> None:
        pass

    with pytest.raises(NotSupported, match=said):
        call(nothing)


def test_arguments_that_are_no_json_are_refused(app: Celery) -> None:
    """Before anything is sent."""

    @app.task
    def takes(value: Any) -> None:
        pass

    with pytest.raises(PayloadError):
        takes.delay(object())


# -- the wire --------------------------------------------------------------------------------------


def test_the_payload_is_that_of_every_task_with_arguments(app: Celery, db: redis.Redis) -> None:
    """Other producers add such tasks, and what the bridge adds is nothing else."""

    @app.task(name="add")
    def add(a: int, b: int = 1) -> int:
        return a + b

    add.delay(1, b=2)
    ((_, fields),) = db.xrange("tasks")
    assert (fields["name"], fields["payload"]) == ("add", '{"args":[1],"kwargs":{"b":2}}')
    with TaskProducer(url=app.conf.broker_url) as producer, working(app):
        task_id = producer.add_task("add", {"args": [3, 4], "kwargs": {}})
        assert producer.get_result(task_id, timeout=10) == 7
        with pytest.raises(TaskFailed, match="as its payload"):
            producer.get_result(producer.add_task("add", {"a": 1}), timeout=10)


def test_a_signature_travels_as_an_argument(app: Celery) -> None:
    """It is a dict of JSON, and becomes a signature again."""

    @app.task
    def add(a: int, b: int) -> int:
        return a + b

    @app.task
    def starts(found: dict[str, Any]) -> str:
        return str(maybe_signature(found, app).delay(4))

    with working(app):
        for sent in (add.s(1), chain(add.s(1), add.s(2)), chord([add.s(1)], add.si(1, 2))):
            inner = starts.delay(sent).get(timeout=10)
            assert isinstance(AsyncResult(inner, app=app).get(timeout=10), int)


# -- how tasks end ---------------------------------------------------------------------------------


def test_a_task_that_is_ignored_or_rejected_ends_as_that(app: Celery) -> None:
    """Neither succeeded nor failed, not tried again, and nothing follows it."""
    ran = []

    @app.task(name="ignored")
    def ignored() -> None:
        raise Ignore()

    @app.task(name="rejected")
    def rejected() -> None:
        raise Reject("no")

    @app.task(bind=True, name="again")
    def again(self: Any) -> int:
        ran.append(self.request.id)
        if len(ran) == 1:
            raise Reject("later", requeue=True)
        return len(ran)

    @app.task(name="after")
    def after(value: Any) -> None:
        ran.append("after")

    with working(app):
        first = ignored.apply_async(link=after.s())
        assert (first.get(timeout=10), first.state, first.ready()) == (None, "IGNORED", True)
        second = rejected.delay()
        assert (second.get(timeout=10), second.state) == (None, "REJECTED")
        third = again.delay()
        assert third.get(timeout=10) == 2
        assert ran == [third.id, third.id]


def test_what_follows_a_failure_says_which(app: Celery) -> None:
    """A chord's body, and the rest of a chain, are over once a task before them has failed."""

    @app.task
    def bad() -> None:
        raise ValueError("no good", 7)

    @app.task
    def good(*_: Any) -> int:
        return 1

    with working(app):
        body = chord([good.s(), bad.s()], good.s())()
        with pytest.raises(ChordError, match=r"raised ValueError\('no good', 7\)"):
            body.get(timeout=10)
        assert body.state == "FAILURE"
        last = (bad.s() | good.s() | good.s()).delay()
        with pytest.raises(ValueError, match="no good"):
            last.get(timeout=10)
        assert [last.state, last.parent.state, last.parent.parent.state] == ["FAILURE"] * 3
        error = last.parent.parent.result
        assert (type(error), error.args) == (ValueError, ("no good", 7))
        assert "raise ValueError" in last.parent.parent.traceback


def test_revoke_before_and_while_a_task_runs(app: Celery) -> None:
    """Before it starts it never does; while it runs, terminate ends it."""
    started, heard = threading.Event(), threading.Event()

    @app.task
    def long() -> None:
        started.set()
        end = time.monotonic() + 30
        while time.monotonic() < end:
            time.sleep(0.01)

    def revoked(request: Any, terminated: bool, **_: Any) -> None:
        heard.set()

    signals.task_revoked.connect(revoked)
    first = long.delay()
    first.revoke()
    with pytest.raises(TaskRevokedError):
        first.get(timeout=10)
    with working(app):
        second = long.delay()
        assert started.wait(10)
        assert second.state == "STARTED"
        second.revoke(terminate=True)
        with pytest.raises(TaskRevokedError):
            second.get(timeout=10)
        assert (first.state, second.state) == ("REVOKED", "REVOKED")
        assert heard.wait(10)


def test_waiting_for_a_result(app: Celery) -> None:
    """A timeout is Celery's, an unknown id is said, and a task does not wait for another."""

    @app.task
    def add(a: int, b: int) -> int:
        return a + b

    @app.task
    def waits() -> Any:
        return add.delay(1, 2).get(timeout=10)

    with pytest.raises(TimeoutError):
        add.delay(1, 2).get(timeout=0.1)
    with pytest.raises(UnknownTask):
        app.AsyncResult("nobody").get(timeout=0.1)
    with working(app):
        sent = waits.delay()
        with pytest.raises(RuntimeError, match=r"Never call result.get\(\) within a task"):
            sent.get(timeout=10)


def test_limits_of_time_and_expiry(app: Celery) -> None:
    """A soft limit is raised in the task; one that did not start in time never does."""

    @app.task(soft_time_limit=0.2)
    def soft() -> str:
        try:
            end = time.monotonic() + 20
            while time.monotonic() < end:
                time.sleep(0.01)
        except SoftTimeLimitExceeded:
            return "tidied up"
        return "too late"

    late = soft.apply_async(expires=0.05)
    dated = soft.apply_async(expires=datetime.now(UTC) + timedelta(seconds=0.05))
    time.sleep(0.1)  # longer than that
    with working(app):
        assert soft.delay().get(timeout=10) == "tidied up"
        for expired in (late, dated):
            with pytest.raises(TaskRevokedError):
                expired.get(timeout=10)
            assert expired.state == "REVOKED"


def test_eta_queue_rate_limit_and_priority(app: Celery, db: redis.Redis) -> None:
    """As redistq has them: a due time, a stream, a rule of a key, a place in line."""
    app.conf.task_routes = {"slow.*": {"queue": "slow"}}

    @app.task(name="slow.one", rate_limit="10/m", priority=3)
    def one() -> str:
        return str(current_task.request.delivery_info["routing_key"])

    assert one.queue is None
    found = one.apply_async(eta=datetime.now(UTC) + timedelta(seconds=0.1))
    assert found.queue == "slow"
    assert db.exists("delayed:slow")
    assert "rate=10 per=60000" in str(db.hgetall("limits:slow"))
    with working(app, "slow", "tasks"):
        assert found.get(timeout=10) == "slow"
        assert app.AsyncResult(found.id).state == "SUCCESS"
        assert one.apply_async(queue="tasks").get(timeout=10) == "tasks"


def test_hooks_of_a_class(app: Celery) -> None:
    """``base=`` takes a class whose hooks are called as Celery calls them."""
    heard: list[Any] = []

    class Hooked(Task):
        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            heard.append("before")

        def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            heard.append(("retry", type(exc).__name__))

        def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            heard.append(("failure", type(exc).__name__, "Traceback" in str(einfo)))

        def after_return(
            self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
        ) -> None:
            heard.append(status)

    @app.task(base=Hooked, bind=True, max_retries=1, default_retry_delay=0)
    def hooked(self: Any) -> None:
        self.retry(exc=OSError("x"))

    with working(app):
        sent = hooked.delay()
        with pytest.raises(OSError, match="x"):
            sent.get(timeout=10)
        until(lambda: heard[-1:] == ["FAILURE"], "the last hook")
    assert heard == [
        *("before", ("retry", "OSError"), "RETRY"),
        *("before", ("failure", "OSError", True), "FAILURE"),
    ]


def test_signals_of_publishing_and_receivers_that_raise(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver that raises is logged, and the task goes on."""
    heard = []

    @app.task(name="published")
    def published() -> int:
        return 1

    def before(sender: str, headers: Any, **_: Any) -> None:
        heard.append((sender, headers["task"]))
        raise ValueError("a receiver's own")

    def after(sender: str, body: Any, **_: Any) -> None:
        heard.append((sender, body[0]))

    signals.before_task_publish.connect(before, sender="published")
    signals.after_task_publish.connect(after)
    published.delay()
    assert heard == [("published", "published"), ("published", [])]
    assert "a receiver of before_task_publish raised" in caplog.text
    assert signals.after_task_publish.disconnect(after)


def test_signals_of_a_worker_process(app: Celery) -> None:
    """At its start, before the first task, and at its end."""
    heard = []

    @app.task
    def one() -> list[str]:
        return list(heard)

    def note(signal: Any, **_: Any) -> None:
        heard.append(signal.name)

    names = ("worker_process_init", "worker_ready", "worker_shutdown")
    for name in names:
        getattr(signals, name).connect(note)
    with working(app):
        assert one.delay().get(timeout=10) == list(names[:2])
    assert heard == list(names)


def test_update_state_says_how_far_it_is(app: Celery) -> None:
    """current and total are the progress that notebooks and dashboards show."""
    go = threading.Event()

    @app.task(bind=True)
    def steps(self: Any) -> str:
        self.update_state(state="PROGRESS", meta={"current": 3, "total": 10})
        go.wait(10)
        return "done"

    with working(app), TaskProducer(url=app.conf.broker_url) as producer:
        sent = steps.delay()
        found = until(lambda: sent.state == "STARTED" and producer.progress(sent.id), "progress")
        assert (found.done, found.total, found.text) == (3, 10, "PROGRESS")
        go.set()
        assert sent.get(timeout=10) == "done"


def test_eager_tasks_go_through_the_codec(app: Celery) -> None:
    """What a worker could not be sent, or send back, fails here too."""
    app.conf.task_always_eager = True

    @app.task
    def pair() -> Any:
        return (1, 2)

    @app.task
    def bad() -> Any:
        return object()

    assert pair.delay().get() == [1, 2]
    assert bad.delay().state == "FAILURE"
    with pytest.raises(PayloadError):
        chain(pair.s(), bad.s()).set(countdown=1) and pair.s(object()).apply_async()


def test_shared_tasks_belong_to_the_current_app(url: str) -> None:
    """Whichever it is when they are used."""

    @shared_task(name="shared.one")
    def one() -> str:
        return "one"

    first, second = Celery("first", broker=url), Celery("second", broker=url)
    assert one.app is second
    first.set_current()
    assert one.app is first
    assert second.tasks["shared.one"].run() == "one"
    assert one.name == "shared.one"
    assert signature("shared.one").type.app is first


# -- a project, by the worker's command ------------------------------------------------------------

PROJECT = """
from datetime import timedelta
from redistq.compat.celery import Celery, crontab
from redistq.compat.celery.signals import worker_process_init

app = Celery("proj", include=["proj_tasks"])
app.conf.beat_schedule = {
    "every-second": {"task": "proj_tasks.tick", "schedule": timedelta(seconds=1), "args": (7,)},
    "nightly": {"task": "proj_tasks.tick", "schedule": crontab(hour=3, minute=30), "args": (8,)},
}


@app.on_after_configure.connect
def periodic(sender, **_):
    sender.add_periodic_task(3600.0, sender.tasks["proj_tasks.tick"].s(9), name="hourly")
"""
TASKS = """
from redistq.compat.celery import shared_task


@shared_task
def tick(n):
    return n
"""


def test_a_project_with_schedules_by_the_command(tmp_path: Path, url: str, db: redis.Redis) -> None:
    """``python -m redistq.worker proj:app`` runs its tasks, and fires what beat would."""
    (tmp_path / "proj.py").write_text(PROJECT)
    (tmp_path / "proj_tasks.py").write_text(TASKS)
    with worker_commands(tmp_path, url, "proj:app") as start, TaskProducer(url=url) as producer:
        start()
        task_id = producer.add_task("proj_tasks.tick", {"args": [5], "kwargs": {}})
        assert producer.get_result(task_id, timeout=10) == 5
        found = producer.schedules.all()
        assert sorted(found) == [
            *("proj_tasks.tick:every-second", "proj_tasks.tick:hourly", "proj_tasks.tick:nightly"),
        ]
        assert found["proj_tasks.tick:nightly"].rule == "At 03:30 every day (UTC)"

        def fired() -> bool:
            rows: Any = db.xrange("history:tasks")
            return any(row["name"] == "proj_tasks.tick:every-second" for _, row in rows)

        until(fired, "a schedule that fires")


def test_a_project_that_cannot_work_says_why(tmp_path: Path, url: str) -> None:
    """An error of the configuration ends the worker at its start."""
    (tmp_path / "proj.py").write_text(
        "from redistq.compat.celery import Celery\napp = Celery('p', task_serializer='pickle')\n"
    )
    with command(tmp_path, "-m", "redistq.worker", "proj:app", url=url) as started:
        assert started.wait() != 0
        assert "arguments and results are JSON" in started.output

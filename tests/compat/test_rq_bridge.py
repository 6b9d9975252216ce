"""What the bridge to RQ does in its own way: whose functions run, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from compat import rq_jobs as jobs
from support.workers import until, worker_commands

from redistq import TaskWorker
from redistq.compat.rq import (
    Dependency,
    DuplicateJobError,
    InvalidJobOperation,
    Job,
    JobStatus,
    JobTimeoutException,
    NoSuchJobError,
    NotAllowed,
    NotSupported,
    Queue,
    Retry,
    Worker,
    connections,
    get_current_job,
    handlers,
)
from redistq.compat.rq.allowed import Allowed
from redistq.errors import ConfigurationError, PayloadError

ran: list[str] = []
let_go = threading.Event()


def evil() -> None:
    """A function of a module that no worker is told to allow."""
    ran.append("evil")


def sleeps() -> None:
    """Runs until it is ended."""
    ran.append("sleeps")
    while not let_go.wait(0.01):
        pass


@pytest.fixture
def queue(url: str) -> Iterator[Queue]:
    """A queue on the test's server."""
    ran.clear()
    let_go.clear()
    yield Queue(connection=url)
    let_go.set()
    connections.close()


# -- whose functions run ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "compat.rq_jobs.os.system",  # found there, and not defined there
        "compat.rq_jobs.Any",
        "compat.rq_jobs.seen.append",
        "compat.rq_jobs_evil.f",
        "compat.rq_jobs.__dict__.clear",
        "compat.rq_jobs.Thing.__init__",
        "compat.rq_jobs.absent",
        "compat.rq_jobs",
        "compat",
        "builtins.eval",
        "compat..rq_jobs.add",
        "compat/rq_jobs.add",
        "",
    ],
)
def test_a_path_that_is_not_allowed_is_refused(path: str) -> None:
    """However it is written."""
    with pytest.raises(NotAllowed):
        Allowed(["compat.rq_jobs"]).function(path)


def test_a_module_that_is_not_allowed_is_not_imported(tmp_path: Path, monkeypatch: Any) -> None:
    """Nor those beside the allowed one, whose names begin alike."""
    (tmp_path / "trap_jobs.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for path in ("trap_jobs.f", "trap_jobs.g.h"):
        with pytest.raises(NotAllowed):
            Allowed(["trap_job", "trap"]).function(path)


def test_what_is_allowed_is_found() -> None:
    """A function, and a static method of a class; of a module, and of one below it."""
    for modules in (["compat.rq_jobs"], ["compat"], "compat."):
        allowed = Allowed(modules)
        assert allowed.function("compat.rq_jobs.add") is jobs.add
        assert allowed.function("compat.rq_jobs.Thing.static")(2) == 6


def test_a_worker_is_told_whose_functions_run(url: str) -> None:
    """Nothing is allowed by default."""
    for allow in ((), [""], [".."]):
        with pytest.raises(ConfigurationError, match=r"allow=\['myapp.jobs'\]"):
            Worker(["default"], connection=url, allow=allow)


def test_a_job_of_another_module_ends_as_failed(queue: Queue) -> None:
    """And is not tried again, whatever it asks for; callbacks are held to the same."""
    refused = queue.enqueue(evil, retry=Retry(max=3))
    called = queue.enqueue(jobs.add, 1, on_success=evil)
    Worker(queue, allow=["compat.rq_jobs"]).work(burst=True)
    assert ran == []
    for job in (refused, called):
        assert job.is_failed
        assert f"this worker may not run '{__name__}.evil'" in str(job.exc_info)


def test_jobs_are_sealed_as_all_tasks_are(queue: Queue, url: str) -> None:
    """A worker that asks for signed tasks runs no job that anybody may have written."""
    from redistq import Codec, Keys, Sign, TaskProducer

    codec = Codec(Sign(Keys({"a": "12" * 32})), require="signed")
    job = queue.enqueue(evil)
    registry = handlers([__name__])
    with (
        TaskWorker(url=url, stream="default", task_handlers=registry, codec=codec),
        TaskProducer(url=url, stream="default", codec=codec) as producer,
    ):
        until(lambda: producer.get_task(job.id).settled, "the job to end")
        assert (producer.get_task(job.id).state, ran) == ("failed", [])
        name = f"redistq.rq:{__name__}.evil"
        signed = producer.add_task(name, {"args": [], "kwargs": {}})
        assert producer.get_result(signed, timeout=10) is None
    assert ran == ["evil"]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"at_front": True}, "name!high"),
        ({"failure_ttl": 5}, "dead_ttl"),
        ({"repeat": object()}, "schedules.set"),
        ({"on_stopped": jobs.on_failure}, "get_status"),
        ({"rate_limit": object()}, "limits="),
        ({"webhooks": [object()]}, "on_success"),
        ({"pipeline": object()}, "enqueue_many"),
        ({"depends_on": Job("x", "other")}, "one queue"),
    ],
)
def test_an_option_that_is_not_supported_names_the_next_step(
    queue: Queue, options: Any, said: str
) -> None:
    """And adds nothing."""
    with pytest.raises(NotSupported, match=said):
        queue.enqueue(jobs.add, 1, **options)
    assert queue.is_empty()


@pytest.mark.parametrize(
    "call",
    [
        lambda q: Queue(serializer="pickle"),
        lambda q: Worker(q, allow=["a"], serializer="rq.serializers.PickleSerializer"),
        lambda q: q.failed_job_registry,
        lambda q: q.empty(),
        lambda q: Queue(job_class="x"),
        lambda q: Retry(max=1, enqueue_at_front=True),
        lambda q: Dependency("x", enqueue_at_front=True),
        lambda q: Worker(q, allow=["a"], exception_handlers=[]),
        lambda q: q.enqueue(jobs.add, 1).save_meta(),
    ],
)
def test_what_is_not_supported_raises(queue: Queue, call: Any) -> None:
    """Where it is written."""
    with pytest.raises(NotSupported):
        call(queue)


def test_functions_without_a_path_and_arguments_that_are_no_json(queue: Queue) -> None:
    """Before anything is sent."""
    for function in (lambda: 1, jobs.seen.append):
        with pytest.raises(ConfigurationError):
            queue.enqueue(function)
    with pytest.raises(PayloadError):
        queue.enqueue(jobs.add, object())


# -- how jobs end ----------------------------------------------------------------------------------


def test_a_time_limit_intervals_and_a_job_that_is_the_only_one(queue: Queue, url: str) -> None:
    """job_timeout is raised in the job; a retry waits for its interval."""
    late = queue.enqueue(sleeps, job_timeout=0.2)
    again = queue.enqueue(jobs.fails, 2, "intervals", retry=Retry(max=2, interval=[0.01, 0.02]))
    only = queue.enqueue(jobs.add, 1, job_id="only", unique=True)
    with pytest.raises(DuplicateJobError):
        queue.enqueue(jobs.add, 1, job_id="only", unique=True)
    registry = handlers(["compat", __name__])
    with TaskWorker(url=url, stream="default", task_handlers=registry, thread_count=3):
        with pytest.raises(JobTimeoutException):
            late.wait(timeout=10)
        assert (again.wait(timeout=10), only.wait(timeout=10)) == (3, 2)
    assert again.retries_left == 2
    assert get_current_job() is None


def test_stop_cancel_and_expiry(queue: Queue, url: str) -> None:
    """A job that runs is stopped, not cancelled; one that has expired never runs."""
    expired = queue.enqueue(jobs.add, 1, ttl="0.01s")
    until(lambda: Queue("other", connection=url).count == 0, "the other queue")
    with TaskWorker(url=url, stream="default", task_handlers=handlers(["compat", __name__])):
        job = queue.enqueue(sleeps)
        until(lambda: job.is_started, "the job to start")
        with pytest.raises(InvalidJobOperation, match=r"is running"):
            job.cancel()
        job.stop()
        until(lambda: job.is_stopped, "the job to end")
        until(lambda: expired.get_status() is not JobStatus.QUEUED, "the expired job")
    assert ran == ["sleeps"]


def test_fetching_from_other_queues(url: str) -> None:
    """Ids belong to queues: those that this process knows are looked at, others are named."""
    sent = Queue("mail", connection=url).enqueue_in(timedelta(hours=1), jobs.add, 3, b=4)
    assert Job.fetch(sent.id, connection=url).origin == "mail"
    connections.close()
    with pytest.raises(NoSuchJobError, match="queue="):
        Job.fetch(sent.id, connection=url)
    found = Job.fetch(sent.id, connection=url, queue="mail")
    assert (found.func_name, found.args, found.kwargs) == ("compat.rq_jobs.add", (3,), {"b": 4})
    assert found.description == "compat.rq_jobs.add(3, b=4)"
    assert Job.exists("nobody", connection=url) is False
    connections.close()


def test_a_connection_of_redis_py_stands_for_its_address(db: redis.Redis, url: str) -> None:
    """Projects have one already; passwords stay in URLs."""
    assert connections.url_of(db) == url
    with pytest.raises(ConfigurationError, match="redis://"):
        connections.url_of(redis.Redis(password="x"))


# -- by the worker's command -----------------------------------------------------------------------


def test_jobs_by_the_worker_command(tmp_path: Path, url: str) -> None:
    """``python -m redistq.worker rq_worker:registry`` runs jobs in processes of its own."""
    (tmp_path / "shop_jobs.py").write_text("def double(n):\n    return 2 * n\n")
    (tmp_path / "rq_worker.py").write_text(
        "from redistq.compat.rq import handlers\nregistry = handlers(['shop_jobs'])\n"
    )
    with worker_commands(tmp_path, url, "rq_worker:registry", "--queue", "default") as start:
        start()
        queue = Queue(connection=url)
        assert queue.enqueue("shop_jobs.double", 4).wait(timeout=10) == 8
        with pytest.raises(NotAllowed):
            queue.enqueue("os.getcwd").wait(timeout=10)
    connections.close()

"""The same jobs through RQ and through the bridge: a table of cases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import rq
import rq.decorators
import rq.exceptions
from compat import rq_jobs as jobs
from support.servers import Server

import redistq.compat.rq
from redistq.compat.rq import connections

Outcomes = dict[str, Any]


def _end(t: Any, job: Any) -> Any:
    """Status and value of a job, once a worker has seen it."""
    t.work()
    latest = job.latest_result()
    failed = latest is not None and latest.type.name == "FAILED"
    return [
        str(job.get_status().value),
        job.return_value(),
        latest.exc_string.strip().splitlines()[-1] if failed else None,
    ]


def _many(t: Any, found: list[Any]) -> Any:
    return [_end(t, job) for job in found]


def _seen(t: Any, job: Any) -> Any:
    jobs.seen.clear()
    return [_end(t, job)[:2], list(jobs.seen)]


def _raises(call: Callable[[], Any]) -> str:
    try:
        return repr(call())
    except Exception as error:
        return type(error).__name__


def _depends(t: Any, first: Any, **options: Any) -> Any:
    second = t.q.enqueue(jobs.add, 1, depends_on=t.rq.Dependency(jobs=[first], **options))
    before = str(second.get_status().value)
    return [before, _end(t, first)[:2], _end(t, second)[:2]]


def _cancels(t: Any) -> Any:
    job = t.q.enqueue(jobs.add, 1)
    job.cancel()
    return [str(job.get_status().value), _end(t, job)[:2], job.is_canceled]


def _requeues(t: Any) -> Any:
    job = t.q.enqueue(jobs.fails, 1, t.key + "requeue")
    return [_end(t, job)[0], _end(t, job.requeue())[0]]


def _decorated(t: Any) -> Any:
    def plain(a: int) -> int:
        return a

    decorated = t.rq.decorators_job("default", connection=t.connection, timeout=30)(jobs.add)
    assert plain(1) == 1
    return _end(t, decorated.enqueue(4, b=4))


CASES: dict[str, Callable[[Any], Any]] = {
    "enqueue": lambda t: _end(t, t.q.enqueue(jobs.add, 1, b=2)),
    "by its path": lambda t: _end(t, t.q.enqueue("compat.rq_jobs.add", 1)),
    "a static method": lambda t: _end(t, t.q.enqueue("compat.rq_jobs.Thing.static", 2)),
    "args and kwargs": lambda t: _end(t, t.q.enqueue(jobs.add, args=(1,), kwargs={"b": 5})),
    "enqueue_call": lambda t: _end(t, t.q.enqueue_call(jobs.add, (2, 3), timeout=30)),
    "an error": lambda t: _end(t, t.q.enqueue(jobs.divide, 1, 0)),
    "wrong arguments": lambda t: _end(t, t.q.enqueue(jobs.add))[:2],
    "no such function": lambda t: _end(t, t.q.enqueue("compat.rq_jobs.absent"))[:2],
    "before it runs": lambda t: [
        str(t.q.enqueue(jobs.add, 1).get_status().value),
        t.q.enqueue(jobs.add, 1).result,
        t.q.enqueue(jobs.add, 1).is_finished,
    ],
    "job_id": lambda t: t.q.enqueue(jobs.add, 1, job_id="mine").id,
    "asks": lambda t: _end(
        t, t.q.enqueue(jobs.asks, job_id="asked", meta={"a": [1]}, description="words")
    ),
    "its description": lambda t: t.q.enqueue(jobs.add, 1, b="x").description,
    "retry": lambda t: _end(
        t, t.q.enqueue(jobs.fails, 2, t.key + "retry", retry=t.rq.Retry(max=3))
    )[:2],
    "retry too often": lambda t: _end(
        t, t.q.enqueue(jobs.fails, 9, t.key + "often", retry=t.rq.Retry(max=2))
    ),
    "on_success": lambda t: _seen(t, t.q.enqueue(jobs.add, 1, on_success=jobs.on_success)),
    "on_success as a Callback": lambda t: _seen(
        t, t.q.enqueue(jobs.add, 1, on_success=t.rq.Callback("compat.rq_jobs.on_success"))
    ),
    "on_failure": lambda t: _seen(t, t.q.enqueue(jobs.divide, 1, 0, on_failure=jobs.on_failure)),
    "on_success that raises": lambda t: _seen(
        t, t.q.enqueue(jobs.add, 1, on_success=jobs.bad_callback, on_failure=jobs.on_failure)
    ),
    "depends_on": lambda t: _depends(t, t.q.enqueue(jobs.add, 1)),
    "depends_on, however it ends": lambda t: _depends(
        t, t.q.enqueue(jobs.divide, 1, 0), allow_failure=True
    ),
    "enqueue_in": lambda t: str(t.q.enqueue_in(timedelta(hours=1), jobs.add, 1).get_status().value),
    "enqueue_at": lambda t: str(
        t.q.enqueue_at(datetime.now(UTC) + timedelta(hours=1), jobs.add, 1).get_status().value
    ),
    "enqueue_many": lambda t: _many(
        t,
        t.q.enqueue_many([t.rq.Queue.prepare_data(jobs.add, (i,), job_id=f"m{i}") for i in (1, 2)]),
    ),
    "cancel": _cancels,
    "requeue": _requeues,
    "fetch": lambda t: (
        t.rq.Job.fetch(t.q.enqueue(jobs.add, 1, job_id="f").id, connection=t.connection).id
    ),
    "fetch of nobody": lambda t: _raises(lambda: t.rq.Job.fetch("nobody", connection=t.connection)),
    "fetch_job of nobody": lambda t: t.q.fetch_job("nobody"),
    "count": lambda t: [
        t.work(),
        t.q.is_empty(),
        t.q.enqueue(jobs.add, 1) is not None,
        len(t.q),
        t.q.is_empty(),
    ][1:],
    "work, done and idle": lambda t: [
        t.work() in (True, False),
        t.q.enqueue(jobs.add, 1) is not None,
        t.work(),
        t.work(),
    ],
    "decorator": _decorated,
    "at once": lambda t: [
        (job := t.here.enqueue(jobs.add, 1, b=3)).return_value(),
        str(job.get_status().value),
    ],
    "at once, failing": lambda t: str(t.here.enqueue(jobs.divide, 1, 0).get_status().value),
}


def outcomes(t: Any) -> Outcomes:
    """What each case came to."""
    found: Outcomes = {}
    for name, case in CASES.items():
        try:
            found[name] = case(t)
        except Exception as error:
            found[name] = ("raised", type(error).__name__, str(error))
    return found


@pytest.fixture(scope="module")
def by_rq(servers_by_flavour: Callable[[str], Server]) -> Outcomes:
    """By RQ itself, with its worker and a real server."""
    server = servers_by_flavour("valkey")
    server.flush()
    with redis.Redis.from_url(server.url) as connection:
        queue = rq.Queue(connection=connection)
        package = SimpleNamespace(
            **{n: getattr(rq, n) for n in ("Queue", "Retry", "Callback")},
            Job=rq.job.Job,
            Dependency=rq.job.Dependency,
            decorators_job=rq.decorators.job,
        )
        t = SimpleNamespace(
            rq=package,
            q=queue,
            here=rq.Queue(connection=connection, is_async=False),
            connection=connection,
            key="rq",
            work=lambda: rq.SimpleWorker([queue], connection=connection).work(burst=True),
        )
        return outcomes(t)


@pytest.fixture(scope="module")
def by_redistq(servers_by_flavour: Callable[[str], Server], by_rq: Outcomes) -> Outcomes:
    """By the bridge, with its worker and the same server."""
    server = servers_by_flavour("valkey")
    server.flush()
    package = SimpleNamespace(
        **{n: getattr(redistq.compat.rq, n) for n in redistq.compat.rq.__all__},
        decorators_job=redistq.compat.rq.job,
    )
    worker = package.Worker(["default"], connection=server.url, allow=["compat.rq_jobs"])
    t = SimpleNamespace(
        rq=package,
        q=package.Queue(connection=server.url),
        here=package.Queue(connection=server.url, is_async=False),
        connection=server.url,
        key="redistq",
        work=lambda: worker.work(burst=True),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RQ_BRIDGE", "1")
        found = outcomes(t)
    connections.close()
    return found


@pytest.mark.timeout(180)
@pytest.mark.parametrize("case", CASES)
def test_the_same_as_rq(case: str, by_rq: Outcomes, by_redistq: Outcomes) -> None:
    """Results, states and errors are those of RQ."""
    theirs = by_rq[case]
    assert not (isinstance(theirs, tuple) and theirs[0] == "raised"), theirs
    assert by_redistq[case] == theirs

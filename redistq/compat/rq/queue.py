"""Queue: adds jobs, by functions or their import paths; and what stands beside it in RQ."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from ...errors import ConfigurationError
from ...protocol.keys import new_task_id
from ..unsupported import NotSupported
from ..wire import payload_round_trip, result_round_trip
from . import connections
from .allowed import NAME, path_of
from .job import Job, Retry, after_of, callback_path, current
from .said import DuplicateJobError, NoSuchJobError

DEFAULT_TIMEOUT_S = 180
DEFAULT_RESULT_TTL_S = 500
FOREVER_S = 3650 * 86_400
"""How long a result is kept that is to be kept for ever."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

_STEPS = {
    "failure_ttl": "failed jobs are kept 30 days: TaskWorker(dead_ttl=...), --dead-ttl",
    "at_front": "use a queue of its own: Queue('name!high')",
    "repeat": "set a schedule: TaskProducer(...).schedules.set(name, every=..., task=...)",
    "on_stopped": "use on_failure, or look at job.get_status()",
    "rate_limit": "decorate the function with redistq's @task(limits=...)",
    "webhooks": "call the address in on_success and on_failure",
    "pipeline": "use enqueue_many, which sends all in one call",
}


class EnqueueData(NamedTuple):
    """One job of enqueue_many."""

    func: Any
    args: Any
    kwargs: Any
    options: dict[str, Any]


class Queue:
    """A queue of jobs. ``connection`` is the server's address, a URL; without it the server is
    found as redistq finds it (``REDISTQ_URL``)."""

    def __init__(
        self,
        name: str = "default",
        connection: Any = None,
        default_timeout: Any = None,
        is_async: bool = True,
        serializer: Any = None,
        default_result_ttl: int | None = None,
        **others: Any,
    ) -> None:
        connections.json_only(serializer)
        if others:
            raise NotSupported(f"Queue({next(iter(others))}=...)", "leave it out")
        self.name = name
        self.connection = connection
        self.is_async = is_async
        self._timeout = DEFAULT_TIMEOUT_S if default_timeout is None else default_timeout
        self._ttl = DEFAULT_RESULT_TTL_S if default_result_ttl is None else default_result_ttl

    # -- adding ----------------------------------------------------------------------------------

    def enqueue(self, f: Any, *args: Any, **kwargs: Any) -> Job:
        """Add a job: ``enqueue(f, 1, b=2)``, or by its path ``enqueue("myapp.jobs.f", 1, b=2)``.

        Options: job_timeout, result_ttl, ttl (seconds, or "10m"), depends_on, retry, description,
        meta, job_id, on_success, on_failure, unique; ``args`` and ``kwargs`` where arguments would
        be taken for options.
        """
        data = self._data(f, args, kwargs)
        return self._add([data])[0]

    def enqueue_call(
        self, func: Any, args: Any = None, kwargs: Any = None, timeout: Any = None, **options: Any
    ) -> Job:
        """Add a job, its arguments apart from its options."""
        if timeout is not None:
            options["job_timeout"] = timeout
        return self._add([EnqueueData(func, args or (), kwargs or {}, options)])[0]

    def enqueue_at(self, datetime: datetime, f: Any, *args: Any, **kwargs: Any) -> Job:
        """Add a job that is due then; a time without a zone is UTC."""
        when = datetime if datetime.tzinfo is not None else datetime.replace(tzinfo=UTC)
        func, given, named, options = self._data(f, args, kwargs)
        return self._add([EnqueueData(func, given, named, {**options, "execute_at": when})])[0]

    def enqueue_in(self, time_delta: timedelta, func: Any, *args: Any, **kwargs: Any) -> Job:
        """Add a job that is due after so long."""
        found, given, named, options = self._data(func, args, kwargs)
        options["delay"] = time_delta.total_seconds()
        return self._add([EnqueueData(found, given, named, options)])[0]

    @staticmethod
    def prepare_data(
        func: Any, args: Any = None, kwargs: Any = None, timeout: Any = None, **options: Any
    ) -> EnqueueData:
        """Return one job of enqueue_many."""
        if timeout is not None:
            options["job_timeout"] = timeout
        return EnqueueData(func, args or (), kwargs or {}, options)

    def enqueue_many(self, job_datas: Iterable[EnqueueData], pipeline: Any = None) -> list[Job]:
        """Add many jobs in one call."""
        if pipeline is not None:
            raise NotSupported("pipeline", _STEPS["pipeline"])
        return self._add(list(job_datas))

    def _data(self, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> EnqueueData:
        options = {name: kwargs.pop(name) for name in [*_OPTIONS, *_STEPS] if name in kwargs}
        if "args" in kwargs or "kwargs" in kwargs:
            if args:
                raise ConfigurationError("give arguments in args= and kwargs=, or as they are")
            return EnqueueData(f, kwargs.pop("args", ()), kwargs.pop("kwargs", {}), options)
        return EnqueueData(f, args, kwargs, options)

    def _add(self, datas: list[EnqueueData]) -> list[Job]:
        made = [self._made(data) for data in datas]
        if not self.is_async:
            return [_run_here(job, data.func) for (job, _), data in zip(made, datas, strict=True)]
        producer = connections.producer(self.connection, self.name)
        if len(made) == 1:
            job, item = made[0]
            unique = item.pop("unique")
            outcome = producer.add_task(item.pop("type"), item.pop("payload"), **item).outcome
            if unique and outcome == "known":
                raise DuplicateJobError(f"there is a job {job.id!r} already")
        else:
            for _, item in made:
                if item.pop("unique"):
                    raise NotSupported("unique in enqueue_many", "enqueue that one by itself")
            producer.add_tasks([item for _, item in made])
        return [job for job, _ in made]

    def _made(self, data: EnqueueData) -> tuple[Job, dict[str, Any]]:
        given = {name: value for name, value in data.options.items() if value is not None}
        for name in given:
            if name in _STEPS and given[name] is not False:
                raise NotSupported(f"the option {name} of a job", _STEPS[name])
            if name not in _OPTIONS and name not in _STEPS:
                raise NotSupported(f"the option {name} of a job", "leave it out")
        retry = given.get("retry")
        if isinstance(retry, int):
            retry = Retry(retry)
        said = {
            "meta": given.get("meta"),
            "description": given.get("description"),
            "retry": retry and {"max": retry.max, "intervals": retry.intervals},
            "on_success": callback_path(given.get("on_success")),
            "on_failure": callback_path(given.get("on_failure")),
        }
        job = Job(
            str(given.get("job_id") or new_task_id()),
            self.name,
            path_of(data.func),
            self.connection,
        )
        payload = {"args": list(data.args), "kwargs": dict(data.kwargs)}
        job.read({**payload, "rq": {name: value for name, value in said.items() if value}})
        ttl = _seconds(given.get("result_ttl", self._ttl))
        item = {
            "type": f"{NAME}:{job.func_name}",
            "payload": job.payload(),
            "task_id": job.id,
            "timeout": _seconds(given.get("job_timeout", self._timeout)),
            "result_ttl": FOREVER_S if ttl is None else ttl,
            "expires": _seconds(given.get("ttl")),
            "after": after_of(given.get("depends_on"), self),
            "unique": given.get("unique", False),
            "delay": given.get("delay"),
            "execute_at": given.get("execute_at"),
        }
        kept = {n: v for n, v in item.items() if v is not None or n == "payload"}
        if "unique" not in kept:
            kept["unique"] = False
        return job, kept

    # -- looking ---------------------------------------------------------------------------------

    def fetch_job(self, job_id: str) -> Job | None:
        """Return the job of an id; None for none."""
        try:
            return Job.fetch(job_id, self.connection, queue=self.name)
        except NoSuchJobError:
            return None

    @property
    def count(self) -> int:
        """How many jobs are queued and have not started."""
        return connections.producer(self.connection, self.name).snapshot().ready

    def is_empty(self) -> bool:
        """Return whether no job is queued."""
        return self.count == 0

    def empty(self) -> int:
        """Refuse to cancel the queued jobs alone."""
        raise NotSupported(
            "empty of a queue",
            "TaskProducer(stream=name).purge_queue() cancels what is queued, and what is scheduled "
            "or deferred, too",
        )

    def __len__(self) -> int:
        return self.count

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        if name.endswith("_registry") or name in ("jobs", "job_ids", "get_jobs", "get_job_ids"):
            raise NotSupported(f"Queue.{name}", "see redistq.TaskMonitor, and `python -m redistq`")
        raise AttributeError(name)

    def __repr__(self) -> str:
        return f"Queue({self.name!r})"


_OPTIONS = (
    *("job_timeout", "result_ttl", "ttl", "depends_on", "retry", "description", "meta"),
    *("job_id", "on_success", "on_failure", "unique", "delay", "execute_at"),
)


def _seconds(given: Any) -> float | None:
    """Return seconds as RQ writes them: a number, "90", "10m"; None for none, and for -1."""
    if given is None:
        return None
    text = str(given).strip().lower()
    unit = _UNITS.get(text[-1:], 1)
    number = float(text[:-1] if text[-1:] in _UNITS else text) * unit
    return None if number < 0 else number


def _run_here(job: Job, func: Any) -> Job:
    """Run a job at once, in this process, its values through the codec of jobs."""
    from .running import perform

    job.read(payload_round_trip(job.func_name, job.payload()))
    token = current.set(job)
    try:
        job._result = (True, result_round_trip(perform(job, lambda path: _found(path, func))))
    except Exception as error:
        job._result = (False, error)
    finally:
        current.reset(token)
    return job


def _found(path: str, func: Any) -> Callable[..., Any]:
    if not isinstance(func, str) and path == path_of(func):
        return func  # type: ignore[no-any-return]
    import importlib

    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


class job:
    """Give a function ``enqueue`` and ``delay``, which add it as a job."""

    def __init__(
        self,
        queue: Queue | str,
        connection: Any = None,
        timeout: Any = None,
        **options: Any,
    ) -> None:
        self._queue = queue
        self._connection = connection
        self._options = {**options, **({} if timeout is None else {"job_timeout": timeout})}

    def __call__(self, f: Any) -> Any:
        def enqueue(*args: Any, **kwargs: Any) -> Job:
            queue = self._queue
            if isinstance(queue, str):
                queue = Queue(queue, connection=self._connection)
            beside = ("depends_on", "job_id", "at_front")
            given = {name: kwargs.pop(name) for name in beside if name in kwargs}
            return queue.enqueue_call(f, args, kwargs, **{**self._options, **given})

        f.delay = f.enqueue = enqueue
        return f


def cancel_job(job_id: str, connection: Any = None, **options: Any) -> None:
    """Let a job not start."""
    Job.fetch(job_id, connection).cancel(**options)


def requeue_job(job_id: str, connection: Any = None, serializer: Any = None) -> Job:
    """Run a job again that has failed."""
    return Job.fetch(job_id, connection, serializer).requeue()

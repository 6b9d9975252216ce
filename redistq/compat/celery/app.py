"""Celery: an app, its tasks by name, its configuration, and what a worker runs of it."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NoReturn

from ...errors import ConfigurationError
from ...handlers import Registry, RetryPolicy
from ...producer import TaskProducer
from ...protocol.declared import Declared
from ...protocol.options import MAX_COUNT
from ..unsupported import NotSupported
from . import schedules
from .canvas import Signature, maybe_signature, signature
from .config import Settings, check_url
from .control import Control
from .eager import run
from .exceptions import NotRegistered
from .options import rate_of
from .payload import payload_of
from .plan import send
from .result import AsyncResult, GroupResult, Result
from .running import handler_of
from .shared import apps, late, shared
from .signals import Signal
from .task import Task

_OPTIONS = frozenset(
    name for name in vars(Task) if not name.startswith("_") and not callable(vars(Task)[name])
) | {"run", "bind", "base", "name", "on_failure", "on_success", "on_retry", "after_return"}
_OPTIONS_IGNORED = {
    "acks_late": "tasks are always acknowledged after they ran",
    "acks_on_failure_or_timeout": "a failed task is settled with its error",
    "reject_on_worker_lost": "a lost worker's tasks always run again",
    "track_started": "it is always known whether a task runs",
    "send_events": "redistq.TaskMonitor sees what happens",
    "store_errors_even_if_ignored": "errors are always kept, as dead letters",
    "store_eager_result": "eager results are in the process that asked",
    "compression": "payloads are sent as they are",
    "shared": "shared_task makes tasks of all apps",
    "lazy": "tasks are made at once",
    "trail": "what a task sends is known by those who send it",
    "resultrepr_maxsize": "the worker's log has no results",
    "pydantic": "",
}


class Celery:
    """An app under Celery's names, whose tasks run on redistq.

    ``python -m redistq.worker proj.celery:app`` runs them. ``broker`` is where the server is; one
    that is not given is found as ``REDISTQ_URL`` and TaskProducer's defaults say.
    """

    def __init__(
        self,
        main: str | None = None,
        broker: str | None = None,
        backend: str | None = None,
        include: Sequence[str] | None = None,
        config_source: Any = None,
        set_as_current: bool = True,
        namespace: str | None = None,
        tasks: Any = None,
        task_cls: type[Task] | None = None,
        timezone: str | None = None,
        **settings: Any,
    ) -> None:
        self.main = main
        self.conf = Settings()
        self.Task = task_cls or Task
        self.tasks: dict[str, Task] = {}
        self.control = Control(self)
        self.on_configure = Signal("on_configure")
        self.on_after_configure = Signal("on_after_configure")
        self.on_after_finalize = Signal("on_after_finalize")
        self._periodic: dict[str, dict[str, Any]] = {}
        self._later: list[Callable[[], Any]] = []
        self._finalized = False
        self._configured = False
        self._producers: dict[str, TaskProducer] = {}
        self._pid = os.getpid()
        given = {"broker_url": broker, "result_backend": backend, "include": include}
        given |= {"timezone": timezone, **settings}
        self.conf.take({name: value for name, value in given.items() if value is not None})
        if config_source is not None:
            self.config_from_object(config_source, namespace=namespace)
        for function, options in (*_built_in(), *shared):
            self.add_task(function, options)
        if set_as_current:
            apps.append(self)

    # -- configuration ---------------------------------------------------------------------------

    def config_from_object(
        self, obj: Any, silent: bool = False, force: bool = False, namespace: str | None = None
    ) -> None:
        """Take settings from an object, or the module of that name."""
        self.conf.take_object(obj, namespace)

    def config_from_envvar(self, variable_name: str, **options: Any) -> None:
        """Take settings from the module that an environment variable names."""
        name = os.environ.get(variable_name)
        if not name:
            raise ConfigurationError(f"the environment has no {variable_name}: set it to a module")
        self.config_from_object(name, **options)

    def autodiscover_tasks(
        self,
        packages: Iterable[str] | Callable[[], Iterable[str]] | None = None,
        related_name: str | None = "tasks",
        force: bool = False,
    ) -> None:
        """Import the ``tasks`` module of each package: those given, or Django's installed apps."""

        def discover() -> None:
            found = packages() if callable(packages) else packages
            if found is None:
                from django.apps import apps

                found = [config.name for config in apps.get_app_configs()]
            for package in found:
                name = f"{package}.{related_name}" if related_name else package
                if importlib.util.find_spec(package) and importlib.util.find_spec(name):
                    importlib.import_module(name)

        if force:
            discover()
        else:
            self._later.append(discover)

    def finalize(self, auto: bool = False) -> None:
        """Import the modules of tasks, and let the app's receivers add periodic tasks."""
        if self._finalized:
            return
        self._finalized = True
        for module in (*self.conf.imports, *self.conf.include):
            importlib.import_module(module)
        for discover in self._later:
            discover()
        self.on_configure.send(sender=self)
        self.on_after_configure.send(sender=self, source=self.conf)
        self.on_after_finalize.send(sender=self)

    @property
    def timezone(self) -> str:
        """The zone of crontabs and, without enable_utc, of times without a zone."""
        return self.conf.timezone or "UTC"

    def set_current(self) -> None:
        """Make this the app of shared tasks and results in this process."""
        if self in apps:
            apps.remove(self)
        apps.append(self)

    set_default = set_current

    # -- tasks -----------------------------------------------------------------------------------

    def task(self, *args: Any, **options: Any) -> Any:
        """Make a task of a function: ``@app.task`` or ``@app.task(bind=True, ...)``."""
        if len(args) == 1 and callable(args[0]):
            return self.add_task(args[0], options)
        if args:
            raise TypeError("@app.task() takes its options by name: @app.task(bind=True)")
        return lambda function: self.add_task(function, options)

    def add_task(self, function: Callable[..., Any], options: Mapping[str, Any]) -> Task:
        """Make a task of a function, with the options of ``@app.task``."""
        import inspect

        options = dict(options)
        bind = options.pop("bind", False)
        base: type[Task] = options.pop("base", None) or self.Task
        name = options.pop("name", None) or self.name_of(function)
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise NotSupported(
                f"the task {name}, which is no plain function", "decorate it with redistq's @task"
            )
        for option in options:
            if option not in _OPTIONS and option not in _OPTIONS_IGNORED:
                raise NotSupported(
                    f"the option {option!r} of task {name}", "leave it out, or see "
                    "docs/migrating.md"
                )  # fmt: skip
        if options.get("pydantic"):
            raise NotSupported(f"pydantic=True of task {name}", "use redistq's @task and its types")
        if options.get("serializer") not in (None, "json"):
            self.conf["task_serializer"] = options["serializer"]  # raises, with the next step
        if name in self.tasks:
            return self.tasks[name]
        members = {
            "run": function if bind else staticmethod(function),
            "name": name,
            "app": self,
            "abstract": False,
            "__module__": function.__module__,
            "__doc__": function.__doc__,
            "__wrapped__": function if not bind else None,
            **{name: value for name, value in options.items() if name not in _OPTIONS_IGNORED},
        }
        task: Task = type(getattr(function, "__name__", "task"), (base,), members)()
        vars(task)["__name__"] = getattr(function, "__name__", name)
        self.tasks[name] = task
        return task

    def register_task(self, task: Any, **_: Any) -> Task:
        """Add a task of a class below Task."""
        made: Task = task() if isinstance(task, type) else task
        kind: Any = type(made)
        kind.app = self
        if not kind.name:
            kind.name = f"{kind.__module__}.{kind.__name__}"
        self.tasks[made.name] = made
        return made

    def name_of(self, function: Callable[..., Any]) -> str:
        """Return what a function's task is called where nothing is said."""
        module = function.__module__
        if module == "__main__" and self.main:
            module = self.main
        return f"{module}.{function.__name__}"

    def task_named(self, name: str) -> Task:
        """Return the task of that name; raises NotRegistered."""
        if name not in self.tasks:
            self.finalize()
        if name not in self.tasks:
            raise NotRegistered(
                f"no task is called {name!r}: import its module, or name it in include"
            )
        return self.tasks[name]

    def ignores_result(self, task: Task | None) -> bool:
        """Return whether a task's result is not kept."""
        own = getattr(task, "ignore_result", None)
        return bool(self.conf.task_ignore_result if own is None else own)

    # -- sending ---------------------------------------------------------------------------------

    def send_task(
        self, name: str, args: Any = None, kwargs: Any = None, **options: Any
    ) -> AsyncResult:
        """Send a task by its name alone."""
        found = Signature(name, args, kwargs, app=self)
        return found.apply_async(**options)  # type: ignore[return-value]

    def signature(self, *args: Any, **kwargs: Any) -> Signature:
        """Return a signature of a task or its name."""
        return signature(*args, app=self, **kwargs)

    def AsyncResult(self, id: str, **options: Any) -> AsyncResult:
        """Return the result of a task by its id."""
        return AsyncResult(id, app=self, **options)

    def GroupResult(self, id: str, results: Sequence[Any] = (), **_: Any) -> GroupResult:
        """Return the results of several tasks."""
        return GroupResult(id, results, app=self)

    def producer(self, queue: str) -> TaskProducer:
        """Return what adds tasks to a queue in this process."""
        if self._pid != os.getpid():
            self._producers, self._pid = {}, os.getpid()
        queue = queue or self.conf.task_default_queue
        if queue not in self._producers:
            url = self.conf.broker_url
            url = url[0] if isinstance(url, list | tuple) else url
            where = check_url("broker_url", url) if url else None
            self._producers[queue] = TaskProducer(stream=queue, url=where)
        return self._producers[queue]

    def close(self) -> None:
        """Close the connections; the app may be used again."""
        for producer in self._producers.values():
            producer.close()
        self._producers = {}

    def __enter__(self) -> Celery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def queues(self) -> list[str]:
        """The queues that this app knows: the default one, those of routes and of tasks."""
        found = [self.conf.task_default_queue, *(task.queue for task in self.tasks.values())]
        found += [getattr(one, "name", one) for one in self.conf.task_queues or ()]
        found += [route.get("queue") for _, route in _routes(self.conf.task_routes)]
        found += self._producers
        return list(dict.fromkeys(str(queue) for queue in found if queue))

    def queue_of(self, name: str, args: Any = (), kwargs: Any = None) -> str:
        """Return the queue of a task: its own, that of its route, or the default one."""
        if (task := self.tasks.get(name)) is not None and task.queue:
            return task.queue
        for pattern, route in _routes(self.conf.task_routes):
            if fnmatchcase(name, pattern) and route.get("queue"):
                return str(route["queue"])
        return str(self.conf.task_default_queue)

    # -- running ---------------------------------------------------------------------------------

    @property
    def current_task(self) -> Task | None:
        """The task that runs here."""
        from .request import running

        found = running.get()
        return None if found is None else found[0]

    def add_periodic_task(
        self,
        schedule: Any,
        sig: Signature,
        args: Any = (),
        kwargs: Any = None,
        name: str | None = None,
        **options: Any,
    ) -> str:
        """Let a task run by itself; return the name of its schedule."""
        merged = sig.clone(args or (), kwargs, **options)
        entry = {"task": merged.task, "schedule": schedule, "args": merged.args}
        entry |= {"kwargs": merged.kwargs, "options": merged.options}
        key = name or repr(merged)
        self._periodic[key] = entry
        return key

    def __redistq_registry__(self) -> Registry:
        """Return the handlers of the app's tasks and schedules, for a worker."""
        self.finalize()
        registry = Registry()
        conf = self.conf
        for task in self.tasks.values():
            soft = task.soft_time_limit or conf.task_soft_time_limit
            registry.add(task.name, handler_of(self, task), **self._limits(task, soft))
        for name, entry in {**conf.beat_schedule, **self._periodic}.items():
            self._add_schedule(registry, name, entry)
        from .worker import attach

        attach(self, registry)
        return registry

    @property
    def registry(self) -> Registry:
        """The handlers of the app's tasks: ``TaskWorker(task_handlers=app.registry)``."""
        return self.__redistq_registry__()

    def _limits(self, task: Task, soft: Any) -> dict[str, Any]:
        expires = self.conf.result_expires
        kept = expires.total_seconds() if hasattr(expires, "total_seconds") else expires
        if self.ignores_result(task):
            kept = 0
        hard = task.time_limit or self.conf.task_time_limit
        # What a handler raises ends its task; a retry is counted by max_retries alone.
        policy = RetryPolicy(retries=MAX_COUNT, retry_on=())
        return {"timeout": soft, "hard_timeout": hard, "result_ttl": kept, "policy": policy}

    def _add_schedule(self, registry: Registry, name: str, entry: Mapping[str, Any]) -> None:
        task = self.task_named(entry["task"])
        options = {n: v for n, v in (entry.get("options") or {}).items() if v is not None}
        if unknown := options.keys() - {"expires", "queue", "priority"}:
            raise NotSupported(
                f"the option {sorted(unknown)[0]!r} of schedule {name!r}", "give it to the task"
            )
        if options.get("queue") not in (None, self.queue_of(task.name)):
            raise NotSupported(
                f"the queue of schedule {name!r}", "route its task there, and start a worker for it"
            )
        timing = schedules.timing_of(entry["schedule"], self.timezone)
        payload = payload_of(entry.get("args") or (), entry.get("kwargs") or {})
        gate: dict[str, Any] = {}
        if (rule := rate_of(self, task.name, task)) is not None:
            gate["limits"] = rule
        if options.get("expires"):
            gate["expires"] = options["expires"]
        registry.add(
            f"{task.name}:{name}".replace("\n", " "),
            registry[task.name].function,
            declared=Declared.of({**timing, "payload": payload}),
            gate=gate or None,
            **self._limits(task, task.soft_time_limit or self.conf.task_soft_time_limit),
        )

    def _no_command(self, *_: Any, **__: Any) -> NoReturn:
        raise NotSupported(
            "celery's command line",
            "python -m redistq.worker proj.celery:app, which fires schedules, too; "
            "python -m redistq monitor shows the queue",
        )

    start = worker_main = Worker = Beat = _no_command

    def __repr__(self) -> str:
        return f"<Celery {self.main or '__main__'} on redistq>"


def _routes(given: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if given is None:
        return []
    found: list[tuple[str, Mapping[str, Any]]] = []
    for one in [given] if isinstance(given, Mapping) or callable(given) else given:
        if callable(one) or isinstance(one, str):
            raise NotSupported("a router that is a function", "write task_routes as a dict")
        pairs = one.items() if isinstance(one, Mapping) else [one]
        for pattern, route in pairs:
            found.append((pattern, {"queue": route} if isinstance(route, str) else route))
    return found


def _each(task: Any, it: Any) -> list[Any]:
    function = maybe_signature(task).type
    return [function(item) for item in it]


def _each_tuple(task: Any, it: Any) -> list[Any]:
    function = maybe_signature(task).type
    return [function(*items) for items in it]


def _built_in() -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    return [(_each, {"name": "celery.map"}), (_each_tuple, {"name": "celery.starmap"})]


def _send(app: Celery, found: Signature) -> Result:
    """Send what a signature stands for; with task_always_eager, run it here."""
    return run(app, found) if app.conf.task_always_eager else send(app, found)


late.make_app = Celery
late.send = _send
late.run = run

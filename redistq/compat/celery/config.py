"""An app's configuration: Celery's settings that hold here, those that need not, those that cannot.

A setting that redistq has no use for is accepted, and its reason logged once; one that would change
what a project relies on is refused with the next step.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from ...errors import ConfigurationError
from ...logger import logger
from ...protocol.keys import DEFAULT_QUEUE
from ..unsupported import NotSupported

log = logger("redistq.compat")

DEFAULTS: dict[str, Any] = {
    "broker_url": None,
    "result_backend": None,
    "imports": (),
    "include": (),
    "task_default_queue": DEFAULT_QUEUE,
    "task_default_priority": None,
    "task_default_rate_limit": None,
    "task_routes": None,
    "task_queues": None,
    "task_always_eager": False,
    "task_eager_propagates": False,
    "task_ignore_result": False,
    "task_time_limit": None,
    "task_soft_time_limit": None,
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ("json",),
    "result_accept_content": None,
    "event_serializer": "json",
    "result_expires": 86_400,
    "timezone": None,
    "enable_utc": True,
    "beat_schedule": {},
    "redistq_priority_order": "redis",
}
"""The settings that hold, and what they are where nothing is said."""

IGNORED = {
    "broker_connection_retry": "workers wait for their server",
    "broker_connection_retry_on_startup": "workers wait for their server",
    "broker_connection_max_retries": "workers wait for their server",
    "broker_connection_timeout": "every call is bounded",
    "broker_heartbeat": "workers have a heartbeat of their own",
    "broker_pool_limit": "connections are kept as they are needed",
    "broker_transport_options": "there is no visibility timeout: a lost worker's tasks go back at "
    "once; say how long that may take with --lease",
    "redis_max_connections": "connections are kept as they are needed",
    "redis_socket_timeout": "every call is bounded",
    "redis_backend_health_check_interval": "connections are looked after",
    "redis_retry_on_timeout": "calls are safe to repeat, and are",
    "result_backend_transport_options": "results stand on the broker's server",
    "result_extended": "name, worker and times are always kept",
    "result_compression": "results are sent as they are",
    "result_persistent": "results are as durable as the server",
    "result_cache_max": "nothing is cached",
    "result_chord_join_timeout": "a chord's results are there when its body starts",
    "result_chord_retry_interval": "nothing polls for a chord",
    "task_acks_late": "tasks are always acknowledged after they ran",
    "task_acks_on_failure_or_timeout": "a failed task is settled with its error",
    "task_reject_on_worker_lost": "a lost worker's tasks always run again",
    "task_track_started": "it is always known whether a task runs",
    "task_send_sent_event": "redistq.TaskMonitor sees what happens",
    "task_publish_retry": "calls are safe to repeat, and are",
    "task_publish_retry_policy": "calls are safe to repeat, and are",
    "task_protocol": "there is one format of tasks",
    "task_compression": "payloads are sent as they are",
    "task_create_missing_queues": "a queue needs no declaration",
    "task_default_exchange": "a queue has no exchange",
    "task_default_exchange_type": "a queue has no exchange",
    "task_default_routing_key": "a task goes to its queue",
    "task_default_delivery_mode": "tasks are as durable as the server",
    "task_queue_max_priority": "priorities are 0 to 9",
    "task_store_errors_even_if_ignored": "errors are always kept, as dead letters",
    "task_store_eager_result": "eager results are in the process that asked",
    "task_inherit_parent_priority": "each task has the priority it is given",
    "task_remote_tracebacks": "tracebacks of workers are always notes of their errors",
    "worker_concurrency": "say it to the worker: --threads, --processes",
    "worker_prefetch_multiplier": "a worker fetches no more than it can run soon",
    "worker_pool": "say it to the worker: --threads, --processes",
    "worker_send_task_events": "redistq.TaskMonitor sees what happens",
    "worker_hijack_root_logger": "the worker leaves loggers alone; --log-level",
    "worker_log_format": "say it to the worker: --log-level",
    "worker_task_log_format": "say it to the worker: --log-level",
    "worker_redirect_stdouts": "what tasks print goes where the worker's output goes",
    "worker_redirect_stdouts_level": "what tasks print goes where the worker's output goes",
    "worker_cancel_long_running_tasks_on_connection_loss": "tasks run on, and settle later",
    "worker_max_tasks_per_child": "say it to the worker: see its --help",
    "worker_max_memory_per_child": "say it to the worker: see its --help",
    "beat_scheduler": "workers fire schedules, each occurrence once",
    "beat_schedule_filename": "schedules stand on the server",
    "beat_max_loop_interval": "workers fire schedules by the server's clock",
    "beat_sync_every": "schedules stand on the server",
    "security_key": "messages are JSON, and run named tasks alone",
    "deprecated_settings": "it says nothing to workers",
}
"""Settings that change nothing here, and why."""

REFUSED = {
    "task_annotations": "write the options at the tasks",
    "task_cls": "give the class to the tasks: @app.task(base=MyTask)",
    "broker_use_ssl": "write rediss:// in broker_url",
    "redis_backend_use_ssl": "write rediss:// in broker_url",
    "result_backend_always_retry": "catch redistq.ServerUnavailable",
    "broker_read_url": "use one broker_url",
    "broker_write_url": "use one broker_url",
    "broker_failover_strategy": "name sentinels: redis+sentinel://",
    "task_allow_error_cb_on_chord_header": "give link_error to the tasks of the header",
    "override_backends": "results stand on the broker's server; read them by AsyncResult",
}
"""Settings that would change what a project relies on, and the next step."""

_JSON = ("task_serializer", "result_serializer", "event_serializer")
_CONTENTS = ("accept_content", "result_accept_content")


class Settings(MutableMapping[str, Any]):
    """Settings by name, as attributes and as items."""

    def __init__(self) -> None:
        self.__dict__["_values"] = dict(DEFAULTS)

    def take(self, given: Mapping[str, Any], namespace: str | None = None) -> None:
        """Set what is given; with a namespace ``CELERY``, of it what begins with ``CELERY_``."""
        for name, value in given.items():
            if namespace:
                prefix = namespace + "_"
                if name.startswith(prefix):
                    self[name[len(prefix) :].lower()] = value
            elif name.startswith(("CELERY_", "BROKER_", "CELERYBEAT_", "CELERYD_")):
                raise ConfigurationError(
                    f"{name} is a setting of Celery 3: use its lower-case name, or "
                    "config_from_object(..., namespace='CELERY')"
                )
            elif name.islower():
                self[name] = value

    def take_object(self, found: Any, namespace: str | None = None) -> None:
        """Set what an object or the module of that name says."""
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            found = importlib.import_module(module)
            found = getattr(found, attribute) if attribute else found
        if isinstance(found, Mapping):
            self.take(found, namespace)
            return
        values = {name: getattr(found, name) for name in dir(found) if not name.startswith("_")}
        if namespace is None:  # a module has imports of its own
            known = {*DEFAULTS, *IGNORED, *REFUSED}
            values = {n: v for n, v in values.items() if n in known or n.isupper()}
        self.take(values, namespace)

    def __setitem__(self, name: str, value: Any) -> None:
        if name in DEFAULTS:
            _check(name, value)
            self._values[name] = value
        elif name in IGNORED:
            log.info("the setting %s changes nothing here: %s", name, IGNORED[name])
            self._values[name] = value
        elif name in REFUSED:
            if value:
                raise NotSupported(f"the setting {name}", REFUSED[name])
        else:
            known = [*DEFAULTS, *IGNORED, *REFUSED]
            near = difflib.get_close_matches(name, known, 1)
            raise NotSupported(
                f"the setting {name}",
                f"did you mean {near[0]}?" if near else "leave it out, or see docs/migrating.md",
            )

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __delitem__(self, name: str) -> None:
        self._values[name] = DEFAULTS.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        if name in (values := self.__dict__["_values"]):
            return values[name]
        if name in IGNORED or name in REFUSED:
            return None
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def _check(name: str, value: Any) -> None:
    if name in _JSON and value not in ("json", "application/json"):
        raise NotSupported(
            f"{name}={value!r}",
            "arguments and results are JSON: unpickling runs whatever its writer chose; send plain "
            "values, or functions with redistq.Client, which signs them",
        )
    if name in _CONTENTS and value is not None:
        contents = [value] if isinstance(value, str) else list(value)
        for content in contents:
            if content not in ("json", "application/json"):
                _check("task_serializer", content)
    if name == "broker_url" and value:
        first = value[0] if isinstance(value, list | tuple) else value
        check_url("broker_url", first)
    if name == "result_backend" and value:
        scheme = str(value).partition(":")[0]
        if scheme == "disabled":
            return
        if scheme not in _SCHEMES:
            raise NotSupported(
                f"the result_backend {scheme}",
                "results stand on the broker's server: leave it out, and let tasks write to your "
                "database what is to stay there",
            )
        log.info(
            "the setting result_backend changes nothing here: results stand on the broker's server"
        )
    if name == "redistq_priority_order" and value not in ("redis", "amqp"):
        raise ConfigurationError("redistq_priority_order is 'redis' (0 first) or 'amqp' (9 first)")


_SCHEMES = (
    *("redis", "rediss", "unix", "redis+socket", "sentinel", "redis+sentinel", "redis+cluster"),
    *("rediss+cluster", "valkey", "valkeys"),
)


def check_url(name: str, url: Any) -> str:
    """Return where the server is, as redistq names it; raises NotSupported for another kind."""
    text = str(url)
    scheme = text.partition(":")[0]
    if scheme not in _SCHEMES:
        raise NotSupported(
            f"{name}={scheme}://", "tasks stand on a Redis or Valkey server: redis://host:6379/0"
        )
    if scheme == "redis+socket":
        return text.replace("redis+socket:", "unix:", 1)
    return text.replace("sentinel:", "redis+sentinel:", 1) if scheme == "sentinel" else text

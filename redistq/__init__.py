"""redistq: a distributed task queue on Redis Streams.

Everything public is imported from here, on first use: ``import redistq`` itself loads nothing
heavy, so that a worker starts fast.
"""

from __future__ import annotations

import sys

_module = sys.orig_argv[-len(sys.argv)] if sys.argv[:1] == ["-m"] else ""
if _module.removeprefix("-m").startswith(f"{__name__}.") and not sys.flags.safe_path:
    # ``python -m`` looks in the current folder first. What we need must not be a file of the
    # user's that happens to be called queue.py or redis.py; what is there alone is still found,
    # and worker processes look for handlers in the usual order.
    sys.path.append(sys.path.pop(0))

import importlib  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from .client.batch import Batch as Batch
    from .client.client import Client as Client
    from .client.client import LocalWorkers as LocalWorkers
    from .client.futures import TaskFuture as TaskFuture
    from .dashboard.dashboard import Dashboard as Dashboard
    from .errors import (
        ConfigurationError as ConfigurationError,
    )
    from .errors import (
        EmbeddedServerError as EmbeddedServerError,
    )
    from .errors import (
        Fail as Fail,
    )
    from .errors import (
        InvalidDelay as InvalidDelay,
    )
    from .errors import (
        PayloadError as PayloadError,
    )
    from .errors import (
        PayloadTooLarge as PayloadTooLarge,
    )
    from .errors import (
        RedistqError as RedistqError,
    )
    from .errors import (
        ResultError as ResultError,
    )
    from .errors import (
        ResultTimeout as ResultTimeout,
    )
    from .errors import (
        ResultTooLarge as ResultTooLarge,
    )
    from .errors import (
        Retry as Retry,
    )
    from .errors import (
        ServerFull as ServerFull,
    )
    from .errors import (
        ServerUnavailable as ServerUnavailable,
    )
    from .errors import (
        Snooze as Snooze,
    )
    from .errors import (
        TaskCancelled as TaskCancelled,
    )
    from .errors import (
        TaskFailed as TaskFailed,
    )
    from .errors import (
        TimeLimitExceeded as TimeLimitExceeded,
    )
    from .errors import (
        UnknownBatch as UnknownBatch,
    )
    from .errors import (
        UnknownTask as UnknownTask,
    )
    from .errors import (
        UntrustedPayload as UntrustedPayload,
    )
    from .handlers import Registry as Registry
    from .handlers import TaskContext as TaskContext
    from .handlers import task as task
    from .monitor.monitor import TaskMonitor as TaskMonitor
    from .producer.producer import AsyncTaskProducer as AsyncTaskProducer
    from .producer.producer import TaskProducer as TaskProducer
    from .scheduler.scheduler import TaskScheduler as TaskScheduler
    from .worker.worker import TaskWorker as TaskWorker

__version__ = "0.1.0"

_HOMES = {
    "producer": ["AsyncTaskProducer", "TaskProducer"],
    "worker": ["TaskWorker"],
    "client": ["Client", "LocalWorkers"],
    "client.batch": ["Batch"],
    "dashboard": ["Dashboard"],
    "client.futures": ["TaskFuture"],
    "scheduler": ["TaskScheduler"],
    "monitor": ["TaskMonitor"],
    "handlers": ["Registry", "TaskContext", "task"],
    "errors": [
        "ConfigurationError",
        "EmbeddedServerError",
        "Fail",
        "InvalidDelay",
        "PayloadError",
        "PayloadTooLarge",
        "RedistqError",
        "ResultError",
        "ResultTimeout",
        "ResultTooLarge",
        "Retry",
        "ServerFull",
        "ServerUnavailable",
        "Snooze",
        "TaskCancelled",
        "TaskFailed",
        "TimeLimitExceeded",
        "UnknownBatch",
        "UnknownTask",
        "UntrustedPayload",
    ],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

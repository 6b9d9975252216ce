"""redistq: a distributed task queue on Redis Streams.

Everything public is imported from here, on first use: ``import redistq`` itself loads nothing
heavy, so that a worker starts fast.
"""

from __future__ import annotations

import sys

_module = sys.orig_argv[-len(sys.argv)] if sys.argv[:1] == ["-m"] else ""
if f"{_module.removeprefix('-m')}.".startswith(f"{__name__}.") and not sys.flags.safe_path:
    # ``python -m`` looks in the current folder first. What we need must not be a file of the
    # user's that happens to be called queue.py or redis.py; what is there alone is still found,
    # and worker processes look for handlers in the usual order.
    sys.path.append(sys.path.pop(0))

import importlib  # noqa: E402
import os  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from .client.batch import Batch
    from .client.client import Client, LocalWorkers
    from .client.futures import TaskFuture
    from .client.graph import CallGraph
    from .client.lazy import LazyCall, compute
    from .client.shared_graph import SharedGraph
    from .codecs import Codec, Compress, Encrypt, Keys, Sign
    from .context import BatchContext, TaskContext, current_task, track
    from .dashboard import Dashboard
    from .elsewhere import SSH, Kubernetes, Slurm
    from .errors import (
        ArgumentError,
        CancelRequested,
        ConfigurationError,
        EmbeddedServerError,
        EventTimeout,
        Fail,
        InvalidDelay,
        ItemsGone,
        ItemTooLarge,
        LeaseLost,
        MemoryLimitExceeded,
        ModuleMissing,
        PayloadError,
        PayloadTooLarge,
        RedistqError,
        ResultError,
        ResultTimeout,
        ResultTooLarge,
        Retry,
        ServerFull,
        ServerUnavailable,
        Snooze,
        SpillError,
        StepError,
        StepMismatch,
        StreamRestarted,
        Suspended,
        TaskCancelled,
        TaskExpired,
        TaskFailed,
        TimeLimitExceeded,
        TooHeavy,
        UnexpectedReply,
        UnknownBatch,
        UnknownParent,
        UnknownSchedule,
        UnknownTask,
        Unreadable,
        UntrustedPayload,
        WrongPython,
    )
    from .flows import chain, chord, group, map_reduce, sig
    from .functions.setups import setup_value
    from .functions.spill import Spill
    from .handlers import BatchErrors, Depends, Registry, lifespan, override, task
    from .middleware import Middleware, NewTask, Settled, travels
    from .monitor import TaskMonitor
    from .monitor.events import TaskEvent
    from .producer import AsyncTaskProducer, TaskProducer
    from .producer.active import configure
    from .producer.gated import TaskId
    from .producer.handle import TaskHandle
    from .producer.task_graph import AsyncTaskGraph, TaskGraph
    from .protocol.gate import Unique
    from .protocol.limits import limit
    from .protocol.progress import Progress
    from .scheduler import TaskScheduler
    from .worker import TaskWorker

__version__ = "0.1.0"

__all__ = [
    "SSH",
    "ArgumentError",
    "AsyncTaskGraph",
    "AsyncTaskProducer",
    "Batch",
    "BatchContext",
    "BatchErrors",
    "CallGraph",
    "CancelRequested",
    "Client",
    "Codec",
    "Compress",
    "ConfigurationError",
    "Dashboard",
    "Depends",
    "EmbeddedServerError",
    "Encrypt",
    "EventTimeout",
    "Fail",
    "InvalidDelay",
    "ItemTooLarge",
    "ItemsGone",
    "Keys",
    "Kubernetes",
    "LazyCall",
    "LeaseLost",
    "LocalWorkers",
    "MemoryLimitExceeded",
    "Middleware",
    "ModuleMissing",
    "NewTask",
    "PayloadError",
    "PayloadTooLarge",
    "Progress",
    "RedistqError",
    "Registry",
    "ResultError",
    "ResultTimeout",
    "ResultTooLarge",
    "Retry",
    "ServerFull",
    "ServerUnavailable",
    "Settled",
    "SharedGraph",
    "Sign",
    "Slurm",
    "Snooze",
    "Spill",
    "SpillError",
    "StepError",
    "StepMismatch",
    "StreamRestarted",
    "Suspended",
    "TaskCancelled",
    "TaskContext",
    "TaskEvent",
    "TaskExpired",
    "TaskFailed",
    "TaskFuture",
    "TaskGraph",
    "TaskHandle",
    "TaskId",
    "TaskMonitor",
    "TaskProducer",
    "TaskScheduler",
    "TaskWorker",
    "TimeLimitExceeded",
    "TooHeavy",
    "UnexpectedReply",
    "Unique",
    "UnknownBatch",
    "UnknownParent",
    "UnknownSchedule",
    "UnknownTask",
    "Unreadable",
    "UntrustedPayload",
    "WrongPython",
    "__version__",
    "chain",
    "chord",
    "compute",
    "configure",
    "current_task",
    "group",
    "lifespan",
    "limit",
    "map_reduce",
    "override",
    "setup_value",
    "sig",
    "task",
    "track",
    "travels",
]

_HOMES = {
    "Batch": "client.batch",
    "Client": "client.client",
    "LocalWorkers": "client.client",
    "TaskFuture": "client.futures",
    "Codec": "codecs",
    "Compress": "codecs",
    "Encrypt": "codecs",
    "Keys": "codecs",
    "Sign": "codecs",
    "Dashboard": "dashboard",
    "Kubernetes": "elsewhere",
    "SSH": "elsewhere",
    "Slurm": "elsewhere",
    "Middleware": "middleware",
    "NewTask": "middleware",
    "Settled": "middleware",
    "travels": "middleware",
    "Depends": "handlers",
    "Registry": "handlers",
    "BatchContext": "context",
    "BatchErrors": "handlers",
    "TaskContext": "context",
    "current_task": "context",
    "track": "context",
    "Progress": "protocol.progress",
    "lifespan": "handlers",
    "override": "handlers",
    "setup_value": "functions.setups",
    "Spill": "functions.spill",
    "task": "handlers",
    "TaskEvent": "monitor.events",
    "TaskMonitor": "monitor",
    "AsyncTaskProducer": "producer",
    "TaskHandle": "producer.handle",
    "TaskId": "producer.gated",
    "configure": "producer.active",
    "TaskProducer": "producer",
    "TaskScheduler": "scheduler",
    "TaskWorker": "worker",
    "CallGraph": "client.graph",
    "LazyCall": "client.lazy",
    "SharedGraph": "client.shared_graph",
    "compute": "client.lazy",
    "TaskGraph": "producer.task_graph",
    "AsyncTaskGraph": "producer.task_graph",
    "chain": "flows",
    "chord": "flows",
    "group": "flows",
    "map_reduce": "flows",
    "sig": "flows",
    "Unique": "protocol.gate",
    "limit": "protocol.limits",
}
"""Where public names stand that are no errors; each is imported at its first use."""


def load_ipython_extension(shell: Any) -> None:
    """Register the magics %%task, %%batch and %redistq: what ``%load_ext redistq`` calls."""
    importlib.import_module(".magics", __name__).load_ipython_extension(shell)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if "REDISTQ_TRACING" in os.environ:  # it stands around all tasks of this process: see there
    importlib.import_module(".tracing", __name__)

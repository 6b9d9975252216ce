"""RQ's way of adding jobs, running on redistq: functions by their import path, arguments as JSON.

``from redistq.compat.rq import Queue, Worker, Job, Retry, Callback, get_current_job, job``. RQ
itself is not imported, and nothing is pickled. **A worker runs those functions alone whose modules
it was told to allow**, ``Worker(["default"], allow=["myapp.jobs"])``: whoever can write to the
server chooses the path. docs/migrating.md says what maps to what; all else raises NotSupported.
"""

from __future__ import annotations

from ..unsupported import NotSupported
from .job import Callback, Dependency, Job, JobStatus, Retry, get_current_job
from .queue import Queue, cancel_job, job, requeue_job
from .running import handlers
from .said import (
    DuplicateJobError,
    InvalidJobOperation,
    JobTimeoutException,
    NoSuchJobError,
    NotAllowed,
)
from .worker import SimpleWorker, Worker

__all__ = [
    "Callback",
    "Dependency",
    "DuplicateJobError",
    "InvalidJobOperation",
    "Job",
    "JobStatus",
    "JobTimeoutException",
    "NoSuchJobError",
    "NotAllowed",
    "NotSupported",
    "Queue",
    "Retry",
    "SimpleWorker",
    "Worker",
    "cancel_job",
    "get_current_job",
    "handlers",
    "job",
    "requeue_job",
]

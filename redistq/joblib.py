"""``joblib.parallel_config(backend="redistq")``: scikit-learn's loops on redistq's workers.

``import redistq.joblib`` (or making a Client after joblib was imported) registers the backend. It
uses the client given as ``parallel_config(backend="redistq", client=client)``, or makes one with
its own workers for the time of the block.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import joblib
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase

from .client import Client
from .futures import TaskFuture


class RedistqBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs joblib's batches as tasks."""

    supports_retrieve_callback = True
    supports_sharedmem = False
    supports_timeout = True
    uses_threads = False
    default_n_jobs = -1

    def __init__(self, client: Client | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._client = client
        self._futures: set[TaskFuture] = set()

    def configure(self, n_jobs: int = 1, parallel: Any = None, prefer: Any = None, **_: Any) -> int:
        """Called by joblib at the beginning of a ``Parallel`` call."""
        # Weakly, or the two would hold each other, and our client and workers with them.
        self.parallel = weakref.proxy(parallel) if parallel is not None else None
        if self._client is None:
            self._client = Client()
            self._client.start_workers(None if n_jobs in (None, -1) else n_jobs)
        return self.effective_n_jobs(n_jobs)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many batches run at a time."""
        import os

        slots = self._client.worker_count() if self._client is not None else os.cpu_count() or 1
        if n_jobs is None or n_jobs == 0:
            return 1 if n_jobs is None else slots
        return slots if n_jobs < 0 else min(n_jobs, slots)

    def submit(self, func: Callable[..., Any], callback: Any = None) -> Future[Any]:
        """Send one batch of calls; ``callback`` is told its future when it is done."""
        assert self._client is not None
        future = self._client.options(name="joblib").submit(func)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The results of a batch, from its finished future."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """After an error: what has not started is cancelled."""
        if self._client is not None and self._futures:
            self._client.courier.cancel(list(self._futures))

    def terminate(self) -> None:
        """Called by joblib at the end of a ``Parallel`` call; the client of a block stays for the
        next one, and ends with the block, when nobody holds this backend any more."""
        if self._client is not None and self._futures:
            self._client.courier.cancel(list(self._futures))


def register() -> None:
    """Make the name ``redistq`` known to joblib; safe to call twice."""
    joblib.register_parallel_backend("redistq", RedistqBackend)


register()

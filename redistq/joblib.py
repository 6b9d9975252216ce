"""``joblib.parallel_config(backend="redistq")``: scikit-learn's loops on redistq's workers.

``import redistq.joblib`` (or making a Client after joblib was imported) registers the backend. It
uses the client given as ``parallel_config(backend="redistq", client=client)``, or makes one with
its own workers for the time of the block.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pickle import PicklingError
from typing import Any

import joblib
from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

from .client.client import Client
from .client.futures import TaskFuture, cancel_all
from .errors import PayloadError
from .functions.packing import label
from .functions.pickling import dump, load
from .system.cores import limited


class CannotPickle(PayloadError, PicklingError):
    """An argument cannot be sent to a worker: the error of this library and of joblib's own."""


class RedistqBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs joblib's batches as tasks.

    ``inner_max_num_threads`` bounds the threads of BLAS and OpenMP in each call;
    ``initializer(*initargs)`` is called in each worker process before its first call.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    supports_sharedmem = False
    uses_threads = False
    default_n_jobs = -1

    def __init__(self, client: Client | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._client = client
        self._futures: set[TaskFuture] = set()
        self._setup: _Setup | None = None

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Called by joblib at the beginning of a ``Parallel`` call."""
        if n_jobs == 1:
            # One call after another is what the caller's own process does best.
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        slots = self.effective_n_jobs(n_jobs)
        # Weakly, or the two would hold each other, and our client and workers with them.
        self.parallel = weakref.proxy(parallel) if parallel is not None else None
        if self._client is None:
            self._client = Client()
            self._client.start_workers(slots)
        options = {**self.backend_kwargs, **options}
        self._setup = _Setup.of(
            self.inner_max_num_threads, options.get("initializer"), options.get("initargs")
        )
        return slots

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many batches run at a time: never more than the client has workers for."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            n_jobs = self.default_n_jobs
        slots = self._client.worker_count() if self._client is not None else joblib.cpu_count()
        if n_jobs < 0:
            return int(max(slots + 1 + n_jobs, 1))
        return n_jobs if self._client is None else min(n_jobs, slots)

    def submit(self, func: Callable[[], Any], callback: Any = None) -> Future[Any]:
        """Send one batch of calls; ``callback`` gets its future when it is done."""
        assert self._client is not None
        try:
            future = self._client.options(name=_name(func)).submit(_run, func, self._setup)
        except PayloadError as error:
            raise CannotPickle(f"joblib cannot pickle the task to send: {error}") from error
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
        self._cancel()

    def terminate(self) -> None:
        """Called by joblib at the end of a ``Parallel`` call; the client of a block stays for the
        next one, and ends with the block, when nothing holds this backend any more."""
        self._cancel()
        self.reset_batch_stats()

    def _cancel(self) -> None:
        cancel_all(list(self._futures))


@dataclass(frozen=True, slots=True)
class _Setup:
    """What a worker process does before it runs a batch."""

    threads: int | None
    initializer: bytes | None
    """The pickle of a function and its arguments, called once in each process."""

    @classmethod
    def of(
        cls, threads: int | None, initializer: Callable[..., Any] | None, arguments: Any
    ) -> _Setup | None:
        if threads is None and initializer is None:
            return None
        pickled = None if initializer is None else dump((initializer, tuple(arguments or ())))
        return cls(threads, pickled)


def _name(batch: Any) -> str:
    """What monitors call a batch: workers tell long tasks from short ones by it, too."""
    items = getattr(batch, "items", None)
    return f"joblib:{label(items[0][0])}" if items else "joblib"


_initialized: set[bytes] = set()
_initializing = threading.Lock()


def _run(batch: Callable[[], Any], setup: _Setup | None) -> Any:
    """A batch of calls, on a worker."""
    if setup is None:
        return batch()
    if setup.initializer is not None:
        with _initializing:
            if setup.initializer not in _initialized:
                initializer, arguments = load(setup.initializer)
                initializer(*arguments)
                _initialized.add(setup.initializer)
    with limited(setup.threads):
        return batch()


def register() -> None:
    """Make the name ``redistq`` known to joblib; safe to call twice."""
    joblib.register_parallel_backend("redistq", RedistqBackend)


register()

"""Client: functions fanned out over workers, with the interface of ``concurrent.futures``.

Used from notebooks and programs. It makes tasks of calls and futures of results; the queue, the
workers and their guarantees are the same for all. What a client has open is in its session.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Unpack, overload

from ..codecs.codec import Codec, given_or_env
from ..connection.address import DEFAULT_HOST, DEFAULT_PORT, Address, resolve
from ..display.html import escape, panel
from ..errors import ConfigurationError
from ..functions.signing import key_from, user_key
from ..functions.spill import Spill
from ..middleware import Middleware, checked_middleware
from ..producer.diagnosis import ANY_NAME
from ..producer.limits import Limits
from ..protocol.codec import DEFAULT_MAX_BYTES
from ..protocol.homes import Home
from ..protocol.keys import DEFAULT_GROUP, DEFAULT_QUEUE, PRIORITIES, is_call
from ..protocol.options import (
    CallKeywords,
    CallOptions,
    count,
    listed,
    seconds,
    shown,
)
from ..worker.worker import TaskWorker
from .batch import Batch
from .futures import TaskFuture
from .leftovers import leftovers_in, say_what_was_left
from .session import ClientSettings, Session
from .spill import ClientSpill
from .steps import SendsEvents
from .submitting import BoundOptions, Submitting

if TYPE_CHECKING:
    from ..dashboard.dashboard import Dashboard
    from ..elsewhere.kubernetes import Kubernetes
    from ..elsewhere.place import Place
    from ..elsewhere.pods import Pods
    from ..elsewhere.workers import RemoteWorkers

LocalWorkers = TaskWorker
"""What ``Client.start_workers`` returns: a TaskWorker of processes on this machine."""


class Client(Submitting, SendsEvents, Executor):
    """Runs functions on workers: an ``Executor`` whose work survives this process.

    ``Client()`` uses the server that ``settings.resolve`` finds (the embedded one at last);
    ``Client("redis://…")`` the one it names. ``start_workers`` starts processes here; workers
    started elsewhere take part when they share the signing key. Everything it pickles is signed,
    with ``signing_key``, ``REDISTQ_SIGNING_KEY``, or this user's own key; results that are not
    signed with it are refused unless ``allow_pickle`` is set, because unpickling runs code.

    Calls belong to the host, the folder and the environment that the client was made in: workers
    that clients of other folders or environments started leave them alone, and those started here
    leave theirs. With ``shared=True`` any worker may run these calls, and workers started here run
    everybody's, as workers started by the command do.

    With ``spill``, or ``REDISTQ_SPILL``, large arguments and results of calls go to a folder or an
    object store instead of to the server: see Spill.

    ``middleware`` stands around what it sends. As a context manager it waits for its futures and
    stops its workers. Safe to use from several threads.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        queue: str = DEFAULT_QUEUE,
        group: str = DEFAULT_GROUP,
        redis_host: str = DEFAULT_HOST,
        redis_port: int = DEFAULT_PORT,
        db: int = 0,
        password: str | None = None,
        signing_key: str | bytes | None = None,
        allow_pickle: bool = False,
        middleware: Iterable[Middleware] = (),
        max_payload_bytes: int = DEFAULT_MAX_BYTES,
        timeout: float = 10.0,
        codec: Codec | None = None,
        spill: Spill | str | os.PathLike[str] | None = None,
        address: Address | None = None,
        shared: bool = False,
        home: Home | None = None,
    ) -> None:
        if url is not None and not isinstance(url, str):
            hint = f"; for {url} workers: client = Client(); client.start_workers({url})"
            raise ConfigurationError(
                f"a client takes a server's URL, not {shown(url)}"
                + (hint if isinstance(url, int) else "")
            )
        key = key_from(signing_key)
        if key is None:
            from ..connection.embedded import default_home

            key = user_key(default_home())
        settings = ClientSettings(
            address=address or resolve(url, redis_host, redis_port, db, password),
            queue=queue,
            group=group,
            key=key,
            allow_pickle=allow_pickle,
            max_payload_bytes=count("max_payload_bytes", max_payload_bytes, least=1, most=1 << 40),
            timeout=seconds("timeout", timeout, positive=True),
            shared=shared,
            home=home or Home.here(),
            layers=checked_middleware(middleware),
            codec=given_or_env(codec),
            spill=Spill.given_or_env(spill),
        )
        self._options = CallOptions()
        self._session = Session(settings)
        self.address: Address = settings.address
        self.home = settings.home
        """Where calls belong; see homes.py."""
        self.keys = self._session.keys
        """The names of the queue's keys on the server."""
        self.group = group
        """The consumer group of its workers."""
        self.broker = self._session.broker
        """The connection: ``client.broker.call((command, ...))`` asks the server."""
        self.limits = Limits(self._session.queue().limits, self.broker)
        """What holds for limit keys, looked at and changed while everything runs: see Limits."""
        _register_joblib()

    @property
    def _client(self) -> Client:
        return self

    @property
    def spill(self) -> ClientSpill:
        """What is outside the server: ``client.spill.sweep()`` deletes what nothing needs any more.
        Raises ConfigurationError for a client without a spill."""
        return ClientSpill(self._session)

    @listed(CallKeywords)
    def options(self, **options: Unpack[CallKeywords]) -> BoundOptions:
        """Return the client with options for the calls it sends.

        ``retries`` (0: a call fails with its first error), ``delay``, ``timeout`` and
        ``hard_timeout`` (seconds: the call is told to end, and its process is killed),
        ``priority`` ("high", "normal" or "low": workers that a client started take the most
        urgent first), ``name`` (shown by monitors), ``result_ttl`` (seconds), ``cache`` (seconds
        or "1d": a stored result of the same code with the same arguments is reused that long),
        ``logs`` (what the task prints can be read while it runs; "only": and it does not go to
        the worker's own output, too), ``setup`` (a function that each worker process calls once:
        its calls share what it returns, ``redistq.setup_value()``).

        When a call may run: ``after`` (futures, ids, nodes or batches that must have succeeded; a
        mapping says of each "success", "end" or "failure"), ``limits``, ``order``, ``group``,
        ``unique`` and ``expires``, as for TaskProducer.add_task; ``redistq.limit("x:{name}")``
        takes an argument of the call by its name. See docs/gate.md.

        Each priority but "normal" is a queue of its own (``tasks!high``), which workers read in
        order; see TaskWorker's ``queues``. A number, -10 to 10, is a place in the lines of waiting
        tasks.
        """
        return BoundOptions(self, self._options.changed(options))

    # -- workers ---------------------------------------------------------------------------------

    @overload
    def start_workers(
        self,
        n: int | None = None,
        *,
        on: None = None,
        threads: int = 1,
        handlers: Any = None,
        shared: bool | None = None,
        **options: Any,
    ) -> TaskWorker: ...

    @overload
    def start_workers(
        self,
        n: int | None = None,
        *,
        on: Kubernetes,
        threads: int = 1,
        handlers: Any = None,
        shared: bool | None = None,
        **options: Any,
    ) -> Pods: ...

    @overload
    def start_workers(
        self,
        n: int | None = None,
        *,
        on: Place,
        threads: int = 1,
        handlers: Any = None,
        shared: bool | None = None,
        **options: Any,
    ) -> RemoteWorkers: ...

    def start_workers(
        self,
        n: int | None = None,
        *,
        on: Place | None = None,
        threads: int = 1,
        handlers: Any = None,
        shared: bool | None = None,
        **options: Any,
    ) -> TaskWorker | RemoteWorkers | Pods:
        """Start ``n`` worker processes here (default: one a core; 0: none) and return them, ready.

        They run this client's functions and the named tasks registered in this process
        (``handlers``, or what ``@task`` registered), in the folder the client was made in. Calls
        of clients in other folders or environments they leave to others, unless ``shared`` is set
        (default: as the client is). They stop at ``shutdown``, when this process ends in any way,
        or by ``stop()`` of what is returned. Each call starts more of them; one that asks for the
        same as an earlier one whose workers still run says so: see ``stop_workers``.

        ``on=SSH(["host1", "host2"])``, ``Slurm(jobs=2)`` or ``Kubernetes(image)`` starts ``n``
        of them on each of other machines: see docs/elsewhere.md.
        """
        session = self._session
        if session.exchange.pending.closed:
            raise RuntimeError("cannot start workers after shutdown")
        if "processes" in options:
            raise TypeError("the number of workers comes first: client.start_workers(4)")
        if n is not None:
            n = count("the number of workers", n, most=10_000)
        settings = session.settings
        names = sorted(handlers) if isinstance(handlers, Iterable) else handlers
        wish = (n, threads, shared, names, dict(options), type(on), dict(vars(on) if on else {}))
        if not (settings.shared if shared is None else shared):
            options.setdefault("home", settings.home.name)
        if on is not None:
            remote = session.workers.new_elsewhere(settings, on, n, threads, handlers, options)
            say_what_was_left(session)
            session.workers.start(remote, wish)
            return remote
        worker = session.workers.new(settings, n, threads, handlers, options)
        if n == 0:
            return worker  # never started: none was asked for
        say_what_was_left(session)
        session.workers.start(worker, wish)
        return worker

    def stop_workers(self, timeout: float | None = None) -> bool:
        """Stop all workers that this client has started: what they run finishes within ``timeout``
        seconds (default: their ``shutdown_timeout``), the rest waits for others. Return whether all
        that had started has finished. ``start_workers`` starts new ones."""
        leaving = self._session.workers.take()
        # All at once: none of them takes a task more.
        with ThreadPoolExecutor(max(1, len(leaving))) as pool:
            return all([*pool.map(lambda worker: worker.stop(timeout), leaving)])

    def worker_count(self) -> int:
        """Return how many tasks the workers started here run at a time; without any, the number of
        cores."""
        return self._session.workers.slots

    def homes_served(self) -> dict[str, int]:
        """Return how many living worker processes run function calls on this queue, by the home
        they belong to; under "" those that run everybody's. Calls of this client are run by those
        of its own ``home.name`` and of ""."""
        return self._session.queue().homes_served()

    def has_workers(self) -> bool:
        """Return whether workers that were started here run."""
        return self._session.workers.running

    # -- what was sent before --------------------------------------------------------------------

    def future(self, task_id: str, name: str = "") -> TaskFuture:
        """Return a future for a task that was sent before, by this process or another.

        It fails with UnknownTask when the server does not know the task, or no more.
        """
        if not isinstance(task_id, str):
            raise TypeError(f"client.future takes a task's id, not {shown(task_id)}")
        session = self._session
        # One that this client waits for already may be of another priority.
        queue = session.exchange.pending.queue_of(task_id) or session.queue()
        future = TaskFuture(session, queue, task_id, name)
        future.origin = "call" if is_call(task_id) else "unknown"
        future.task_name = ANY_NAME
        session.exchange.expect(future)
        return future

    def batch(self, name: str) -> Batch:
        """Return a batch that was started before, by this kernel or another; raises UnknownBatch.

        It is found whatever its priority is.
        """
        if not isinstance(name, str):
            raise TypeError(f"client.batch takes a batch's name, not {shown(name)}")
        session = self._session
        found = Batch.find(session, self._priority_of(name), name)
        if not found.done:
            session.exchange.hold(found, begun=False)
        return found

    def _priority_of(self, batch: str) -> str:
        for priority in PRIORITIES:
            if priority != "normal":
                commands = self._session.queue(priority).commands
                if self.broker.call(commands.has_batch(batch)):
                    return priority
        return "normal"

    def drop_leftovers(self, *, batches: bool = False, everywhere: bool = False) -> int:
        """Cancel the calls that clients have left which have ended, of all priorities; return how
        many that were.

        What a worker has begun is finished. Calls that somebody waits for are left alone, and so
        are named tasks, which belong to no client; the calls of batches with a name only go with
        ``batches``, for a name is given to resume. They are calls of this client's folder and
        environment, which its workers would run; with ``everywhere`` those of all others too.

        A client has ended when it was closed, when its process on this machine is gone, or when
        it gave no sign of life for three minutes. Calls of clients of earlier releases, which
        give none, only count as left after a week.
        """
        left = [leftovers_in(self._session, priority, everywhere) for priority in PRIORITIES]
        return sum(calls.drop(batches) for calls in left)

    # -- looks -----------------------------------------------------------------------------------

    def dashboard(self, **options: Any) -> Dashboard:
        """Return a live dashboard of this client's queue for a notebook cell, or of several of its
        server's (``queues=["a", "b"]``, ``queues="*"``), with Dashboard's options."""
        from ..dashboard.dashboard import Dashboard

        return Dashboard(self, **options)

    # -- the end ---------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no new calls from now on. With ``wait``, return when every future has its result and
        the workers started here have stopped; without, return at once, and both happen later."""
        self._session.shutdown(wait=wait, cancel_futures=cancel_futures)

    def close(self) -> None:
        """Stop the workers started here and close the connections now. Safe to call twice.

        What was submitted is with the server and goes on elsewhere; futures that are unfinished
        here fail with an error that says so.
        """
        self._session.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "no Client is sent: a function that makes calls makes a Client() of its own"
        )

    def __repr__(self) -> str:
        session = self._session
        closed = session.exchange.pending.closed
        state = "shut down" if closed else f"{session.workers.processes} local workers"
        return (
            f"<Client queue={self.keys.stream!r} {state}, "
            f"{len(session.exchange.pending)} outstanding, {self.address}>"
        )

    def _repr_html_(self) -> str:
        session = self._session
        return panel(
            "Client",
            escape("shut down" if session.exchange.pending.closed else self.address),
            [
                ("queue", escape(self.keys.stream)),
                ("local workers", str(session.workers.processes)),
                ("outstanding futures", f"{len(session.exchange.pending):,}"),
            ],
        )


def _register_joblib() -> None:
    """Register ``backend='redistq'`` with joblib, where joblib is loaded already."""
    if "joblib" in sys.modules:
        from .. import joblib

        joblib.register()

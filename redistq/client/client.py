"""Client: functions fanned out over workers, with the interface of ``concurrent.futures``.

Used from notebooks and programs. It makes tasks of calls and futures of results; the queue, the
workers and their guarantees are the same as everybody's.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

from .. import slots, tracing
from ..connection.address import DEFAULT_HOST, DEFAULT_PORT, Address, resolve
from ..connection.broker import Broker
from ..display.html import escape, panel
from ..display.notebook import say
from ..errors import ConfigurationError, ConnectionLost, PayloadTooLarge, RedistqError
from ..functions.blobs import BLOB_TTL_S, Blobs
from ..functions.call import (
    CALL,
    Call,
    Ref,
    load_function,
    load_here,
    pickled_function,
    with_modules,
)
from ..functions.local_modules import bundle_of
from ..functions.parts import LARGE, dump_parted
from ..functions.pickled import PickledFunctions
from ..functions.pickling import Seen, dump
from ..functions.signing import Signer, key_from, task_context, user_key
from ..logger import logger
from ..producer.diagnosis import ANY_NAME, Diagnosis
from ..producer.producer import TaskProducer
from ..producer.sansio import BLOCK_LIMIT
from ..protocol.codec import DEFAULT_MAX_BYTES, encode_payload
from ..protocol.commands import Commands
from ..protocol.homes import Home
from ..protocol.ids import is_call, new_call_id, new_task_id
from ..protocol.keys import (
    DEFAULT_GROUP,
    DEFAULT_QUEUE,
    PRIORITIES,
    QueueKeys,
    at_priority,
    without_priority,
)
from ..protocol.options import CallKeywords, count, listed, shown, wait_seconds
from ..protocol.options import CallOptions as CallOptions
from ..protocol.replies import messages
from ..worker.worker import TaskWorker
from . import at_exit
from .futures import Origin, TaskFuture, flattened, in_order
from .presence import Leftovers
from .sender import Outgoing, Sender

if TYPE_CHECKING:
    import pandas as pd

    from .batch import Batch, BatchScope

log = logger("redistq.client")

BATCH_TTL_S = 7 * 86_400.0
"""Seconds that results of a batch are kept."""
LEFTOVERS_SEEN = 1000
"""Most calls that are looked at to say how many were left by clients that have ended."""


class _Submitting:
    """What can be done with a Client and with ``client.options(...)`` alike."""

    _options: CallOptions

    @property
    def _client(self) -> Client:
        raise NotImplementedError

    def submit(self, fn: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Call ``fn(*args, **kwargs)`` on a worker; returns its future at once.

        A name instead of a function sends the task of that name, with one JSON payload. Raises
        PayloadError naming what cannot be pickled, and RuntimeError after ``shutdown``.
        """
        return self._client._submit(fn, args, kwargs, self._options)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[Any]:
        """Results of ``fn`` over the items, in order, as Executor.map.

        All calls are sent before this returns. ``chunksize`` calls travel as one task. A large
        argument that several calls share (the same object) is stored once.
        """
        return self._client._map(fn, iterables, timeout, chunksize, self._options)

    def map_batch(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any],
        *,
        name: str | None = None,
        resume: bool = True,
        progress: bool | None = None,
    ) -> Batch:
        """Call ``fn(item)`` for every item, as a durable batch; see Batch.

        With a ``name`` the batch can be found again from another kernel (``client.batch(name)``),
        and the same call made again sends only what is not there yet. A result is used again where
        function and item are the same as then; other items, and all of another function, run
        anew, which is said. ``resume="items"`` looks at the items alone, so that what a mended
        function did before counts; ``resume=False`` raises ConfigurationError when the name is
        taken. So does, in any case, another number of items, or a batch that is still at work on
        other calls. PayloadError names what cannot be compared. ``progress`` shows a bar while
        results are waited for (None: when somebody looks at the output).
        """
        from .batch import Batch

        return Batch.start(self._client, self._options, fn, items, name, resume, progress)

    def batch_scope(self) -> BatchScope:
        """A block whose work does not outlive it: leaving it by an error or an interrupt cancels
        what has not started; leaving it normally waits for all of it."""
        from .batch import BatchScope

        return BatchScope(self._client, self._options)

    def map_frame(
        self, fn: Callable[[pd.DataFrame], Any], df: pd.DataFrame, *, chunks: int | None = None
    ) -> pd.DataFrame:
        """One DataFrame of ``fn(part)`` over consecutive parts of ``df``, in the original order.

        ``fn`` takes and returns a DataFrame (or Series). ``chunks`` defaults to four a worker.
        """
        from .dataframes import map_frame

        if chunks is None:
            chunks = 4 * self._client.worker_count()
        return map_frame(self, fn, df, chunks)

    def map_groups(self, fn: Callable[[pd.DataFrame], Any], groups: Any) -> Any:
        """What ``df.groupby(...).apply(fn)`` gives, with ``fn`` called on workers.

        ``fn`` sees its group with the key's columns, and the key as ``group.name``. Rows of a
        function that keeps each group's index come back in the order of the frame that was grouped
        (whatever ``group_keys`` says); everything else is as pandas puts it together.
        """
        from .dataframes import map_groups

        return map_groups(self, fn, groups)


class BoundOptions(_Submitting):
    """A client with options set: ``client.options(retries=3).submit(...)``."""

    def __init__(self, client: Client, options: CallOptions) -> None:
        self._bound, self._options = client, options

    @property
    def _client(self) -> Client:
        return self._bound

    @listed(CallKeywords)
    def options(self, **options: Unpack[CallKeywords]) -> BoundOptions:
        """The same options with some changed."""
        client = self._client.at_priority(options.get("priority"))
        return BoundOptions(client, self._options.changed(options))

    def __repr__(self) -> str:
        return f"{self._client!r}.options({self._options})"


class Client(_Submitting, Executor):
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

    As a context manager it waits for its futures and stops its workers. Safe to use from several
    threads.
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
        max_payload_bytes: int = DEFAULT_MAX_BYTES,
        timeout: float = 10.0,
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
        self._options = CallOptions()
        self.home = home or Home.here()
        """Where calls belong; see homes.py."""
        self.shared = shared
        self.address: Address = address or resolve(url, redis_host, redis_port, db, password)
        key = key_from(signing_key)
        if key is None:
            from ..connection.embedded import default_home

            key = user_key(default_home())
        self._key, self.allow_pickle = key, allow_pickle
        self.signer = Signer(key, allow_unsigned=allow_pickle)
        self.keys = QueueKeys(queue, clustered=self.address.clustered)
        # What calls of all priorities share: functions, large arguments, output.
        self._shared_keys = QueueKeys(without_priority(self.keys.stream))
        self.commands = Commands(self.keys, group)
        self.broker = Broker(self.address, slot_key=self.keys.stream, timeout=timeout)
        self._pickled = PickledFunctions()
        self.blobs = Blobs(self.broker, self._shared_keys, self.signer)
        self.producer = TaskProducer(
            stream=queue, group=group, address=self.address, timeout=timeout
        )
        self.max_payload_bytes = count(
            "max_payload_bytes", max_payload_bytes, least=1, most=1 << 40
        )
        self.group = group
        self.pid = os.getpid()
        self.open_batches: set[str] = set()
        """Batches started here whose end was not seen."""
        self.reference = weakref.ref(self)
        """One for all futures, which hold the client itself only while they wait."""
        self.diagnosis = Diagnosis(
            self.commands, self.address, self.broker.connection, "client.start_workers()", self.home
        )
        self.sender = Sender(
            self.broker, self.commands, self.producer, self.signer, self.blobs, self.diagnosis
        )
        self._workers: list[TaskWorker] = []
        self._parent: Client | None = None
        self._siblings: dict[str, Client] = {}
        self._siblings_lock = threading.Lock()
        # Threads and workers end when nobody holds the client any more, or at exit; futures that
        # are outstanding hold it.
        self._finalizer = weakref.finalize(
            self, _let_go, self.sender, self._workers, self.broker, self.producer, os.getpid()
        )
        at_exit.watch(self)
        _register_joblib()

    @property
    def _client(self) -> Client:
        return self

    # -- options ---------------------------------------------------------------------------------

    @listed(CallKeywords)
    def options(self, **options: Unpack[CallKeywords]) -> BoundOptions:
        """The client with options for the calls it sends.

        ``retries`` (0: a call fails with its first error), ``delay`` and ``timeout`` (seconds),
        ``priority`` ("high", "normal" or "low": workers that a client started take the most
        urgent first), ``name`` (shown by monitors), ``result_ttl`` (seconds), ``cache`` (seconds
        or "1d": a stored result of the same code with the same arguments is reused that long),
        ``logs`` (what the task prints can be read while it runs).
        """
        client = self.at_priority(options.get("priority"))
        return BoundOptions(client, self._options.changed(options))

    def at_priority(self, priority: str | None) -> Client:
        """The client of this queue's tasks of a priority; None is this client itself.

        Each priority but "normal" is a queue of its own (``tasks!high``), which workers read in
        order; see TaskWorker's ``queues``. It ends with this client.
        """
        if self._parent is not None:
            return self if priority is None else self._parent.at_priority(priority)
        if priority in (None, "normal"):
            return self
        queue = at_priority(self.keys.stream, str(priority))
        with self._siblings_lock:
            if priority not in self._siblings:
                if self.sender.closed:
                    raise RuntimeError("cannot schedule new futures after shutdown")
                sibling = self.recipe(queue)()
                sibling._parent = self
                at_exit.forget(sibling)
                self._siblings[str(priority)] = sibling
            return self._siblings[str(priority)]

    def recipe(self, queue: str | None = None) -> Callable[[], Client]:
        """What makes another client like this one, of this queue or another."""
        return functools.partial(
            Client,
            queue=queue or self.keys.stream,
            group=self.group,
            signing_key=self._key,
            allow_pickle=self.allow_pickle,
            max_payload_bytes=self.max_payload_bytes,
            timeout=self.broker.timeout,
            address=self.address,
            shared=self.shared,
            home=self.home,
        )

    # -- workers ---------------------------------------------------------------------------------

    def start_workers(
        self,
        n: int | None = None,
        *,
        threads: int = 1,
        handlers: Any = None,
        shared: bool | None = None,
        **options: Any,
    ) -> TaskWorker:
        """Start ``n`` worker processes here (default: one a core; 0: none) and return them, ready.

        They run this client's functions and the named tasks registered in this process
        (``handlers``, or what ``@task`` registered), in the folder the client was made in. Calls
        of clients in other folders or environments they leave to others, unless ``shared`` is set
        (default: as the client is). They stop at ``shutdown``, when this process ends in any way,
        or by ``stop()`` of what is returned.
        """
        if self.sender.closed:
            raise RuntimeError("cannot start workers after shutdown")
        if "processes" in options:
            raise TypeError("the number of workers comes first: client.start_workers(4)")
        if n is not None:
            n = count("the number of workers", n, most=10_000)
        if self._parent is not None:
            return self._parent.start_workers(
                n, threads=threads, handlers=handlers, shared=shared, **options
            )
        if not (self.shared if shared is None else shared):
            options.setdefault("home", self.home.name)
        options.setdefault("queues", [at_priority(self.keys.stream, p) for p in PRIORITIES])
        worker = TaskWorker(
            stream=self.keys.stream,
            group=self.group,
            task_handlers=handlers,
            thread_count=threads,
            processes=(os.cpu_count() or 1) if n is None else n,
            address=self.address,
            signing_key=self._key.hex(),
            folder=self.home.folder,
            **options,
        )
        if n == 0:
            return worker  # never started: none was asked for
        self._say_what_was_left()
        worker.start()
        self._workers[:] = [*(w for w in self._workers if w.running), worker]
        return worker

    def _say_what_was_left(self) -> None:
        """Calls of others, of a kernel that died perhaps, that workers started now run first."""
        if self.sender.pending or self.open_batches:
            return
        try:
            shot = self.producer.snapshot()
            if not shot.ready or shot.oldest_ms is None:
                return
            stream = self.keys.stream
            oldest = self.broker.call(("XRANGE", stream, shot.oldest_ms, "+", "COUNT", 1))
            named: list[bool] = []
            if oldest and is_function_call(oldest[0][1]):
                pages = self._leftovers().pages(LEFTOVERS_SEEN)
                named = [of_batch for page in pages for _, of_batch in page]
        except RedistqError:
            return  # starting them will say what is wrong
        if oldest and is_function_call(oldest[0][1]):
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(shot.oldest_ms / 1000))
            say(
                f"{shot.ready:,} task{'s' if shot.ready > 1 else ''} of other clients, the oldest "
                f"from {when}, stand before yours in queue {stream!r} and are run first; "
                f"{_words_of_leftovers(named)}a queue of your own is Client(queue='...')",
                log,
            )

    def worker_count(self) -> int:
        """How many tasks the workers started here run at a time; at least the number of cores."""
        workers = (self._parent or self)._workers
        slots = sum(w.processes * w.settings.threads for w in workers if w.running)
        return slots or (os.cpu_count() or 1)

    def homes_served(self) -> dict[str, int]:
        """How many living worker processes run function calls on this queue, by the home they
        belong to; under "" those that run everybody's. Calls of this client are run by those of
        its own ``home.name`` and of ""."""
        now = self.broker.call(("TIME",))
        now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
        names = self.broker.call(("ZRANGEBYSCORE", self.keys.workers, now_ms, "+inf"))
        served: dict[str, int] = {}
        commands = (("HMGET", self.keys.worker(name.decode()), "names", "home") for name in names)
        for known, home in self.broker.call_many(commands):
            if CALL.encode() in (known or b"").split(b"\n"):
                where = (home or b"").decode()
                served[where] = served.get(where, 0) + 1
        return served

    def has_workers(self) -> bool:
        """Whether workers that were started here are at it."""
        return any(worker.running for worker in (self._parent or self)._workers)

    def parts(self) -> list[Client]:
        """This client, and those of the other priorities that it has used."""
        return [self, *self._siblings.values()]

    # -- submitting ------------------------------------------------------------------------------

    def _submit(
        self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> TaskFuture:
        if isinstance(fn, str):
            return self._submit_named(fn, args, kwargs, options)
        _check_function(fn, "submit")
        needs: list[str] = []
        function = self.store_function(fn, options, needs)
        small = len(needs)
        name = f"{CALL}:{options.name or _label(fn)}"
        if options.cache is not None:
            from ..functions.fingerprint import fingerprint

            task_id = "memo-" + self.signer.name_for(fingerprint(fn, args, kwargs))
        else:
            task_id = new_call_id()
        packet = self.pack_call(task_id, function, args, kwargs, options, needs=needs)
        if len(needs) == small:
            needs.clear()  # a function alone: who calls it once more need not store it again
        return self._send(
            task_id, name, packet, options, memo=options.cache is not None, needs=needs
        )

    def _submit_named(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> TaskFuture:
        if kwargs or len(args) > 1:
            raise TypeError("a named task takes one payload: client.submit('name', payload)")
        if not name or "\n" in name or len(name) > 200:
            raise ConfigurationError(
                f"a task's name is one line of 1 to 200 characters, not {shown(name)}; for a call: "
                "client.submit(fn, ...)"
            )
        payload = encode_payload(name, args[0] if args else None, self.max_payload_bytes)
        return self._send(new_task_id(), name, payload, options, origin="named")

    def store_function(
        self, fn: Callable[..., Any], options: CallOptions, needs: list[str] | None = None
    ) -> str:
        """The function on the server, under the name of its content, with its local modules; what
        was stored is added to ``needs``."""
        known = self._pickled.get(fn)
        if known is not None:
            modules = self._store_modules(known.modules, options, needs)
            pickled = known.pickled
        else:
            seen = Seen()
            pickled = dump(fn, seen)
            modules = self._store_modules(seen.modules, options, needs)
            if seen.generators:
                from ..functions.generators import warn_of_generators

                warn_of_generators(fn, seen.generators)
            else:
                self._pickled.keep(fn, pickled, seen.modules)
        data = pickled_function(fn, pickled, modules)
        return self.blobs.put("function", data, _kept_s(options), needs)

    def _store_modules(
        self, names: AbstractSet[str], options: CallOptions, needs: list[str] | None
    ) -> str:
        """The name of the bundle, on the server, of the local modules among these and of what they
        import; empty when there are none."""
        if not names or (bundle := bundle_of(names)) is None:
            return ""
        return self.blobs.put("modules", bundle.data, _kept_s(options), needs)

    def pack_call(
        self,
        task_id: str,
        function: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions,
        shared: Shared | None = None,
        chunk: bool = False,
        needs: list[str] | None = None,
    ) -> bytes:
        """One call as the payload of that task and no other. Large arguments, and large parts of
        arguments, go to the server under their content's name; ``shared`` remembers arguments of
        one map by identity. What the server keeps for the call is added to ``needs``.

        Raises PayloadError or PayloadTooLarge; nothing was sent then but arguments that expire.
        """
        shared = {} if shared is None else shared
        seen, needs = Seen(), [] if needs is None else needs

        def store(part: Any) -> str:
            return self.blobs.put("argument", part, _kept_s(options), needs)

        def stored(value: Any, sure: bool) -> Any:
            known = shared.get(id(value))
            if known is not None:
                seen.modules |= known[2]
                self.blobs.require(known[3], needs)
                return known[1]
            own, before = Seen(), len(needs)
            if _looks_large(value):
                data = dump(value, own)
            elif sure and len(dump(value)) >= LARGE:
                data = dump(dump_parted(value, store, own))
            else:
                return value
            if len(data) < LARGE:
                return value
            ref = Ref(store(data))
            # The value is kept alive, or its id could mean another object.
            shared[id(value)] = (value, ref, own.modules, needs[before:])
            seen.modules |= own.modules
            return ref

        def build(sure: bool, parted: bool) -> bytes:
            if chunk:
                packed: Any = [tuple(stored(a, sure) for a in one) for one in args]
            else:
                packed = tuple(stored(a, sure) for a in args)
            named = {name: stored(a, sure) for name, a in kwargs.items()}
            call = Call(function, packed, named, chunk, options.logs)
            return call.pickled(store if parted else None, seen)

        # Most calls are small as they are. Else first the parts that many calls may share, then
        # whole arguments.
        data = build(sure=False, parted=False)
        if len(data) > LARGE:
            data = build(sure=False, parted=True)
        if len(data) > LARGE:
            data = build(sure=True, parted=True)
        if modules := self._store_modules(seen.modules, options, needs):
            data = with_modules(data, modules)
        packet = self.signer.pack("call", self.context_of(task_id), data)
        if len(packet) > self.max_payload_bytes:
            raise PayloadTooLarge(len(packet), self.max_payload_bytes)
        return packet

    def context_of(self, task_id: str) -> str:
        """What the signatures of a task's call, result and error are bound to."""
        return task_context(self.keys.stream, task_id)

    def task_options(
        self,
        options: CallOptions,
        call: bool = True,
        *,
        inbox: str | None = None,
        batch: str | None = None,
    ) -> bytes:
        """The options that travel with a task; a call of a function names its home."""
        home = self.home.name if call and not self.shared else None
        trace = None if tracing.active is None else tracing.active.context()
        return options.written(inbox=inbox, batch=batch, home=home, trace=trace)

    def _send(
        self,
        task_id: str,
        name: str,
        packet: bytes,
        options: CallOptions,
        memo: bool = False,
        origin: Origin = "call",
        needs: list[str] | None = None,
    ) -> TaskFuture:
        future = TaskFuture(self, task_id, name.removeprefix(CALL + ":"))
        if needs:
            future.needs = needs
        if origin != "call":
            future._origin = origin
        if not options.result_is_kept and not memo:
            future.keep_briefly = True
        if name.partition(":")[0] != CALL:
            future.task_name = name
        opts = self.task_options(options, name.startswith(CALL), inbox=self.sender.inbox.name)
        self.sender.send(Outgoing((task_id, name, packet, opts, options.due), memo), future)
        return future

    # -- what futures ask ------------------------------------------------------------------------

    def _is_running(self, future: TaskFuture) -> bool:
        reply = self.broker.call(self.commands.watch(future.task_id))
        return Commands.read_watch(reply).state == "running"

    def _replay(self, future: TaskFuture) -> TaskFuture:
        if not self.producer.replay(future.task_id):
            raise RedistqError(
                f"task {future.task_id} is no dead letter; only failed tasks are replayed"
            )
        again = TaskFuture(self, future.task_id, future.name)
        again._origin = future._origin
        self.sender.expect(again)
        return again

    def future(self, task_id: str, name: str = "") -> TaskFuture:
        """A future for a task that was sent before, by this process or another.

        It fails with UnknownTask when the server does not know the task, or no more.
        """
        if not isinstance(task_id, str):
            raise TypeError(f"client.future takes a task's id, not {shown(task_id)}")
        future = TaskFuture(self, task_id, name)
        future._origin = "call" if is_call(task_id) else "unknown"
        future.task_name = ANY_NAME
        self.sender.expect(future)
        return future

    def _why_waiting(self, waited: float, names: Iterable[str] = ()) -> str:
        """Why nothing came in ``waited`` seconds; a short wait asks nobody."""
        if waited < 1.0 or not self.sender.server_answers:
            return self.diagnosis.reason
        return self.diagnosis.ask({*names, *self.sender.wanted()})

    def _call_of(self, task_id: str) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        watched = Commands.read_watch(self.broker.call(self.commands.watch(task_id)))
        payload = watched.record.get("payload")
        if not payload:
            raise RedistqError(
                f"the arguments of task {task_id} are not kept: only failed tasks keep theirs"
            )
        call = self.whole_call(task_id, payload)
        function = load_function(self.blobs.get("function", call.function))
        if call.chunk:

            def chunk() -> list[Any]:
                return [function(*one, **call.kwargs) for one in call.args]

            return chunk, (), {}
        return function, call.args, call.kwargs

    def whole_call(self, task_id: str, payload: bytes, *, old: bool = True) -> Call:
        """The call that a task's payload holds, with its large arguments put in."""
        fetch = self.blobs.argument
        data = self.signer.unpack("call", self.context_of(task_id), payload, old=old)
        call = Call.unpickled(data, fetch)

        def real(value: Any) -> Any:
            if isinstance(value, Ref):
                return load_here(fetch(value.digest), "an argument", fetch)
            return value

        if call.chunk:
            args: Any = [tuple(real(a) for a in one) for one in call.args]
        else:
            args = tuple(real(a) for a in call.args)
        return replace(call, args=args, kwargs={n: real(v) for n, v in call.kwargs.items()})

    def _read_logs(self, task_id: str) -> list[str]:
        rows = self.broker.call(("XRANGE", self._shared_keys.logs(task_id), "-", "+"))
        return [fields[3].decode("utf-8", "replace") for _, fields in rows if len(fields) > 3]

    def _follow_logs(self, future: TaskFuture) -> Iterator[str]:
        connection, last = self.broker.connection(BLOCK_LIMIT + self.broker.timeout), "0-0"
        key = self._shared_keys.logs(future.task_id)
        try:
            while True:
                ended = future.done()
                block = 1 if ended else 500
                try:
                    read = ("XREAD", "COUNT", 500, "BLOCK", block, "STREAMS", key, last)
                    found = connection.ask(read, functools.partial(messages, read))
                except ConnectionLost:
                    if ended:
                        return
                    time.sleep(0.2)
                    continue
                for entry, fields in found:
                    last = entry
                    if len(fields) > 3:  # else somebody else wrote it
                        yield fields[3].decode("utf-8", "replace")
                if ended and not found:
                    return
        finally:
            connection.close()

    # -- map -------------------------------------------------------------------------------------

    def _map(
        self,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        timeout: float | None,
        chunksize: int,
        options: CallOptions,
    ) -> Iterator[Any]:
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        _check_function(fn, "map")
        if not iterables:
            raise TypeError("map takes one iterable or more: client.map(fn, items)")
        timeout = wait_seconds(timeout)
        end = None if timeout is None else time.monotonic() + timeout

        def left() -> float | None:
            return None if end is None else end - time.monotonic()

        stored: list[str] = []
        function = self.store_function(fn, options, stored)
        name = f"{CALL}:{options.name or _label(fn)}"
        shared: Shared = {}
        rows = zip(*iterables, strict=False)
        futures = []
        if chunksize == 1:
            for args in rows:
                task_id = new_call_id()
                needs: list[str] = []
                self.blobs.require(stored, needs)
                packet = self.pack_call(task_id, function, args, {}, options, shared, needs=needs)
                futures.append(self._send(task_id, name, packet, options, needs=needs))
            self.blobs.drop(stored)
            return in_order(futures, left)
        while chunk := tuple(itertools.islice(rows, chunksize)):
            task_id = new_call_id()
            needs = []
            self.blobs.require(stored, needs)
            packet = self.pack_call(
                task_id, function, chunk, {}, options, shared, chunk=True, needs=needs
            )
            futures.append(self._send(task_id, name, packet, options, needs=needs))
        self.blobs.drop(stored)
        return flattened(in_order(futures, left))

    # -- batches ---------------------------------------------------------------------------------

    def batch(self, name: str) -> Batch:
        """A batch that was started before, by this kernel or another; raises UnknownBatch."""
        from .batch import Batch

        if not isinstance(name, str):
            raise TypeError(f"client.batch takes a batch's name, not {shown(name)}")
        for priority in PRIORITIES[:1] + PRIORITIES[2:] if self._parent is None else ():
            keys = QueueKeys(at_priority(self.keys.stream, priority))
            if self.broker.call(("EXISTS", keys.batch(name))):
                return self.at_priority(priority).batch(name)
        found = Batch.find(self, name)
        if not found.done:
            self.sender.hold(found, begun=False)
        return found

    def drop_leftovers(self, *, batches: bool = False, everywhere: bool = False) -> int:
        """Cancel the calls that clients have left which have ended, of all priorities; answers how
        many that were.

        What a worker has begun is finished. Calls that somebody waits for are left alone, and so
        are named tasks, which belong to no client; the calls of batches with a name only go with
        ``batches``, for a name is given to resume. They are calls of this client's folder and
        environment, which its workers would run; with ``everywhere`` those of all others too.

        A client has ended when it was closed, when its process on this machine is gone, or when
        it gave no sign of life for three minutes. Calls of clients of earlier releases, which
        give none, only count as left after a week.
        """
        if self._parent is not None:
            return self._parent.drop_leftovers(batches=batches, everywhere=everywhere)
        return sum(self._leftovers(priority, everywhere).drop(batches) for priority in PRIORITIES)

    def _leftovers(self, priority: str = "normal", everywhere: bool = False) -> Leftovers:
        keys = QueueKeys(at_priority(self.keys.stream, priority))
        own = frozenset(part.sender.inbox.name for part in self.parts())
        return Leftovers(
            self.broker, Commands(keys, self.group), self.home, own, everywhere or self.shared
        )

    # -- the end ---------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No new calls from now on. With ``wait``, returns when every future has its result and
        the workers started here have stopped; without, both happen behind the scenes."""
        sender = self.sender
        sender.refuse()
        for sibling in self._siblings.values():
            sibling.shutdown(wait, cancel_futures=cancel_futures)
        if cancel_futures:
            sender.cancel(sender.outstanding())
        if wait and not sender.is_me():  # in a future's callback nobody can wait for futures
            self._finish()
        elif not sender.ended.is_set():
            threading.Thread(target=self._finish, name="redistq-shutdown", daemon=True).start()

    def _finish(self) -> None:
        if not self.sender.ended.is_set():
            with slots.lent():
                wait(f for c in self.parts() for f in c.sender.outstanding())
        self.close()

    def close(self) -> None:
        """Stop the workers started here and close the connections now. Safe to call twice.

        What was submitted is with the server and goes on elsewhere; futures that are unfinished
        here fail with an error that says so.
        """
        self.sender.refuse()
        for sibling in self._siblings.values():
            sibling.close()
        workers = list(self._workers)
        self._workers.clear()
        for worker in workers:
            worker.stop()
        self.sender.end()
        self._finalizer.detach()
        self.producer.close()
        self.broker.close()

    # -- looks -----------------------------------------------------------------------------------

    def __repr__(self) -> str:
        workers = sum(w.processes for w in self._workers if w.running)
        state = "shut down" if self.sender.closed else f"{workers} local workers"
        return (
            f"<Client queue={self.keys.stream!r} {state}, {len(self.sender.pending)} outstanding, "
            f"{self.address}>"
        )

    def _repr_html_(self) -> str:
        workers = sum(w.processes for w in self._workers if w.running)
        return panel(
            "Client",
            escape("shut down" if self.sender.closed else self.address),
            [
                ("queue", escape(self.keys.stream)),
                ("local workers", str(workers)),
                ("outstanding futures", f"{len(self.sender.pending):,}"),
            ],
        )


Shared = dict[int, tuple[Any, Ref, set[str], list[str]]]
"""Large arguments of one map by identity: the value, its stand-in, and the modules it needs."""

LocalWorkers = TaskWorker
"""What ``Client.start_workers`` returns: a TaskWorker of processes on this machine."""


def _let_go(
    sender: Sender, workers: list[TaskWorker], broker: Broker, producer: TaskProducer, pid: int
) -> None:
    """The client is gone, or the program ends: what was submitted is sent, its threads and workers
    end. Called from anywhere, even from the sender's own threads, so it waits for none."""
    if os.getpid() != pid:
        return  # a forked process: nothing of this is its own
    try:
        sender.end(join=False)
    except Exception:
        pass  # without a server nothing more can be sent
    leaving, workers[:] = list(workers), []

    def stop() -> None:
        for worker in leaving:
            worker.stop()
        producer.close()
        broker.close()

    try:
        threading.Thread(target=stop, name="redistq-farewell", daemon=True).start()
    except RuntimeError:
        pass  # the interpreter ends: its workers see that by themselves


def _words_of_leftovers(named: list[bool]) -> str:
    """What can be done about calls of clients that have ended; of each whether it is of a batch
    with a name."""
    if not named:
        return ""
    free, of_batches = named.count(False), named.count(True)
    verb = "client.drop_leftovers()" if free else "client.drop_leftovers(batches=True)"
    more = f", batches=True also the {of_batches:,} of named batches" if free and of_batches else ""
    return f"{len(named):,} of them are of clients that have ended: {verb} drops these{more}; "


def is_function_call(fields: list[bytes]) -> bool:
    """Whether the fields of a stream entry are those of a call that some client sent."""
    name = dict(zip(fields[::2], fields[1::2], strict=False)).get(b"name", b"")
    return name.partition(b":")[0] == CALL.encode()


def _label(fn: Any) -> str:
    """What monitors call a function."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = str(getattr(fn, "__qualname__", type(fn).__name__)).replace("\n", " ")
    return name.replace("<locals>.", "")[-150:]


def _kept_s(options: CallOptions) -> float:
    """Seconds that what a call needs is kept on the server: a week from when it is due."""
    return BLOB_TTL_S + (options.delay or 0)


def _looks_large(value: Any) -> bool:
    """Whether a value is clearly large, without pickling it."""
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size >= LARGE
    if isinstance(value, bytes | bytearray | str):
        return len(value) >= LARGE
    usage = getattr(value, "memory_usage", None)
    if usage is not None and hasattr(value, "iloc"):
        total = usage(index=True)
        return int(total if isinstance(total, int) else total.sum()) >= LARGE
    return False


def _check_function(fn: Any, where: str) -> None:
    """Refuse what is no function, with a word for the usual slip."""
    if isinstance(fn, str):
        raise TypeError(
            f"{where} takes a function, not {shown(fn)}; named tasks are sent one by one, "
            "client.submit('name', payload), or by TaskProducer.add_tasks"
        )
    if not callable(fn):
        raise TypeError(
            f"{where} takes a function, not {shown(fn)}; give the function and its arguments "
            f"apart: client.{where}(fn, ...), not client.{where}(fn(...))"
        )


def _register_joblib() -> None:
    """Where joblib is loaded already, its ``backend='redistq'`` works from now on."""
    import sys

    if "joblib" in sys.modules:
        from .. import joblib

        joblib.register()


def unique_name() -> str:
    """A batch's id when it was given none."""
    return uuid.uuid4().hex[:12]

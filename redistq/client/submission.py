"""Submission: a function and its arguments become a task on its way, and a future of its result.

Used by clients and batches: ``submit``, ``map_calls`` and ``batch_tasks`` pack and encode;
``BatchScope`` ties what it submits to a block of code. ``Packer``, which each session has one of,
makes a signed packet of a call and stores what is large beside it: a function used ten thousand
times, or an argument that many calls share, crosses to the server once.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import tracing
from ..errors import ConfigurationError, PayloadTooLarge, RedistqError
from ..functions.blobs import BLOB_TTL_S, LARGE, Blobs, dump_parted
from ..functions.call import CALL, Call, Ref, with_modules
from ..functions.function import PickledFunctions, pickled_function, warn_of_generators
from ..functions.local_modules import bundle_of
from ..functions.pickling import Seen, dump
from ..functions.signing import Signer
from ..protocol.codec import encode_payload
from ..protocol.keys import batch_task_id, new_call_id, new_task_id
from ..protocol.options import CallOptions, shown
from .futures import TaskFuture, cancel_all
from .queues import ClientQueue
from .sender import NewTask, Outgoing

if TYPE_CHECKING:
    from .session import Session

Shared = dict[int, tuple[Any, Ref, AbstractSet[str], list[str]]]
"""Large arguments of one map by identity: the value, its stand-in, the modules it needs, and the
blobs."""


def submit(
    session: Session,
    fn: Callable[..., Any] | str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: CallOptions,
) -> TaskFuture:
    """Send one call, or one named task; see Client.submit."""
    if isinstance(fn, str):
        return _submit_named(session, fn, args, kwargs, options)
    check_function(fn, "submit")
    queue = session.queue(options.priority)
    packer = session.packer
    keep_s = _keep_needs_s(options)
    needs: list[str] = []
    function = packer.store_function(fn, keep_s, needs)
    for_function = len(needs)
    cached = options.cache is not None
    task_id = _cached_id(session, queue, fn, args, kwargs) if cached else new_call_id()
    call = Call(function, args, kwargs, False, options.logs)
    packet = packer.pack(queue.context_of(task_id), call, keep_s, needs)
    future = TaskFuture(session, queue, task_id, options.name or label(fn))
    if len(needs) > for_function:  # a function alone need not be stored again for the next call
        future.needs = needs
    return send(session, future, f"{CALL}:{future.name}", packet, options)


def _cached_id(
    session: Session,
    queue: ClientQueue,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> str:
    """Return the id of a cached call, by which its result is found again in its queue."""
    from ..functions.fingerprint import fingerprint

    code = fingerprint(fn, args, kwargs)
    # A notification in the inbox, which all priorities share, has the task's id alone.
    if queue.priority != "normal":
        code = f"{code}!{queue.priority}"
    return f"memo-{session.signer.name_for(code)}"


def _submit_named(
    session: Session,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: CallOptions,
) -> TaskFuture:
    if kwargs or len(args) > 1:
        raise TypeError("a named task takes one payload: client.submit('name', payload)")
    if not name or "\n" in name or len(name) > 200:
        raise ConfigurationError(
            f"a task's name is one line of 1 to 200 characters, not {shown(name)}; for a call: "
            "client.submit(fn, ...)"
        )
    payload = encode_payload(name, args[0] if args else None, session.settings.max_payload_bytes)
    future = TaskFuture(session, session.queue(options.priority), new_task_id(), name)
    future.origin = "named"
    future.task_name = name
    return send(session, future, name, payload, options)


def send(
    session: Session, future: TaskFuture, name: str, packet: bytes, options: CallOptions
) -> TaskFuture:
    """Send a task of that name and payload, whose end the future will be given; return it."""
    cached = options.cache is not None and future.origin == "call"
    if not options.result_is_kept and not cached:
        future.keep_briefly = True
    inbox = session.exchange.presence.inbox.name
    opts = task_options(session, options, name.startswith(CALL), inbox=inbox)
    fields = (future.task_id, name, packet, opts, options.due)
    session.exchange.send(Outgoing(future.queue, fields, cached), future)
    return future


def map_calls(
    session: Session,
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    chunksize: int,
    options: CallOptions,
) -> list[TaskFuture]:
    """Send one call an item, or one task for ``chunksize`` of them; return their futures."""
    check_function(fn, "map")
    if not iterables:
        raise TypeError("map takes one iterable or more: client.map(fn, items)")
    queue = session.queue(options.priority)
    blobs = session.blobs
    keep_s = _keep_needs_s(options)
    stored: list[str] = []
    function = session.packer.store_function(fn, keep_s, stored)
    called = options.name or label(fn)
    shared: Shared = {}
    rows: Iterable[tuple[Any, ...]] = zip(*iterables, strict=False)
    in_chunks = chunksize > 1
    if in_chunks:
        rows = _chunks(rows, chunksize)
    futures = []
    for args in rows:
        future = TaskFuture(session, queue, new_call_id(), called)
        needs: list[str] = []
        blobs.require(stored, needs)
        call = Call(function, args, {}, in_chunks, options.logs)
        context = queue.context_of(future.task_id)
        packet = session.packer.pack(context, call, keep_s, needs, shared)
        future.needs = needs
        futures.append(send(session, future, f"{CALL}:{called}", packet, options))
    blobs.drop(stored)
    return futures


def _chunks(rows: Iterable[tuple[Any, ...]], size: int) -> Iterable[tuple[Any, ...]]:
    source = iter(rows)
    while chunk := tuple(itertools.islice(source, size)):
        yield chunk


class BatchScope:
    """A block whose calls do not outlive it; see Client.batch_scope."""

    def __init__(self, session: Session, options: CallOptions) -> None:
        self._session = session
        self._options = options
        self.futures: list[TaskFuture] = []

    def submit(self, fn: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> TaskFuture:
        """As Client.submit."""
        future = submit(self._session, fn, args, kwargs, self._options)
        self.futures.append(future)
        return future

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any]) -> list[TaskFuture]:
        """Submit one call an item; return their futures."""
        return [self.submit(fn, *args) for args in zip(*iterables, strict=False)]

    def __enter__(self) -> BatchScope:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._cancel()
            return
        try:
            wait(self.futures)
        except BaseException:  # broad: an interrupt ends the block, and the work with it
            self._cancel()
            raise

    def _cancel(self) -> None:
        with contextlib.suppress(RedistqError):  # the block's own error is what counts
            cancel_all(self.futures)

    def __repr__(self) -> str:
        done = sum(1 for future in self.futures if future.done())
        return f"<BatchScope {done}/{len(self.futures)} done>"


@dataclass(frozen=True, slots=True)
class BatchTasks:
    """The tasks of a batch, packed before the first of them is sent."""

    tasks: list[NewTask]
    needs: list[str]
    """Functions and arguments that the server keeps for them."""


def batch_tasks(
    session: Session,
    batch_id: str,
    fn: Callable[..., Any],
    items: list[Any],
    options: CallOptions,
) -> BatchTasks:
    """Pack one call an item; an item that cannot be pickled leaves nothing behind."""
    queue = session.queue(options.priority)
    keep_s = _keep_needs_s(options)
    needs: list[str] = []
    function = session.packer.store_function(fn, keep_s, needs)
    name = f"{CALL}:{options.name or label(fn)}"
    opts = task_options(session, options, batch=batch_id)
    shared: Shared = {}
    tasks: list[NewTask] = []
    for index, item in enumerate(items):
        task_id = batch_task_id(batch_id, index)
        call = Call(function, (item,), {}, False, options.logs)
        packet = session.packer.pack(queue.context_of(task_id), call, keep_s, needs, shared)
        tasks.append((task_id, name, packet, opts, options.due))
    return BatchTasks(tasks, needs)


def task_options(
    session: Session,
    options: CallOptions,
    is_call: bool = True,
    *,
    inbox: str | None = None,
    batch: str | None = None,
) -> bytes:
    """Return the options that travel with a task; a call of a function names its home."""
    settings = session.settings
    home = settings.home.name if is_call and not settings.shared else None
    trace = None if tracing.active is None else tracing.active.context()
    return options.written(inbox=inbox, batch=batch, home=home, trace=trace)


def _keep_needs_s(options: CallOptions) -> float:
    """Return how long what a call needs is kept on the server: a week from when it is due."""
    return BLOB_TTL_S + (options.delay or 0)


def label(fn: Any) -> str:
    """Return what monitors call a function."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = str(getattr(fn, "__qualname__", type(fn).__name__)).replace("\n", " ")
    return name.replace("<locals>.", "")[-150:]


def check_function(fn: Any, where: str) -> None:
    """Raise TypeError for what is no function, with a word for the usual slip."""
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


class Packer:
    """Packs the calls of one client; safe to use from several threads."""

    def __init__(self, blobs: Blobs, signer: Signer, max_bytes: int) -> None:
        self._blobs = blobs
        self._signer = signer
        self._max_bytes = max_bytes
        self._pickled = PickledFunctions()

    def store_function(self, fn: Callable[..., Any], keep_s: float, needs: list[str]) -> str:
        """Return the name of the function on the server, where it is with its local modules.

        What was stored is added to ``needs``. Raises PayloadError for what cannot be pickled.
        """
        known = self._pickled.get(fn)
        if known is not None:
            modules = self.store_modules(known.modules, keep_s, needs)
            pickled = known.pickled
        else:
            seen = Seen()
            pickled = dump(fn, seen)
            modules = self.store_modules(seen.modules, keep_s, needs)
            if seen.generators:
                warn_of_generators(fn, seen.generators)
            else:
                self._pickled.keep(fn, pickled, seen.modules)
        data = pickled_function(fn, pickled, modules)
        return self._blobs.put("function", data, keep_s, needs)

    def store_modules(self, names: AbstractSet[str], keep_s: float, needs: list[str]) -> str:
        """Return the name of the bundle, on the server, of the local modules among these and of
        what they import; '' when there are none."""
        if not names or (bundle := bundle_of(names)) is None:
            return ""
        return self._blobs.put("modules", bundle.data, keep_s, needs)

    def pack(
        self,
        context: str,
        call: Call,
        keep_s: float,
        needs: list[str],
        shared: Shared | None = None,
    ) -> bytes:
        """Return a call as the payload of the task that ``context`` names, and of no other.

        Large arguments, and large parts of arguments, go to the server under their content's name;
        ``shared`` remembers arguments of one map by identity. What the server keeps for the call is
        added to ``needs``. Raises PayloadError or PayloadTooLarge; nothing was sent then but
        arguments that expire.
        """
        packing = _Packing(self._blobs, keep_s, needs, {} if shared is None else shared)
        # Most calls are small as they are. Else first the parts that many calls may share, then
        # whole arguments.
        data = packing.pickled(call, sure=False, parted=False)
        if len(data) > LARGE:
            data = packing.pickled(call, sure=False, parted=True)
        if len(data) > LARGE:
            data = packing.pickled(call, sure=True, parted=True)
        if modules := self.store_modules(packing.seen.modules, keep_s, needs):
            data = with_modules(data, modules)
        packet = self._signer.pack("call", context, data)
        if len(packet) > self._max_bytes:
            raise PayloadTooLarge(len(packet), self._max_bytes)
        return packet


class _Packing:
    """One call while it is packed."""

    __slots__ = ("_blobs", "_keep_s", "_needs", "_shared", "seen")

    def __init__(self, blobs: Blobs, keep_s: float, needs: list[str], shared: Shared) -> None:
        self._blobs = blobs
        self._keep_s = keep_s
        self._needs = needs
        self._shared = shared
        self.seen = Seen()

    def pickled(self, call: Call, *, sure: bool, parted: bool) -> bytes:
        """Return the call's pickle, without large arguments: those that are ``sure`` to be large
        once pickled, or only those that look it; ``parted``: nor large parts of the others."""
        if call.chunk:
            args: Any = [tuple([self._stored(a, sure) for a in one]) for one in call.args]
        else:
            args = tuple([self._stored(a, sure) for a in call.args])
        kwargs = {name: self._stored(a, sure) for name, a in call.kwargs.items()}
        slim = Call(call.function, args, kwargs, call.chunk, call.logs)
        return slim.pickled(self._store if parted else None, self.seen)

    def _store(self, part: Any) -> str:
        return self._blobs.put("argument", part, self._keep_s, self._needs)

    def _stored(self, value: Any, sure: bool) -> Any:
        """Return the value itself when it is small, else what stands for it."""
        known = self._shared.get(id(value))
        if known is not None:
            _, ref, modules, blobs = known
            self.seen.modules |= modules
            self._blobs.require(blobs, self._needs)
            return ref
        own = Seen()
        before = len(self._needs)
        if _looks_large(value):
            data = dump(value, own)
        elif sure and len(dump(value)) >= LARGE:
            data = dump(dump_parted(value, self._store, own))
        else:
            return value
        if len(data) < LARGE:
            return value
        ref = Ref(self._store(data))
        # The value is kept alive, or its id could mean another object.
        self._shared[id(value)] = (value, ref, own.modules, self._needs[before:])
        self.seen.modules |= own.modules
        return ref


def _looks_large(value: Any) -> bool:
    """Return whether a value is clearly large, without pickling it."""
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

"""Submission: a function and its arguments become a task on its way, and a future of its result.

Used by clients and batches: ``submit``, ``map_calls`` and ``batch_tasks`` pack and encode;
``Packer``, which each session has one of, makes a signed packet of a call and stores what is large
beside it: a function used ten thousand times, or an argument that many calls share, crosses to the
server once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import tracing
from ..errors import ConfigurationError, PayloadTooLarge
from ..functions.blobs import BLOB_TTL_S, LARGE, Blobs, dump_parted
from ..functions.call import CALL, Call, Ref, with_modules
from ..functions.function import PickledFunctions, pickled_function, warn_of_generators
from ..functions.local_modules import bundle_of
from ..functions.pickling import Parents, Seen, dump
from ..functions.references import Referable, Reference
from ..functions.signing import Signer
from ..protocol.codec import encode_payload
from ..protocol.keys import batch_task_id, new_call_id, new_task_id
from ..protocol.options import CallOptions, shown
from .futures import TaskFuture
from .queues import ClientQueue
from .sender import NewTask, Outgoing

if TYPE_CHECKING:
    from .session import Session

Shared = dict[int, tuple[Any, Ref, Seen, list[str]]]
"""Large arguments of one map by identity: the value, its stand-in, what it refers to, and the
blobs."""


def submit(
    session: Session,
    fn: Callable[..., Any] | str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: CallOptions,
    after: Any = (),
) -> TaskFuture:
    """Send one call, or one named task; see Client.submit. It runs after others, whose results
    it does not take, too."""
    edges = edges_of(after, options.priority) if after else []
    if isinstance(fn, str):
        return _submit_named(session, fn, args, kwargs, options, edges)
    check_function(fn, "submit")
    queue = session.queue(options.priority)
    packer = session.packer
    keep_s = keep_needs_s(options)
    needs: list[str] = []
    function = packer.store_function(fn, keep_s, needs)
    for_function = len(needs)
    cached = options.cache is not None
    task_id = _cached_id(session, queue, fn, args, kwargs) if cached else new_call_id()
    call = Call(function, args, kwargs, False, options.logs)
    parents: Parents = {}
    packet = packer.pack(queue.context_of(task_id), call, keep_s, needs, parents=parents)
    future = TaskFuture(session, queue, task_id, options.name or label(fn))
    if len(needs) > for_function:  # a function alone need not be stored again for the next call
        future.needs = needs
    return send(session, future, f"{CALL}:{future.name}", packet, options, parents, edges)


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
    edges: Sequence[str],
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
    return send(session, future, name, payload, options, edges=edges)


def send(
    session: Session,
    future: TaskFuture,
    name: str,
    packet: bytes,
    options: CallOptions,
    parents: Parents | None = None,
    edges: Sequence[str] = (),
) -> TaskFuture:
    """Send a task of that name and payload, whose end the future will be given; return it.

    It runs when its ``parents``, whose results stand in its arguments, have succeeded, and when
    those at the other ``edges`` have ended as they say.
    """
    cached = options.cache is not None and future.origin == "call"
    if not options.result_is_kept and not cached:
        future.keep_briefly = True
    inbox = session.exchange.presence.inbox.name
    gate = "" if parents or edges else None
    opts = task_options(session, options, name.startswith(CALL), inbox=inbox, gate=gate)
    fields = (future.task_id, name, packet, opts, options.due)
    item = Outgoing(future.queue, fields, cached)
    if gate is not None:
        parents = parents or {}
        prepare(session, parents)
        item.gated = True
        item.parents = tuple(parents.values())
        lines = dict.fromkeys([*(reference.edge for reference in parents), *edges])
        item.conditions = "\n".join(lines)
    session.exchange.send(item, future)
    return future


def prepare(session: Session, parents: Parents) -> None:
    """Have on the server what the next task depends on; raises ConfigurationError for what is in
    another queue."""
    for parent in parents.values():
        parent.prepare(session)


_POLICIES = {"success": "s", "end": "e", "failure": "f"}


def edges_of(after: Any, lane: str) -> list[str]:
    """Return the conditions that ``after`` stands for: ids of tasks of that lane, futures,
    nodes or batches, or a mapping of them to "success", "end" or "failure"."""
    if isinstance(after, str | Referable):
        after = (after,)
    pairs = after.items() if isinstance(after, Mapping) else ((one, "success") for one in after)
    edges = []
    for parent, policy in pairs:
        if isinstance(parent, str):
            parent = Reference("unknown", lane, parent)
        reference = parent if isinstance(parent, Reference) else _reference_of(parent)
        if policy not in _POLICIES:
            raise ConfigurationError(
                "what a task asks of one before it is 'success', 'end' or 'failure', not "
                f"{shown(policy)}"
            )
        edges.append(_POLICIES[policy] + reference.edge[1:])
    return edges


def _reference_of(parent: Any) -> Reference:
    reference = parent.reference() if isinstance(parent, Referable) else None
    if reference is None:
        raise ConfigurationError(
            f"after takes ids, futures, nodes of a graph and batches, not {shown(parent)}"
        )
    return reference


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
    keep_s = keep_needs_s(options)
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
        parents: Parents = {}
        packet = session.packer.pack(context, call, keep_s, needs, shared, parents)
        future.needs = needs
        futures.append(send(session, future, f"{CALL}:{called}", packet, options, parents))
    blobs.drop(stored)
    return futures


def _chunks(rows: Iterable[tuple[Any, ...]], size: int) -> Iterable[tuple[Any, ...]]:
    source = iter(rows)
    while chunk := tuple(itertools.islice(source, size)):
        yield chunk


@dataclass(frozen=True, slots=True)
class BatchTasks:
    """The tasks of a batch, packed before the first of them is sent."""

    tasks: list[NewTask]
    needs: list[str]
    """Functions and arguments that the server keeps for them."""
    conditions: dict[int, str]
    """What tasks wait for whose items hold futures, by position."""


def batch_tasks(
    session: Session,
    batch_id: str,
    fn: Callable[..., Any],
    items: list[Any],
    options: CallOptions,
) -> BatchTasks:
    """Pack one call an item; an item that cannot be pickled leaves nothing behind."""
    queue = session.queue(options.priority)
    keep_s = keep_needs_s(options)
    needs: list[str] = []
    function = session.packer.store_function(fn, keep_s, needs)
    name = f"{CALL}:{options.name or label(fn)}"
    opts = task_options(session, options, batch=batch_id)
    gated_opts = task_options(session, options, batch=batch_id, gate="")
    shared: Shared = {}
    tasks: list[NewTask] = []
    conditions: dict[int, str] = {}
    for index, item in enumerate(items):
        task_id = batch_task_id(batch_id, index)
        call = Call(function, (item,), {}, False, options.logs)
        parents: Parents = {}
        context = queue.context_of(task_id)
        packet = session.packer.pack(context, call, keep_s, needs, shared, parents)
        if parents:
            prepare(session, parents)
            conditions[index] = "\n".join(reference.edge for reference in parents)
        own = gated_opts if parents else opts
        tasks.append((task_id, name, packet, own, options.due))
    return BatchTasks(tasks, needs, conditions)


def task_options(
    session: Session,
    options: CallOptions,
    is_call: bool = True,
    *,
    inbox: str | None = None,
    batch: str | None = None,
    gate: str | None = None,
) -> bytes:
    """Return the options that travel with a task; a call of a function names its home."""
    settings = session.settings
    home = settings.home.name if is_call and not settings.shared else None
    trace = None if tracing.active is None else tracing.active.context()
    return options.written(inbox=inbox, batch=batch, gate=gate, home=home, trace=trace)


def keep_needs_s(options: CallOptions) -> float:
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
        parents: Parents | None = None,
    ) -> bytes:
        """Return a call as the payload of the task that ``context`` names, and of no other.

        Large arguments, and large parts of arguments, go to the server under their content's name;
        ``shared`` remembers arguments of one map by identity. What the server keeps for the call is
        added to ``needs``, and the tasks whose results stand in it to ``parents``. Raises
        PayloadError or PayloadTooLarge; nothing was sent then but arguments that expire.
        """
        shared = {} if shared is None else shared
        packing = _Packing(self._blobs, keep_s, needs, shared, Seen(parents))
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

    def __init__(
        self, blobs: Blobs, keep_s: float, needs: list[str], shared: Shared, seen: Seen
    ) -> None:
        self._blobs = blobs
        self._keep_s = keep_s
        self._needs = needs
        self._shared = shared
        self.seen = seen

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
            _, ref, own, blobs = known
            self._saw(own)
            self._blobs.require(blobs, self._needs)
            return ref
        own = Seen(None if self.seen.parents is None else {})
        before = len(self._needs)
        if _looks_large(value):
            data = dump(value, own)
        elif sure and len(dump(value, Seen(own.parents))) >= LARGE:
            data = dump(dump_parted(value, self._store, own))
        else:
            return value
        if len(data) < LARGE:
            return value
        ref = Ref(self._store(data))
        # The value is kept alive, or its id could mean another object.
        self._shared[id(value)] = (value, ref, own, self._needs[before:])
        self._saw(own)
        return ref

    def _saw(self, own: Seen) -> None:
        self.seen.modules |= own.modules
        if self.seen.parents is not None:
            self.seen.parents.update(own.parents or {})


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

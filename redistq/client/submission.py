"""Submission: a function and its arguments become a task on its way, and a future of its result.

Used by clients and batches: ``submit``, ``map_calls`` and ``batch_tasks`` pack (packing.py) and
encode.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from ..functions.packing import Shared, arguments_of, keep_needs_s, label
from ..functions.pickling import Parents
from ..functions.written import CALL, Call
from ..middleware import ambient
from ..middleware.chain import headers_of
from ..protocol.codec import encode_payload
from ..protocol.keys import batch_task_id, new_call_id, new_task_id
from ..protocol.options import CallOptions, shown
from .futures import TaskFuture
from .gates import CallGate, check_conflict, gate_of, prepare
from .queues import ClientQueue
from .sender import NewTask, Outgoing

if TYPE_CHECKING:
    from .session import Session


@dataclass(slots=True)
class Burst:
    """Calls of one client that are sent as one: what they have in common is stored and named once.

    ``submit`` leaves them in ``ready``, for Exchange.send_many.
    """

    shared: Shared = field(default_factory=Shared)
    needs: list[str] = field(default_factory=list)
    """Their functions, which the server keeps for its usual time."""
    held: list[str] = field(default_factory=list)
    """Their arguments: a first call may be done before the last that takes the same is packed."""
    codes: dict[int, tuple[Callable[..., Any], bytes]] = field(default_factory=dict)
    """Of functions by identity: what they are to the fingerprints of their calls."""
    ready: list[tuple[Outgoing, TaskFuture]] = field(default_factory=list)

    def code_of(self, fn: Callable[..., Any]) -> bytes:
        """Return what a function is to the fingerprints of its calls."""
        from ..functions.fingerprint import code_of

        known = self.codes.get(id(fn))
        if known is None:
            known = self.codes[id(fn)] = fn, code_of(fn)
        return known[1]


def submit(
    session: Session,
    fn: Callable[..., Any] | str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: CallOptions,
    after: Any = (),
    kind: type[TaskFuture] = TaskFuture,
    chunk: bool = False,
    burst: Burst | None = None,
) -> TaskFuture:
    """Send one call, or one named task; see Client.submit. It runs after others, whose results
    it does not take, too. ``kind`` is that of the future: one of a stream has it streamed. Of a
    ``chunk`` the arguments are those of many calls, a tuple each. One of a ``burst`` is sent with
    that."""
    if isinstance(fn, str):
        return _submit_named(session, fn, args, kwargs, options, after, kind)
    check_function(fn, "stream" if kind.is_stream else "submit")
    queue = session.queue(options.priority)
    packer = session.packer
    keep_s = keep_needs_s(options)
    needs: list[str] = []
    shared, held = (None, needs) if burst is None else (burst.shared, burst.needs)
    function = packer.store_function(fn, keep_s, held, shared)
    setup = packer.store_setup(options, keep_s, held, shared)
    for_function = len(needs)
    if options.cache is not None:
        how = "stream" if kind.is_stream else "chunk" if chunk else ""
        task_id = _cached_id(session, queue, fn, args, kwargs, how, options.setup, burst)
    else:
        task_id = new_call_id()
    call = Call.under(
        options, function, args, kwargs, chunk=chunk, stream=kind.is_stream, setup=setup
    )
    parents: Parents = {}
    packet = packer.pack(queue.context_of(task_id), call, keep_s, needs, shared, parents)
    if burst is not None and needs:
        session.blobs.require(needs, burst.held)
    future = kind(session, queue, task_id, options.name or label(fn))
    if len(needs) > for_function:  # a function alone need not be stored again for the next call
        future.needs = needs
    named = arguments_of(fn, args, kwargs) if options.gate and not chunk else {}
    gate = gate_of(queue, options, named, parents, after)
    check_conflict(gate)
    return send(session, future, f"{CALL}:{future.name}", packet, options, parents, gate, burst)


def _cached_id(
    session: Session,
    queue: ClientQueue,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    how: str,
    setup: Callable[[], Any] | None,
    burst: Burst | None = None,
) -> str:
    """Return the id of a cached call, by which its result is found again in its queue; ``how``
    says what it gives where that is not the result of one call."""
    from ..functions.fingerprint import fingerprint, fingerprint_of

    code = fingerprint(fn, args, kwargs, b"" if burst is None else burst.code_of(fn))
    if setup is not None:
        code = f"{code} {fingerprint_of(setup, 'the setup').hex()}"
    if how:
        code = f"{code} {how}"
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
    after: Any,
    kind: type[TaskFuture],
) -> TaskFuture:
    if kwargs or len(args) > 1:
        raise TypeError("a named task takes one payload: client.submit('name', payload)")
    if options.setup is not None:
        raise ConfigurationError(
            f"a setup is for functions that are sent, and {name!r} is a task's name: its handler "
            "takes Depends(load_model, scope='process')"
        )
    if not name or "\n" in name or len(name) > 200:
        raise ConfigurationError(
            f"a task's name is one line of 1 to 200 characters, not {shown(name)}; for a call: "
            "client.submit(fn, ...)"
        )
    given = args[0] if args else None
    payload = encode_payload(name, given, session.settings.max_payload_bytes)
    queue = session.queue(options.priority)
    future = kind(session, queue, new_task_id(), name)
    future.origin = "named"
    future.task_name = name
    gate = gate_of(queue, options, given, {}, after)
    if queue.seals is not None:
        text = None if gate is None else gate.text
        payload = queue.seals.payload(future.task_id, name, payload, text)
    return send(session, future, name, payload, options, gate=gate)


def send(
    session: Session,
    future: TaskFuture,
    name: str,
    packet: bytes,
    options: CallOptions,
    parents: Parents | None = None,
    gate: CallGate | None = None,
    burst: Burst | None = None,
) -> TaskFuture:
    """Send a task of that name and payload, whose end the future will be given; return it.

    Its ``parents`` are those whose results stand in its arguments; with a ``burst`` it is left
    there.
    """
    cached = options.cache is not None and future.origin == "call"
    if not options.result_is_kept and not cached:
        future.keep_briefly = True
    inbox = session.exchange.presence.inbox.name
    text = None if gate is None else gate.text
    opts = task_options(*(session, options, name, future.task_id), inbox=inbox, gate=text)
    fields = (future.task_id, name, packet, opts, options.due)
    item = Outgoing(future.queue, fields, cached)
    if gate is not None:
        parents = parents or {}
        prepare(session, parents)
        item.gated = True
        item.parents = tuple(parents.values())
        item.conditions = "\n".join(gate.conditions)
    if burst is not None:
        burst.ready.append((item, future))
    else:
        session.exchange.send(item, future)
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
    keep_s = keep_needs_s(options)
    stored: list[str] = []
    held: list[str] = []  # a first call may be done before the last that takes the same is sent
    function = session.packer.store_function(fn, keep_s, stored)
    setup = session.packer.store_setup(options, keep_s, stored)
    called = options.name or label(fn)
    shared = Shared()
    rows: Iterable[tuple[Any, ...]] = zip(*iterables, strict=False)
    in_chunks = chunksize > 1
    if in_chunks:
        rows = _chunks(rows, chunksize)
    futures = []
    for args in rows:
        task_id = new_call_id()
        if options.cache is not None:
            how = "chunk" if in_chunks else ""
            task_id = _cached_id(session, queue, fn, args, {}, how, options.setup)
        future = TaskFuture(session, queue, task_id, called)
        needs: list[str] = []
        blobs.require(stored, needs)
        call = Call.under(options, function, args, chunk=in_chunks, setup=setup)
        context = queue.context_of(future.task_id)
        parents: Parents = {}
        packet = session.packer.pack(context, call, keep_s, needs, shared, parents)
        blobs.require(needs[len(stored) :], held)
        future.needs = needs
        named = arguments_of(fn, args, {}) if options.gate and not in_chunks else {}
        gate = gate_of(queue, options, named, parents)
        check_conflict(gate)
        futures.append(send(session, future, f"{CALL}:{called}", packet, options, parents, gate))
    blobs.drop((*stored, *held))
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
    """What those tasks wait for that may have to wait, by position."""


def batch_tasks(
    session: Session,
    batch_id: str,
    fn: Callable[..., Any],
    items: list[Any],
    options: CallOptions,
    positions: Iterable[int] | None = None,
    first: int = 0,
) -> BatchTasks:
    """Pack one call an item, for all or for those at ``positions``; an item that cannot be pickled
    leaves nothing behind. The first item stands at position ``first`` of the batch."""
    queue = session.queue(options.priority)
    keep_s = keep_needs_s(options)
    needs: list[str] = []
    function = session.packer.store_function(fn, keep_s, needs)
    setup = session.packer.store_setup(options, keep_s, needs)
    name = f"{CALL}:{options.name or label(fn)}"
    opts = task_options(session, options, name, batch=batch_id)
    shared = Shared()
    tasks: list[NewTask] = []
    conditions: dict[int, str] = {}
    for index in range(first, first + len(items)) if positions is None else positions:
        item = items[index - first]
        task_id = batch_task_id(batch_id, index)
        call = Call.under(options, function, (item,), setup=setup)
        parents: Parents = {}
        context = queue.context_of(task_id)
        packet = session.packer.pack(context, call, keep_s, needs, shared, parents)
        own = opts
        named = arguments_of(fn, (item,), {}) if options.gate else {}
        if (gate := gate_of(queue, options, named, parents, alone=False)) is not None:
            prepare(session, parents)
            conditions[index] = "\n".join(gate.conditions)
            own = task_options(session, options, name, task_id, batch=batch_id, gate=gate.text)
        tasks.append((task_id, name, packet, own, options.due))
    return BatchTasks(tasks, needs, conditions)


def queue_and_call(
    session: Session, options: CallOptions, function: str, setup: str = ""
) -> tuple[ClientQueue, bytes]:
    """Return the queue of calls with these options, and the call of a stored function without
    arguments, before it is packed."""
    call = Call.under(options, function, (), setup=setup)
    return session.queue(options.priority), call.pickled()


def task_options(
    session: Session,
    options: CallOptions,
    name: str,
    task_id: str = "",
    *,
    inbox: str | None = None,
    batch: str | None = None,
    gate: str | None = None,
) -> bytes:
    """Return the options that travel with a task of that name; a call of a function names its
    home. Without an id it stands for many, which share the options."""
    settings = session.settings
    home = settings.home.name if name.startswith(CALL) and not settings.shared else None
    if ambient.around or settings.layers:
        layers = (*ambient.around, *settings.layers)
        queue = session.queue(options.priority).keys.stream
        headers = headers_of(layers, task_id, name, queue, options.headers)
        return options.written(inbox=inbox, batch=batch, gate=gate, home=home, headers=headers)
    return options.written(inbox=inbox, batch=batch, gate=gate, home=home)


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


def check_items(items: Any, where: str) -> None:
    """Raise TypeError for what holds no items, with a word for the usual slip."""
    if not isinstance(items, Iterable):
        hint = f"; range({items})?" if isinstance(items, int) else ""
        raise TypeError(f"{where} takes the items of its calls, not {shown(items)}{hint}")

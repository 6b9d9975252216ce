"""The producer behind ``task.delay(...)``: which it is here, and the one of the program.

``configure`` says where tasks of a program go; ``with producer.active():`` says it for a block; in
a handler they go to the worker's server and the task's own queue. Used by functions decorated with
``@task``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from ..codecs import Codec
from ..connection.broker import Broker
from ..context import running_task
from ..errors import ConfigurationError
from ..handlers import Handler
from .async_producer import AsyncTaskProducer
from .gated import TaskId
from .handle import TaskHandle
from .operations import Item, ProducerOperations
from .producer import TaskProducer


class Target:
    """Where tasks go: a queue of a server, with a producer a process and one an event loop."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._lock = threading.Lock()
        self._own: TaskProducer | None = None
        self._of_loops: weakref.WeakKeyDictionary[Any, AsyncTaskProducer] = (
            weakref.WeakKeyDictionary()
        )
        _targets.add(self)

    @classmethod
    def of(cls, producer: ProducerOperations) -> Target:
        """Return the target of a producer that there is already: it is used as it is."""
        target = cls(producer.options())
        if isinstance(producer, TaskProducer):
            target._own = producer
        elif isinstance(producer, AsyncTaskProducer):
            target._of_loops[asyncio.get_running_loop()] = producer
        return target

    @classmethod
    def sharing(cls, broker: Broker, stream: str, group: str, codec: Codec | None = None) -> Target:
        """Return the target of a queue whose server there are connections to already."""
        options = {"address": broker.address, "stream": stream, "group": group, "codec": codec}
        target = cls(options)
        target._own = TaskProducer(**target._options)
        target._own.broker = broker
        return target

    def producer(self) -> TaskProducer:
        """Return its producer, made at first use."""
        found = self._own
        if found is None:
            with self._lock:
                found = self._own = self._own or TaskProducer(**self._options)
        return found

    def async_producer(self) -> AsyncTaskProducer:
        """Return the one of the running event loop, made at first use; raises RuntimeError where
        none runs."""
        loop = asyncio.get_running_loop()
        found = self._of_loops.get(loop)
        if found is None:
            found = self._of_loops[loop] = AsyncTaskProducer(**self._options)
        return found

    def forget(self) -> None:
        """In a forked process: leave the parent's event loops alone. Its producer is safe there."""
        self._lock = threading.Lock()
        self._of_loops = weakref.WeakKeyDictionary()


_targets: weakref.WeakSet[Target] = weakref.WeakSet()
_program: Target | None = None
_replaced: list[Target] = []
"""What stands in for the program's, in tests: the last of them."""
_active: ContextVar[Target | None] = ContextVar("redistq-producer", default=None)
_lock = threading.Lock()


def configure(url: str | None = None, *, stream: str | None = None, **options: Any) -> None:
    """Set where ``task.delay(...)`` adds tasks: once a program, before its first task.

    The options are those of TaskProducer, and nothing is connected before they are used. Called
    again, it holds for what is added from then on. Raises ConfigurationError for an option that
    there is none of.
    """
    global _program
    given = {name: value for name, value in options.items() if value is not None}
    if url is not None:
        given["url"] = url
    if stream is not None:
        given["stream"] = stream
    if unknown := sorted(given.keys() - ProducerOperations.OPTIONS):
        raise ConfigurationError(
            f"configure() has no option {unknown[0]!r}; it takes those of TaskProducer: "
            + ", ".join(sorted(ProducerOperations.OPTIONS))
        )
    _program = Target(given)


def use(producer: ProducerOperations | None) -> None:
    """Let tasks of this program go where a producer adds them that there is already, by it; None:
    as ``configure`` says, or the defaults. Of an async producer, called in its event loop."""
    global _program
    _program = None if producer is None else Target.of(producer)


def target() -> Target:
    """Return where tasks go here."""
    global _program
    found = _active.get()
    if found is None:
        task = running_task()
        found = task._target() if task is not None and task._target is not None else None
        found = found or (_replaced[-1] if _replaced else _program)
    if found is None:
        with _lock:
            found = _program = _program or Target({})
    return found


@contextlib.contextmanager
def active(producer: ProducerOperations) -> Iterator[None]:
    """Let ``task.delay(...)`` use that producer in this block, and in the tasks it starts."""
    token = _active.set(Target.of(producer))
    try:
        yield
    finally:
        _active.reset(token)


@contextlib.contextmanager
def replaced(producer: ProducerOperations) -> Iterator[None]:
    """Let ``task.delay(...)`` use that producer in this block, in all threads, whatever
    ``configure`` says: for tests."""
    target = Target.of(producer)
    _replaced.append(target)
    try:
        yield
    finally:
        _replaced.remove(target)


def add(handler: Handler, payload: Any, options: Mapping[str, Any]) -> TaskHandle[Any]:
    """Add a task of a handler; return its handle."""
    here = target()
    task_id = here.producer().add_task(handler, payload, **options)
    return TaskHandle(task_id, handler, here)


def add_many(
    handler: Handler, payloads: Iterable[Any], options: Mapping[str, Any]
) -> list[TaskHandle[Any]]:
    """Add many tasks of a handler with the same options; return their handles in order."""
    here = target()
    producer = here.producer()
    ids = producer.add_tasks(_items(handler, payloads, options))
    return _handles(ids, handler, here, producer.keys.stream)


async def add_many_async(
    handler: Handler, payloads: Iterable[Any], options: Mapping[str, Any]
) -> list[TaskHandle[Any]]:
    """As ``add_many``, with the producer of the running loop."""
    here = target()
    producer = here.async_producer()
    ids = await producer.add_tasks(_items(handler, payloads, options))
    return _handles(ids, handler, here, producer.keys.stream)


def _items(handler: Handler, payloads: Iterable[Any], options: Mapping[str, Any]) -> Iterable[Item]:
    if options:
        return ({"type": handler, "payload": payload, **options} for payload in payloads)
    return ((handler, payload) for payload in payloads)


def _handles(
    ids: Iterable[str], handler: Handler, here: Target, stream: str
) -> list[TaskHandle[Any]]:
    return [TaskHandle(_known(one, stream), handler, here) for one in ids]


def _known(task_id: str, stream: str) -> TaskId:
    return task_id if isinstance(task_id, TaskId) else TaskId.of(task_id, stream)


async def add_async(handler: Handler, payload: Any, options: Mapping[str, Any]) -> TaskHandle[Any]:
    """As ``add``, with the producer of the running loop."""
    here = target()
    task_id = await here.async_producer().add_task(handler, payload, **options)
    return TaskHandle(task_id, handler, here)


def _after_fork() -> None:
    for one in list(_targets):
        one.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

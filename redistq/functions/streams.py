"""What function calls yield: packed and signed where it is written, opened where it is read.

Used by the worker's handler for function calls and by clients. An item is a pickle, and a chunk of
them a packet that is good at its very place in the stream of its task alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from ..context import TaskContext
from ..errors import ConfigurationError, ItemTooLarge
from ..protocol.items import MAX_ITEM_BYTES, Chunk, chunk_context
from ..protocol.pieces import Memory
from .pickling import Seen, dump, load
from .signing import Signer
from .yielding import drained, drained_async


class CallItems:
    """Makes bytes of what one call yields. ``task`` is what the task's signatures are bound to."""

    def __init__(self, signer: Signer, task: str) -> None:
        self._signer = signer
        self._task = task
        self._seen = Seen()

    def encode(self, item: Any) -> bytes:
        """Return an item as bytes; raises PayloadError or ItemTooLarge."""
        data = dump(item, self._seen)
        if len(data) > MAX_ITEM_BYTES:
            raise ItemTooLarge(len(data), MAX_ITEM_BYTES)
        return data

    def join(self, items: list[bytes], generation: int, first: int) -> bytes:
        """Return a chunk of items."""
        where = chunk_context(self._task, generation, first)
        return self._signer.pack("items", where, dump(items))

    def opened(self, chunk: Chunk) -> bytes:
        """Return a chunk as ``items_in`` takes it; raises UntrustedPayload."""
        where = chunk_context(self._task, chunk.generation, chunk.first)
        return self._signer.unpack("items", where, chunk.body)


def items_in(data: Memory) -> list[Any]:
    """Return the items of a chunk. Only for one that was signed."""
    return [load(item) for item in load(data)]


def streamed(result: Any, context: TaskContext, how: CallItems, run: Callable[[Any], Any]) -> int:
    """Stream what a function's result yields; return how many items there are. ``run`` runs a
    coroutine. Raises ConfigurationError for what yields nothing."""
    items = context._items
    is_async = inspect.isasyncgen(result)
    if items is None or not (is_async or isinstance(result, Iterator)):
        raise ConfigurationError(
            f"client.stream takes a function that yields, and this one returned "
            f"{type(result).__name__}: send it with client.submit"
        )
    items.begin(how.encode, how.join)
    if is_async:
        count: int = run(drained_async(result, items))
        return count
    return drained(result, items)


def collected(source: Any, context: TaskContext, how: CallItems | None) -> list[Any]:
    """Return all that a generator yields; who reads the call's stream has it meanwhile."""
    items = context._items
    if items is None or how is None:
        return list(source)
    kept = items.collect(how.encode, how.join)
    try:
        kept.items.extend(source)
    except BaseException:  # the function's; passed on
        kept.end(failed=True)
        raise
    kept.end(failed=False)
    return kept.items


async def collected_async(source: Any, context: TaskContext, how: CallItems | None) -> list[Any]:
    """As ``collected``, in an event loop of its own."""
    items = context._items
    if items is None or how is None:
        return [item async for item in source]
    kept = items.collect(how.encode, how.join)
    try:
        async for item in source:
            kept.items.append(item)
    except BaseException:  # as in ``collected``
        kept.end(failed=True)
        raise
    kept.end(failed=False)
    return kept.items

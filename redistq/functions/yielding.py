"""Generators as tasks: run item by item, each taken to the task's stream as it is yielded.

Used by workers for named handlers that yield, and by the handler for function calls. What takes
the items is the worker's, behind a protocol (context/parts.py); nothing here talks to a server.

Whatever ends the task early, an error that ``put`` raises, a time limit, a wish that it ends, is
raised in the generator at its ``yield``, as if that had raised it: it can tidy up, and its
``finally`` blocks have run when the task ends.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from functools import partial
from typing import Any

from ..context import Items, TaskContext
from ..errors import LeaseLost
from ..protocol.codec import encode_item
from ..protocol.items import MAX_ITEM_BYTES

TURN_S = 0.005
"""How long a generator may keep an event loop that does not wait for anything."""
LOOK_EVERY = 32
"""Items after which it is looked how long that is."""


def json_list(items: list[bytes], generation: int, first: int) -> bytes:
    """Return a chunk of a named task."""
    return b"[" + b",".join(items) + b"]"


def streaming(
    function: Callable[..., Any],
    *,
    wants_context: bool,
    is_async: bool,
    plain: Callable[[Any], Any] | None = None,
) -> Callable[..., Any]:
    """Return what runs a handler's function that yields: it streams the items, and returns how many
    there are. What turns out to be no generator is returned as it is. ``plain`` makes JSON of an
    item that is none."""
    write = partial(encode_item, limit=MAX_ITEM_BYTES, plain=plain)
    return (_in_loop if is_async else _in_thread)(function, wants_context, write)


def _in_thread(
    function: Callable[..., Any], wants_context: bool, write: Callable[[Any], bytes]
) -> Callable[..., Any]:

    def run(payload: Any, context: TaskContext) -> Any:
        found = function(payload, context) if wants_context else function(payload)
        items = context._items
        if items is None or not inspect.isgenerator(found):
            return found
        items.begin(write, json_list)
        return {"items": drained(found, items)}

    return run


def _in_loop(
    function: Callable[..., Any], wants_context: bool, write: Callable[[Any], bytes]
) -> Callable[..., Any]:

    async def run(payload: Any, context: TaskContext) -> Any:
        found = function(payload, context) if wants_context else function(payload)
        items = context._items
        if items is None or not inspect.isasyncgen(found):
            return await found if inspect.isawaitable(found) else found
        await asyncio.to_thread(items.begin, write, json_list)
        return {"items": await drained_async(found, items)}

    return run


def drained(source: Iterator[Any], items: Items) -> int:
    """Take all items of a generator, or of another iterator, to the stream; return how many there
    are. Raises what the generator raises, once those before are there."""
    try:
        if isinstance(source, Generator):
            _put_all(source, items)
        else:
            for item in source:
                items.put(item)
    except BaseException:  # whatever it raises; passed on
        items.end(failed=True)
        raise
    return items.end(failed=False)


def _put_all(source: Generator[Any, Any, Any], items: Items) -> None:
    put = items.put
    fault: BaseException | None = None
    lost = False
    while True:
        try:
            if fault is None:
                for item in source:
                    put(item)
                return
            caught = fault
            fault = None
            put(source.throw(caught))
        except StopIteration:
            return  # it has caught what was raised, and returned
        except BaseException as error:  # the generator's own end, or what is to be raised in it
            if source.gi_frame is None:  # type: ignore[attr-defined]
                raise
            if lost:
                source.close()  # it goes on although nothing of it counts
                raise
            lost = isinstance(error, LeaseLost)
            fault = error


async def drained_async(source: AsyncGenerator[Any, Any], items: Items) -> int:
    """As ``drained``; the loop has its turn at least every few milliseconds."""
    try:
        await _put_all_async(source, items)
    except BaseException:  # whatever it raises; passed on
        await items.aend(failed=True)
        raise
    return await items.aend(failed=False)


async def _put_all_async(source: AsyncGenerator[Any, Any], items: Items) -> None:
    put = items.put_now
    clock = time.perf_counter
    turn = clock()
    count = 0
    fault: BaseException | None = None
    lost = False
    while True:
        try:
            if fault is None:
                async for item in source:
                    if not put(item):
                        await items.room()
                    count += 1
                    if not count % LOOK_EVERY and clock() - turn > TURN_S:
                        await asyncio.sleep(0)
                        turn = clock()
                return
            caught = fault
            fault = None
            put(await source.athrow(caught))
        except StopAsyncIteration:
            return
        except BaseException as error:  # as in _put_all
            if source.ag_frame is None:  # type: ignore[attr-defined]
                raise
            if lost:
                await source.aclose()
                raise
            lost = isinstance(error, LeaseLost)
            fault = error

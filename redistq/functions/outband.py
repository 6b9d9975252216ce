"""Results as bytes without a copy of what is large in them: arrays stay where they are until they
are sent, and lie where they were read when they arrive.

Used by the worker's handler for function calls (``dumped``) and by whoever reads results
(``loaded``). What hands its memory to pickle protocol 5 (numpy, pandas, Arrow) stands beside the
pickle, each memory at a multiple of 64 bytes: ``\\2``, the number of memories (4 bytes at the 4th),
and for the pickle and each memory its size, in 8 bytes of which the highest bit says that it is
constant; then the pickle, and the memories. A pickle begins with another byte. Numbers are little
endian.

A memory is sent after its function has returned. One that something else may change meanwhile, as
far as that can be told, is copied.
"""

from __future__ import annotations

import functools
import io
import pickle
import struct
import sys
from collections.abc import Callable
from typing import Any

from ..errors import PayloadError
from ..protocol.pieces import Memory
from .pickling import PLAIN, FutureMisplaced, Seen, is_plain, load, pickler, what_cannot_return

_MARK = 2
_ALIGN = 64
_CONSTANT = 1 << 63
BESIDE = 64 * 1024
"""Bytes from which a memory stands beside the pickle."""


def dumped(holder: list[Any], seen: Seen) -> list[Memory]:
    """Return the only object in a list as bytes, in parts.

    That the list holds it, and the caller does not, lets it be seen whether anybody else does.
    Raises PayloadError naming the part that cannot be pickled.
    """
    if type(holder[0]) in PLAIN:
        return [pickle.dumps(holder[0], 5)]
    memories: list[memoryview] = []

    def take(memory: memoryview) -> None:
        memories.append(memory if _is_ours(memory, holder) else _copied(memory))

    try:
        data = _pickled(holder, seen, take)
    except FutureMisplaced:
        raise
    except Exception as error:  # whatever the object's parts raise
        raise PayloadError(what_cannot_return(holder[0], error)) from error
    return [data] if not memories else _joined(data, memories)


def _pickled(holder: list[Any], seen: Seen, take: Callable[[memoryview], None]) -> bytes:
    def beside(buffer: pickle.PickleBuffer) -> bool:
        """Take a memory; return whether it is to stand in the pickle instead."""
        try:
            memory = buffer.raw()
        except BufferError:
            return True  # not in one piece
        if memory.nbytes < BESIDE:
            return True
        take(memory)
        return False

    if is_plain(holder[0]):
        return pickle.dumps(holder[0], 5, buffer_callback=beside)
    file = io.BytesIO()
    own = pickler()(file, 5, buffer_callback=beside)
    own.seen = seen
    own.dump(holder[0])
    return file.getvalue()


def _is_ours(memory: memoryview, holder: list[Any]) -> bool:
    """Return whether nobody can change a memory: it is an array's that its function has made and
    returned, or Arrow's."""
    owner: Any = memory.obj
    if type(owner).__module__ == "pyarrow.lib":
        return True
    if owner is not holder[0] or type(owner).__module__ != "numpy" or owner.base is not None:
        return False
    return sys.getrefcount(owner) <= _least_counted()


@functools.cache
def _least_counted() -> int:
    """Return how many hold an array where it is pickled and nobody else has it."""
    import numpy

    found: list[int] = []

    def count(memory: memoryview) -> None:
        found.append(_count(memory))

    _pickled([numpy.zeros(BESIDE, "uint8")], Seen(), count)
    return found[0]


def _count(memory: memoryview) -> int:
    """As in ``_is_ours``, called from where that is called."""
    owner: Any = memory.obj
    return sys.getrefcount(owner)


def _copied(memory: memoryview) -> memoryview:
    return memoryview(bytes(memory) if memory.readonly else bytearray(memory))


def _joined(data: bytes, memories: list[memoryview]) -> list[Memory]:
    sizes = [len(data)]
    sizes += [one.nbytes | (_CONSTANT if one.readonly else 0) for one in memories]
    head = struct.pack(f"<B3xI{len(sizes)}Q", _MARK, len(memories), *sizes) + data
    parts: list[Memory] = [head]
    at = len(head)
    for memory in memories:
        gap = -at % _ALIGN
        parts += (bytes(gap), memory)
        at += gap + memory.nbytes
    return parts


def loaded(data: Memory) -> Any:
    """Return the object. Only for data that ``Signer.unpack`` let through."""
    if data[0] != _MARK:
        return load(data)
    view = memoryview(data)
    (count,) = struct.unpack_from("<I", view, 4)
    own, *sizes = struct.unpack_from(f"<{count + 1}Q", view, 8)
    at = 8 + 8 * (count + 1) + own
    pickled = view[at - own : at]
    memories = []
    for size in sizes:
        at += -at % _ALIGN
        end = at + (size & ~_CONSTANT)
        memories.append(_memory(view[at:end], constant=bool(size & _CONSTANT)))
        at = end
    return pickle.loads(pickled, buffers=memories)


def _memory(view: memoryview, *, constant: bool) -> Memory:
    if constant:
        return view.toreadonly()
    return bytearray(view) if view.readonly else view

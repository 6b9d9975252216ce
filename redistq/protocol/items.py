"""Items: what a task yields, as chunks on the server, and how far they are.

Used by workers, which write chunks, and by producers and clients, which read them. A chunk of a
named task is a JSON list. Never talks to a server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CHUNK_BYTES = 64 * 1024
"""Bytes in one chunk, about: what is yielded after that many begins another."""
MAX_ITEM_BYTES = 8 * 1024 * 1024
"""Largest item, as it is written."""
PAGE_BYTES = 1024 * 1024
"""Bytes that a reader asks for at a time, about."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a task's items are: the field ``items`` of its record."""

    generation: int = 0
    """Counts how often they began anew; 0 while there are none."""
    next: int = 0
    """The index of the next item."""
    first: int = 0
    """The index of the first item that is kept."""
    entry: str = ""
    """The entry of the attempt that wrote the last of them."""

    @classmethod
    def read(cls, text: bytes | str | None) -> Standing:
        """Return what the field says; raises ValueError where it says something else."""
        if not text:
            return cls()
        words = (text.decode() if isinstance(text, bytes) else text).split(" ")
        generation, following, first, _, _, _, entry = words
        return cls(int(generation), int(following), int(first), entry)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Items that were written together."""

    generation: int
    first: int
    """The index of the first of them."""
    count: int
    to: int
    """Bytes of the generation up to its end."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """What ``read_items`` answered: the task's state and how far its items are, at one instant."""

    state: str
    """'' of a task that is queued or running, and of one that is not known."""
    entry: str
    standing: Standing
    chunks: list[Chunk]


def read_page(reply: list[Any]) -> Page:
    """Return the answer of ``read_items``; raises ValueError for an unreadable one."""
    state, entry, items, rows = reply
    return Page(
        state.decode(), entry.decode(), Standing.read(items), [chunk_of(*row) for row in rows]
    )


def chunk_of(entry: bytes, flat: list[bytes]) -> Chunk:
    """Return a chunk from its entry in the stream of items."""
    generation, _, first = entry.partition(b"-")
    _, count, _, to, _, body = flat
    return Chunk(int(generation), int(first), int(count), int(to), body)


def chunk_context(context: str, generation: int, first: int) -> str:
    """Return what the signature of a chunk is bound to, from the context of its task."""
    return f"{context}\n{generation}-{first}"

"""Large values on their way: sent from the memory where they are, read into memory of their own.

``Pieces`` is one value that lies in several places, ``Large`` a command that sends or asks for such
values. Transports (connection/transport.py) know both; to everything else a Large command is the
tuple that commands are. Never talks to a server.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Memory = bytes | bytearray | memoryview
"""Bytes, wherever they lie."""


class Pieces:
    """One value of several pieces of memory, which are not joined before they are sent.

    Whoever makes it sees to it that the memory stays as it is until then.
    """

    __slots__ = ("buffers", "size")

    def __init__(self, buffers: Iterable[Memory]) -> None:
        self.buffers = tuple(memoryview(buffer).cast("B") for buffer in buffers)
        self.size = sum(buffer.nbytes for buffer in self.buffers)
        """Bytes in all."""

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        return b"".join(self.buffers)


class Large(tuple[Any, ...]):
    """A command some of whose values are Pieces, or whose answer may hold large values.

    Those of the answer, from 64 kB on, are bytearrays of which nobody else knows.
    """

    __slots__ = ()

    def plain(self) -> tuple[Any, ...]:
        """Return the same command for those who do not know Pieces."""
        return tuple(bytes(part) if type(part) is Pieces else part for part in self)

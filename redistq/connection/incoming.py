"""Incoming: answers whose large values go from the socket straight into memory of their own.

Used by the transport alone. hiredis is given an answer in pieces of 64 kB, each of which it copies,
and copies the value once more when it is whole: fine for what is small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis.exceptions as rex

DIRECT = 65_536
"""Bytes from which a value has memory of its own: a bytearray instead of bytes."""


class Incoming:
    """Reads answers (RESP 2) of one connection. ``receive`` puts bytes from the socket into memory
    and returns how many; ``error`` makes an exception of an error's text."""

    def __init__(
        self, receive: Callable[[memoryview], int], error: Callable[[str], Exception]
    ) -> None:
        self._receive = receive
        self._error = error
        self._memory = bytearray(65_536)
        self._view = memoryview(self._memory)
        self._at = 0
        self._end = 0

    @property
    def rest(self) -> memoryview:
        """What was received and belongs to no answer that was returned; often nothing."""
        return self._view[self._at : self._end]

    def take_rest(self) -> bytes:
        """Return it, to be read by others."""
        rest = bytes(self.rest)
        self._at = self._end = 0
        return rest

    def fill(self) -> memoryview:
        """Return ``rest`` once there is some."""
        if self._at == self._end:
            self._at = 0
            self._end = self._more(self._view)
        return self.rest

    def answer(self) -> Any:
        """Return the next answer; an error is returned as an exception."""
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return None if rest == b"-1" else self._value(int(rest))
        if kind == b"*":
            return None if rest == b"-1" else [self.answer() for _ in range(int(rest))]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        if kind == b"-":
            return self._error(rest.decode("utf-8", "replace"))
        raise rex.InvalidResponse(f"Protocol Error: {line!r:.60}")

    def _more(self, view: memoryview) -> int:
        size = self._receive(view)
        if not size:
            raise rex.ConnectionError("the server closed the connection")
        return size

    def _line(self) -> bytes:
        """Return the bytes up to the end of a line, without it."""
        while (found := self._memory.find(b"\r\n", self._at, self._end)) < 0:
            if self._end - self._at > DIRECT // 2:
                raise rex.InvalidResponse("Protocol Error: a line without an end")
            self._make_room()
            self._end += self._more(self._view[self._end :])
        line = bytes(self._view[self._at : found])
        self._at = found + 2
        return line

    def _make_room(self) -> None:
        """Move what is left to the front."""
        left = bytes(self.rest)
        self._view[: len(left)] = left
        self._at, self._end = 0, len(left)

    def _value(self, size: int) -> bytes | bytearray:
        value = bytearray(size)
        view = memoryview(value)
        here = self.rest[:size]
        view[: len(here)] = here
        self._at += len(here)
        at = len(here)
        while at < size:
            at += self._more(view[at:])
        self._line()
        return value if size >= DIRECT else bytes(value)

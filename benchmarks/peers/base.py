"""What an adapter is: how a peer's worker is started, and how tasks are given to it and awaited.

An adapter module (``peer_<name>.py``) is imported twice: by the measuring process, which uses its
``PEER``, and by the peer's own worker, which finds the app and the tasks in it. Its docstring says
which settings were chosen and where the peer's documentation recommends them. Results are stored.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

URL = os.environ.get("BENCH_URL", "redis://127.0.0.1:6379/0")
CPU_BOUND = os.environ.get("BENCH_PROFILE") == "cpu"
"""Whether the worker will run CPU-bound tasks: one at a time a process, where that can be said."""


class Peer:
    """A queue with blocking calls. Tasks are named: noop, late, size, spin."""

    name = ""
    skip: ClassVar[dict[str, str]] = {}
    """Scenarios the peer has no means for, and why."""

    direct: ClassVar[tuple[str, ...]] = ()
    """Of a peer that works by scripts: the commands it sends beside them, in lower case."""

    def commands(self, processes: int) -> list[list[str]]:
        """The command lines of a worker with that many processes, first words looked up in bin/."""
        raise NotImplementedError

    def open(self) -> None:
        """Connect the producer."""

    def close(self) -> None:
        """Disconnect."""

    def put(self, task: str, *args: Any) -> Any:
        """Enqueue one task; what is returned can be waited for."""
        raise NotImplementedError

    def wait(self, handle: Any, timeout: float = 30.0) -> Any:
        """The result of a task."""
        raise NotImplementedError

    def put_at(self, when: float, task: str, *args: Any) -> None:
        """Enqueue one task that is due at an epoch time."""
        raise NotImplementedError

    def put_many(self, task: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Enqueue many, by the peer's own bulk call where it has one."""
        for row in rows:
            self.put(task, *row)

    # What the scenarios call: whole loops, so that an event loop is entered once, not for each.

    def each(self, task: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """One call after another."""
        put = self.put
        for row in rows:
            put(task, *row)

    def many(self, task: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """The bulk call."""
        self.put_many(task, rows)

    def later(self, dues: Sequence[tuple[float, int]]) -> None:
        """Delayed tasks."""
        for when, k in dues:
            self.put_at(when, "late", k)

    def trips(self, ks: Iterable[int], pause: float) -> list[float]:
        """Seconds from the call to the result in hand, for each."""
        took = []
        for k in ks:
            started = time.perf_counter()
            assert self.wait(self.put("noop", k)) == k
            took.append(time.perf_counter() - started)
            time.sleep(pause)
        return took


class AsyncPeer(Peer):
    """A queue with coroutines; the loop is uvloop, which is what its users are told to install."""

    def open(self) -> None:
        try:
            import uvloop

            self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        except ImportError:
            self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.run(self.aopen())

    def run(self, coroutine: Any) -> Any:
        """One coroutine to its end."""
        return self.loop.run_until_complete(coroutine)

    def close(self) -> None:
        self.run(self.aclose())

    async def aopen(self) -> None:
        """Connect the producer."""

    async def aclose(self) -> None:
        """Disconnect."""

    async def aput(self, task: str, *args: Any) -> Any:
        """As Peer.put."""
        raise NotImplementedError

    async def await_(self, handle: Any, timeout: float = 30.0) -> Any:
        """As Peer.wait."""
        raise NotImplementedError

    async def aput_at(self, when: float, task: str, *args: Any) -> None:
        """As Peer.put_at."""
        raise NotImplementedError

    async def aput_many(self, task: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Without a bulk call: 100 single calls under way at a time."""
        for start in range(0, len(rows), 100):
            await asyncio.gather(*(self.aput(task, *row) for row in rows[start : start + 100]))

    def put(self, task: str, *args: Any) -> Any:
        return self.run(self.aput(task, *args))

    def each(self, task: str, rows: Iterable[tuple[Any, ...]]) -> None:
        async def go() -> None:
            for row in rows:
                await self.aput(task, *row)

        self.run(go())

    def many(self, task: str, rows: Sequence[tuple[Any, ...]]) -> None:
        self.run(self.aput_many(task, rows))

    def later(self, dues: Sequence[tuple[float, int]]) -> None:
        async def go() -> None:
            for start in range(0, len(dues), 100):
                part = dues[start : start + 100]
                await asyncio.gather(*(self.aput_at(when, "late", k) for when, k in part))

        self.run(go())

    def trips(self, ks: Iterable[int], pause: float) -> list[float]:
        async def go() -> list[float]:
            took = []
            for k in ks:
                started = time.perf_counter()
                assert await self.await_(await self.aput("noop", k)) == k
                took.append(time.perf_counter() - started)
                await asyncio.sleep(pause)
            return took

        return self.run(go())

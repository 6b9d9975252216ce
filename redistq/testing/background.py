"""The event loop beside a test's tasks: for ``async def`` handlers, lifespans and factories.

A thread of its own, which begins with its first use, so that what belongs to a loop can be used by
all of them, as in a worker. In ``adrain`` handlers run in the test's own loop instead.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any


class Background:
    """An event loop in a thread, started at its first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop, which runs."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="redistq-test-loop", daemon=True
                )
                self._thread.start()
            return self._loop

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return what ``work`` returns, which runs in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop()).result()

    def close(self) -> None:
        """End the loop. Safe to call twice."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._loop = None
        asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()

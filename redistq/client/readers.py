"""Readers: settle futures whose results are not on the server, in threads of their own.

Used by what settles futures (pending.py). To read a file, or an object of a store, may take long;
the thread that reads the inbox must not wait for it, for all other futures wait for that thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from ..logger import logger

log = logger("redistq.client")

READERS = 4
"""Most results of a client that are read from elsewhere at a time."""


class Readers:
    """Runs what it is given in a few threads, which end when there is no more of it; safe to use
    from several threads. ``threads`` has those that run now."""

    def __init__(self, threads: list[threading.Thread]) -> None:
        self._threads = threads
        self._waiting: deque[Callable[[], None]] = deque()
        self._running = 0
        self._lock = threading.Lock()

    def run(self, work: Callable[[], None]) -> None:
        """Run it soon, beside what is done here."""
        with self._lock:
            self._waiting.append(work)
            if self._running >= READERS:
                return
            self._running += 1
        thread = threading.Thread(target=self._run, name="redistq-read", daemon=True)
        self._threads.append(thread)
        try:
            thread.start()
        except RuntimeError:  # no more threads now: the next that comes tries again, for this too
            self._threads.remove(thread)
            with self._lock:
                self._running -= 1
            raise

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except Exception:  # broad: one bad result must not keep the others waiting
                log.exception("results are read on after an error")

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._running -= 1
        self._threads.remove(threading.current_thread())
        return None

"""Running tasks that somebody wishes to end: each is told, once, and its handler decides.

Used by the executor, which shows here what each slot runs, and by the processor, which passes on
what its supervisor says. It never talks to a server and settles nothing: a handler that ends by
what it was told has an outcome like any other, and one that goes on is left alone.

A coroutine is cancelled. In a thread CancelRequested is raised, by the means and the two rules of
the executor's time limits: what has ended is struck no more, and a strike that comes too late is
called back. To show a task costs two stores; no lock is taken until somebody wishes something.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import threading
from typing import TYPE_CHECKING

from ..errors import CancelRequested
from .queues import Held, WorkerQueue

if TYPE_CHECKING:
    from .attempt import Attempt

Key = tuple[bytes, WorkerQueue]
"""A task as it is held here: its entry, and the queue it came from."""


class Wishes:
    """What the slots of a processor run, and which of it is to end."""

    def __init__(self, slots: int, held: Held) -> None:
        """``held`` has what is pending for this process: nothing else can be told anything."""
        self._held = held
        self.running: list[Attempt | None] = [None] * slots
        """What each slot runs now: written before its handler is called, and after its end."""
        self.tasks: list[asyncio.Task[object] | None] = [None] * slots
        """What runs the coroutine of a slot, where it is one."""
        self.threads = [0] * slots
        """Which thread a slot is."""
        self.in_batches: dict[Key, Attempt] = {}
        """What runs in batches, whose threads and coroutines are not struck: others run there."""
        self.waiting = False
        """Whether anything that is not running yet is to end: see ``check``."""
        self.struck = False
        """Whether any thread was struck that has not come by ``end`` since."""
        self._wanted: dict[Key, None] = {}  # to end, and not running yet
        self._slots: set[int] = set()  # that were struck
        # A plain lock, which no exception can leave locked: see TimeLimits.
        self._lock = threading.Lock()

    # -- the processor ---------------------------------------------------------------------------

    def tell(self, key: Key) -> None:
        """Tell the task that it is to end: now, or when it starts, should it still be held then.
        Safe to repeat."""
        with self._lock:
            self._wanted = {known: None for known in self._wanted if known in self._held}
            if key in self._held:
                self._wanted[key] = None
            self.waiting = bool(self._wanted)
            # A slot writes what it runs, then looks whether anything is wanted; this is the other
            # way round: one of the two sees the other.
            beside = self.in_batches.get(key)
            if beside is not None:
                self._wanted.pop(key, None)
                self.waiting = bool(self._wanted)
                beside.ask()
                return
            for slot, attempt in enumerate(self.running):
                if attempt is not None and (attempt.entry, attempt.queue) == key:
                    self._wanted.pop(key, None)
                    self.waiting = bool(self._wanted)
                    if not attempt.asked:
                        self._strike(slot, attempt)
                    return

    def _strike(self, slot: int, attempt: Attempt) -> None:
        attempt.ask()
        task = self.tasks[slot]
        if task is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended, and so has it
                task.get_loop().call_soon_threadsafe(self._cancel, slot, attempt, task)
            return
        if attempt.interrupted():
            return
        self._slots.add(slot)
        self.struck = True
        if self.running[slot] is attempt:
            strike(self.threads[slot], CancelRequested)

    def _cancel(self, slot: int, attempt: Attempt, task: asyncio.Task[object]) -> None:
        if self.running[slot] is attempt:
            task.cancel()

    # -- the slots -------------------------------------------------------------------------------

    def check(self, attempt: Attempt) -> None:
        """Raise CancelRequested when a task that begins is to end: asked while ``waiting``."""
        with self._lock:
            key = (attempt.entry, attempt.queue)
            wanted = key in self._wanted
            self._wanted = {k: None for k in self._wanted if k != key and k in self._held}
            self.waiting = bool(self._wanted)
        if wanted:
            attempt.ask()
            raise CancelRequested("asked to end before it started")

    def end(self, slot: int) -> None:
        """Let nothing strike the calling thread any more for what it ran: asked while ``struck``,
        after what it ran is no longer shown."""
        try:
            with self._lock:
                if slot in self._slots:
                    self._slots.discard(slot)
                    self.struck = bool(self._slots)
                    call_back(self.threads[slot])
        except CancelRequested:
            pass  # it struck just here: the handler's own end is what counts


def strike(thread: int, kind: type[BaseException]) -> None:
    """Raise an exception in a thread, at its next step in Python code."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))


def call_back(thread: int) -> None:
    """Take back an exception that is still on its way to a thread."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object())

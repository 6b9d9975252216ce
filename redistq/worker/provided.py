"""Provided: what a worker process has beside its tasks. Its lifespans, and what factories make
once a process.

Used by the processor, which enters before it fetches and leaves when it has drained. Lifespans are
entered, and all is left, in a thread of its own, so that code of the user's that hangs holds up
nobody for longer than was asked for; what is async runs in the worker's event loop.

If this process is killed nothing is left: what must be undone then is undone by its other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from ..errors import ConfigurationError, RedistqError
from ..handlers import Handler, Registry
from ..handlers.depends import Overrides
from ..handlers.lifespans import Lifespan
from ..logger import logger
from ..protocol.codec import message_of
from .keeper import Keeper, result_of, stack_of_thread
from .process_scope import ProcessScope

log = logger("redistq.worker")

SLOW_S = 30.0
"""Seconds after which a start is said to be slow, and again after as many."""
TIDY_S = 10.0
"""Seconds within which lifespans are left of which a later one does not start."""
NOTHING: Mapping[str, Any] = {}

Loop = Callable[[], asyncio.AbstractEventLoop]


class StartEnded(Exception):
    """A start was ended from outside: ``Provided.interrupt``."""


class _Unfit(ConfigurationError):
    """What is wrong with a lifespan, in full."""


class Provided:
    """The lifespans of some handlers, entered once, and what their factories make.

    ``loop`` returns the worker's event loop, which runs.
    """

    def __init__(self, handlers: Mapping[str, Handler], loop: Loop) -> None:
        registry = handlers if isinstance(handlers, Registry) else Registry()
        self._lifespans = registry.lifespans
        self.overrides: Overrides = registry.overrides
        self.loop = loop
        self.state: Any = NOTHING
        """What the lifespans have yielded: ``context.state``."""
        self._open: list[tuple[str, Callable[[], None]]] = []
        """What is to be left, the last first."""
        self.process = ProcessScope(self.overrides, loop, self._open)
        self._mapped: dict[str, Any] = {}
        self._object: Any = None
        self._news: SimpleQueue[BaseException | None] = SimpleQueue()
        """Of the thread: that it has entered all (None), or what went wrong."""
        self._told = threading.Event()
        self._done = threading.Event()
        self._now: str = ""
        """What is being entered or left."""
        self._starts = False
        """Whether something is being entered."""
        self._keeper: Keeper | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def alone(cls) -> Provided:
        """Return those of handlers that no worker runs: without lifespans, and without a loop."""

        def no_loop() -> asyncio.AbstractEventLoop:
            raise RedistqError("async factories run in a worker's event loop, and none runs here")

        return cls({}, no_loop)

    # -- the start -------------------------------------------------------------------------------

    def enter(self, timeout: float) -> None:
        """Enter the lifespans, within ``timeout`` seconds.

        Raises ConfigurationError where one fails or hangs, once those before it have been left,
        and StartEnded when it was interrupted.
        """
        if not self._lifespans:
            return
        self._thread = self._started(self._live)
        try:
            self._wait_for_start(timeout)
        except BaseException:  # whatever it is, an interrupt too: nothing stays open
            self.leave(TIDY_S)
            raise

    def interrupt(self) -> None:
        """Let ``enter`` raise StartEnded; for signal handlers too."""
        self._news.put(StartEnded())

    def _wait_for_start(self, timeout: float) -> None:
        begun = time.monotonic()
        while True:
            left = begun + timeout - time.monotonic()
            try:
                news = self._news.get(timeout=max(0.0, min(left, SLOW_S)))
            except Empty:
                self._say_slow(time.monotonic() - begun, timeout)
                continue
            if news is not None:
                raise news
            return

    def _say_slow(self, waited: float, timeout: float) -> None:
        where = self._where()
        if waited < timeout:
            log.warning(
                "the lifespan %s has not started after %.0f s; it stands here:\n%s",
                self._now,
                waited,
                where,
            )
            return
        raise ConfigurationError(
            f"the lifespan {self._now} did not start within {timeout:g} s (start_timeout); it "
            f"stood here:\n{where}"
        )

    def _where(self) -> str:
        keeper, thread = self._keeper, self._thread
        found = keeper.stack() if keeper is not None else ""
        return found or stack_of_thread(None if thread is None else thread.ident)

    # -- the thread ------------------------------------------------------------------------------

    def _started(self, target: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=target, name="redistq-lifespan", daemon=True)
        thread.start()
        return thread

    def _live(self) -> None:
        """Enter all, wait until they are to be left, leave them."""
        for lifespan in self._lifespans:
            if self._told.is_set():
                break
            self._now = lifespan.name
            self._starts = True
            try:
                self._enter(lifespan)
            except BaseException as error:  # the user's, and whatever it is
                self._news.put(self._failure(error))
                break
            finally:
                self._starts = False
        else:
            self.state = self._so_far()
            self._news.put(None)
        self._told.wait()
        self._leave_all()

    def _failure(self, error: BaseException) -> BaseException:
        if isinstance(error, _Unfit):
            return error
        log.error("the lifespan %s failed at its start", self._now, exc_info=error)
        failure = ConfigurationError(
            f"the lifespan {self._now} failed at its start: {type(error).__name__}: "
            f"{message_of(error)}"
        )
        failure.__cause__ = error
        return failure

    def _enter(self, lifespan: Lifespan) -> None:
        make = partial(lifespan.opened, self._so_far())
        manager = None if lifespan.is_async else make()
        enters = hasattr(manager, "__enter__") and hasattr(manager, "__exit__")
        if lifespan.is_async or (hasattr(manager, "__aenter__") and not enters):
            opens = make if lifespan.is_async else lambda: manager
            self._keeper = keeper = Keeper(self.loop(), opens)
            value = result_of(keeper.entered)
            self._open.append((lifespan.name, keeper.leave))
            self._keeper = None
        elif manager is not None and enters:
            value = manager.__enter__()
            self._open.append((lifespan.name, partial(manager.__exit__, None, None, None)))
        else:
            raise _Unfit(
                f"the lifespan {lifespan.name} returned {type(manager).__name__}, which is no "
                "context manager: let it yield that, once"
            )
        self._keep(lifespan.name, value)

    def _keep(self, name: str, value: Any) -> None:
        """Add what a lifespan yielded to the state."""
        if value is None:
            return
        known = self._mapped
        if isinstance(value, Mapping) and self._object is None:
            if twice := sorted(str(key) for key in value.keys() & known.keys()):
                raise _Unfit(
                    f"the lifespan {name} yields {twice[0]!r}, as one before it does: give it "
                    "another name"
                )
            known.update(value)
        elif known or self._object is not None:
            raise _Unfit(
                f"the lifespan {name} yields {type(value).__name__}, and another lifespan yields "
                "something too: let each yield a mapping, whose keys are then together in "
                "context.state"
            )
        else:
            self._object = value

    def _so_far(self) -> Any:
        return self._mapped if self._object is None else self._object

    # -- the end ---------------------------------------------------------------------------------

    def leave(self, timeout: float) -> None:
        """Leave all that was entered or made, the last first, within ``timeout`` seconds; what
        goes wrong is logged. Safe to call twice."""
        self._told.set()
        self.process.close()
        if self._thread is None:
            if not self._open:
                return
            self._thread = self._started(self._leave_all)
        deadline = time.monotonic() + timeout
        if self._starts:  # a start that does not end: what was before it is left all the same
            if (keeper := self._keeper) is not None:
                keeper.cancel()
            if not self._done.wait(min(1.0, timeout)) and self._open:
                self._started(self._leave_all)
        if self._done.wait(max(0.0, deadline - time.monotonic())):
            return
        names = [name for name, _ in reversed(self._open)]
        if not self._starts:
            names.insert(0, self._now)
        if names:  # else it has been said where a start hangs
            log.warning(
                "%s: not left within %.1f s, and given up; it stands here:\n%s",
                ", ".join(names),
                timeout,
                self._where(),
            )

    def _leave_all(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                name, leave = self._open.pop()
                self._now = name
                try:
                    leave()
                except BaseException as error:  # the user's, and whatever it is
                    log.error("%s raised when it was left", name, exc_info=error)
        self._done.set()

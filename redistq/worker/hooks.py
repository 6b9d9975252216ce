"""What middleware hears of attempts: an Attempt that tells it, and the thread that says what was
settled.

Used by the executor, which makes a ``HookedAttempt`` where somebody listens and a plain one
otherwise, and by the processor. Hooks run outside of the attempt's time limits, but for
``on_start``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import Context
from typing import TYPE_CHECKING, Any

from ..errors import ResultError
from ..logger import logger
from ..middleware import Settled
from ..middleware.hooks import Hooks, tell, tell_safely
from ..protocol.commands import CONTINUED
from .attempt import Attempt
from .outcome import RETRY, SETTLE, SUSPEND, Outcome

if TYPE_CHECKING:
    from .terms import BoundHandler

log = logger("redistq.middleware")

MOST_UNTOLD = 1_000
"""Outcomes that hooks have not heard of, with which nothing new is read."""


class HookedAttempt(Attempt):
    """An attempt of a handler that somebody listens to."""

    __slots__ = ("fault", "scope")

    scope: Context
    """What the handler's call leaves in context variables, for the hooks after it."""
    fault: BaseException
    """Why what the handler returned is no result."""

    def call(self) -> Any:
        self.scope = Context()
        return self.scope.run(self.invoke)

    def invoke(self) -> Any:
        self.begun()
        return super().invoke()

    def within(self, scope: Context) -> None:
        self.scope = scope

    def begun(self) -> None:
        """Tell that it begins."""
        if hooks := self._hooks.on_start:
            tell(hooks, self.given_context())

    @property
    def _hooks(self) -> Hooks:
        hooks = self.handler.hooks
        assert hooks is not None  # or the attempt would be a plain one
        return hooks

    def returned(self, result: Any, took: int, started: int) -> Outcome:
        outcome = super().returned(result, took, started)
        self._heard(self._tell_end, outcome, result, None)
        return outcome

    def failed(self, error: BaseException, took: int, started: int) -> Outcome:
        outcome = super().failed(error, took, started)
        self._heard(self._tell_end, outcome, None, error)
        return outcome

    def no_result(self, fault: BaseException, took: int, started: int) -> Outcome:
        self.fault = fault
        return super().no_result(fault, took, started)

    def _heard(self, what: Callable[..., None], *about: Any) -> None:
        try:
            if hasattr(self, "scope"):
                self.scope.run(what, *about)
            else:
                what(*about)
        except BaseException as error:  # ours: an outcome is there, and hooks are not worth it
            log.exception("hooks were not told of task %s", self.id.decode(), exc_info=error)

    def _tell_end(self, outcome: Outcome, result: Any, error: BaseException | None) -> None:
        hooks = self._hooks
        state = outcome.args[2]
        if outcome.verb is SETTLE and state in ("succeeded", CONTINUED):
            if hooks.on_success:
                tell_safely(hooks.on_success, self.given_context(), result)
        elif outcome.verb is SETTLE and state == "failed":
            if hooks.on_failure:
                raised = error or getattr(self, "fault", None) or ResultError("it has no result")
                tell_safely(hooks.on_failure, self.given_context(), raised)
        elif outcome.verb is RETRY and state == "retried" and hooks.on_retry:
            seconds = int(outcome.args[7]) / 1000
            tell_safely(hooks.on_retry, self.given_context(), error, seconds)


class SettledTeller:
    """Tells hooks what the server said of outcomes: a thread of its own, so that one that takes
    long holds up no settlement."""

    def __init__(self, handlers: Mapping[bytes, BoundHandler]) -> None:
        self._hooks = {
            name.decode("utf-8", "replace"): handler.hooks.on_settled
            for name, handler in handlers.items()
            if handler.hooks is not None and handler.hooks.on_settled
        }
        self._untold: deque[tuple[Any, Settled]] = deque()
        self._bell = threading.Event()
        self._told = threading.Event()
        self._ending = False

    @property
    def is_needed(self) -> bool:
        """Whether any hook wants to know."""
        return bool(self._hooks)

    @property
    def is_behind(self) -> bool:
        """Whether so much is untold that nothing new is to be read."""
        return len(self._untold) >= MOST_UNTOLD

    def answered(self, outcomes: Iterable[Outcome], lost: Collection[Outcome]) -> None:
        """Note what the server has accepted of these, and what it refused; called by whoever
        settles, and never raises."""
        for outcome in outcomes:
            if outcome.verb not in (SETTLE, RETRY, SUSPEND):
                continue
            hooks = self._hooks.get(outcome.name.partition(":")[0])
            if hooks:
                state = outcome.args[2]
                about = Settled(
                    outcome.id,
                    outcome.name,
                    outcome.queue.name,
                    int(outcome.attempt or 0),
                    "continued" if state == CONTINUED else str(state),
                    outcome not in lost,
                )
                self._untold.append((hooks, about))
        if self._untold:
            self._bell.set()

    def run(self) -> None:
        """Tell until ``end``: what its thread does."""
        while True:
            self.tell()
            if self._ending:
                self._told.set()
                return
            self._bell.wait()
            self._bell.clear()

    def tell(self) -> None:
        """Tell what there is, in the calling thread."""
        while self._untold:
            hooks, about = self._untold[0]
            tell_safely(hooks, about)
            self._untold.popleft()

    def end(self, seconds: float) -> None:
        """Tell what there is, within so many seconds."""
        self._ending = True
        self._bell.set()
        if not self._told.wait(seconds):
            log.warning("%d ends of tasks were not told to hooks", len(self._untold))

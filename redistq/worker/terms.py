"""A handler made ready, and what holds for its tasks: looked up once, not for each task.

Made by the executor of what a worker was given; read by attempts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..handlers import Handler
from ..handlers.conversion import result_writer
from ..middleware.base import has, how_run
from ..middleware.chain import running
from ..middleware.hooks import Hooks
from ..protocol.gate import deadline_of
from ..protocol.options import (
    NO_OPTIONS,
    REMEMBERED_BYTES,
    TaskOptions,
    milliseconds,
)
from ..protocol.resources import Resources
from . import limits
from .batches import alone
from .compose import composed, item_converter, with_results
from .prefetch import Durations
from .settings import WorkerSettings

if TYPE_CHECKING:
    from .attempt import Attempt
    from .provided import Provided

MAX_TERMS = 512
"""Different options of one handler's tasks that are remembered; others are read for each task."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for tasks of one handler that have the same options."""

    options: TaskOptions
    timeout: float | None
    ttl: str
    inbox: str
    batch: str
    hard_timeout: float | None = None
    """When its process is killed, in seconds; None: it has no limits."""
    gate: str = ""
    """What the task asked for of when it may run; '': nothing."""
    deadline_ms: int | None = None
    """The server's time after which its first attempt is not started."""
    memory: int | None = None
    """How many bytes more its process may have than when it began; None: no limit."""
    resources: Resources | None = None
    """What it takes of its worker's resources; None: nothing."""
    guarded: bool = False
    """Whether anything of it is kept an eye on while it runs: its time, memory or resources."""

    @classmethod
    def of(
        cls,
        options: TaskOptions,
        timeout: float | None,
        hard_timeout: float | None,
        ttl: str,
        gate: str = "",
        memory: int | None = None,
        resources: Resources | None = None,
    ) -> Terms:
        """Return the terms of tasks with these options, where their handler's are ``timeout``,
        ``hard_timeout``, ``ttl``, ``memory`` and ``resources``."""
        soft = options.timeout_or(timeout)
        hard = options.hard_timeout
        if hard is None:
            hard = hard_timeout
            if soft is not None and (hard is None or hard < soft):
                hard = soft + limits.HARD_LIMIT_GRACE
        memory = memory if options.memory is None else options.memory
        resources = resources if options.resources is None else options.resources
        return cls(
            options,
            soft,
            options.result_ttl_or(ttl),
            options.inbox or "",
            options.batch or "",
            hard,
            gate,
            deadline_of(gate) if gate else None,
            memory,
            resources,
            hard is not None or memory is not None or resources is not None,
        )


class BoundHandler:
    """A handler made ready: what every run of it needs, looked up once."""

    __slots__ = (
        "attempt",
        "batching",
        "consumer",
        "function",
        "hard_timeout",
        "hooks",
        "is_async",
        "item",
        "labelled",
        "layers",
        "max_result_bytes",
        "memory",
        "name",
        "plain_result",
        "policy",
        "provided",
        "raw",
        "resources",
        "terms",
        "timeout",
        "times",
        "together",
        "ttl",
        "wants_context",
    )

    attempt: type[Attempt]
    """What an attempt of it is: set by the executor."""

    def __init__(
        self,
        handler: Handler,
        settings: WorkerSettings,
        consumer: str,
        provided: Provided | None = None,
    ) -> None:
        self.consumer = consumer
        self.provided = provided
        """What it has beside its tasks."""
        self.max_result_bytes = settings.max_result_bytes
        self.function, self.wants_context = composed(handler, provided)
        self.name = handler.name
        self.plain_result = result_writer(handler.shape)
        self.policy = handler.policy
        self.timeout = handler.timeout
        self.hard_timeout = handler.hard_timeout
        self.memory = handler.memory
        self.resources = handler.resources
        self.is_async = handler.is_async
        self.raw = handler.raw
        self.labelled = handler.raw or handler.labelled
        self.layers = handler.middleware
        """What stands around its tasks."""
        self.hooks = Hooks.of(handler.middleware)
        """What hears of them; None: nothing does."""
        self._surround()
        self.batching = handler.batching
        self.together: Callable[[Any, Any], Any] | None = None
        """Of a batch handler: what is called with many payloads; ``function`` takes one."""
        self.item = item_converter(handler)
        """Of a batch handler: what makes an item of a payload; None: it is one."""
        if self.batching is not None:
            self.together = with_context(self.function, self.wants_context)
            self.function, self.wants_context = alone(self), True
        threaded = not handler.is_async and self.batching is None
        self.times = Durations(threaded=threaded)
        ttl = settings.result_ttl if handler.result_ttl is None else handler.result_ttl
        self.ttl = str(milliseconds(ttl))
        self.terms = {b"": self._terms(NO_OPTIONS)}
        """By the options as they stand in entries; those of thousands of tasks are the same."""

    def _surround(self) -> None:
        """Put the layers of its middleware around the function; raises ConfigurationError where one
        cannot stand there."""
        layers = self.layers
        if self.raw:  # calls of clients, whatever their functions are
            layers = tuple(
                one for one in layers if not (has(one, "run") and how_run(one) == "async")
            )
        if not any(has(one, "run") for one in layers):
            return
        run = with_context(self.function, self.wants_context)
        self.function = running(layers, self.name, run, is_async=self.is_async)
        self.wants_context = True

    def taking(self, what: str) -> BoundHandler:
        """Return this handler for tasks whose last argument are results of others."""
        found = copy.copy(self)
        found.function = with_results(self.function, self.wants_context, what, self.is_async)
        found.wants_context = True
        return found

    def terms_of(self, opts: bytes) -> Terms:
        """Return what holds for a task with these options; raises as ``TaskOptions.read``."""
        options = TaskOptions.read(opts)
        terms = self._terms(options)
        few = len(self.terms) < MAX_TERMS and not options.headers  # which differ with each task
        if few and len(opts) <= REMEMBERED_BYTES:
            self.terms[opts] = terms
        return terms

    def _terms(self, options: TaskOptions) -> Terms:
        return Terms.of(
            options,
            self.timeout,
            self.hard_timeout,
            self.ttl,
            options.gate or "",
            self.memory,
            self.resources,
        )


def with_context(function: Callable[..., Any], wants_context: bool) -> Callable[[Any, Any], Any]:
    """Return what is called with the payload and the context, whatever the function takes."""
    if wants_context:
        return function
    return lambda payload, context: function(payload)

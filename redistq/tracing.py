"""OpenTelemetry spans from the producer to the handler, as middleware of the whole process.

Around adding it makes a span that creates the task, whose context travels in the task's headers;
around running a span of the handler, its child. Off unless ``REDISTQ_TRACING=1`` is in the
environment or ``enable()`` was called; opentelemetry is imported only then. Where spans go is the
application's to set up, as always with OpenTelemetry.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from .context import BatchContext, TaskContext
from .errors import Snooze, Suspended
from .logger import logger
from .middleware import Middleware, NewTask, ambient

log = logger("redistq.tracing")

ENV = "REDISTQ_TRACING"


class Tracing(Middleware):
    """Makes the spans; one for the process, see ``active``."""

    def __init__(self, provider: Any = None) -> None:
        try:
            from opentelemetry import propagate, trace
        except ImportError as error:
            raise ImportError(
                "opentelemetry is needed for tracing: pip install redistq[tracing]",
                name="opentelemetry",
            ) from error
        self._trace = trace
        self._propagate = propagate
        self._tracer = trace.get_tracer("redistq", tracer_provider=provider)

    def enqueue(self, task: NewTask, next: Callable[[NewTask], str]) -> str:
        """Make a span for a task's creation, whose context travels in its headers; where many are
        added as one, the current context alone."""
        with _no_trouble():
            carrier: dict[str, str] = {}
            if task.id:
                with self._tracer.start_as_current_span(
                    f"create {task.name}",
                    kind=self._trace.SpanKind.PRODUCER,
                    attributes=_attributes(task.id, task.name, task.queue, "create"),
                ):
                    self._propagate.inject(carrier)
            else:
                self._propagate.inject(carrier)
            task.headers.update(carrier)
        return next(task)

    def run(self, context: TaskContext | BatchContext, payload: Any) -> Generator[Any, Any, Any]:
        """A span around a handler, the child of the one that created the task, whose context is in
        its headers.

        What the handler raises is recorded and makes it an error; what puts its task off does not.
        """
        span: Any = None
        name = context.name
        with _no_trouble():
            attributes = _attributes(context.task_id, name, context.queue, "process")
            attributes["redistq.attempt"] = context.attempt
            links = None
            if isinstance(context, BatchContext):  # one span for all, linked with each
                attributes["messaging.batch.message_count"] = len(context)
                links = [self._link(one.headers) for one in context.contexts]
            around = self._tracer.start_as_current_span(
                f"process {name}",
                context=self._propagate.extract(context.headers),
                kind=self._trace.SpanKind.CONSUMER,
                attributes=attributes,
                links=links,
                record_exception=False,
                set_status_on_exception=False,
            )
            span = around.__enter__()
        if span is None:
            yield
            return
        try:
            yield
        except BaseException as error:  # the user's function: it is only looked at
            with _no_trouble():
                if issubclass(type(error), (Snooze, Suspended)):
                    span.set_attribute("redistq.snoozed", True)
                else:
                    span.record_exception(error)
                    span.set_status(
                        self._trace.Status(self._trace.StatusCode.ERROR, str(error)[:200])
                    )
            raise
        finally:
            with _no_trouble():
                around.__exit__(None, None, None)

    def _link(self, headers: Mapping[str, str]) -> Any:
        """Return a link to the span that created a task."""
        made = self._trace.get_current_span(self._propagate.extract(headers))
        return self._trace.Link(made.get_span_context())


@contextlib.contextmanager
def _no_trouble() -> Iterator[None]:
    """What an application's tracing raises costs a span, never a task."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:  # an exporter, or an error that is looked at
        log.exception("a span was lost")


def _attributes(task_id: str, name: str, queue: str, operation: str) -> dict[str, Any]:
    return {
        "messaging.system": "redistq",
        "messaging.destination.name": queue,
        "messaging.operation.type": operation,
        "messaging.operation.name": operation,
        "messaging.message.id": task_id,
        "redistq.task": name,
    }


active: Tracing | None = None
"""What makes spans; None while tracing is off. Read it as ``tracing.active``."""


def enable(provider: Any = None) -> None:
    """Make spans from now on, with a tracer provider or the global one.

    Raises ImportError without opentelemetry.
    """
    global active
    spans = Tracing(provider)
    disable()
    active = spans
    ambient.use(spans)


def disable() -> None:
    """Make no more spans."""
    global active
    if active is not None:
        ambient.leave(active)
    active = None


if os.environ.get(ENV, "").lower() in ("1", "true", "yes", "on"):
    enable()

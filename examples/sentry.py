"""Errors of tasks in Sentry, as middleware: what failed for good, with the task it was.

Run it with ``python examples/sentry.py`` (``pip install sentry-sdk``). With ``SENTRY_DSN`` in the
environment the errors go there; without it they are only shown here. In an application, take the
class, call ``sentry_sdk.init`` as ever, and give it to producers and workers:
``TaskProducer(middleware=[SentryMiddleware()])``, ``registry.middleware(SentryMiddleware())``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any

import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.scope import Scope, use_isolation_scope
from sentry_sdk.transport import Transport

from redistq import (
    Middleware,
    NewTask,
    Registry,
    TaskContext,
    TaskFailed,
    TaskProducer,
    TaskWorker,
)

QUEUE = "example-sentry"

_scope: ContextVar[Scope | None] = ContextVar("sentry-scope", default=None)


class SentryMiddleware(Middleware):
    """Reports each task that fails for good, once, however often it was tried; with ``retries``
    the attempts before that, too.

    What a task writes to Sentry (breadcrumbs, tags, a user) is its own and no other task's. The
    trace of who added it goes on in its handler.
    """

    def __init__(self, *, retries: bool = False) -> None:
        self.retries = retries

    def enqueue(self, task: NewTask, next: Callable[[NewTask], str]) -> str:
        """Send the trace along."""
        for name, value in (
            ("sentry-trace", sentry_sdk.get_traceparent()),
            ("baggage", sentry_sdk.get_baggage()),
        ):
            if value:
                task.headers.setdefault(name, value)
        sentry_sdk.add_breadcrumb(category="redistq", message=f"added {task.name} {task.id}")
        return next(task)

    def run(self, context: TaskContext, payload: Any) -> Generator[None, None, None]:
        """Give the task a scope of its own, and a transaction where traces are sampled."""
        with sentry_sdk.isolation_scope() as scope:
            _scope.set(scope)  # hooks are called in the same context, after this has ended
            scope.clear_breadcrumbs()
            describe(scope, context)
            trace = sentry_sdk.continue_trace(
                context.headers, op="queue.process", name=context.name, source="task"
            )
            with sentry_sdk.start_transaction(trace):
                yield

    def on_failure(self, context: TaskContext, error: BaseException) -> None:
        """Report it."""
        self._report(context, error)

    def on_retry(self, context: TaskContext, error: BaseException, seconds: float) -> None:
        """Report it, where that is wanted."""
        if self.retries:
            self._report(context, error)

    def _report(self, context: TaskContext, error: BaseException) -> None:
        own = _scope.get() or sentry_sdk.get_isolation_scope().fork()
        with use_isolation_scope(own):
            describe(own, context)  # of a task in a batch, whose scope is that of the batch
            sentry_sdk.capture_exception(error)


def describe(scope: Scope, context: TaskContext) -> None:
    """Say in a scope which task it is."""
    scope.set_transaction_name(context.name, source="task")
    scope.set_tag("redistq.task", context.name)
    scope.set_tag("redistq.queue", context.queue)
    about = {"task_id": context.task_id, "attempt": context.attempt, "worker": context.worker}
    scope.set_context("redistq", about)


# -- the example -----------------------------------------------------------------------------------


class Shows(Transport):
    """Stands in for Sentry: prints what would be sent."""

    def capture_envelope(self, envelope: Envelope) -> None:
        """Print an error."""
        event = envelope.get_event()
        if event is not None:
            kind = event["exception"]["values"][-1]["type"]
            attempt = event["contexts"]["redistq"]["attempt"]
            crumbs = [crumb["message"] for crumb in event["breadcrumbs"]["values"]]
            print(f"{kind} in {event['transaction']}, attempt {attempt}, after: {crumbs}")


def main() -> None:
    """Let one task succeed, one at its second attempt, and one fail."""
    logging.getLogger("redistq").setLevel(logging.ERROR)  # failures are part of the show
    dsn = os.environ.get("SENTRY_DSN")
    sentry_sdk.init(
        dsn or "https://nobody@localhost/1",
        transport=None if dsn else Shows,
        default_integrations=False,
    )
    registry = Registry()
    registry.middleware(SentryMiddleware())

    @registry.task(retries=1, backoff=0.1)
    def charge(customer: int, context: TaskContext) -> str:
        sentry_sdk.add_breadcrumb(message=f"customer {customer}")
        if customer == 2 or (customer == 1 and context.attempt == 1):
            raise ConnectionError("the bank does not answer")
        return "charged"

    with TaskProducer(stream=QUEUE) as producer, TaskWorker(stream=QUEUE, task_handlers=registry):
        ids = [producer.add_task(charge, customer) for customer in range(3)]
        for task_id in ids:
            try:
                print(producer.get_result(task_id, timeout=30))
            except TaskFailed as failed:
                print(f"failed for good: {failed}".splitlines()[0][:80])
    sentry_sdk.flush()


if __name__ == "__main__":
    main()

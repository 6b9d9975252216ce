"""Celery's signals that redistq sends; receivers are called in the process that sends them.

What a receiver raises is logged and changes nothing. The names of Celery's other signals raise
NotSupported where they are looked up.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

from ...logger import logger
from ..unsupported import NotSupported

log = logger("redistq.compat")

Receiver = Callable[..., Any]


class Signal:
    """One signal: ``@task_prerun.connect`` or ``connect(receiver, sender=...)``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._receivers: list[tuple[Any, Any, Callable[[], Receiver | None]]] = []

    @property
    def receivers(self) -> list[Receiver]:
        """Those that are connected."""
        return [found for _, _, ref in self._receivers if (found := ref()) is not None]

    def connect(
        self,
        receiver: Receiver | None = None,
        sender: Any = None,
        weak: bool = True,
        dispatch_uid: Any = None,
        retry: bool = False,
    ) -> Any:
        """Call ``receiver(sender=..., **named)`` for each signal, of ``sender`` alone where given.

        A receiver is held weakly where ``weak`` is true, as in Celery.
        """
        if retry:
            raise NotSupported("retry=True of a signal", "let the receiver try again by itself")
        if receiver is None:
            return lambda function: self.connect(function, sender, weak, dispatch_uid)
        ref: Callable[[], Receiver | None]
        if not weak:
            ref = lambda: receiver  # noqa: E731 - a reference that is strong
        elif inspect.ismethod(receiver):
            ref = weakref.WeakMethod(receiver)
        else:
            ref = weakref.ref(receiver)
        key = dispatch_uid if dispatch_uid is not None else receiver
        self._receivers = [one for one in self._receivers if one[:2] != (key, sender)]
        self._receivers.append((key, sender, ref))
        return receiver

    def disconnect(
        self, receiver: Receiver | None = None, sender: Any = None, dispatch_uid: Any = None
    ) -> bool:
        """Call a receiver no more; return whether it was connected."""
        key = dispatch_uid if dispatch_uid is not None else receiver
        kept = [one for one in self._receivers if one[:2] != (key, sender)]
        found = len(kept) != len(self._receivers)
        self._receivers = kept
        return found

    def send(self, sender: Any = None, **named: Any) -> list[tuple[Receiver, Any]]:
        """Call the receivers; return what each returned, or the error it raised."""
        answers: list[tuple[Receiver, Any]] = []
        for _, wanted, ref in self._receivers:
            receiver = ref()
            if receiver is None or not _is_of(wanted, sender):
                continue
            try:
                answers.append((receiver, receiver(signal=self, sender=sender, **named)))
            except Exception as error:  # a receiver's own
                log.exception("a receiver of %s raised", self.name)
                answers.append((receiver, error))
        return answers

    send_robust = send

    def __repr__(self) -> str:
        return f"<Signal: {self.name}>"


def _is_of(wanted: Any, sender: Any) -> bool:
    if wanted is None or wanted is sender:
        return True
    return isinstance(wanted, str) and wanted == (getattr(sender, "name", None) or sender)


before_task_publish = Signal("before_task_publish")
after_task_publish = Signal("after_task_publish")
task_prerun = Signal("task_prerun")
task_postrun = Signal("task_postrun")
task_success = Signal("task_success")
task_failure = Signal("task_failure")
task_retry = Signal("task_retry")
task_revoked = Signal("task_revoked")
worker_init = Signal("worker_init")
worker_process_init = Signal("worker_process_init")
worker_ready = Signal("worker_ready")
worker_shutdown = Signal("worker_shutdown")
worker_process_shutdown = Signal("worker_process_shutdown")

_OTHERS = {
    "task_received": "use task_prerun, which is sent when the task begins",
    "task_rejected": "look at the queue's dead letters (producer.dead_letters())",
    "task_unknown": "look at the worker's log: a task without a handler waits for --unknown-grace",
    "task_internal_error": "use task_failure",
    "task_sent": "use after_task_publish",
    "celeryd_init": "use worker_process_init",
    "celeryd_after_setup": "use worker_process_init",
    "heartbeat_sent": "use redistq.TaskMonitor, which sees each worker's heartbeat",
    "worker_shutting_down": "use worker_shutdown",
    "beat_init": "workers fire schedules by themselves: use worker_ready",
    "beat_embedded_init": "workers fire schedules by themselves: use worker_ready",
    "eventlet_pool_started": "write async def handlers with redistq's @task",
    "import_modules": "import what is needed in worker_process_init",
    "setup_logging": "set logging up in worker_process_init",
    "after_setup_logger": "set logging up in worker_process_init",
    "after_setup_task_logger": "set logging up in worker_process_init",
    "user_preload_options": "give the worker its options: python -m redistq.worker --help",
}


def __getattr__(name: str) -> Any:
    if name in _OTHERS:
        raise NotSupported(f"the signal {name}", _OTHERS[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

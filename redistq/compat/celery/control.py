"""What is asked of workers: ``app.control``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..unsupported import NotSupported

if TYPE_CHECKING:
    from .app import Celery


class Control:
    """Revoking tasks and emptying queues; the rest is the monitor's."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def revoke(
        self,
        task_id: str | Iterable[str],
        destination: Any = None,
        terminate: bool = False,
        signal: Any = "SIGTERM",
        queue: str | None = None,
        **_: Any,
    ) -> None:
        """Let tasks not start; with ``terminate``, end those that run."""
        ids = [task_id] if isinstance(task_id, str) else list(task_id)
        wish: Any = None
        if terminate:
            wish = "force" if str(signal).endswith("KILL") else "ask"
        for name in [queue] if queue else self._app.queues:
            self._app.producer(name).cancel(*ids, running=wish)

    def terminate(self, task_id: str | Iterable[str], signal: Any = "SIGTERM", **_: Any) -> None:
        """End tasks that run, and let the others not start."""
        self.revoke(task_id, terminate=True, signal=signal)

    def purge(self, **_: Any) -> int:
        """Cancel every task of the app's queues that has not started; return how many."""
        return sum(sum(self._app.producer(q).purge_queue().values()) for q in self._app.queues)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise NotSupported(f"control.{name}", "see redistq.TaskMonitor and `python -m redistq`")

"""BatchScope: a block of code whose calls do not outlive it. Made by clients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

from ..errors import RedistqError
from ..protocol.options import CallOptions
from .futures import TaskFuture, cancel_all
from .submission import submit

if TYPE_CHECKING:
    from .session import Session


class BatchScope:
    """A block whose calls do not outlive it; see Client.batch_scope."""

    def __init__(self, session: Session, options: CallOptions) -> None:
        self._session = session
        self._options = options
        self.futures: list[TaskFuture] = []

    def submit(self, fn: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> TaskFuture:
        """As Client.submit."""
        future = submit(self._session, fn, args, kwargs, self._options)
        self.futures.append(future)
        return future

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any]) -> list[TaskFuture]:
        """Submit one call an item; return their futures."""
        return [self.submit(fn, *args) for args in zip(*iterables, strict=False)]

    def __enter__(self) -> BatchScope:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._cancel()
            return
        try:
            wait(self.futures)
        except BaseException:  # broad: an interrupt ends the block, and the work with it
            self._cancel()
            raise

    def _cancel(self) -> None:
        with contextlib.suppress(RedistqError):  # the block's own error is what counts
            cancel_all(self.futures)

    def __repr__(self) -> str:
        done = sum(1 for future in self.futures if future.done())
        return f"<BatchScope {done}/{len(self.futures)} done>"

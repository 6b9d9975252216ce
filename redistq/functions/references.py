"""References: the result of one task as a part of another task's arguments, without its content.

What stands for a task (a future, a batch) is pickled as a Reference, wherever in the arguments it
is, and the task in whose arguments it stands depends on that one. Where the arguments are loaded,
whoever runs the call puts in the result (``read_by``; see results.py). Clients write references,
the worker's handler for function calls has them read. It never talks to a server.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

from ..protocol.keys import PRIORITY_MARK

Kind = Literal["call", "named", "unknown", "batch"]
"""What is referred to: a function call, whose result is a packet; a named task, whose result is
JSON; a task of which only the id is known; or a batch, whose results are those of its calls."""


class Reference(NamedTuple):
    """Names a task, or a batch of ``total`` tasks, in one lane of a queue: "normal", "high" or
    "low"."""

    kind: Kind
    lane: str
    id: str
    total: int = 0

    @property
    def edge(self) -> str:
        """How it stands in the conditions of a task that needs its success."""
        mark = "" if self.lane == "normal" else f"{PRIORITY_MARK}{self.lane}"
        return f"s{'b' if self.kind == 'batch' else 't'}{mark} {self.id}"

    def __repr__(self) -> str:
        what = "the results of batch" if self.kind == "batch" else "the result of task"
        return f"<{what} {self.id}>"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return result_of, (self.kind, self.lane, self.id, self.total)


class Referable:
    """What may stand in arguments for the result of a task."""

    __slots__ = ()

    def reference(self) -> Reference | None:
        """Return what it is pickled as; None where its result is taken along as it is here."""
        raise NotImplementedError

    def prepare(self, client: Any) -> None:
        """Make sure that a client can send what depends on it; raises ConfigurationError."""
        raise NotImplementedError

    def failure(self) -> BaseException | None:
        """Return why there is no result, as far as that is known here."""
        raise NotImplementedError

    def identity(self) -> str:
        """Return what names its result, and no other."""
        raise NotImplementedError

    def known_result(self) -> Any:
        """Return the result that is here; called where ``reference`` is None."""
        raise NotImplementedError

    def written(self, seen: Any) -> Any:
        """Return how it is pickled where ``reference`` is None, as __reduce__ does."""
        return as_it_is, (self.known_result(),)


_reader: ContextVar[Callable[[Reference], Any] | None] = ContextVar("reader", default=None)


def read_by(read: Callable[[Reference], Any]) -> None:
    """From now on references that are loaded in this context become what ``read`` returns."""
    _reader.set(read)


def result_of(kind: Kind, lane: str, task_id: str, total: int) -> Any:
    """Return the result in place of a reference that is loaded; where nothing reads results, the
    reference itself."""
    reference = Reference(kind, lane, task_id, total)
    read = _reader.get()
    return reference if read is None else read(reference)


def as_it_is(value: Any) -> Any:
    """Return the value: how a result is pickled that is taken along."""
    return value

"""Batch handlers: functions that are given the payloads of many tasks at once.

``Batching`` says how many, and how long the first waits for company; ``BatchErrors`` is raised by
such a handler where some of its tasks failed and others did not.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from ..errors import ConfigurationError, RedistqError, ResultError
from ..protocol.checks import Seconds, count, seconds, shown

MOST_TOGETHER = 1_000
"""Most tasks that one call of a handler is given."""
WITHIN_S = 0.1
"""How long the first task waits for others, where nothing is said."""
LONGEST_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Batching:
    """How a batch handler's tasks are gathered: at most so many, and within so many seconds."""

    size: int
    within: float

    @classmethod
    def of(cls, size: Any, within: Seconds | None) -> Batching:
        """Return it, checked; raises ConfigurationError."""
        size = count("batch", size, least=1, most=MOST_TOGETHER)
        waits = WITHIN_S if within is None else seconds("within", within)
        if waits > LONGEST_WITHIN_S:
            raise ConfigurationError(
                f"within is at most {LONGEST_WITHIN_S:g} seconds, not {shown(within)}: the first "
                "task of a batch waits so long for others"
            )
        return cls(size, waits)


_LISTS = (list, tuple, set, frozenset, Sequence, Iterable, Collection)


def element_of(annotation: Any) -> Any:
    """Return what one item is of what a list of them is annotated with; Any where that is not
    said."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _LISTS and arguments:
        return arguments[0]
    if origin in (Union, types.UnionType):  # a list, or None
        known = [part for part in map(element_of, arguments) if part is not Any]
        return known[0] if len(known) == 1 else Any
    return Any


class BatchErrors(RedistqError):
    """Some tasks of a batch failed: ``BatchErrors({3: error, 7: Retry()})`` in a batch handler.

    ``errors`` are by position, from 0. The others succeed, with their place in ``results``, or with
    None. Each error is that of its own task, which is retried, snoozed or fails by it.
    """

    def __init__(
        self, errors: Mapping[int, BaseException], results: Sequence[Any] | None = None
    ) -> None:
        self.errors = dict(errors)
        self.results = None if results is None else list(results)
        for position, error in self.errors.items():
            if type(position) is not int or position < 0:
                raise TypeError(f"BatchErrors takes errors by position, from 0, not {position!r}")
            if not isinstance(error, BaseException):
                raise TypeError(
                    f"BatchErrors takes exceptions, and item {position} has {error!r:.100}"
                )
        first = next(iter(self.errors.values()), None)
        about = f": the first is {type(first).__name__}: {first}" if first is not None else ""
        super().__init__(f"{len(self.errors)} tasks of the batch failed{about}"[:1000])

    def __reduce__(self) -> Any:
        return BatchErrors, (self.errors, self.results)


def apart(errors: BatchErrors | None, returned: Any, count: int) -> list[Any | BaseException]:
    """Return what each of ``count`` tasks came to: its result, or its error wrapped in ``Failed``.
    Raises ResultError where the handler did not say that of each."""
    results = errors.results if errors is not None else returned
    found: list[Any]
    if results is None:
        found = [None] * count
    elif isinstance(results, list | tuple) and len(results) == count:
        found = list(results)
    else:
        has = f"{len(results)} results" if isinstance(results, list | tuple) else shown(results)
        raise ResultError(
            f"a batch handler returns a list with a result for each payload, {count} here, or "
            f"None, not {has}; where some failed it raises redistq.BatchErrors"
        )
    for position, error in (errors.errors if errors is not None else {}).items():
        if position >= count:
            raise ResultError(
                f"BatchErrors has an error for item {position}, and the batch has {count} items, "
                "counted from 0"
            )
        found[position] = Failed(error)
    return found


@dataclass(frozen=True, slots=True)
class Failed:
    """Marks what one task of a batch raised."""

    error: BaseException

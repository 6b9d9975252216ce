"""RetryPolicy: when a failed attempt is tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError
from ..protocol.options import count, seconds

ExceptionTypes = tuple[type[BaseException], ...]
MAX_FACTOR = 1000.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long after a failure a task is tried again.

    ``retries`` counts what comes after the first attempt: 3 means four attempts at most. The wait
    before retry n is ``backoff * factor ** (n - 1)`` seconds, at most ``backoff_cap``, shortened
    by a random part of up to ``jitter`` (0 to 1), so that tasks that failed together do not come
    back together. An exception in ``never_retry`` ends the task; one not in ``retry_on`` does too.
    """

    retries: int = 3
    backoff: float = 1.0
    backoff_cap: float = 600.0
    factor: float = 2.0
    jitter: float = 0.25
    retry_on: ExceptionTypes | type[BaseException] = (Exception,)
    never_retry: ExceptionTypes | type[BaseException] = ()

    def __post_init__(self) -> None:
        count("retries", self.retries)
        for name in ("backoff", "backoff_cap"):
            object.__setattr__(self, name, seconds(name, getattr(self, name)))
        if not 1 <= self.factor <= MAX_FACTOR:
            raise ConfigurationError(f"factor is between 1 and {MAX_FACTOR:g}, not {self.factor}")
        if not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"jitter is between 0 and 1, not {self.jitter}")

        for name in ("retry_on", "never_retry"):
            object.__setattr__(self, name, _exception_types(name, getattr(self, name)))

    def wants(self, error: BaseException) -> bool:
        """Return whether this kind of error is worth another attempt."""
        # Its type, as an ``except`` clause asks: isinstance() would ask the error itself as well.
        kind = type(error)
        return issubclass(kind, self.retry_on) and not issubclass(kind, self.never_retry)

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number ``attempt`` (from 1) failed."""
        # A power of 1100 overflows; far below that the cap rules anyway.
        raw = self.backoff * self.factor ** min(attempt - 1, 64)
        return float(min(raw, self.backoff_cap) * (1 - self.jitter * random.random()))


def _exception_types(option: str, given: Any) -> ExceptionTypes:
    """Exception types, given as one or as several; raises ConfigurationError for anything else."""
    types = tuple(given) if isinstance(given, tuple | list | set | frozenset) else (given,)
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ConfigurationError(
                f"{option} is an exception type or several in a tuple, such as (ValueError, "
                f"OSError), not {kind!r:.60}"
            )
    return types

"""When a failed attempt is tried again, and after how long. Pure arithmetic; no clock, no I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .errors import ConfigurationError
from .options import count, seconds

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
    retry_on: ExceptionTypes = (Exception,)
    never_retry: ExceptionTypes = ()

    def __post_init__(self) -> None:
        count("retries", self.retries)
        seconds("backoff", self.backoff)
        seconds("backoff_cap", self.backoff_cap)
        if not 1 <= self.factor <= MAX_FACTOR:
            raise ConfigurationError(f"factor is between 1 and {MAX_FACTOR:g}, not {self.factor}")
        if not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"jitter is between 0 and 1, not {self.jitter}")

    def wants(self, error: BaseException) -> bool:
        """Whether this kind of error is worth another attempt."""
        return isinstance(error, self.retry_on) and not isinstance(error, self.never_retry)

    def delay(self, attempt: int) -> float:
        """Seconds to wait after attempt number ``attempt`` (from 1) failed."""
        # A power of 1100 overflows; far below that the cap rules anyway.
        raw = self.backoff * self.factor ** min(attempt - 1, 64)
        return float(min(raw, self.backoff_cap) * (1 - self.jitter * random.random()))

"""When a failed attempt is tried again, and after how long. Pure arithmetic; no clock, no I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .errors import ConfigurationError

ExceptionTypes = tuple[type[BaseException], ...]


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
        if self.retries < 0:
            raise ConfigurationError(f"retries is 0 or more, not {self.retries}")
        if self.backoff < 0 or self.backoff_cap < 0 or self.factor < 1:
            raise ConfigurationError("backoff and backoff_cap are 0 or more, factor is 1 or more")
        if not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"jitter is between 0 and 1, not {self.jitter}")

    def wants(self, error: BaseException) -> bool:
        """Whether this kind of error is worth another attempt."""
        return isinstance(error, self.retry_on) and not isinstance(error, self.never_retry)

    def delay(self, attempt: int) -> float:
        """Seconds to wait after attempt number ``attempt`` (from 1) failed."""
        # 2.0 ** 1100 overflows; far below that the cap rules anyway.
        raw = self.backoff * self.factor ** min(attempt - 1, 64)
        return float(min(raw, self.backoff_cap) * (1 - self.jitter * random.random()))

"""The clock of a test's queue: what its scripts take for the time, moved by the test.

It goes with the server's clock until it is moved, ahead of it from then on, and stands still while
it is frozen. Delays, retries, expiry, schedules, rates, leases and the life of results go by it;
the clock of the machine, and what handlers ask it (``time.time()``), does not move.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from ..connection.broker import Broker
from ..errors import ConfigurationError
from ..protocol import simulated
from ..protocol.plain_commands import TIME, read_time


class Clock:
    """The time of one queue. ``advance`` and ``move_to`` change it, ``freeze`` lets it stand."""

    def __init__(self, broker: Broker, queue: str) -> None:
        self._broker = broker
        self._queue = queue
        self._frozen_ms: int | None = None
        self._ahead_ms = 0

    @property
    def now_ms(self) -> int:
        """The time in ms since the epoch."""
        if self._frozen_ms is not None:
            return self._frozen_ms
        return read_time(self._broker.call(simulated.read_clock(self._queue)))

    @property
    def now(self) -> datetime:
        """The time, in UTC."""
        return datetime.fromtimestamp(self.now_ms / 1000, UTC)

    @property
    def frozen(self) -> bool:
        """Whether it stands still."""
        return self._frozen_ms is not None

    def advance(self, by: float | timedelta = 0.0, **units: float) -> datetime:
        """Move it ahead, and return the time then: by seconds, a timedelta, or by timedelta's
        ``minutes``, ``hours``, ``days`` …"""
        step = by if isinstance(by, timedelta) else timedelta(seconds=by)
        step += timedelta(**units)
        if step < timedelta(0):
            raise ConfigurationError(f"a clock is advanced by 0 or more seconds, not by {step}")
        self._move(round(step / timedelta(milliseconds=1)))
        return self.now

    def move_to(self, time: datetime | float) -> datetime:
        """Move it to a time, aware or in epoch seconds. Back only as long as the queue is empty:
        raises ConfigurationError afterwards."""
        if isinstance(time, datetime) and time.tzinfo is None:
            raise ConfigurationError(f"a time has a time zone: {time!r} has none (tzinfo=UTC?)")
        to = round(time.timestamp() * 1000) if isinstance(time, datetime) else round(time * 1000)
        self._move(to - self.now_ms)
        return self.now

    def freeze(self, time: datetime | float | None = None) -> AbstractContextManager[Clock]:
        """Let it stand still, at that time if one is given; for good, or for a ``with`` block."""
        if self._frozen_ms is None:
            now = self.now_ms
            self._set(f"={now}", 0)
            self._frozen_ms = now
        if time is not None:
            self.move_to(time)
        return self._until_left()

    def unfreeze(self) -> None:
        """Let it go on from where it stands."""
        if self._frozen_ms is not None:
            ahead = self._frozen_ms - read_time(self._broker.call(TIME))
            self._set(f"{ahead:+d}", 0)
            self._ahead_ms, self._frozen_ms = ahead, None

    @contextmanager
    def _until_left(self) -> Iterator[Clock]:
        try:
            yield self
        finally:
            self.unfreeze()

    def _move(self, by_ms: int) -> None:
        if self._frozen_ms is None:
            ahead = self._ahead_ms + by_ms
            self._set(f"{ahead:+d}", by_ms)
            self._ahead_ms = ahead
        else:
            self._set(f"={self._frozen_ms + by_ms}", by_ms)
            self._frozen_ms += by_ms

    def _set(self, value: str, by_ms: int) -> None:
        moved: Any = self._broker.call(simulated.move_clock(self._queue, value, by_ms))
        if not moved:
            raise ConfigurationError(
                "the clock of a queue that was used goes only ahead: move it back before the first "
                "task is added"
            )

    def __repr__(self) -> str:
        return f"Clock({self.now.isoformat()}{', frozen' if self.frozen else ''})"

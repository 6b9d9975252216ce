"""A worker's settings: one frozen record that travels to supervisors and child processes.

Used by TaskWorker, processors and supervisors. Seconds here, as in the public API; milliseconds in
scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..codecs.codec import Codec
from ..connection.address import Address
from ..errors import ConfigurationError
from ..handlers.batching import MOST_TOGETHER
from ..protocol.codec import DEFAULT_MAX_BYTES
from ..protocol.commands import Commands
from ..protocol.keys import DEFAULT_GROUP, DEFAULT_QUEUE, QueueKeys
from ..protocol.options import MAX_COUNT, count, milliseconds, seconds, shown, unknown_option
from ..protocol.resources import WHOLE, Resources, declared
from ..slots import MOST as MOST_LENT
from ..system.memory import size
from .scoreboard import Scoreboard

MAX_BYTES = 2**31
"""Most bytes of a result that a worker can allow."""
MOST_SHARE = 0.5
"""Largest share of a less urgent queue."""
MAX_EVENTS = 1_000_000_000
"""Most events of a history that a worker can keep."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """A worker's settings, checked; every field is a TaskWorker option of the same name."""

    queue: str = DEFAULT_QUEUE
    queues: tuple[str, ...] = ()
    """All queues it takes from, the most urgent first; empty: ``queue`` alone."""
    group: str = DEFAULT_GROUP
    delayed_key: str | None = None
    threads: int = 4
    async_concurrency: int = 100
    lease: float = 10.0
    scheduler: bool = True
    max_recoveries: int = 5
    result_ttl: float = 86_400.0
    max_result_bytes: int = DEFAULT_MAX_BYTES
    unknown_grace: float = 60.0
    shutdown_timeout: float = 30.0
    start_timeout: float = 300.0
    """Seconds within which its lifespans start."""
    history_max: int = 10_000
    dead_ttl: float = 30 * 86_400.0
    allow_pickle: bool = False
    signing_key: str | None = field(default=None, repr=False)
    codec: dict[str, Any] | None = field(default=None, repr=False)
    """What seals and opens payloads and results: a Codec's settings, with its keys."""
    low_share: float = 0.0
    """For each task that it reads of a queue, so many are read of each less urgent one that has
    some: 0 none, 0.1 one for ten, 0.5 at most."""
    max_tasks: int | None = None
    """A worker process that has settled so many tasks is replaced by a fresh one."""
    max_rss: int | str | None = None
    """A worker process with so much memory is replaced by a fresh one: bytes, or "2GB"."""
    blas_threads: int | None = None
    """Threads of numeric libraries, each process; None: the cores, shared out among processes."""
    autoscale: tuple[int, int] | str | None = None
    """The least and the most worker processes, as many as the work that waits asks for; None: their
    number stays."""
    resources: Resources | Mapping[str, int] | str | None = None
    """What its processes have together for tasks that need it: {"gpu": 2}, or "gpu=2,licence=1"."""
    home: str = ""
    """The home whose function calls it runs (see homes.py); empty: everybody's."""

    def __post_init__(self) -> None:
        queues = tuple(self.queues) or (self.queue,)  # JSON has made a list of it
        if len(set(queues)) != len(queues):
            raise ConfigurationError(f"a worker takes from different queues, not {queues!r}")
        object.__setattr__(self, "queues", queues)
        if self.queue not in queues:
            object.__setattr__(self, "queue", queues[0])
        put = object.__setattr__
        if isinstance(self.codec, Codec):
            put(self, "codec", self.codec.settings())
        elif self.codec is not None:
            Codec.of(self.codec)  # raises ConfigurationError
        for name, least, most in (
            ("threads", 1, 1000),
            ("async_concurrency", 1, 10_000),
            ("max_recoveries", 0, MAX_COUNT),
            ("max_result_bytes", 1, MAX_BYTES),
            ("history_max", 0, MAX_EVENTS),
        ):
            put(self, name, count(name, getattr(self, name), least=least, most=most))
        for name in ("lease", "result_ttl", "unknown_grace", "shutdown_timeout", "dead_ttl"):
            put(self, name, seconds(name, getattr(self, name)))
        for name in ("max_tasks", "blas_threads"):
            if (value := getattr(self, name)) is not None:
                put(self, name, count(name, value, least=1, most=MAX_EVENTS))
        if self.max_rss is not None:
            put(self, "max_rss", size("max_rss", self.max_rss))
        put(self, "start_timeout", seconds("start_timeout", self.start_timeout, positive=True))
        if self.resources is not None:
            given = self.resources  # JSON has made lists of what was checked
            if isinstance(given, list | tuple):
                given = {str(name): int(amount) // WHOLE for name, amount in given}
            put(self, "resources", declared("resources", given) or None)
        if self.autoscale is not None:
            put(self, "autoscale", _bounds(self.autoscale))
        share = self.low_share
        if not (isinstance(share, int | float) and 0 <= share <= MOST_SHARE):
            raise ConfigurationError(
                f"low_share is a number from 0 (none) to {MOST_SHARE}, how many tasks of each less "
                f"urgent queue are read for one of a more urgent queue, not {shown(share)}"
            )
        if self.lease < 1:
            raise ConfigurationError(
                f"lease is at least 1 second, not {self.lease:g}: a worker that beats later than "
                "that is taken for dead and its tasks run twice"
            )

    @property
    def scoreboard_slots(self) -> int:
        """How many tasks one process runs at a time, those included that run in lent slots."""
        return self.threads + self.async_concurrency + MOST_LENT

    def first_processes(self, processes: int) -> int:
        """Return how many worker processes there are at first, where so many are asked for."""
        if self.autoscale is None:
            return processes
        least, most = _bounds(self.autoscale)
        return min(max(processes, least), most)

    def processes(self, children: int) -> tuple[int, int]:
        """Return with how many worker processes a supervisor begins where ``children`` are asked
        for, and how many there may be at most."""
        if not children:
            return 0, 0
        most = children if self.autoscale is None else MAX_COUNT
        return self.first_processes(children), self.first_processes(most)

    def new_scoreboard(self) -> Scoreboard:
        """Return the scoreboard of a process, with spare slots for tasks that run in batches."""
        return Scoreboard.create(self.scoreboard_slots, len(self.queues), MOST_TOGETHER)

    @property
    def has(self) -> Resources:
        """What its processes have together for tasks that need it."""
        return self.resources or ()  # type: ignore[return-value]

    @property
    def lease_ms(self) -> int:
        """The lease in milliseconds."""
        return milliseconds(self.lease)

    def commands_for(self, address: Address) -> list[Commands]:
        """Return the script calls of each queue on that server, the most urgent first."""
        found = [
            Commands(
                QueueKeys(
                    queue, self.delayed_key if queue == self.queue else None, address.clustered
                ),
                self.group,
                history_max=self.history_max,
                dead_ttl_ms=milliseconds(self.dead_ttl),
            )
            for queue in self.queues
        ]
        tags = {commands.keys.stream.partition("{")[2].partition("}")[0] for commands in found}
        if address.clustered and len(tags) > 1:
            raise ConfigurationError(
                "on a cluster one worker's queues share a hash tag, as {jobs}a and {jobs}b do, not "
                + " and ".join(self.queues)
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it, for a child process."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> WorkerSettings:
        """Return settings from keyword options; raises ConfigurationError for an unknown one."""
        known = {f.name for f in fields(cls)}
        if unknown := set(values) - known:
            raise unknown_option("a worker", sorted(unknown)[0], known)
        return cls(**values)


def _bounds(value: Any) -> tuple[int, int]:
    """Return the least and the most processes of ``autoscale``: two numbers, or "2,8"."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        least, most = (int(part) for part in parts)
    except (TypeError, ValueError):
        least = most = 0
    if not 1 <= least <= most <= 1000:
        raise ConfigurationError(
            "autoscale is the least and the most worker processes, from 1 to 1,000, such as 2,8, "
            f"not {shown(value)}"
        )
    return least, most

"""Several queues of one server at a glance: which there are, and the figures of each.

Used by the dashboards and the command line. A look costs one round trip for all queues, and does
not grow with what is in them. Times are milliseconds of the server's clock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..connection.address import Address
from ..connection.broker import Broker
from ..errors import ConfigurationError, RedistqError
from ..protocol.commands import Command, Commands, Snapshot
from ..protocol.keys import DEFAULT_GROUP, DEFAULT_QUEUE, QueueKeys, check_queue, without_priority
from ..protocol.plain_commands import scan_queues
from .rows import read_event
from .tick import condition, is_unused, running_count, verdict

RATE_OVER_MS = 10_000
"""A queue's rate is that of so long."""
EVENTS_FIRST = 50
"""Ends of attempts of each queue from which the first look tells its rate."""
WORKERS_READ = 200
"""About so many workers are read in a look, of all queues together."""
QUEUES_MOST = 500
"""Most queues that are found."""
KEYS_A_LOOK = 5_000
"""Keys of the server that one look goes through for other queues: about a millisecond."""
FIND_S = 2.0
"""So long the first look goes through the server's keys; later ones go on from there."""
KINDS = ("stream", "delayed")
"""What a queue has: a stream without a colon in its name, or a set of delayed tasks."""


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One queue among others: its figures, and its ends of tasks a second.

    ``rate`` is None where it is not known yet; ``snapshot`` is None, and ``problem`` says why,
    where there are no figures.
    """

    name: str
    snapshot: Snapshot | None
    rate: float | None = None
    problem: str = ""

    @property
    def health(self) -> str:
        """A word: bad, warning, paused, ok or idle."""
        return "bad" if self.snapshot is None else verdict(self.snapshot)[0]

    @property
    def running(self) -> int:
        """How many tasks run; those in workers' hands where there are more workers than were
        read."""
        shot = self.snapshot
        if shot is None:
            return 0
        return running_count(shot) if shot.workers_total <= len(shot.workers) else shot.pending

    @property
    def workers(self) -> int:
        """How many workers are alive, as far as they were read."""
        shot = self.snapshot
        if shot is None:
            return 0
        silent = len(condition(shot).silent)
        return max(shot.workers_total, len(shot.workers)) - silent

    @property
    def waiting(self) -> int:
        """How many tasks may not run yet; for those of another priority than normal 0, since all
        priorities wait together and are counted there."""
        if self.snapshot is None or without_priority(self.name) != self.name:
            return 0
        return self.snapshot.waiting

    def count(self, state: str) -> int:
        """Return how many attempts ended in a state since the queue began."""
        return self.snapshot.counters.get(state, 0) if self.snapshot else 0


_RANKS = ("bad", "warning", "paused", "ok", "idle")


def worst_first(rows: Iterable[QueueRow]) -> list[QueueRow]:
    """Return rows by how their queues are; a row moves only where its state, or the magnitude of
    its backlog, is another."""

    def rank(row: QueueRow) -> tuple[Any, ...]:
        shot = row.snapshot
        backlog = shot.ready + shot.delayed + shot.waiting if shot else 0
        kept = bool(shot and shot.dead)
        return bool(shot), _RANKS.index(row.health), not kept, -len(str(backlog)), row.name

    return sorted(rows, key=rank)


class Queues:
    """Looks at several queues of one server: those named, or with None all there are.

    ``look`` may be called from one thread at a time. Queues are found by going through the
    server's keys, a part with each look; on a Cluster they must be named. Raises
    ConfigurationError for a name that no queue may have.
    """

    def __init__(
        self,
        address: Address,
        names: Iterable[str] | None = None,
        group: str = DEFAULT_GROUP,
        timeout: float = 2.0,
    ) -> None:
        if names is None and address.clustered:
            raise ConfigurationError(
                "on a Cluster queues are not found by themselves: name them, queues=['a', 'b']"
            )
        self.address = address
        self.group = group
        self._timeout = timeout
        self._finder = None if names is not None else _Finder()
        self._commands: dict[str, Commands] = {}
        self._brokers: dict[str, Broker] = {}
        self._trails: dict[str, deque[tuple[int, int]]] = {}
        self._first_rates: dict[str, float] = {}
        for name in names or ():
            self._add(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The queues that are known, in the order in which they were named or found."""
        return tuple(self._commands)

    def look(self) -> list[QueueRow]:
        """Return a row for each queue, in the order of ``names``.

        One round trip, save for the first look of those that find the queues, and on a Cluster,
        where it is one a queue. Raises RedistqError without an answer.
        """
        if self._finder is not None and not self._finder.begun:
            self._found(self._finder.all(self._broker_of("")))
        rows = []
        for broker, names in self._by_server():
            rows += self._look(broker, names)
        return rows

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        for broker in self._brokers.values():
            broker.close()

    def _add(self, name: str) -> None:
        keys = QueueKeys(check_queue(name), clustered=self.address.clustered)
        self._commands.setdefault(keys.stream, Commands(keys, self.group))

    def _broker_of(self, name: str) -> Broker:
        """Return what asks about a queue: on a Cluster each may be on another server."""
        place = name if self.address.clustered else ""
        if place not in self._brokers:
            self._brokers[place] = Broker(
                self.address, slot_key=name or DEFAULT_QUEUE, timeout=self._timeout
            )
        return self._brokers[place]

    def _by_server(self) -> Iterator[tuple[Broker, list[str]]]:
        if self.address.clustered:
            for name in self._commands:
                yield self._broker_of(name), [name]
        elif self._commands or self._finder:
            yield self._broker_of(""), list(self._commands)

    def _look(self, broker: Broker, names: Sequence[str]) -> list[QueueRow]:
        workers = max(4, WORKERS_READ // max(1, len(self._commands)))
        asked: list[Command] = [self._commands[name].snapshot(workers) for name in names]
        new = [name for name in names if name not in self._trails]
        asked += [self._commands[name].history_page("+", "-", EVENTS_FIRST) for name in new]
        if self._finder is not None:
            asked.append(self._finder.command())
        replies = self._ask(broker, asked)
        rows = [self._row(*pair) for pair in zip(names, replies, strict=False)]
        for name, reply in zip(new, replies[len(names) :], strict=False):
            self._first_rates[name] = _rate_of(reply, self._trails.get(name))
        if self._finder is not None and not isinstance(replies[-1], RedistqError):
            self._found(self._finder.kept(broker, self._finder.take(replies[-1])))
            rows = self._forget_gone(rows)
        return [self._with_rate(row) for row in rows]

    def _ask(self, broker: Broker, asked: Sequence[Command]) -> list[Any]:
        """Return the answers, or the error of a queue that has none while others have."""
        try:
            return broker.call_all(asked)
        except RedistqError:
            if len(asked) < 2:
                raise
        replies: list[Any] = []
        failed: RedistqError | None = None
        for command in asked:
            try:
                replies.append(broker.call(command))
            except RedistqError as error:
                failed = error
                replies.append(error)
                if "no answer" in str(error):
                    raise  # the others would wait as long
        if failed is not None and all(isinstance(reply, RedistqError) for reply in replies):
            raise failed
        return replies

    def _row(self, name: str, reply: Any) -> QueueRow:
        if isinstance(reply, RedistqError):
            return QueueRow(name, None, problem=str(reply))
        shot = Commands.read_snapshot(reply)
        settled = shot.counters.get("succeeded", 0) + shot.counters.get("failed", 0)
        trail = self._trails.setdefault(name, deque())
        if trail and (settled < trail[-1][1] or shot.now_ms < trail[-1][0]):
            trail.clear()  # another server, or the queue was deleted
        trail.append((shot.now_ms, settled))
        while trail[0][0] < shot.now_ms - RATE_OVER_MS and len(trail) > 2:
            trail.popleft()
        return QueueRow(name, shot)

    def _with_rate(self, row: QueueRow) -> QueueRow:
        trail = self._trails.get(row.name)
        rate = self._first_rates.get(row.name)
        if trail and trail[-1][0] - trail[0][0] >= 1_000:
            rate = (trail[-1][1] - trail[0][1]) * 1000 / (trail[-1][0] - trail[0][0])
        return QueueRow(row.name, row.snapshot, rate, row.problem)

    # -- queues that are found -------------------------------------------------------------------

    def _found(self, names: Iterable[str]) -> None:
        for name in islice(names, max(0, QUEUES_MOST - len(self._commands))):
            self._add(name)

    def _forget_gone(self, rows: Iterable[QueueRow]) -> list[QueueRow]:
        """Return the rows of queues that are still there, and used; only for those that were
        found."""
        kept = []
        for row in rows:
            lane = without_priority(row.name)
            if row.snapshot is None or not is_unused(row.snapshot):
                kept.append(row)
            elif lane != row.name and lane in self._commands:
                pass  # workers that serve all priorities are no reason to show one without tasks
            elif row.snapshot.workers_total:
                kept.append(row)
            else:
                for known in (self._commands, self._trails, self._first_rates):
                    known.pop(row.name, None)
                if self._finder is not None:
                    self._finder.forget(row.name)
        return kept


def _rate_of(reply: Any, trail: Sequence[tuple[int, int]] | None) -> float:
    """Return ends of tasks a second, from the newest of the history."""
    if not reply or isinstance(reply, RedistqError) or not trail:
        return 0.0
    now_ms = trail[-1][0]
    events = [read_event(entry, flat) for entry, flat in reply]
    since = now_ms - RATE_OVER_MS
    if len(events) == EVENTS_FIRST:
        since = max(since, events[-1].finished_ms)
    ended = (e for e in events if e.finished_ms >= since and e.state in ("succeeded", "failed"))
    return sum(1 for _ in ended) * 1000 / max(now_ms - since, 1)


class _Finder:
    """Goes through a server's keys for queues, round after round."""

    def __init__(self) -> None:
        self.begun = False
        self._kind = 0
        self._cursor: bytes | str = "0"
        self._known: set[str] = set()
        self._strangers: set[str] = set()

    def command(self) -> Command:
        """Return the question for the next part of the keys."""
        return scan_queues(KINDS[self._kind], self._cursor, KEYS_A_LOOK)

    def take(self, reply: Any) -> list[str]:
        """Return names that may be queues' in an answer, and go on behind it."""
        self._cursor, keys = reply
        kind = KINDS[self._kind]
        if self._cursor == b"0":
            self._kind = (self._kind + 1) % len(KINDS)
            self._strangers.clear()  # one may be a queue by now
        if kind == "delayed":
            keys = [key.partition(b":")[2] for key in keys]
        return [key.decode("utf-8", "replace") for key in keys if key and b":" not in key]

    def all(self, broker: Broker) -> list[str]:
        """Return the queues that a whole round finds, or FIND_S of it."""
        self.begun = True
        until = time.monotonic() + FIND_S
        names: list[str] = []
        rounds = 0
        while rounds < len(KINDS) and time.monotonic() < until:
            names += self.take(broker.call(self.command()))
            rounds += self._cursor == b"0"
        return sorted(self.kept(broker, names))

    def forget(self, name: str) -> None:
        """Let a queue that has gone be found again, if it comes back."""
        self._known.discard(name)

    def kept(self, broker: Broker, names: Iterable[str]) -> list[str]:
        """Return those of the names that are new, and queues: a stream may be another program's."""
        new = [n for n in dict.fromkeys(names) if n not in self._known | self._strangers]
        found = []
        for name in new:
            try:
                is_queue = _is_queue(broker, Commands(QueueKeys(name), DEFAULT_GROUP))
            except RedistqError:  # no name of a queue, or a key that holds something else
                is_queue = False
            (self._known if is_queue else self._strangers).add(name)
            found += [name] * is_queue
        return found


def _is_queue(broker: Broker, commands: Commands) -> bool:
    asked = (commands.is_known(), commands.entries("-", "+", 1), commands.delayed_ids(0, 1))
    known, entries, delayed = broker.call_all(asked)
    if known or (entries and {b"id", b"name"} <= set(entries[0][1][::2])):
        return True
    first = delayed[0].decode("utf-8", "replace") if delayed else ""
    return bool(first) and broker.call(commands.name_and_options(first))[0] is not None

"""A worker's queues: what is sent to each, whether it is paused, and how it is read.

Queues are made by the processor, the most urgent first. A task that was read carries its queue, so
whatever becomes of it goes back to where it came from.

``Reader`` is used by the fetcher alone, in its thread. It decides nothing about how much to hold. A
worker that belongs to a home (protocol/homes.py) leaves the calls of other homes where they are:
they go back as soon as they are read, and a queue that is full of them is left alone for a while.

``Room`` is where the fetcher waits when enough is held. Runners and the settler make room all the
time; only when the fetcher waits, and little is left to run, one of them rings. Without that every
task that starts would wake it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..codecs.codec import Codec
from ..codecs.sealing import seal_of
from ..connection.broker import Broker
from ..connection.connection import Connection
from ..errors import GroupMissing, RedistqError
from ..logger import logger
from ..protocol.commands import MAX_TASKS, Commands
from ..protocol.gate import names_key
from ..protocol.homes import LONG_S, PAGE, Passing, entry_order
from .scoreboard import Scoreboard

if TYPE_CHECKING:
    from ..producer.active import Target
    from .item_writer import ItemWriter
    from .reporter import Reporter

log = logger("redistq.worker")


class WorkerQueue:
    """One queue of a worker process; equal to itself alone."""

    __slots__ = (
        *("_place", "_scoreboard", "_target", "broker", "commands", "gated_names", "item_writer"),
        *("name", "reporter", "seal", "seals"),
    )

    def __init__(
        self,
        name: str,
        commands: Commands,
        scoreboard: Scoreboard,
        place: int,
        broker: Broker | None = None,
        codec: Codec | None = None,
    ) -> None:
        self.name = name
        self.broker = broker
        """The connection by which tasks read the results of others."""
        self.commands = commands
        self.item_writer: ItemWriter | None = None
        """What sends what its tasks yield."""
        self.reporter: Reporter | None = None
        """What sends how far its tasks are."""
        self._scoreboard = scoreboard
        self._place = place
        self._target: Target | None = None
        self.seal = seal_of(codec, commands.keys.stream)
        """What reads payloads and results that were sealed."""
        self.seals = None if codec is None else self.seal
        """What seals them; None: nothing does."""
        self.gated_names: frozenset[bytes] = frozenset()
        """Names of tasks that have a rule or are paused; ``*`` stands for all."""

    def target(self) -> Target | None:
        """Return where tasks go that its tasks add: this queue, by the worker's connections."""
        if self._target is None and self.broker is not None:
            from ..producer.active import Target

            codec = None if self.seals is None else self.seals.codec
            self._target = Target.sharing(self.broker, self.name, self.commands.group, codec)
        return self._target

    @property
    def paused(self) -> bool:
        """Whether the supervisor says that nothing of it is to be started."""
        return self._scoreboard.is_paused(self._place)

    def is_gated(self, flat: list[bytes]) -> bool:
        """Return whether an entry's name has a rule or is paused, and the entry does not name it
        as a key: the script decides."""
        name = flat[3] if len(flat) > 3 else b""
        if name not in self.gated_names and b"*" not in self.gated_names:
            return False
        return len(flat) < 12 or not names_key(flat[11], name)


def queues_of(
    names: Sequence[str],
    commands: Sequence[Commands],
    scoreboard: Scoreboard,
    broker: Broker | None = None,
    codec: Codec | None = None,
) -> list[WorkerQueue]:
    """Return the queues of a worker process, whose flags are on its scoreboard."""
    return [
        WorkerQueue(name, calls, scoreboard, place, broker, codec)
        for place, (name, calls) in enumerate(zip(names, commands, strict=True))
    ]


Delivery = tuple[bytes, list[bytes], WorkerQueue]
"""A stream entry as it was read: its id, its fields as a flat list, and the queue it came from."""
Held = dict[tuple[bytes, WorkerQueue], None]
"""What is pending for a worker process, ready, running or to settle: entries with their queues."""


class Room:
    """An event that anyone may set and the fetcher alone waits for."""

    __slots__ = ("_bell", "low", "waits")

    def __init__(self) -> None:
        self._bell = threading.Event()
        self.waits = False
        """Whether the fetcher waits for room."""
        self.low = 0
        """While it waits: a runner rings when no more than so many tasks are left."""

    def ring(self) -> None:
        """Wake the fetcher, or let its next wait be over at once."""
        self._bell.set()

    def forget(self) -> None:
        """Take what was rung so far for heard."""
        self._bell.clear()

    def wait(self, seconds: float) -> None:
        """Wait until somebody rings, or has rung; the next wait is for another ring."""
        self._bell.wait(seconds)
        self._bell.clear()


MOST_OWED = 100.0
"""Tasks that a less urgent queue is owed, at most."""


class Reader:
    """Reads new tasks for one consumer, and those whose delivery was lost.

    ``wait`` waits so many seconds, or until the fetcher is to look again. ``home`` is the home
    whose calls it reads; empty: everybody's.
    """

    def __init__(
        self,
        broker: Broker,
        queues: Sequence[WorkerQueue],
        consumer: str,
        home: str,
        wait: Callable[[float], None],
        low_share: float = 0.0,
    ) -> None:
        self._broker = broker
        self._queues = queues
        self._low_share = low_share
        self._owed = dict.fromkeys(queues, 0.0)
        """How many tasks of each queue are to be read before more urgent ones."""
        self._consumer = consumer
        self._wait = wait
        self._by_stream = {queue.commands.keys.stream.encode(): queue for queue in queues}
        self._passing = {queue: Passing(home) for queue in queues if home}
        self.look_again = False
        """Whether tasks may be pending for us that nobody here holds."""

    def read(self, connection: Connection, room: int, block_ms: int) -> list[Delivery]:
        """Return new tasks, at most about ``room``; waits when there are none.

        The most urgent of several queues is asked first (but for what ``low_share`` owes others),
        and all together only to sleep: COUNT is
        a stream's, so one question to all of them would take as much of the least urgent.
        """
        queues = [queue for queue in self._queues if not queue.paused]
        if self._passing:
            rests = {queue: self._rest_of(connection, queue) for queue in queues}
            queues = [queue for queue, rest in rests.items() if rest <= 0]
            if len(queues) < len(rests):
                shortest = min(rest for rest in rests.values() if rest > 0)
                block_ms = max(min(block_ms, int(shortest * 1000)), 1)
                if not queues:
                    self._wait(shortest)
                    return []
        if len(queues) == 1 and not self._passing:
            command = queues[0].commands.fetch(self._consumer, room, block_ms)
            return connection.ask(command, self._tasks)
        tasks: list[Delivery] = []
        for queue in [q for q in queues if self._owed[q] >= 1]:
            owed = min(int(self._owed[queue]), room - len(tasks))
            found = self._new(connection, queue, owed) if owed > 0 else []
            tasks.extend(found)
            self._owed[queue] = self._owed[queue] - owed if len(found) >= owed else 0.0
        for queue in queues:
            if len(tasks) >= room:
                break
            tasks.extend(self._new(connection, queue, room - len(tasks)))
        if self._low_share:
            self._owe(queues, tasks)
        if tasks or not queues:
            return tasks
        return self._sleep(connection, queues, block_ms)

    def _new(self, connection: Connection, queue: WorkerQueue, count: int) -> list[Delivery]:
        """Return what there is in one queue now, at most about so many."""
        asked = self._passing[queue].ask(count) if self._passing else count
        page = connection.ask(queue.commands.fetch(self._consumer, asked, None), self._tasks)
        return self._leave_foreign(page, queue) if self._passing else page

    def _owe(self, queues: list[WorkerQueue], tasks: list[Delivery]) -> None:
        """Count what less urgent queues are owed for the tasks that were read of more urgent
        ones; no more than MOST_OWED, so that none comes back with a claim of hours."""
        more_urgent = 0
        for queue in queues:
            owed = self._owed[queue] + more_urgent * self._low_share
            self._owed[queue] = min(owed, MOST_OWED)
            more_urgent += sum(1 for task in tasks if task[2] is queue)

    def _sleep(
        self, connection: Connection, queues: list[WorkerQueue], block_ms: int
    ) -> list[Delivery]:
        """Return the first task that comes in any of these queues; or one of each, or none."""
        streams = [queue.commands.keys.stream for queue in queues]
        command = queues[0].commands.fetch_any(self._consumer, 1, block_ms, streams)
        tasks = connection.ask(command, self._tasks)
        if not self._passing:
            return tasks
        own: list[Delivery] = []
        for queue in queues:
            own.extend(self._leave_foreign([t for t in tasks if t[2] is queue], queue))
        return own

    def pending(self, connection: Connection) -> Iterator[list[Delivery]]:
        """Yield pages of what is pending for us on the server, of one queue each."""
        for queue in self._queues:
            cursor = "0-0"
            while page := connection.ask(
                queue.commands.fetch(self._consumer, MAX_TASKS, None, cursor), self._tasks
            ):
                cursor = page[-1][0].decode()
                yield page

    def own(self, page: list[Delivery]) -> list[Delivery]:
        """Return what is for us of tasks of one queue; calls of other homes go back."""
        return self._leave_foreign(page, page[0][2]) if page and self._passing else page

    def _tasks(self, reply: Any) -> list[Delivery]:
        queues = self._by_stream
        tasks: list[Delivery] = [
            (entry, flat, queues[stream]) for stream, page in reply or () for entry, flat in page
        ]
        # 0.05 us a task, here alone: what goes on with one need not ask whether it is one.
        for entry, flat, _ in tasks:
            if (type(flat) is not list and flat is not None) or type(entry) is not bytes:
                raise TypeError("no entry of a stream")  # of a deleted entry there are no fields
        return tasks

    # -- calls of other homes --------------------------------------------------------------------

    def _rest_of(self, connection: Connection, queue: WorkerQueue) -> float:
        """Return the seconds that a queue full of other homes' calls is left alone: until one of
        ours comes."""
        passing = self._passing[queue]
        rest = passing.rest_s()
        if rest <= 0:
            return rest
        if (now := time.monotonic()) >= passing.looks_at:
            after = b"(" + passing.looks_after
            added = connection.request(queue.commands.entries(after, "+", PAGE))
            if added:
                passing.looks_after = added[-1][0]
            if len(added) < PAGE:
                passing.looks_at = now + LONG_S
            own = [e for e, flat in added if len(flat) < 12 or not passing.is_foreign(flat[11])]
            if own and self._is_unread(connection, queue, own[-1]):
                passing.rests_until = 0.0
                return 0.0
        return min(rest, max(passing.looks_at - now, 0.001))

    def _is_unread(self, connection: Connection, queue: WorkerQueue, entry: bytes) -> bool:
        """Return whether no worker has read an entry yet."""
        commands = queue.commands
        for row in connection.request(commands.groups()):
            about = dict(zip(row[::2], row[1::2], strict=True))
            if about[b"name"] == commands.group.encode():
                return entry_order(entry) > entry_order(about[b"last-delivered-id"])
        return False

    def _leave_foreign(self, page: list[Delivery], queue: WorkerQueue) -> list[Delivery]:
        """Return what was read of a queue without the calls of other homes: those go back at
        once."""
        passing = self._passing[queue]
        foreign = [t for t in page if len(t[1]) > 11 and passing.is_foreign(t[1][11])]
        last = page[-1][0] if page else b""
        passing.passed([t[1][1] for t in foreign], len(page) - len(foreign), last)
        if not foreign:
            return page
        entries = [t[0] for t in foreign]
        try:
            off = self._broker.call(queue.commands.release(self._consumer, entries))
        except (RedistqError, GroupMissing) as error:
            log.warning("%d calls of others could not be left to them: %s", len(entries), error)
            off = 0
        self.look_again = self.look_again or off < len(entries)
        gone = set(entries)
        return [t for t in page if t[0] not in gone]

"""What happens in a queue, event by event: ``monitor.events()``, from any place on, without a gap.

Nobody writes events: each is made of what the queue keeps anyway. The end of an attempt is in the
history; a new entry of the stream is a task that was added; what has been delivered was started.
What came and went between two looks is in the history alone, and what came before that end is
made up from it. So the events of each task are whole and in order, and a queue that nobody listens
to pays nothing. ``EventReader`` never talks to a server: it makes commands and reads answers.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..connection.broker import Broker
from ..errors import ConfigurationError
from ..protocol.commands import CONTINUED, Command, Commands
from ..protocol.keys import ENDED
from ..protocol.options import seconds, shown
from ..protocol.progress import read_progress
from .rows import Event, int_or_none, read_event, text_of

INTERVAL_S = 0.2
"""Seconds between two looks while nothing happens."""
PAGE = 500
"""Most ends of attempts, and most entries, that one look brings."""
REMEMBERED = 50_000
"""Ids of tasks that were told of, so that one which comes again is not told as added."""
WATCHED = 500
"""Most running tasks whose progress is looked at."""
START = "0-0/0-0/0-0"
"""The cursor before all that the queue keeps."""
_CURSOR = re.compile(r"\d{1,20}-\d{1,20}(/\d{1,20}-\d{1,20}){2}(/\d{1,4})?")
_ENTRY = re.compile(r"\d+-\d+")


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """Something that happened to a task.

    ``type``: ``added`` (it is ready for the first time, or was sent again), ``ready`` (for another
    attempt), ``started`` (a worker has it), ``progress``; ``retried``, ``snoozed``, ``recovered``
    and ``continued`` end an attempt and not the task; ``ended`` is the end, with a ``state``; and
    ``gap``, of no task: events were missed, since the history keeps no more.

    ``cursor``: give it to ``events(since=...)``, and what comes next is told. ``at_ms`` is the
    server's clock. ``note`` is the type of an error, or why it ended so.
    """

    type: str
    cursor: str
    at_ms: int
    id: str = ""
    name: str = ""
    attempt: int = 0
    state: str = ""
    worker: str = ""
    run_ms: float | None = None
    note: str = ""
    done: float | None = None
    total: float | None = None
    text: str = ""

    @property
    def final(self) -> bool:
        """Whether the task has come to its end."""
        return self.type == "ended"

    def json(self) -> str:
        """Return it as one line of JSON; what an event of its type does not have is left out."""
        fields = {name: value for name, value in asdict(self).items() if value not in (None, "", 0)}
        return json.dumps(fields, ensure_ascii=False)


Place = tuple[int, int]
"""The id of an entry, for comparing."""


class EventReader:
    """Makes commands, and events of their answers; for one reader at a time.

    ``since``: a cursor, or None for what happens from now on.
    """

    def __init__(self, commands: Commands, since: str | None) -> None:
        self._commands = commands
        self._skip = 0
        """Events of the next end that were told before the cursor."""
        if since is None:
            self._places = ["", "0-0", "0-0"]
        else:
            self._places = _checked(since)
            if len(self._places) > 3:
                self._skip = int(self._places.pop())
        self._goes_on = since is not None
        """Whether tasks may come of which another reader has told."""
        self._began = [_place(place)[0] for place in self._places[1:]]
        """The ms of the cursor's entries: what came later in these is not known."""
        self._told: OrderedDict[str, tuple[bool, str]] = OrderedDict()
        """Tasks that were told of: whether as ended, and which entry of each as started last."""
        self._continued: OrderedDict[str, int | None] = OrderedDict()
        """Tasks that wait for what they returned, and when their attempt was ready."""
        self._running: OrderedDict[str, tuple[str, str, int, str]] = OrderedDict()
        """Name, worker, attempt and progress of what runs, by id."""
        self.is_behind = False
        """Whether there is more to be read at once."""

    # -- commands --------------------------------------------------------------------------------

    def preparing(self) -> Generator[Command, Any, None]:
        """Yield commands that are sent first, and take their answers: where the queue stands, and
        what runs."""
        if not self._places[0]:
            self._read((yield self._command()))
        _, rows, _ = yield self._commands.browse("pending", 200)
        for entry, worker, _, _, task_id, name, attempt, *_ in rows:
            if _place(text_of(entry)) <= _place(self._places[2]):
                self._begun(*map(text_of, (task_id, name, worker, attempt)))

    def _told_before(self) -> Generator[Command, Any, None]:
        """Yield commands that ask for ends before the cursor, the newest first: their tasks may
        come again."""
        end = self._places[0]
        while end != "0-0" and len(self._told) < REMEMBERED:
            page = yield self._commands.history_page(end, "-", 1000)
            for event in (read_event(entry, flat) for entry, flat in page):
                if event.id not in self._told:  # the newest is first
                    self._saw_end(event)
            if len(page) < 1000:
                return
            end = f"({text_of(page[-1][0])}"

    def _command(self) -> Command:
        running = list(self._running.items())[:WATCHED]
        return self._commands.events(self._places, [(i, row[3]) for i, row in running], PAGE)

    def look(self) -> Generator[Command, Any, list[TaskEvent]]:
        """Yield the command of one look, and take its answer; return what has happened."""
        reply = yield self._command()
        if self._goes_on and (reply[1] or reply[3]):
            self._goes_on = False
            yield from self._told_before()
        return self._read(reply)

    # -- answers ---------------------------------------------------------------------------------

    def _read(self, reply: list[Any]) -> list[TaskEvent]:
        now, ends, oldest, entries, handed, progress, places = reply
        found: list[TaskEvent] = []
        found += self._gap(text_of(oldest), now)
        for end in ends:
            found += self._ended(end)
        found += [self._added(row) for row in entries]
        found += [self._started(row, now) for row in handed]
        for raw_id, told in zip(progress[::2], progress[1::2], strict=True):
            found += self._progressed(text_of(raw_id), text_of(told))
        self._places = [text_of(place) for place in places]
        self.is_behind = len(ends) == PAGE or len(entries) >= PAGE or len(handed) == PAGE
        return found

    def _cursor(self, told: int = 0) -> str:
        return "/".join([*self._places, *([str(told)] if told else [])])

    def _gap(self, oldest: str, now: int) -> Iterator[TaskEvent]:
        """Yield that events were missed, where the history begins after our place."""
        if not oldest or self._places[0] == "0-0":
            return
        before = _before(oldest)
        if _place(self._places[0]) < _place(before):
            self._places[0] = before
            self._skip = 0
            yield TaskEvent("gap", self._cursor(), now)

    def _ended(self, end: list[Any]) -> Iterator[TaskEvent]:
        """Yield the end of an attempt, and before it what was not told of that attempt."""
        raw, flat, whole, origin = end
        event = read_event(raw, flat)
        kinds = [*self._missed(event, text_of(whole), text_of(origin))]
        for i, (kind, at_ms) in enumerate(kinds, 1):
            if i > self._skip:
                yield self._of(event, kind, at_ms, self._cursor(i))
        self._skip = 0
        self._places[0] = event.entry
        self._running.pop(event.id, None)
        self._saw_end(event)
        kind = "ended" if event.state in ENDED else event.state
        yield self._of(event, kind, event.finished_ms, self._cursor())

    def _missed(self, event: Event, whole: str, origin: str) -> Iterator[tuple[str, int]]:
        """Yield what came before that end and was not told: type, and when it was."""
        if event.queued_ms is not None and self._continued.get(event.id) == event.queued_ms:
            return  # it ends as what it returned did; its attempt has ended before
        added, started = (_place(place) for place in self._places[1:])
        entry = _place(whole) if whole else (event.queued_ms or 0, -1)
        known = event.id in self._told
        last = self._told[event.id][1] if known else ""
        ready_ms = event.finished_ms if event.queued_ms is None else event.queued_ms
        if event.queued_ms is None:
            is_new = not known  # it ended while it was delayed
        elif entry[1] < 0 and entry[0] == added[0]:  # the same ms: which of the two is not known
            is_new = not known and entry[0] != self._began[0]
        else:
            is_new = entry > added
        if is_new:
            is_first = event.attempt == 1 and self._is_first(event.id, whole, origin)
            self._remember(event.id)
            yield "added" if is_first else "ready", ready_ms
        if not event.worker:
            return  # it was never started
        if entry[1] < 0 and entry[0] == started[0]:
            told = int_or_none(last.partition("-")[0])
            is_new = told != entry[0] and entry[0] != self._began[1]
        else:
            is_new = entry > started
        if is_new:
            took = event.finished_ms - (event.run_ms or 0)
            yield "started", max(ready_ms, int(took))

    def _is_first(self, task_id: str, entry: str, origin: str) -> bool:
        """Return whether the first attempt's entry is the task's first, or the first since it was
        sent again; ``origin`` is the entry that it was before, if any."""
        if task_id in self._told:
            return self._told[task_id][0]
        before = _ENTRY.match(origin)
        if before is None or before[0] == entry:
            return True
        return _place(before[0]) > _place(self._places[1])

    def _added(self, row: list[Any]) -> TaskEvent:
        entry, task_id, name, attempt, recovered, origin = map(text_of, row)
        is_first = attempt == "1" and recovered == "0" and self._is_first(task_id, entry, origin)
        self._places[1] = entry
        self._remember(task_id)
        return TaskEvent(
            type="added" if is_first else "ready",
            cursor=self._cursor(),
            at_ms=_place(entry)[0],
            id=task_id,
            name=name,
            attempt=int_or_none(attempt) or 1,
        )

    def _started(self, row: list[Any], now: int) -> TaskEvent:
        entry, worker, idle, task_id, name, attempt = row
        place = text_of(entry)
        self._places[2] = place
        words = [*map(text_of, (task_id, name, worker, attempt))]
        self._begun(*words)
        self._remember(words[0], started=place)
        return TaskEvent(
            type="started",
            cursor=self._cursor(),
            at_ms=max(now - int(idle), _place(place)[0]),
            id=words[0],
            name=words[1],
            worker=words[2],
            attempt=int_or_none(words[3]) or 1,
        )

    def _progressed(self, task_id: str, told: str) -> Iterator[TaskEvent]:
        if task_id not in self._running:
            return  # it has ended meanwhile
        name, worker, attempt, _ = self._running[task_id]
        self._running[task_id] = name, worker, attempt, told
        now_at = read_progress(told)
        if now_at is not None and now_at.attempt == attempt:
            yield TaskEvent(
                type="progress",
                cursor=self._cursor(),
                at_ms=int(now_at.at * 1000),
                id=task_id,
                name=name,
                worker=worker,
                attempt=attempt,
                done=now_at.done,
                total=now_at.total,
                text=now_at.text,
            )

    # -- what is remembered ----------------------------------------------------------------------

    def _of(self, event: Event, kind: str, at_ms: int, cursor: str) -> TaskEvent:
        ends = kind not in ("added", "ready", "started")
        return TaskEvent(
            type=kind,
            cursor=cursor,
            at_ms=at_ms,
            id=event.id,
            name=event.name,
            attempt=event.attempt,
            state=event.state if kind == "ended" else "",
            worker="" if kind in ("added", "ready") else event.worker,
            run_ms=event.run_ms if ends else None,
            note=event.note if ends else "",
        )

    def _saw_end(self, event: Event) -> None:
        self._remember(event.id, event.state in ENDED)
        self._continued.pop(event.id, None)
        if event.state == CONTINUED:
            self._continued[event.id] = event.queued_ms
            if len(self._continued) > REMEMBERED:
                self._continued.popitem(last=False)

    def _remember(self, task_id: str, ended: bool = False, started: str = "") -> None:
        before = self._told.get(task_id, (False, ""))
        self._told[task_id] = ended, started or before[1]
        self._told.move_to_end(task_id)
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)

    def _begun(self, task_id: str, name: str, worker: str, attempt: str) -> None:
        self._running[task_id] = name, worker, int_or_none(attempt) or 1, ""
        if len(self._running) > 20 * WATCHED:
            self._running.popitem(last=False)


def _place(entry: str) -> Place:
    ms, _, number = entry.partition("-")
    return int(ms), int(number)


def _before(entry: str) -> str:
    """Return the id right before an entry's."""
    ms, number = _place(entry)
    return f"{ms}-{number - 1}" if number else f"{max(ms - 1, 0)}-{2**64 - 1}"


def _checked(since: str) -> list[str]:
    if not isinstance(since, str) or not (since == "0" or _CURSOR.fullmatch(since)):
        raise ConfigurationError(
            f"since is the cursor of an event, '0' for all that is kept, or None: {shown(since)}"
        )
    return (START if since == "0" else since).split("/")


# -- followed --------------------------------------------------------------------------------------


class Followed:
    """What TaskMonitor and its kin have of events; see ``events``."""

    broker: Broker
    commands: Commands

    def events(
        self, since: str | None = None, *, follow: bool = True, interval: float = INTERVAL_S
    ) -> Iterator[TaskEvent]:
        """Yield what happens in this queue, as it happens: see TaskEvent.

        From now on; or after ``since``, the ``cursor`` of an event of this or another process; or
        from the oldest that is kept, ``since="0"``. Each task's events come whole and in order.
        Without ``follow`` it ends with what has happened so far, and begins with the oldest. It
        looks every ``interval`` seconds, which is a command that only reads, and nothing is asked
        of producers and workers. Raises ServerUnavailable: go on after the last cursor.
        """
        reader = EventReader(self.commands, "0" if since is None and not follow else since)
        interval = seconds("interval", interval, positive=True)
        return self._events(reader, follow, interval)

    def _events(self, reader: EventReader, follow: bool, interval: float) -> Iterator[TaskEvent]:
        _carry_out(self.broker, reader.preparing())
        while True:
            found = _carry_out(self.broker, reader.look())
            yield from found
            if not reader.is_behind:
                if not follow:
                    return
                time.sleep(interval)

    def aevents(
        self, since: str | None = None, *, follow: bool = True, interval: float = INTERVAL_S
    ) -> AsyncIterator[TaskEvent]:
        """``events`` for ``async for``."""
        reader = EventReader(self.commands, "0" if since is None and not follow else since)
        interval = seconds("interval", interval, positive=True)
        return self._aevents(reader, follow, interval)

    async def _aevents(
        self, reader: EventReader, follow: bool, interval: float
    ) -> AsyncIterator[TaskEvent]:
        from ..connection.async_broker import AsyncBroker

        stream = self.commands.keys.stream
        broker = AsyncBroker(self.broker.address, slot_key=stream, timeout=self.broker.timeout)
        try:
            await _await_out(broker, reader.preparing())
            while True:
                for event in await _await_out(broker, reader.look()):
                    yield event
                if not reader.is_behind:
                    if not follow:
                        return
                    await asyncio.sleep(interval)
        finally:
            await broker.close()


def _carry_out(broker: Broker, steps: Generator[Command, Any, Any]) -> Any:
    answer = None
    try:
        while True:
            answer = broker.call(steps.send(answer))
    except StopIteration as end:
        return end.value


async def _await_out(broker: Any, steps: Generator[Command, Any, Any]) -> Any:
    answer = None
    while True:
        try:
            command = steps.send(answer)
        except StopIteration as end:
            return end.value
        answer = await broker.call(command)

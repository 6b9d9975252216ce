"""``producer.schedules``: periodic tasks, looked at and changed while everything runs.

``ScheduleOperations`` is written once, without I/O; ``Schedules`` and ``AsyncSchedules`` carry it
out. What fires them is every scheduler of the queue's workers: see scheduler/firing.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Unpack

from ..codecs.sealing import Seal
from ..connection.broker import Broker
from ..errors import ConfigurationError, RedistqError, UnknownSchedule
from ..handlers import OfFunction
from ..protocol.answers import Answered, Fired
from ..protocol.codec import DEFAULT_MAX_BYTES, encode_payload
from ..protocol.commands import Commands
from ..protocol.keys import without_priority
from ..protocol.options import ScheduleKeywords, Seconds, count, listed, moment
from ..protocol.plain_commands import portions, read_time
from ..protocol.schedules import (
    MOST_AT_ONCE,
    MOST_SCHEDULES,
    Definition,
    Schedule,
    changed_times,
    check_name,
    moment_of,
    occurrence_id,
    read_all,
)
from ..protocol.timing import ZONE, Timing
from .gated import TaskId, refusal, standing
from .limits import LimitOperations
from .sansio import Operation, run, run_async

if TYPE_CHECKING:
    from ..connection.async_broker import AsyncBroker

TaskName = str | Callable[..., Any]
MOST_BACKFILLED = 10_000
"""Most occurrences of one backfill."""


class ScheduleOperations:
    """What can be done with the schedules of one queue, as operations."""

    def __init__(
        self,
        commands: Commands,
        limits: LimitOperations,
        max_bytes: int = DEFAULT_MAX_BYTES,
        seals: Seal | None = None,
    ) -> None:
        self._seals = seals
        self._commands = commands
        self._limits = limits
        self._max_bytes = max_bytes
        self._base = without_priority(commands.keys.stream)

    def set(
        self,
        name: str,
        timing: Timing,
        task: TaskName | None,
        payload: Any,
        missed: str,
        overlap: str | None,
        paused: bool | None,
        given: Mapping[str, Any],
    ) -> Operation[Schedule]:
        """Make or change a schedule of a named task; return it as it stands."""
        check_name(name)
        if task is None:
            raise ConfigurationError(f"schedule {name!r} needs task=, the name of what it runs")
        named = payload
        if not isinstance(task, str):
            found = OfFunction.of(task, payload, given)
            task, payload, given, named = found.name, found.payload, found.given, found.named
        definition, limits = Definition.of(
            name,
            task,
            named,
            {option: value for option, value in given.items() if value is not None},
            stream=self._commands.keys.stream,
            missed=missed,
            overlap=overlap,
        )
        data = encode_payload(task, payload, self._max_bytes)
        yield from self._limits.declare(limits)
        return (yield from self.put(name, timing, definition, data, paused=paused, source="api"))

    def put(
        self,
        name: str,
        timing: Timing,
        definition: Definition,
        payload: bytes,
        *,
        paused: bool | None = None,
        source: str,
        keeps: Sequence[str] = (),
    ) -> Operation[Schedule]:
        """Make or change a schedule, whose payload is encoded already; return it as it stands. One
        that is the same already goes on undisturbed. It ``keeps`` what is stored under these names;
        raises LookupError where one is not there."""
        state = "" if paused is None else str(int(paused))
        while True:
            now_ms = read_time((yield self._commands.time))
            old = self._read(name, (yield self._commands.schedule(name)))
            next_ms, anchor_ms = changed_times(old, timing, now_ms)
            word, _ = yield self._commands.set_schedule(
                name,
                timing.written(),
                definition.written(),
                self._sealed(name, definition.task, payload, old),
                source=source,
                paused=state,
                next_ms=next_ms,
                anchor_ms=anchor_ms,
                again_ms=timing.again_ms(next_ms, anchor_ms),
                most=MOST_SCHEDULES,
                keeps=keeps,
            )
            if word == b"missing":
                raise LookupError(f"what schedule {name!r} needs is not on the server")
            if word == b"full":
                raise ConfigurationError(
                    f"schedule {name!r} was not set: a queue has at most {MOST_SCHEDULES:,}; "
                    "delete some: producer.schedules.delete(name)"
                )
            stands = self._read(name, (yield self._commands.schedule(name)))
            if word != b"late" and stands is not None:  # fired, or deleted, in between
                return stands

    def _sealed(self, name: str, task: str, payload: bytes, old: Schedule | None) -> bytes:
        """Return a payload as it stands in the record: what is there, where that is the same."""
        if self._seals is None:
            return payload
        if old is not None and old.task == task:
            with contextlib.suppress(RedistqError):  # it was sealed by others, or with other keys
                if self._seals.open_scheduled(name, task, old.payload) == payload:
                    return old.payload
        return self._seals.of_schedule(name, task, payload)

    def delete(self, name: str) -> Operation[bool]:
        """Delete a schedule; return whether there was one."""
        word, _ = yield self._commands.set_schedule(check_name(name), "-")
        return bool(word == b"deleted")

    def pause(self, name: str) -> Operation[None]:
        """Let a schedule fire no more until ``resume``."""
        word, _ = yield self._commands.set_schedule(check_name(name), paused="1", again_ms=1000)
        if word == b"unknown":
            raise UnknownSchedule(name)

    def resume(self, name: str) -> Operation[None]:
        """End a pause."""
        word = b"late"
        while word == b"late":
            now_ms = read_time((yield self._commands.time))
            old = yield from self.get(name)
            if old is None:
                raise UnknownSchedule(name)
            next_ms, anchor_ms = changed_times(old, old.timing, now_ms)
            word, _ = yield self._commands.set_schedule(
                name,
                paused="0",
                next_ms=next_ms,
                anchor_ms=anchor_ms,
                again_ms=old.timing.again_ms(next_ms, anchor_ms),
            )

    def get(self, name: str) -> Operation[Schedule | None]:
        """Return a schedule as it stands; None where there is none."""
        return self._read(check_name(name), (yield self._commands.schedule(name)))

    def known(self, name: str) -> Operation[Schedule]:
        """Return a schedule as it stands; raises UnknownSchedule."""
        found = yield from self.get(name)
        if found is None:
            raise UnknownSchedule(name)
        return found

    def all(self) -> Operation[dict[str, Schedule]]:
        """Return all schedules of the queue, by name."""
        rows: dict[str, bytes] = {}
        cursor: bytes = b"0"
        while True:
            cursor, flat = yield self._commands.schedules_page(cursor)
            for name, record in zip(flat[::2], flat[1::2], strict=True):
                rows[name.decode("utf-8", "replace")] = record
            if cursor == b"0":
                return read_all(rows.items(), self._base)

    def run_now(self, name: str) -> Operation[TaskId]:
        """Add one task of a schedule at once; return the id of the task that stands."""
        now_ms = read_time((yield self._commands.time))
        task_id = f"{check_name(name)}@now-{now_ms}"
        schedule = yield from self.known(name)
        (stands,) = yield from self._fire(schedule, [(task_id, now_ms)], False)
        return stands

    def backfill(self, name: str, start: Any, end: Any) -> Operation[list[TaskId]]:
        """Add the tasks of a schedule's occurrences between two moments that have been; return
        their ids."""
        first = round(moment("the start of a backfill", start) * 1000)
        last = round(moment("the end of a backfill", end) * 1000)
        now_ms = read_time((yield self._commands.time))
        schedule = yield from self.known(name)
        times: list[int] = []
        for at_ms in schedule.timing.times(first - 1, schedule.anchor_ms):
            if at_ms > min(last, now_ms):
                break
            if len(times) == MOST_BACKFILLED:
                raise ConfigurationError(
                    f"a backfill has at most {MOST_BACKFILLED:,} occurrences, and more are between "
                    "these moments; do it in parts"
                )
            times.append(at_ms)
        found: list[TaskId] = []
        for part in portions((occurrence_id(name, at_ms), at_ms) for at_ms in times):
            for at in range(0, len(part), MOST_AT_ONCE):
                chunk = part[at : at + MOST_AT_ONCE]
                found += yield from self._fire(schedule, chunk, True)
        return found

    def preview(self, timing: Timing, n: int) -> Operation[list[datetime]]:
        """Return the next times a rule fires, by the server's clock."""
        now_ms = read_time((yield self._commands.time))
        times = timing.times(now_ms, now_ms)
        return [moment_of(next(times), timing.tz) for _ in range(count("n", n, least=1, most=1000))]

    def _fire(
        self, schedule: Schedule, occurrences: list[tuple[str, int]], catches_up: bool
    ) -> Operation[list[TaskId]]:
        keys = self._commands.keys
        fired: Fired = Commands.read_fire(
            (yield self._commands.fire(schedule.name, occurrences, catches_up=catches_up))
        )
        if fired.outcome == "unknown":
            raise UnknownSchedule(schedule.name)
        if fired.outcome == "fault":
            raise _not_stored(schedule, fired, self._commands)
        found = [TaskId.of(task_id, schedule.queue) for task_id, _ in occurrences]
        for answered in fired.others:
            if answered.outcome == "known":
                found[answered.position].outcome = "known"
            else:
                found[answered.position] = standing(keys, found[answered.position], answered)
        return found

    def _read(self, name: str, record: bytes | None) -> Schedule | None:
        return None if record is None else Schedule.read(name, record, self._base)


def _not_stored(schedule: Schedule, fired: Fired, commands: Commands) -> RedistqError:
    return refusal(commands.keys, Answered(0, "refused", schedule.name, fired.words))


class Schedules:
    """The periodic tasks of a producer's queue; see docs/schedules.md.

    ``for schedule in producer.schedules`` and ``producer.schedules[name]`` read them.
    """

    def __init__(self, operations: ScheduleOperations, broker: Broker) -> None:
        self.operations = operations
        self._broker = broker

    @listed(ScheduleKeywords)
    def set(
        self,
        name: str,
        cron: str | None = None,
        every: Seconds | None = None,
        *,
        task: TaskName | None = None,
        payload: Any = None,
        tz: str = ZONE,
        missed: str = "once",
        overlap: str | None = None,
        paused: bool | None = None,
        **options: Unpack[ScheduleKeywords],
    ) -> Schedule:
        """Let a task be added at the times of ``cron`` in the time zone ``tz``, or ``every`` so
        often, from now on; return the schedule as it stands.

        ``cron`` has five fields, or six with the seconds first. One set again as it is goes on
        undisturbed; another rule counts from now, and a pause stays one unless ``paused=False``.

        ``missed`` occurrences, while no scheduler ran: "skip" them, run the latest "once", or
        "all" of them (1,000 at most). ``overlap`` while the task before has not ended: "skip" (if
        nothing is said), "queue" one, or "allow" it. Other options are those of ``add_task``.

        Raises ConfigurationError for what is no rule, no zone or never fires, PayloadError,
        PayloadTooLarge, ServerFull or ServerUnavailable.
        """
        timing = Timing.of(cron, every, tz)
        return run(
            self._broker,
            self.operations.set(name, timing, task, payload, missed, overlap, paused, options),
        )

    def get(self, name: str) -> Schedule | None:
        """Return a schedule as it stands; None where there is none."""
        return run(self._broker, self.operations.get(name))

    def all(self) -> dict[str, Schedule]:
        """Return all schedules of the queue, by name."""
        return run(self._broker, self.operations.all())

    def delete(self, name: str) -> bool:
        """Let a schedule fire no more, for good; return whether there was one. Tasks that it has
        added stay."""
        return run(self._broker, self.operations.delete(name))

    def pause(self, name: str) -> None:
        """Let a schedule fire no more until ``resume``; raises UnknownSchedule."""
        run(self._broker, self.operations.pause(name))

    def resume(self, name: str) -> None:
        """End a pause: it fires at its next time from now on; raises UnknownSchedule."""
        run(self._broker, self.operations.resume(name))

    def run_now(self, name: str) -> TaskId:
        """Add its task at once, also while it is paused; return the id of the task that stands:
        where tasks may not overlap, of the one that has not ended. Raises UnknownSchedule."""
        return run(self._broker, self.operations.run_now(name))

    def backfill(self, name: str, start: float | datetime, end: float | datetime) -> list[TaskId]:
        """Add the tasks of its occurrences from ``start`` to ``end``, as far as these have been;
        return their ids. Those of which there is a task are left alone ("known").

        Where tasks may not overlap, these run one after another.
        """
        return run(self._broker, self.operations.backfill(name, start, end))

    def preview(
        self, cron: str | None = None, tz: str = ZONE, n: int = 5, *, every: Seconds | None = None
    ) -> list[datetime]:
        """Return the next ``n`` times at which such a rule would fire; nothing is set."""
        timing = Timing.of(cron, every, tz)
        return run(self._broker, self.operations.preview(timing, n))

    def __getitem__(self, name: str) -> Schedule:
        return run(self._broker, self.operations.known(name))

    def __iter__(self) -> Iterator[Schedule]:
        return iter(self.all().values())


class AsyncSchedules:
    """Schedules for ``await``: the same methods, the same promises; ``async for`` reads them."""

    def __init__(self, operations: ScheduleOperations, broker: AsyncBroker) -> None:
        self.operations = operations
        self._broker = broker

    @listed(ScheduleKeywords)
    async def set(
        self,
        name: str,
        cron: str | None = None,
        every: Seconds | None = None,
        *,
        task: TaskName | None = None,
        payload: Any = None,
        tz: str = ZONE,
        missed: str = "once",
        overlap: str | None = None,
        paused: bool | None = None,
        **options: Unpack[ScheduleKeywords],
    ) -> Schedule:
        """As Schedules.set."""
        timing = Timing.of(cron, every, tz)
        return await run_async(
            self._broker,
            self.operations.set(name, timing, task, payload, missed, overlap, paused, options),
        )

    async def get(self, name: str) -> Schedule | None:
        """As Schedules.get."""
        return await run_async(self._broker, self.operations.get(name))

    async def all(self) -> dict[str, Schedule]:
        """As Schedules.all."""
        return await run_async(self._broker, self.operations.all())

    async def delete(self, name: str) -> bool:
        """As Schedules.delete."""
        return await run_async(self._broker, self.operations.delete(name))

    async def pause(self, name: str) -> None:
        """As Schedules.pause."""
        await run_async(self._broker, self.operations.pause(name))

    async def resume(self, name: str) -> None:
        """As Schedules.resume."""
        await run_async(self._broker, self.operations.resume(name))

    async def run_now(self, name: str) -> TaskId:
        """As Schedules.run_now."""
        return await run_async(self._broker, self.operations.run_now(name))

    async def backfill(
        self, name: str, start: float | datetime, end: float | datetime
    ) -> list[TaskId]:
        """As Schedules.backfill."""
        return await run_async(self._broker, self.operations.backfill(name, start, end))

    async def preview(
        self, cron: str | None = None, tz: str = ZONE, n: int = 5, *, every: Seconds | None = None
    ) -> list[datetime]:
        """As Schedules.preview."""
        timing = Timing.of(cron, every, tz)
        return await run_async(self._broker, self.operations.preview(timing, n))

    async def __aiter__(self) -> AsyncIterator[Schedule]:
        for schedule in (await self.all()).values():
            yield schedule

"""What a producer does: adding, looking, waiting and managing, written once as operations.

Carried out by TaskProducer and AsyncTaskProducer. It checks and encodes everything before anything
is sent, and never touches a connection itself.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

from ..codecs.codec import Codec, given_or_env
from ..codecs.sealing import Seal, seal_of
from ..connection.address import DEFAULT_HOST, DEFAULT_PORT, Address, resolve
from ..connection.broker import DEFAULT_TIMEOUT
from ..errors import ConfigurationError, UnknownTask
from ..handlers import Handler, OfFunction
from ..middleware import Layers, Middleware, NewTask, ambient, checked_middleware
from ..middleware.chain import added, given_by, new_task
from ..protocol.codec import DEFAULT_MAX_BYTES, encode_payload
from ..protocol.commands import MAX_TASKS, PLACES, WISHES, Commands, Snapshot
from ..protocol.gate import Gate
from ..protocol.keys import DEFAULT_GROUP, DEFAULT_QUEUE, QueueKeys, check_line, new_task_id
from ..protocol.options import (
    MAX_COUNT,
    NO_OPTIONS,
    OPTIONS_OF_GATE,
    OPTIONS_OF_TASKS,
    TaskOptions,
    count,
    seconds,
    shown,
    unknown_option,
    wait_seconds,
)
from ..protocol.plain_commands import MAX_BYTES, portions, read_time
from ..protocol.progress import Progress, read_progress
from ..protocol.resources import lacking
from ..protocol.steps import event_body
from ..protocol.waits import read_why
from .diagnosis import Diagnosis
from .gated import Addition, Fields, GatedTask, TaskId, not_stored
from .guess import WaiterGuess
from .limits import LimitOperations
from .results import CUT, ResultWait, TaskStatus, letter_of, payload_in, status_of
from .sansio import Operation
from .schedules import ScheduleOperations

TaskName = str | Callable[..., Any] | Handler
Item = tuple[TaskName, Any] | Mapping[str, Any]
Wish = Literal["ask", "force"] | None
"""What ``cancel`` wishes of tasks that run; None: they are left alone."""

_ITEM_KEYS = frozenset({"type", "payload", "task_id", *OPTIONS_OF_TASKS})
_NONE_GIVEN: Mapping[str, Any] = {}


class ProducerOperations:
    """Everything a producer does, as operations; the two producers only carry them out."""

    OPTIONS = frozenset(
        {
            *("redis_host", "redis_port", "db", "stream", "url", "password", "group"),
            *("delayed_key", "max_payload_bytes", "timeout", "codec", "middleware"),
        }
    )
    """What a producer is made with."""

    def __init__(
        self,
        redis_host: str = DEFAULT_HOST,
        redis_port: int = DEFAULT_PORT,
        db: int = 0,
        stream: str = DEFAULT_QUEUE,
        *,
        url: str | None = None,
        password: str | None = None,
        group: str = DEFAULT_GROUP,
        delayed_key: str | None = None,
        max_payload_bytes: int = DEFAULT_MAX_BYTES,
        timeout: float = DEFAULT_TIMEOUT,
        codec: Codec | None = None,
        address: Address | None = None,
        middleware: Iterable[Middleware] = (),
    ) -> None:
        self.layers: Layers = checked_middleware(middleware)
        """What stands around all tasks that it adds, the outermost first."""
        self.address = address or resolve(url, redis_host, redis_port, db, password)
        self.keys = QueueKeys(stream, delayed_key, self.address.clustered)
        self.commands = Commands(self.keys, group)
        self.timeout = seconds("timeout", timeout, positive=True)
        self._max_bytes = max_payload_bytes
        self._delayed_key = delayed_key
        self._codec = given_or_env(codec)
        self.seal: Seal = seal_of(self._codec, stream)
        """What opens results and payloads that a codec sealed."""
        self._seals = None if self._codec is None else self.seal  # what is written here
        self._limits = LimitOperations(self.commands)
        self._schedules = ScheduleOperations(
            self.commands, self._limits, max_payload_bytes, self._seals
        )
        self._guess = WaiterGuess(self.keys)
        self._checked: str | None = None  # the name of the last new task, which can be one
        self._diagnosis = Diagnosis(self.commands, self.address)

    def options(self) -> dict[str, Any]:
        """Return what makes another producer that is like this one."""
        return {
            "address": self.address,
            "stream": self.keys.stream,
            "group": self.commands.group,
            "delayed_key": self._delayed_key,
            "max_payload_bytes": self._max_bytes,
            "timeout": self.timeout,
            "codec": self._codec,
            "middleware": self.layers,
        }

    def active(self) -> AbstractContextManager[None]:
        """Let ``task.delay(...)`` add tasks by this producer: ``with producer.active():``."""
        from .active import active

        return active(self)

    # -- adding ----------------------------------------------------------------------------------

    def _new(
        self,
        type: TaskName,
        payload: Any = None,
        task_id: str | None = None,
        given: Mapping[str, Any] = _NONE_GIVEN,
        alone: bool = False,
    ) -> Fields | GatedTask:
        """Return one new task; every complaint about it is raised here.

        An inbox may be notified of the end of a task that is added ``alone``, now and under a new
        id: see WaiterGuess.
        """
        named = payload
        if isinstance(type, str):
            name = type
        else:
            task = OfFunction.of(type, payload, given)
            name, payload, given, named = task.name, task.payload, task.given, task.named
        if self.layers or ambient.around:
            return self._through_layers(name, payload, named, task_id, given, alone)
        return self._made(name, payload, named, task_id, given, alone)

    def _made(
        self,
        name: str,
        payload: Any,
        named: Any,
        task_id: str | None,
        given: Mapping[str, Any],
        alone: bool,
        new_id: str | None = None,
    ) -> Fields | GatedTask:
        if name is not self._checked:
            check_line("a task's type", name)
            self._checked = name
        data = encode_payload(name, payload, self._max_bytes)
        options = TaskOptions.of(given, "a task") if given else NO_OPTIONS
        due = options.due if given else ""
        gate: Gate | None = None
        if given and not OPTIONS_OF_GATE.isdisjoint(given):
            gate = Gate.of(given, named, self.keys.stream)
        inbox: str | None = None
        if task_id is not None:
            check_line("a task_id", task_id)
        else:
            task_id = new_id or new_task_id()
            if alone and not due and gate is None:
                inbox = self._guess.added(task_id)
        if self._seals is not None:
            data = self._seals.payload(task_id, name, data, None if gate is None else gate.text)
        if gate is not None:
            opts = options.written(gate=gate.text)
            return GatedTask((task_id, name, data, opts, due), gate.conditions, gate.limits)
        if inbox is None and not given:
            return task_id, name, data, b"", due
        return task_id, name, data, options.written(inbox=inbox), due

    def _through_layers(
        self,
        name: str,
        payload: Any,
        named: Any,
        task_id: str | None,
        given: Mapping[str, Any],
        alone: bool,
    ) -> Fields | GatedTask:
        """As ``_made``, with middleware around it."""

        def make(new: NewTask) -> Fields | GatedTask:
            keyed = named if new.payload is payload else new.payload
            return self._made(new.name, new.payload, keyed, task_id, given_by(new), alone, new.id)

        new = new_task(task_id or new_task_id(), name, self.keys.stream, payload, given)
        return added((*ambient.around, *self.layers), new, make)

    def _adding(self, task: GatedTask) -> Operation[TaskId]:
        """Add a task that may have to wait; return the id of the one that stands."""
        yield from self._limits.declare(task.limits)
        addition = Addition([task.fields[0]], gated={0: 0})
        reply = yield self.commands.enqueue_gated((*task.fields, task.conditions))
        found = addition.read(self.keys, [reply])[0]
        return found if isinstance(found, TaskId) else TaskId.of(found, self.keys.stream)

    def _bulk(self, items: Iterable[Item]) -> Addition:
        """Return many tasks in the few commands that add them; all are checked and encoded before
        the first is sent."""
        bulk = Addition()
        ids = bulk.ids
        flat: list[Any] = []  # the fields of the tasks of one command
        conditions: dict[int, str] = {}  # of its tasks that may wait, by their place in it
        count = size = 0
        checked: str | None = None  # a name known to be one, while nothing else goes with a task
        limit = self._max_bytes
        fields: Fields | GatedTask
        for item in items:
            if type(item) is tuple and len(item) == 2:
                name, payload = item
                if checked is not None and name is checked:  # the usual: thousands of one type
                    data = encode_payload(checked, payload, limit)
                    fields = (new_task_id(), checked, data, b"", "")
                else:
                    fields = self._new(name, payload)
                    plain = isinstance(name, str) and type(fields) is tuple and not fields[3]
                    plain = plain and not (self.layers or ambient.around or self._seals)
                    checked = name if plain and isinstance(name, str) else None
            else:
                fields = self._new(*_parts_of(item))
            if isinstance(fields, GatedTask):
                conditions[count] = fields.conditions
                size += len(fields.conditions)
                bulk.limits.update(fields.limits)
                fields = fields.fields
            flat.extend(fields)
            ids.append(fields[0])
            count += 1
            size += len(fields[2])
            # The rule of ``portions``, which would be a call more for each task.
            if count == MAX_TASKS or size >= MAX_BYTES:
                self._put(bulk, flat, conditions)
                flat = []
                conditions = {}
                count = 0
                size = 0
        if flat:
            self._put(bulk, flat, conditions)
        return bulk

    def _put(self, bulk: Addition, flat: list[Any], conditions: dict[int, str]) -> None:
        """Put the next command of a bulk call: where any of its tasks may wait, all go by the one
        that knows how, which keeps their order."""
        if not conditions:
            bulk.commands.append(self.commands.enqueue(flat))
            return
        count = len(flat) // 5
        rows = ((*flat[5 * at : 5 * at + 5], conditions.get(at, "")) for at in range(count))
        bulk.gated[len(bulk.commands)] = len(bulk.ids) - count
        bulk.commands.append(self.commands.enqueue_gated([*chain.from_iterable(rows)]))

    def _added(self, task_id: str, reply: list[Any]) -> TaskId:
        """Return the id of a plain task, by the reply of ``enqueue``; raises the error of one that
        could not be stored."""
        if not reply:
            return TaskId.of(task_id, self.keys.stream)
        if (error := not_stored(self.keys, reply)) is not None:
            raise error
        return TaskId.of(task_id, self.keys.stream, "known")

    def _event(self, name: str, payload: Any, task: str | None) -> bytes:
        """Return the body of an event."""
        body = event_body(name, payload)
        return body if self._seals is None else self._seals.event(name, body, task or "")

    # -- looking and waiting ---------------------------------------------------------------------

    def _status(self, task_id: str) -> Operation[TaskStatus]:
        watched = Commands.read_watch((yield self.commands.watch(task_id)))
        if watched.state == "unknown":
            raise UnknownTask(task_id)
        status = status_of(task_id, watched, self.seal)
        if watched.state == "waiting":
            words = read_why((yield self.commands.why(task_id))).words()
            return replace(status, why=words)
        if watched.record.get("reason") == b"room" and watched.state == "delayed":
            shot = Commands.read_snapshot((yield self.commands.snapshot(1000)))
            has = [row.details.get("resources", "") for row in shot.workers]
            needs = watched.record.get("needs", b"").decode("utf-8", "replace")
            if missing := lacking(needs, has):
                advice = f"no worker here has {missing}: start one with --resources"
                return replace(status, why=f"{status.why}; {advice}")
        return status

    def _progress(self, task_id: str) -> Operation[Progress | None]:
        return read_progress((yield self.commands.progress(task_id)))

    def _result(self, task_id: str, timeout: float | None) -> Operation[Any]:
        timeout = wait_seconds(timeout)
        expected = self._guess.awaited(task_id)
        inbox = expected or self._guess.lend()
        try:
            wait = ResultWait(
                *(task_id, timeout, inbox, self.commands, self._diagnosis, self.timeout),
                self.seal,
            )
            return (yield from wait.result(expected is not None))
        finally:
            self._guess.give_back(inbox)

    # -- managing --------------------------------------------------------------------------------

    def _cancel(self, ids: tuple[str, ...], running: str | None) -> Operation[dict[str, str]]:
        wish = wish_of(running)
        words: dict[str, str] = {}
        for part in portions(ids):
            reply = yield self.commands.cancel(part, wish=wish)
            words.update(zip(part, (word.decode() for word in reply), strict=True))
        return words

    def _cancel_where(
        self, name: str | None, batch: str | None, running: str | None, limit: int | None
    ) -> Operation[dict[str, int]]:
        """Cancel page by page; the places in the order that leaves nothing out: what waits may go
        on to the stream meanwhile, and nothing comes back from there but retries."""
        wish = wish_of(running)
        if not (name or batch):
            raise ConfigurationError("cancel_where needs a name of tasks, a batch, or both")
        left = MAX_COUNT if limit is None else count("limit", limit, least=1)
        words: Counter[str] = Counter()
        for place in PLACES:
            start = ""
            while left > 0:
                find = self.commands.find(place, start, name=name or "", batch=batch or "")
                raw, after, _ = yield find
                ids = [task_id.decode("utf-8", "replace") for task_id in raw][:left]
                gone = 0
                for part in portions(ids):
                    reply = yield self.commands.cancel(part, wish=wish)
                    words.update(word.decode() for word in reply)
                    gone += reply.count(b"cancelled")
                left -= len(ids)
                start = after.decode()
                if not start:
                    break
                if place != "stream":  # its members after these have moved forward by as many
                    start = str(int(start) - gone)
        return dict(words)

    def _dead(self, limit: int) -> Operation[list[TaskStatus]]:
        """Return the newest dead letters, a page for one question. The page holds the start of
        each payload; the whole of a long one is asked for."""
        found: list[TaskStatus] = []
        start = ""
        left = limit
        while left > 0:
            page = self.commands.browse("dead", min(left, MAX_TASKS), start)
            _, rows, after = yield page
            for row in rows:
                letter = letter_of(row, self.seal)
                if letter is None:
                    continue  # its record has expired
                if letter.payload is CUT:
                    payload, opts = yield self.commands.payload_and_options(letter.id)
                    record = {"name": (letter.name or "").encode(), "opts": opts or b""}
                    found_in = (
                        payload_in(letter.id, payload, record, self.seal) if payload else None
                    )
                    letter = replace(letter, payload=found_in)
                found.append(letter)
            start = after.decode()
            left -= MAX_TASKS
            if not start:
                break
        return found

    def _replay(self, ids: tuple[str, ...], anew: bool) -> Operation[int]:
        done: int = 0
        if ids:
            for part in portions(ids):
                reply = yield self.commands.replay(part, anew=anew)
                done += reply[0]
            return done
        before = yield from self._now_ms()
        offset = 0
        while True:
            replayed, kept, dropped = yield self.commands.replay((), str(before), offset, anew)
            done += replayed
            offset += kept
            if replayed + kept + dropped < MAX_TASKS:
                return done

    def _purge(self, ids: tuple[str, ...]) -> Operation[int]:
        done: int = 0
        if ids:
            for part in portions(ids):
                done += yield self.commands.purge(part)
            return done
        before = yield from self._now_ms()
        while True:
            purged = yield self.commands.purge((), str(before))
            done += purged
            if purged < MAX_TASKS:
                return done

    def _now_ms(self) -> Operation[int]:
        return read_time((yield self.commands.time))

    def _pause(self, paused: bool) -> Operation[None]:
        yield self.commands.set_paused(paused)
        # Without a right to the channel, workers see it with their next heartbeat.
        with contextlib.suppress(ConfigurationError):
            yield self.commands.announce_paused(paused)

    def _snapshot(self) -> Operation[Snapshot]:
        return Commands.read_snapshot((yield self.commands.snapshot()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(queue={self.keys.stream!r}, url={str(self.address)!r})"


def wish_of(running: str | None) -> str:
    """Return what is wished of tasks that run, as ``Commands.cancel`` takes it; raises
    ConfigurationError."""
    if running is None:
        return ""
    if running not in WISHES:
        raise ConfigurationError(
            f"running is {' or '.join(map(repr, WISHES))}, or None to leave running tasks alone, "
            f"not {shown(running)}"
        )
    return running


def _parts_of(item: Any) -> tuple[TaskName, Any, str | None, Mapping[str, Any]]:
    """Return the type, payload, id and options of an item of a bulk call."""
    if isinstance(item, Mapping):
        options = dict(item)
        if unknown := options.keys() - _ITEM_KEYS:
            raise unknown_option("an item", sorted(map(str, unknown))[0], _ITEM_KEYS)
        if "type" not in options:
            raise ConfigurationError(f"an item needs the key 'type': {item!r:.200}")
        name = options.pop("type")
        payload = options.pop("payload", None)
        task_id = options.pop("task_id", None)
        return name, payload, task_id, options
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1], None, _NONE_GIVEN
    raise ConfigurationError(
        f"an item is a (type, payload) pair or a mapping with 'type': {item!r:.200}"
    )

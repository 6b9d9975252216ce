"""The door: TaskProducer adds tasks and asks for results; AsyncTaskProducer is its ``await`` twin.

Used by applications and notebooks. It never runs a task.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .broker import DEFAULT_TIMEOUT, Broker
from .calls import CALL_LIMIT, SETTLED, Calls, Command, NewTask, Snapshot, Watched
from .codec import DEFAULT_MAX_BYTES, dumps, encode_payload, loads
from .errors import (
    ConfigurationError,
    ResultTimeout,
    ServerUnavailable,
    TaskCancelled,
    TaskFailed,
    UnknownTask,
)
from .handlers import _MARK
from .ids import new_task_id
from .keys import DEFAULT_GROUP, DEFAULT_QUEUE, QueueKeys
from .plans import Inbox, Plan, ReadInbox, drive, drive_async
from .settings import DEFAULT_HOST, DEFAULT_PORT, Address, resolve

TaskName = str | Callable[..., Any]
Item = tuple[TaskName, Any] | Mapping[str, Any]

CALL_BYTES = 1024 * 1024
"""Payload bytes in one bulk call, about: larger ones would hold the server for too long."""
_CANCELLED_TTL_MS = 86_400_000
_ITEM_KEYS = frozenset(
    {"type", "payload", "retries", "delay", "task_id", "execute_at", "timeout", "result_ttl"}
)


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """How a task stands.

    ``state`` is delayed, queued, running, succeeded, failed or cancelled; ``running`` means handed
    to ``worker``. ``attempt`` counts from 1 (None while unread). ``finished_at`` is the server's
    time; ``run_time`` is in seconds. ``error`` is the last error: type, message and traceback.
    """

    id: str
    state: str
    name: str | None = None
    attempt: int | None = None
    worker: str | None = None
    result: Any = None
    error: dict[str, Any] | None = None
    finished_at: datetime | None = None
    run_time: float | None = None
    payload: Any = None

    @property
    def settled(self) -> bool:
        """Whether the task has come to its end."""
        return self.state in SETTLED


class _Plans:
    """Everything a producer does, as plans; the two producers below only carry them out."""

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
        address: Address | None = None,
    ) -> None:
        self.address = address or resolve(url, redis_host, redis_port, db, password)
        self.keys = QueueKeys(stream, delayed_key, self.address.clustered)
        self.calls = Calls(self.keys, group)
        self.timeout, self._max_bytes = timeout, max_payload_bytes
        self._inboxes: list[Inbox] = []

    # -- adding ----------------------------------------------------------------------------------

    def _new(
        self,
        type: TaskName,
        payload: Any = None,
        *,
        retries: int | None = None,
        delay: float | None = None,
        execute_at: float | datetime | None = None,
        task_id: str | None = None,
        timeout: float | None = None,
        result_ttl: float | None = None,
    ) -> tuple[str, str, bytes, bytes | str, str]:
        """The fields of one new task; every complaint about them is raised here."""
        name = type if isinstance(type, str) else _name_of(type)
        if not name or "\n" in name or len(name) > 200:
            raise ConfigurationError(f"a task's type is one line of 1 to 200 characters: {name!r}")
        data = encode_payload(name, payload, self._max_bytes)
        if task_id is None:
            task_id = new_task_id()
        elif not isinstance(task_id, str) or not 0 < len(task_id) <= 200 or "\n" in task_id:
            raise ConfigurationError(f"a task_id is one line of 1 to 200 characters: {task_id!r}")
        opts: bytes | str = ""
        if retries is not None or timeout is not None or result_ttl is not None:
            opts = _options(retries, timeout, result_ttl)
        due = ""
        if delay is not None:
            if execute_at is not None:
                raise ConfigurationError("give either delay or execute_at, not both")
            due = f"+{math.ceil(_seconds('delay', delay) * 1000)}"
        elif execute_at is not None:
            due = str(_due_ms(execute_at))
        return task_id, name, data, opts, due

    def _add(self, type: TaskName, payload: Any, options: dict[str, Any]) -> Plan[str]:
        fields = self._new(type, payload, **options)
        yield self.calls.enqueue_one(*fields)
        return fields[0]

    def _bulk(self, items: Iterable[Item]) -> tuple[list[str], list[Command]]:
        """All tasks checked and encoded before the first is sent; then few calls carry many."""
        tasks = []
        for item in items:
            if isinstance(item, Mapping):
                if unknown := set(item) - _ITEM_KEYS:
                    raise ConfigurationError(
                        f"an item has no key {sorted(unknown)[0]!r}; the keys are "
                        + ", ".join(sorted(_ITEM_KEYS))
                    )
                if "type" not in item:
                    raise ConfigurationError(f"an item needs the key 'type': {item!r}")
                fields = self._new(**item)
            elif isinstance(item, tuple | list) and len(item) == 2:
                fields = self._new(item[0], item[1])
            else:
                raise ConfigurationError(
                    f"an item is a (type, payload) pair or a mapping with 'type': {item!r:.200}"
                )
            tasks.append(NewTask(*fields))
        return [task.id for task in tasks], list(self._calls_for(tasks))

    def _calls_for(self, tasks: list[NewTask]) -> Iterator[Command]:
        start = size = 0
        for i, task in enumerate(tasks):
            if i > start and (i - start == CALL_LIMIT or size + len(task.payload) > CALL_BYTES):
                yield self.calls.enqueue(tasks[start:i])
                start, size = i, 0
            size += len(task.payload)
        if start < len(tasks):
            yield self.calls.enqueue(tasks[start:])

    # -- looking and waiting ---------------------------------------------------------------------

    def _status(self, task_id: str) -> Plan[TaskStatus]:
        watched = Calls.read_watch((yield self.calls.watch(task_id)))
        if watched.state == "unknown":
            raise UnknownTask(task_id)
        return _status_of(task_id, watched)

    def _result(self, task_id: str, timeout: float | None) -> Plan[Any]:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        inbox = self._inboxes.pop() if self._inboxes else Inbox.new(self.keys)
        try:
            while True:
                # The address is left and the record read in one step: see watch.lua.
                watched = Calls.read_watch((yield self.calls.watch(task_id, inbox.name)))
                if watched.state == "unknown":
                    raise UnknownTask(task_id)
                if watched.state in SETTLED:
                    body = watched.record.get(
                        "error" if watched.state == "failed" else "result", b"null"
                    )
                    return _outcome(task_id, watched.state, body)
                # A server that lost its memory lost the address too; ask again now and then.
                look_again = time.monotonic() + 30
                while True:
                    left = min(deadline, look_again) - time.monotonic()
                    if left <= 0:
                        break
                    told = yield ReadInbox(inbox, left)
                    if told is None:
                        break  # the connection was lost: look at the record again
                    for news in told:
                        if news.task_id == task_id and news.body is not None:
                            return _outcome(task_id, news.state, news.body)
                    if any(news.task_id == task_id for news in told):
                        break  # settled, with a body too large to ride along
                if time.monotonic() >= deadline:
                    assert timeout is not None
                    raise ResultTimeout(task_id, timeout, watched.state)
        finally:
            self._inboxes.append(inbox)

    # -- managing --------------------------------------------------------------------------------

    def _cancel(self, ids: tuple[str, ...]) -> Plan[dict[str, str]]:
        answers: dict[str, str] = {}
        for start in range(0, len(ids), CALL_LIMIT):
            part = ids[start : start + CALL_LIMIT]
            reply = yield self.calls.cancel(part, _CANCELLED_TTL_MS)
            answers.update(zip(part, (word.decode() for word in reply), strict=True))
        return answers

    def _dead(self, limit: int) -> Plan[list[TaskStatus]]:
        ids = yield ("ZREVRANGE", self.keys.dead, 0, limit - 1)
        found = []
        for raw in ids:
            watched = Calls.read_watch((yield self.calls.watch(raw.decode())))
            if watched.state != "unknown":
                found.append(_status_of(raw.decode(), watched))
        return found

    def _replay(self, ids: tuple[str, ...]) -> Plan[int]:
        done: int = 0
        if ids:
            for start in range(0, len(ids), CALL_LIMIT):
                reply = yield self.calls.replay(ids[start : start + CALL_LIMIT])
                done += reply[0]
            return done
        before, offset = (yield from self._now_ms()), 0
        while True:
            replayed, kept, dropped = yield self.calls.replay((), str(before), offset)
            done, offset = done + replayed, offset + kept
            if replayed + kept + dropped < CALL_LIMIT:
                return done

    def _purge(self, ids: tuple[str, ...]) -> Plan[int]:
        done: int = 0
        if ids:
            for start in range(0, len(ids), CALL_LIMIT):
                done += yield self.calls.purge(ids[start : start + CALL_LIMIT])
            return done
        before = yield from self._now_ms()
        while True:
            purged = yield self.calls.purge((), str(before))
            done += purged
            if purged < CALL_LIMIT:
                return done

    def _now_ms(self) -> Plan[int]:
        seconds, micros = yield ("TIME",)
        return int(seconds) * 1000 + int(micros) // 1000

    def _pause(self, paused: bool) -> Plan[None]:
        yield ("HSET", self.keys.meta, "paused", int(paused))
        yield ("PUBLISH", self.keys.channel, "paused" if paused else "resumed")

    def _snapshot(self) -> Plan[Snapshot]:
        return Calls.read_snapshot((yield self.calls.snapshot()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(queue={self.keys.stream!r}, url={str(self.address)!r})"


class TaskProducer(_Plans):
    """Adds tasks to a queue and waits for their results. Safe to use from several threads.

    A task is stored when ``add_task`` returns, as durably as the server stores anything. Every
    call is bounded by ``timeout`` seconds (waiting for a result has its own) and then raises
    ServerUnavailable. Without a ``url`` and with the default host and port the server is found as
    ``settings.resolve`` says: ``REDISTQ_URL``, localhost:6379, or an embedded server.
    """

    def __init__(
        self,
        redis_host: str = DEFAULT_HOST,
        redis_port: int = DEFAULT_PORT,
        db: int = 0,
        stream: str = DEFAULT_QUEUE,
        **options: Any,
    ) -> None:
        super().__init__(redis_host, redis_port, db, stream, **options)
        self.broker = Broker(self.address, slot_key=self.keys.stream, timeout=self.timeout)

    def add_task(
        self,
        type: TaskName,
        payload: Any = None,
        *,
        retries: int | None = None,
        delay: float | None = None,
        task_id: str | None = None,
        timeout: float | None = None,
        result_ttl: float | None = None,
    ) -> str:
        """Add one task and return its id.

        ``type`` is the name a handler is registered under, or a function decorated with ``@task``.
        ``payload`` is anything JSON can hold. ``retries``, ``timeout`` (seconds) and ``result_ttl``
        (seconds, 0 keeps no result) override the handler's. ``delay`` is in seconds. A ``task_id``
        that the queue knows already is answered: nothing is added.

        Raises PayloadError, PayloadTooLarge, ConfigurationError, ServerFull or ServerUnavailable.
        """
        fields = self._new(
            type,
            payload,
            retries=retries,
            delay=delay,
            task_id=task_id,
            timeout=timeout,
            result_ttl=result_ttl,
        )
        self.broker.call(self.calls.enqueue_one(*fields))
        return fields[0]

    def add_tasks(self, items: Iterable[Item]) -> list[str]:
        """Add many tasks, few calls to the server; returns their ids in order.

        An item is a ``(type, payload)`` pair or a mapping with ``type``, ``payload`` and any of
        ``add_task``'s and ``schedule_task``'s keywords. Every item is checked before the first is
        sent. When the server goes away in the middle, ServerUnavailable carries ``task_ids``, the
        ids in order: adding the same items with these ids doubles nothing.
        """
        ids, commands = self._bulk(items)
        try:
            for _ in self.broker.call_many(commands):
                pass
        except ServerUnavailable as error:
            error.task_ids = ids
            raise
        return ids

    def schedule_task(
        self,
        type: TaskName,
        payload: Any = None,
        execute_at: float | datetime = 0.0,
        **options: Any,
    ) -> str:
        """Add a task that becomes ready at ``execute_at``: epoch seconds or an aware datetime.

        The time is compared with the server's clock. A time in the past means now.
        """
        fields = self._new(type, payload, execute_at=execute_at, **options)
        self.broker.call(self.calls.enqueue_one(*fields))
        return fields[0]

    def get_result(self, task_id: str, timeout: float | None = None) -> Any:
        """The task's result, as soon as it is settled; no polling.

        Raises TaskFailed, TaskCancelled, UnknownTask, or ResultTimeout (a TimeoutError) after
        ``timeout`` seconds (None: no limit); the task goes on.
        """
        return drive(self.broker, self._result(task_id, timeout))

    def get_task(self, task_id: str) -> TaskStatus:
        """How a task stands; raises UnknownTask."""
        return drive(self.broker, self._status(task_id))

    def cancel(self, *task_ids: str) -> dict[str, str]:
        """Cancel tasks that wait; answers, per id, 'cancelled', 'running' (left alone), the state
        of one that was settled already, or 'unknown'."""
        return drive(self.broker, self._cancel(task_ids))

    def dead_letters(self, limit: int = 100) -> list[TaskStatus]:
        """The newest failed tasks, with payload and error."""
        return drive(self.broker, self._dead(limit))

    def replay(self, *task_ids: str) -> int:
        """Send dead letters again with a clean slate: these, or all; answers how many went."""
        return drive(self.broker, self._replay(task_ids))

    def purge(self, *task_ids: str) -> int:
        """Delete dead letters for good: these, or all; answers how many were deleted."""
        return drive(self.broker, self._purge(task_ids))

    def pause(self) -> None:
        """Let no worker of this queue start another task until ``resume``; adding goes on."""
        drive(self.broker, self._pause(True))

    def resume(self) -> None:
        """End a pause."""
        drive(self.broker, self._pause(False))

    def snapshot(self) -> Snapshot:
        """Every figure of the queue at one instant."""
        return drive(self.broker, self._snapshot())

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        inboxes, self._inboxes = self._inboxes, []
        for inbox in inboxes:
            if inbox.wire is not None:
                inbox.wire.close()
        self.broker.close()

    def __enter__(self) -> TaskProducer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncTaskProducer(_Plans):
    """TaskProducer for ``await``: the same methods, the same promises, one event loop.

    Finding the server, which may start the embedded one, happens in the constructor and blocks.
    """

    def __init__(
        self,
        redis_host: str = DEFAULT_HOST,
        redis_port: int = DEFAULT_PORT,
        db: int = 0,
        stream: str = DEFAULT_QUEUE,
        **options: Any,
    ) -> None:
        super().__init__(redis_host, redis_port, db, stream, **options)
        from .async_broker import AsyncBroker

        self.broker = AsyncBroker(self.address, slot_key=self.keys.stream, timeout=self.timeout)

    async def add_task(self, type: TaskName, payload: Any = None, **options: Any) -> str:
        """As TaskProducer.add_task."""
        fields = self._new(type, payload, **options)
        await self.broker.call(self.calls.enqueue_one(*fields))
        return fields[0]

    async def add_tasks(self, items: Iterable[Item]) -> list[str]:
        """As TaskProducer.add_tasks."""
        ids, commands = self._bulk(items)
        try:
            for command in commands:
                await self.broker.call(command)
        except ServerUnavailable as error:
            error.task_ids = ids
            raise
        return ids

    async def schedule_task(
        self,
        type: TaskName,
        payload: Any = None,
        execute_at: float | datetime = 0.0,
        **options: Any,
    ) -> str:
        """As TaskProducer.schedule_task."""
        return await self.add_task(type, payload, execute_at=execute_at, **options)

    async def get_result(self, task_id: str, timeout: float | None = None) -> Any:
        """As TaskProducer.get_result; cancelling the wait leaves the task alone."""
        return await drive_async(self.broker, self._result(task_id, timeout))

    async def get_task(self, task_id: str) -> TaskStatus:
        """As TaskProducer.get_task."""
        return await drive_async(self.broker, self._status(task_id))

    async def cancel(self, *task_ids: str) -> dict[str, str]:
        """As TaskProducer.cancel."""
        return await drive_async(self.broker, self._cancel(task_ids))

    async def dead_letters(self, limit: int = 100) -> list[TaskStatus]:
        """As TaskProducer.dead_letters."""
        return await drive_async(self.broker, self._dead(limit))

    async def replay(self, *task_ids: str) -> int:
        """As TaskProducer.replay."""
        return await drive_async(self.broker, self._replay(task_ids))

    async def purge(self, *task_ids: str) -> int:
        """As TaskProducer.purge."""
        return await drive_async(self.broker, self._purge(task_ids))

    async def pause(self) -> None:
        """As TaskProducer.pause."""
        await drive_async(self.broker, self._pause(True))

    async def resume(self) -> None:
        """As TaskProducer.resume."""
        await drive_async(self.broker, self._pause(False))

    async def snapshot(self) -> Snapshot:
        """As TaskProducer.snapshot."""
        return await drive_async(self.broker, self._snapshot())

    async def close(self) -> None:
        """Close the connections; safe to call twice."""
        self._inboxes.clear()
        await self.broker.close()

    async def __aenter__(self) -> AsyncTaskProducer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _name_of(function: Any) -> str:
    handler = getattr(function, _MARK, None)
    if handler is None:
        raise ConfigurationError(
            f"a task's type is a name or a function decorated with @task, not {function!r:.200}"
        )
    name: str = handler.name
    return name


def _seconds(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e10:
        raise ConfigurationError(f"{what} is a number of seconds, 0 or more, not {value!r}")
    return float(value)


def _options(retries: int | None, timeout: float | None, result_ttl: float | None) -> bytes:
    opts: dict[str, Any] = {}
    if retries is not None:
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ConfigurationError(f"retries is 0 or more, not {retries!r}")
        opts["retries"] = retries
    if timeout is not None:
        opts["timeout"] = _seconds("timeout", timeout)
    if result_ttl is not None:
        opts["result_ttl"] = _seconds("result_ttl", result_ttl)
    return dumps(opts)


def _due_ms(execute_at: Any) -> int:
    if isinstance(execute_at, datetime):
        if execute_at.tzinfo is None:
            raise ConfigurationError(
                "execute_at is a datetime without a time zone, which could mean any hour; use an "
                "aware one: datetime.now(timezone.utc) + timedelta(...)"
            )
        execute_at = execute_at.timestamp()
    # Rounded up: a task never runs before its time.
    return math.ceil(_seconds("execute_at", execute_at) * 1000)


def _outcome(task_id: str, state: str, body: bytes) -> Any:
    if state == "succeeded":
        return loads(body)
    if state == "failed":
        raise TaskFailed(task_id, loads(body))
    raise TaskCancelled(task_id)


def _status_of(task_id: str, watched: Watched) -> TaskStatus:
    record = watched.record

    def text(field: str) -> str | None:
        return record[field].decode("utf-8", "replace") if record.get(field) else None

    finished, run_ms, payload = text("finished_ms"), text("run_ms"), record.get("payload")
    attempt = text("attempt")
    return TaskStatus(
        id=task_id,
        state=watched.state,
        name=text("name"),
        attempt=int(attempt) if attempt else None,
        worker=watched.consumer or text("worker"),
        result=loads(record["result"]) if watched.state == "succeeded" else None,
        error=loads(record["error"]) if record.get("error") else None,
        finished_at=datetime.fromtimestamp(int(finished) / 1000, UTC) if finished else None,
        run_time=float(run_ms) / 1000 if run_ms else None,
        payload=loads(payload) if payload else None,
    )

"""What a producer does, as plans: adding, looking, waiting and managing, written once.

Carried out by TaskProducer and AsyncTaskProducer. It checks and encodes everything before anything
is sent, and never touches a connection itself.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .. import tracing
from ..connection.address import DEFAULT_HOST, DEFAULT_PORT, Address, resolve
from ..connection.broker import DEFAULT_TIMEOUT
from ..errors import (
    ConfigurationError,
    RedistqError,
    ResultTimeout,
    TaskCancelled,
    TaskFailed,
    UnknownTask,
    WrongKind,
)
from ..handlers import _MARK
from ..protocol.codec import DEFAULT_MAX_BYTES, dumps, encode_payload, loads
from ..protocol.commands import (
    MAX_TASKS,
    SETTLED,
    TIME,
    Command,
    Commands,
    Snapshot,
    Watched,
    read_time,
    words_of,
)
from ..protocol.ids import check_line, new_task_id
from ..protocol.keys import DEFAULT_GROUP, DEFAULT_QUEUE, QueueKeys
from ..protocol.options import count, due_after, due_at, seconds, unknown_option, wait_seconds
from .diagnosis import ANY_NAME, Diagnosis, Wait
from .sansio import NOTICE_S, Call, Inbox, Operation, ReadInbox

TaskName = str | Callable[..., Any]
Fields = tuple[str, str, bytes, bytes, str]
"""A new task: its id, name, payload, options (JSON or empty) and due time."""
Item = tuple[TaskName, Any] | Mapping[str, Any]

CALL_BYTES = 1024 * 1024
"""Payload bytes in one bulk call, about: larger ones would hold the server for too long."""
INBOX_KEPT = 100
"""Notes read from an inbox after which they are deleted."""
RECENT = 32
"""Most tasks added one by one that a producer remembers, to see whether they are waited for."""
HABIT = 4
"""After so many that were all waited for, the next is added with the address of its waiter."""
EXPECTED_S = 0.25
"""How long a waiter trusts that address before it looks at the record."""
_NOBODY = "is a worker running for this queue?"
LEAST_LOOK_S = 1.0
"""How long the server may take to say how a task stands, however little time a waiter gave."""
_UNREADABLE = (ValueError, RecursionError, AttributeError)
"""What reading a body that no worker wrote raises."""
_NOT_HERE: Any = object()
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


class ProducerOperations:
    """Everything a producer does, as plans; the two producers only carry them out."""

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
        self.commands = Commands(self.keys, group)
        self.timeout = seconds("timeout", timeout, positive=True)
        self._max_bytes = max_payload_bytes
        self._inboxes: list[Inbox] = []
        self._recent: OrderedDict[str, Inbox | None] = OrderedDict()
        self._waited = 0  # how many of them were waited for, one after the other
        self._pid = os.getpid()
        self._checked: str | None = None  # the name of the last new task, which can be one
        self._diagnosis = Diagnosis(self.commands, self.address)

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
    ) -> Fields:
        """The fields of one new task; every complaint about them is raised here."""
        name = type if isinstance(type, str) else _name_of(type)
        if name is not self._checked:
            check_line("a task's type", name)
            self._checked = name
        data = encode_payload(name, payload, self._max_bytes)
        if task_id is None:
            task_id = new_task_id()
        else:
            check_line("a task_id", task_id)
        opts = b""
        if retries is not None or timeout is not None or result_ttl is not None:
            opts = _options(retries, timeout, result_ttl)
        if tracing.active is not None:
            carrier = tracing.active.created(task_id, name, self.keys.stream)
            opts = _options(retries, timeout, result_ttl, carrier)
        due = ""
        if delay is not None:
            if execute_at is not None:
                raise ConfigurationError("give either delay or execute_at, not both")
            due = due_after(delay)
        elif execute_at is not None:
            due = due_at(execute_at)
        return task_id, name, data, opts, due

    def _adding(self, type: TaskName, payload: Any, **options: Any) -> tuple[str, Command]:
        """A new task's id and the call that adds it; ``options`` are those of ``_new``."""
        return self._sending(self._new(type, payload, **options), options.get("task_id") is None)

    def _sending(self, fields: Fields, id_is_new: bool) -> tuple[str, Command]:
        if fields[4] or not id_is_new:
            return fields[0], self.commands.enqueue_one(*fields)
        return fields[0], self._enqueue_now(fields)

    def _enqueue_now(self, fields: Fields) -> Command:
        """The call that adds a new task now, with the address of its waiter if there will be one.

        Whoever waits for each task it adds spares itself one call a task: the settlement tells
        its inbox without being asked to. It is a guess: a task that nobody waits for leaves one
        small note behind, and ends the guessing.
        """
        task_id, name, data, opts, due = fields
        inbox: Inbox | None = None
        if self._waited >= HABIT:
            inbox = self._free_inbox()
            address = b'"inbox":"%b"}' % inbox.name.encode()
            opts = b"{" + address if len(opts) < 3 else b"%b,%b" % (opts[:-1], address)
        self._recent[task_id] = inbox
        if len(self._recent) > RECENT:
            with contextlib.suppress(KeyError):  # another thread was faster
                _, forgotten = self._recent.popitem(last=False)
                self._waited = 0
                if forgotten is not None:
                    self._inboxes.append(forgotten)
        return self.commands.enqueue_one(task_id, name, data, opts, due)

    def _bulk(self, items: Iterable[Item]) -> tuple[list[str], list[Command]]:
        """All tasks checked and encoded before the first is sent; then few calls carry many."""
        ids: list[str] = []
        commands: list[Command] = []
        flat: list[Any] = []  # the fields of the tasks of one call
        count = size = 0
        checked: str | None = None  # a name known to be one, while nothing else goes with a task
        limit = self._max_bytes
        fields: Fields
        for item in items:
            if type(item) is tuple and len(item) == 2:
                name, payload = item
                if checked is not None and name is checked:  # the usual: thousands of one type
                    data = encode_payload(checked, payload, limit)
                    fields = (new_task_id(), checked, data, b"", "")
                else:
                    fields = self._new(name, payload)
                    checked = name if isinstance(name, str) and not fields[3] else None
            else:
                fields = self._new(**_mapping(item))
            length = len(fields[2])
            if count and (count == MAX_TASKS or size + length > CALL_BYTES):
                commands.append(self.commands.enqueue(flat))
                flat, count, size = [], 0, 0
            flat.extend(fields)
            ids.append(fields[0])
            count, size = count + 1, size + length
        if flat:
            commands.append(self.commands.enqueue(flat))
        return ids, commands

    def _check_stored(self, *replies: list[Any]) -> None:
        """Raise what the answers of ``enqueue`` say of tasks that could not be stored."""
        for reply in replies:
            if reply and (error := not_stored(self.keys, reply)) is not None:
                raise error

    # -- looking and waiting ---------------------------------------------------------------------

    def _status(self, task_id: str) -> Operation[TaskStatus]:
        watched = Commands.read_watch((yield self.commands.watch(task_id)))
        if watched.state == "unknown":
            raise UnknownTask(task_id)
        return _status_of(task_id, watched)

    def _free_inbox(self) -> Inbox:
        if self._pid != os.getpid():  # forked: the parent reads those
            self._inboxes, self._pid = [], os.getpid()
            self._recent, self._waited = OrderedDict(), 0
        try:
            return self._inboxes.pop()
        except IndexError:  # none, or another thread was faster
            return Inbox.new(self.keys)

    def _result(self, task_id: str, timeout: float | None) -> Operation[Any]:
        timeout = wait_seconds(timeout)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        expected: Inbox | None = None
        if self._pid == os.getpid():
            added = self._recent.pop(task_id, _NOT_HERE)
            if added is not _NOT_HERE:
                expected = added
                if self._waited < HABIT:
                    self._waited += 1
        inbox = expected or self._free_inbox()
        try:
            if inbox.kept >= INBOX_KEPT:  # read, that is; the inbox does not grow for ever
                with contextlib.suppress(WrongKind):  # the next read tells
                    yield ("XTRIM", inbox.key, "MINID", inbox.last)
                inbox.kept = 0
            left = min(EXPECTED_S, deadline - time.monotonic())
            if expected is not None and left > 0:
                for news in (yield ReadInbox(inbox, left, deadline)) or ():
                    if news.task_id == task_id and news.body is not None:
                        try:
                            return _outcome(task_id, news.state, news.body)
                        except _UNREADABLE:
                            break  # the record has the truth
            wait = Wait()
            while True:
                # The address is left and the record read in one step: see watch.lua. However
                # little time is left, the question is asked.
                look = Call(
                    self.commands.watch(task_id, inbox.name),
                    max(deadline, time.monotonic() + min(self.timeout, LEAST_LOOK_S)),
                )
                watched = Commands.read_watch((yield look))
                if watched.state == "unknown":
                    raise UnknownTask(task_id)
                if watched.state in SETTLED:
                    body = watched.record.get(
                        "error" if watched.state == "failed" else "result", b"null"
                    )
                    try:
                        return _outcome(task_id, watched.state, body)
                    except _UNREADABLE as error:
                        raise RedistqError(
                            f"task {task_id} has {watched.state}, but what its record holds "
                            f"cannot be read: {error}"
                        ) from error
                # A server that lost its memory lost the address too; ask again now and then.
                now = time.monotonic()
                look_again, told = now + 30, []
                while True:
                    left = min(deadline, look_again) - now
                    if left <= 0:
                        break
                    seconds = min(left, NOTICE_S, max(0.01, wait.left(now)))
                    told = yield ReadInbox(inbox, seconds, deadline)
                    if told is None:
                        break  # the connection was lost: look at the record again
                    for news in told:
                        if news.task_id == task_id and news.body is not None:
                            try:
                                return _outcome(task_id, news.state, news.body)
                            except _UNREADABLE:
                                break
                    if any(news.task_id == task_id for news in told):
                        break  # settled; its body was too large to ride along, or unreadable
                    now = time.monotonic()
                    if now < deadline and wait.due(now):
                        self._diagnosis.tell((yield from self._why(task_id, watched)))
                if time.monotonic() >= deadline:
                    assert timeout is not None
                    reason = "" if watched.state == "running" else _NOBODY
                    if reason and timeout >= 1 and told is not None:  # a shorter wait asks nobody
                        reason = yield from self._why(task_id, watched)
                    raise ResultTimeout(task_id, timeout, watched.state, reason)
        finally:
            self._inboxes.append(inbox)

    def _why(self, task_id: str, watched: Watched) -> Operation[str]:
        """Why a task that is waited for does not run; '' also when the server does not say, which
        is no reason to end the wait."""
        name, entry = watched.record.get("name", b""), watched.record.get("entry", b"")
        try:
            if not name and entry:  # while it is queued its name is in the stream alone
                for _, flat in (yield self.commands.entry(entry)):
                    name = dict(zip(flat[::2], flat[1::2], strict=False)).get(b"name", b"")
            names = [name.decode("utf-8", "replace") if name else ANY_NAME]
            return self._diagnosis.read((yield self._diagnosis.command), names)
        except Exception as error:
            return self._diagnosis.unanswered(error)

    # -- managing --------------------------------------------------------------------------------

    def _cancel(self, ids: tuple[str, ...]) -> Operation[dict[str, str]]:
        answers: dict[str, str] = {}
        for start in range(0, len(ids), MAX_TASKS):
            part = ids[start : start + MAX_TASKS]
            reply = yield self.commands.cancel(part, _CANCELLED_TTL_MS)
            answers.update(zip(part, (word.decode() for word in reply), strict=True))
        return answers

    def _dead(self, limit: int) -> Operation[list[TaskStatus]]:
        ids = yield self.commands.newest_dead(limit)
        found = []
        for raw in ids:
            watched = Commands.read_watch((yield self.commands.watch(raw.decode())))
            if watched.state != "unknown":
                found.append(_status_of(raw.decode(), watched))
        return found

    def _replay(self, ids: tuple[str, ...]) -> Operation[int]:
        done: int = 0
        if ids:
            for start in range(0, len(ids), MAX_TASKS):
                reply = yield self.commands.replay(ids[start : start + MAX_TASKS])
                done += reply[0]
            return done
        before, offset = (yield from self._now_ms()), 0
        while True:
            replayed, kept, dropped = yield self.commands.replay((), str(before), offset)
            done, offset = done + replayed, offset + kept
            if replayed + kept + dropped < MAX_TASKS:
                return done

    def _purge(self, ids: tuple[str, ...]) -> Operation[int]:
        done: int = 0
        if ids:
            for start in range(0, len(ids), MAX_TASKS):
                done += yield self.commands.purge(ids[start : start + MAX_TASKS])
            return done
        before = yield from self._now_ms()
        while True:
            purged = yield self.commands.purge((), str(before))
            done += purged
            if purged < MAX_TASKS:
                return done

    def _now_ms(self) -> Operation[int]:
        return read_time((yield TIME))

    def _pause(self, paused: bool) -> Operation[None]:
        yield self.commands.set_paused(paused)
        # Without a right to the channel, workers see it with their next heartbeat.
        with contextlib.suppress(ConfigurationError):
            yield self.commands.announce_paused(paused)

    def _snapshot(self) -> Operation[Snapshot]:
        return Commands.read_snapshot((yield self.commands.snapshot()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(queue={self.keys.stream!r}, url={str(self.address)!r})"


def not_stored(keys: QueueKeys, reply: list[Any]) -> RedistqError | None:
    """What an answer of ``enqueue`` says of the first task that could not be stored."""
    for item in reply:
        if type(item) is list:
            task_id = item[2].decode("utf-8", "replace")
            return RedistqError(
                f"task {task_id!r} was not stored: the key {keys.task(task_id)} holds something "
                f"that is no task ({words_of(item[1])}); delete that key or use another task_id. "
                "Whatever else was sent with it is stored"
            )
    return None


def _mapping(item: Any) -> Mapping[str, Any]:
    """An item of a bulk call as keywords of ``_new``."""
    if isinstance(item, Mapping):
        if unknown := set(item) - _ITEM_KEYS:
            raise unknown_option("an item", sorted(map(str, unknown))[0], _ITEM_KEYS)
        if "type" not in item:
            raise ConfigurationError(f"an item needs the key 'type': {item!r:.200}")
        return item
    if isinstance(item, tuple | list) and len(item) == 2:
        return {"type": item[0], "payload": item[1]}
    raise ConfigurationError(
        f"an item is a (type, payload) pair or a mapping with 'type': {item!r:.200}"
    )


def _name_of(function: Any) -> str:
    handler = getattr(function, _MARK, None)
    if handler is None:
        raise ConfigurationError(
            f"a task's type is a name or a function decorated with @task, not {function!r:.200}"
        )
    name: str = handler.name
    return name


def _options(
    retries: int | None,
    timeout: float | None,
    result_ttl: float | None,
    carrier: dict[str, str] | None = None,
) -> bytes:
    opts: dict[str, Any] = {tracing.CARRIER: carrier} if carrier else {}
    if retries is not None:
        opts["retries"] = count("retries", retries)
    if timeout is not None:
        opts["timeout"] = seconds("timeout", timeout, positive=True)
    if result_ttl is not None:
        opts["result_ttl"] = seconds("result_ttl", result_ttl)
    return dumps(opts)


def _outcome(task_id: str, state: str, body: bytes) -> Any:
    if state == "succeeded":
        return loads(body)
    if state == "failed":
        raise TaskFailed(task_id, loads(body))
    raise TaskCancelled(task_id)


def _readable(payload: bytes) -> Any:
    """A payload; one that is no JSON, which is why its task failed, as text."""
    try:
        return loads(payload)
    except (ValueError, RecursionError):
        return payload.decode("utf-8", "replace")


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
        error=loads(record["error"])
        if watched.state != "succeeded" and record.get("error")
        else None,
        finished_at=datetime.fromtimestamp(int(finished) / 1000, UTC) if finished else None,
        run_time=float(run_ms) / 1000 if run_ms else None,
        payload=_readable(payload) if payload else None,
    )

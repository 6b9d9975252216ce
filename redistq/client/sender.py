"""The sender of a client: takes its calls to the server, and brings the answers to their futures.

Made by a Client. Two threads, started with the first call: one sends what waits, many at a time;
one reads the inbox, and thereby resolves every future with a single blocking read. It knows the
client only through futures and batches that are outstanding, so a client nobody holds can go.

No future hangs. News can be lost with a connection, with the server's memory, or with an inbox
that expired while a laptop slept: after each new connection, and now and then for those that have
waited long, the server is asked how the tasks stand. A task it does not know is given up once the
inbox, where its news may still be, has been read to the end.

From the first call to the end of the client it gives signs of life (see presence.py), and it looks
now and then whether the batches that were begun have ended: until then it holds their client.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..connection.broker import Broker
from ..connection.connection import Connection
from ..errors import (
    ConnectionLost,
    GroupMissing,
    RedistqError,
    ServerUnavailable,
    UnknownTask,
    WrongKind,
)
from ..functions.blobs import Blobs
from ..functions.signing import Signer
from ..logger import logger
from ..producer.diagnosis import Diagnosis, Wait
from ..producer.operations import not_stored
from ..producer.producer import TaskProducer
from ..producer.sansio import BLOCK_LIMIT, NOTICE_S, Inbox, Notification, ReadInbox
from ..protocol.commands import SETTLED, Commands, Watched
from ..protocol.ids import new_task_id
from ..protocol.portions import fill
from .futures import TaskFuture, settle_future
from .presence import BATCH_CLIENT, LIFE_S, MARK, SIGN_S, me

if TYPE_CHECKING:
    from ..connection.address import Address
    from .batch import Batch

log = logger("redistq.client")

LOOK_S = 30.0
"""Seconds after which futures that still wait are asked for."""
LOOK_MANY = 1000
BATCH_LOOK_S = 2.0
"""Seconds between two looks at batches whose end was not seen."""
GIVE_UP_S = 120.0
"""Seconds without a server after which futures fail rather than wait for it any longer."""
DOUBT_S = 0.1
"""Seconds that the inbox is given to tell of a task which the server does not know."""
TAKEN_TTL_S = 600
"""Seconds that a large result is kept once its client has it, unless it was told for how long: a
map over large results must not fill the server for a day."""
FAREWELL_S = 1.0
"""Seconds that the end of a client may take to remove its inbox."""
BURST_S = 0.001
QUIET_S = 10.0
"""Seconds after the last call from which on the inbox is read in long waits again."""
INBOX_PAGE = 1000


@dataclass(slots=True)
class Outgoing:
    """A task that waits to be sent: its five fields, and whether it is a cached call."""

    fields: tuple[str, str, bytes, bytes, str]
    memo: bool = False
    refused: RedistqError | None = None
    """Why the server could not store it."""


class Sender:
    """Sends calls and resolves futures; safe to use from several threads, and across a fork."""

    def __init__(
        self,
        broker: Broker,
        commands: Commands,
        producer: TaskProducer,
        signer: Signer,
        blobs: Blobs,
        diagnosis: Diagnosis,
    ) -> None:
        self._broker, self._commands, self._producer = broker, commands, producer
        self._signer, self._blobs, self._diagnosis = signer, blobs, diagnosis
        self.give_up_s, self.look_s, self.sign_s = GIVE_UP_S, LOOK_S, SIGN_S
        self.closed = False
        """Whether no new work is taken."""
        self.ended = threading.Event()
        """Whether no more answers will come."""
        self._reset()
        _senders.add(self)

    def _reset(self) -> None:
        self.inbox = Inbox.new(self._commands.keys, MARK)
        self._life = self._commands.keys.client(self.inbox.name)
        self._signed = False
        self.pending: dict[str, TaskFuture | list[TaskFuture]] = {}
        self._outbox: deque[Outgoing] = deque()
        self._sending, self._lock = threading.Lock(), threading.Lock()
        self._some = threading.Event()
        self._threads: list[threading.Thread] = []
        self._last_submit = 0.0
        self._doubtful: list[str] = []
        self._to_look: list[str] = []
        self._away = 0.0  # since when the server is away; 0 while it is there
        self._wait, self._oldest = Wait(), ""
        self._batches: weakref.WeakSet[Batch] = weakref.WeakSet()
        self._begun: set[Batch] = set()

    # -- sending ---------------------------------------------------------------------------------

    def send(self, item: Outgoing, future: TaskFuture) -> None:
        """Take a call to the server. Raises RuntimeError after the end."""
        with self._lock:
            if self.closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._remember(future)
            self._outbox.append(item)
        # A lone call is sent from here, which is quickest; of a burst, the sender takes many at
        # a time.
        now = time.monotonic()
        lone, self._last_submit = now - self._last_submit > BURST_S, now
        if lone:
            self._flush()
        else:
            self._some.set()

    def expect(self, future: TaskFuture) -> None:
        """Resolve a future whose task was sent before."""
        with self._lock:
            if self.closed:
                raise RuntimeError("the client is closed")
            self._remember(future)
        self._sign_once()
        watched = self._watch(future.task_id)
        if watched.state == "unknown":  # nobody will tell us of it
            self._resolve(future.task_id, partial(_give_exception, UnknownTask(future.task_id)))
        else:
            self._take(future.task_id, watched)

    def _remember(self, future: TaskFuture) -> None:
        known = self.pending.get(future.task_id)
        if known is None:
            if not self.pending:
                self._wait.heard(time.monotonic())
                self._oldest = future.task_id
            self.pending[future.task_id] = future
        elif isinstance(known, list):
            known.append(future)
        else:
            self.pending[future.task_id] = [known, future]
        self._start()

    def _start(self) -> None:
        if not self._threads:
            for target, role in ((self._send_loop, "send"), (self._inbox_loop, "inbox")):
                thread = threading.Thread(
                    target=target, name=f"redistq-{role}-{self.inbox.name[-6:]}", daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def _send_loop(self) -> None:
        while not self.ended.is_set():
            self._some.wait()
            self._some.clear()
            try:
                self._flush(patient=True)
            except Exception:
                log.exception("the sender goes on after an error")

    def _flush(self, patient: bool = False) -> None:
        """Send what waits. Where another thread is sending, the sender thread takes the rest."""
        while self._outbox:
            if not self._sending.acquire(blocking=patient):
                self._some.set()
                return
            batch: list[Outgoing] = []
            known: list[Outgoing] = []
            failed: Exception | None = None
            try:
                fill(batch, self._taken(), lambda item: len(item.fields[2]))
                if batch:
                    known = self._send_batch(batch)
            except Exception as error:
                failed = error
            except BaseException:
                # An interrupt: whether they arrived is unknown, and sending them again is
                # harmless. The sender thread, which is never interrupted, does it.
                self._outbox.extendleft(reversed(batch))
                self._some.set()
                raise
            finally:
                self._sending.release()
            # Without the lock from here on: a future's callbacks may call us.
            if failed is not None:  # told to every future that waits for it
                for item in batch:
                    self._resolve(item.fields[0], partial(_give_exception, failed))
            for item in known:
                self._known(item)

    def _taken(self) -> Iterator[Outgoing]:
        """What waits, taken away one by one."""
        while self._outbox:
            yield self._outbox.popleft()

    def _send_batch(self, batch: list[Outgoing]) -> list[Outgoing]:
        """Those of the batch that the server has already, or could not store."""
        self._sign_once()
        flat = tuple(itertools.chain.from_iterable(item.fields for item in batch))
        reply = self._broker.call(self._commands.enqueue(flat))
        if not reply:
            return []
        refused = Commands.read_refused(reply)
        for position in refused.broken:
            item = batch[position]
            rows = [row for row in reply if type(row) is list and row[0] == position + 1]
            item.refused = not_stored(self._commands.keys, rows)
        return [batch[position] for position in (*refused.lost, *refused.broken)]

    def _known(self, item: Outgoing) -> None:
        """A call that the server has already: a cached one, or one whose first answer was lost."""
        task_id = item.fields[0]
        if item.refused is not None:
            self._resolve(task_id, partial(_give_exception, item.refused))
            return
        try:
            watched = self._watch(task_id)
            if item.memo and watched.state in ("failed", "cancelled"):
                # A cached call that failed is tried again, with the function as stored now.
                again = self._commands.resubmit(new_task_id(), [(*item.fields, "", "")])
                reply = self._broker.call(again)
                if (error := not_stored(self._commands.keys, reply)) is not None:
                    raise error
                if not reply:
                    # Its end will be in our inbox. Taken from the record, that message would be
                    # left for the next call of the same code, and give it this one's end.
                    return
                watched = self._watch(task_id)  # somebody else was first
            self._take(task_id, watched)
        except Exception as error:
            self._resolve(task_id, partial(_give_exception, error))

    # -- signs of life, and batches --------------------------------------------------------------

    def _sign_once(self) -> None:
        """Give the first sign of life: before the first call, so that none is ever without."""
        if not self._signed:
            self._sign()

    def _sign(self) -> None:
        """Give the sign by which others know that our calls are wanted."""
        # A server that is full refuses SET alone.
        if not self._signed or not self._broker.call(("EXPIRE", self._life, LIFE_S)):
            self._broker.call(("SET", self._life, me(), "EX", LIFE_S))
            self._signed = True

    def want(self, batch_id: str) -> None:
        """Leave in a batch's record that its results are wanted here."""
        with self._lock:
            if self.closed:
                return
            self._start()
        self._sign_once()
        mark = BATCH_CLIENT.decode() + self.inbox.name
        self._broker.call(("HSET", self._commands.keys.batch(batch_id), mark, ""))

    def hold(self, batch: Batch, *, begun: bool) -> None:
        """Tell a batch when it has ended; one that was ``begun`` here, and with it its client, is
        held until then, as a future that waits is."""
        with self._lock:
            if self.closed:
                return
            self._start()
            self._batches.add(batch)
            if begun:
                self._begun.add(batch)

    def let_go(self, batch: Batch) -> None:
        """A batch has ended."""
        with self._lock:
            self._batches.discard(batch)
            self._begun.discard(batch)

    def _look_at_batches(self) -> None:
        with self._lock:
            batches = list(self._batches)
        for batch in batches:
            batch.look()

    # -- answers ---------------------------------------------------------------------------------

    def _inbox_loop(self) -> None:
        connection = self._broker.connection(BLOCK_LIMIT + self._broker.timeout)
        self.inbox.connection = connection
        lost, pause = False, 0.05
        last_look = last_trim = last_sign = last_batches = now = time.monotonic()
        while not self.ended.is_set():
            try:
                doubtful = list(self._doubtful)
                step = ReadInbox(self.inbox, DOUBT_S if doubtful or lost else self._patience(now))
                told = self._read_inbox(connection, step)
                for news in told:
                    self._told(news.task_id, news.state, news.body)
                if len(told) < INBOX_PAGE:  # read to the end: what is not known by now is lost
                    del self._doubtful[: len(doubtful)]
                    self._give_up(doubtful)
                now = time.monotonic()
                if told and (now - last_trim > 1 or len(told) == INBOX_PAGE):
                    last_trim = now
                    with contextlib.suppress(WrongKind):  # the next read tells
                        trim = ("XTRIM", self.inbox.key, "MINID", _after(self.inbox.last))
                        self._broker.call(trim)
                del told
                if self._away:
                    log.warning("the server is back at %s", self._broker.address)
                    self._away = 0.0
                if lost:
                    # News, and what we believe the server has, may be lost with the connection.
                    self._blobs.forget()
                    self._look_at(self._sent())
                    lost, last_look, last_sign = False, now, -math.inf
                elif self.pending and now - last_look > self.look_s:
                    last_look = now
                    if not self._to_look:
                        self._to_look = self._sent()
                    part, self._to_look = self._to_look[:LOOK_MANY], self._to_look[LOOK_MANY:]
                    self._look_at(part)
                if self._signed and now - last_sign > self.sign_s:
                    last_sign = now
                    with contextlib.suppress(RedistqError):  # a full server; the next may do
                        self._sign()
                if self._batches and now - last_batches > BATCH_LOOK_S:
                    last_batches = now
                    self._look_at_batches()
                if not self.pending:
                    self._diagnosis.over()
                elif self._wait.left(now) <= 0:
                    self._ask_why(now)
                pause = 0.05
            except (ConnectionLost, RedistqError, GroupMissing, OSError) as error:
                if self.ended.is_set():
                    break
                now, lost = time.monotonic(), True
                if not self._away:
                    self._away = now
                    self._say_it_is_away(error)
                elif now - self._away > self.give_up_s:
                    self._abandon_all(error)
                self._revive(self._broker.address)
                self.ended.wait(pause)
                pause = min(pause * 2, 2.0)
            except Exception:
                log.exception("the inbox goes on after an error")
                self.ended.wait(pause)
                pause = min(pause * 2, 2.0)
        connection.close()

    def _read_inbox(self, connection: Connection, step: ReadInbox) -> list[Notification]:
        """Return what the inbox tells, once more of every task where the inbox was overwritten."""
        try:
            return connection.ask(step.command(), step.read)
        except WrongKind:
            self._broker.call(self.inbox.clearing())
            self._look_at(self._sent())
            return []

    def _patience(self, now: float) -> float:
        """Seconds for which to wait for news at a time."""
        most = BATCH_LOOK_S if self._batches else BLOCK_LIMIT
        if not self.pending:
            return most if now - self._last_submit > QUIET_S else min(most, NOTICE_S)
        return min(most, NOTICE_S, max(0.01, self._wait.left(now)))

    def _ask_why(self, now: float) -> None:
        """Nothing may have come for a while: say why. It is the oldest call's answer that counts,
        so that a single one which nobody runs is noticed among many that end."""
        with self._lock:
            first = next(iter(self.pending), "")
        if first != self._oldest:
            self._oldest = first
            self._wait.heard(now)
        elif self._wait.due(now):
            self._diagnosis.tell(self._diagnosis.ask(self.wanted()))

    @property
    def server_answers(self) -> bool:
        """Whether the server was there when it was last asked."""
        return not self._away

    def away_s(self) -> float:
        """Seconds for which the server has been away; 0 while it is there."""
        return time.monotonic() - self._away if self._away else 0.0

    def wanted(self) -> set[str]:
        """The names of the tasks that are waited for."""
        return {future.task_name for future in self.outstanding()}

    def _say_it_is_away(self, error: BaseException) -> None:
        if self.pending:
            log.warning(
                "the server at %s is away (%s); %d futures wait for it",
                *(self._broker.address, error, len(self.pending)),
            )

    def _revive(self, address: Address) -> None:
        """The embedded server is ours to start again, with its data."""
        if not address.embedded:
            return
        from ..connection import embedded

        try:
            embedded.join()
        except (RedistqError, OSError):
            pass  # tried again soon

    def _abandon_all(self, error: BaseException) -> None:
        with self._lock:
            ids = list(self.pending)
        for task_id in ids:
            why = ServerUnavailable(
                f"no server at {self._broker.address} for {self.give_up_s:g} s ({error}); task "
                f"{task_id} may still be run: client.future({task_id!r}) asks for it again"
            )
            self._resolve(task_id, partial(_give_exception, why))

    def _told(self, task_id: str, state: str, body: bytes | None) -> None:
        if task_id not in self.pending:
            return
        if body is None or state not in SETTLED:  # too large for the inbox, or no news at all
            waiting = self.pending.get(task_id)
            self._take(task_id, self._watch(task_id))
            if isinstance(waiting, TaskFuture) and waiting.keep_briefly:
                self._broker.call(("EXPIRE", self._commands.keys.task(task_id), TAKEN_TTL_S))
            return
        if state == "failed" and b'"BlobMissing"' in body[:200]:
            self._blobs.forget()  # the server has lost what we believe it has
        self._settle(task_id, state, body)

    def _watch(self, task_id: str) -> Watched:
        """Look at a task's record, and leave our address there when it is not settled."""
        return Commands.read_watch(
            self._broker.call(self._commands.watch(task_id, self.inbox.name))
        )

    def _take(self, task_id: str, watched: Watched) -> None:
        if watched.state in SETTLED:
            body = watched.record.get("error" if watched.state == "failed" else "result")
            self._settle(task_id, watched.state, body)
        elif watched.state == "unknown":
            self._doubtful.append(task_id)

    def _settle(self, task_id: str, state: str, body: bytes | None) -> None:
        signer, stream = self._signer, self._commands.keys.stream
        if state in ("succeeded", "failed"):
            self._settle_needs(task_id, state)
        self._resolve(task_id, lambda future: settle_future(future, signer, stream, state, body))

    def _settle_needs(self, task_id: str, state: str) -> None:
        with self._lock:
            found = self.pending.get(task_id, ())
            futures = found if isinstance(found, list) else [found] if found else []
            needs = [name for future in futures for name in future.needs]
        if needs:
            for future in futures:
                future.needs = ()
            if state == "succeeded":
                self._blobs.drop(needs)
            else:  # it may be sent again, as it was
                self._blobs.keep_for_replay(needs)

    def _give_up(self, doubtful: list[str]) -> None:
        for task_id in doubtful:
            if task_id in self.pending:
                self._blobs.forget()
                error = UnknownTask(task_id)
                error.add_note(
                    "The server does not know the task: it was flushed, or restarted without its "
                    "data, or the result was not kept (result_ttl)."
                )
                self._resolve(task_id, partial(_give_exception, error))

    def _sent(self) -> list[str]:
        with self._lock:
            unsent = {item.fields[0] for item in self._outbox}
            return [task_id for task_id in self.pending if task_id not in unsent]

    def _look_at(self, ids: list[str]) -> None:
        with self._sending:  # those that are just being sent have arrived after this
            pass
        for start in range(0, len(ids), LOOK_MANY):
            part = ids[start : start + LOOK_MANY]
            commands = (self._commands.watch(task_id, self.inbox.name) for task_id in part)
            # All answers before the first callback, which may ask the server on this connection.
            for task_id, reply in zip(part, list(self._broker.call_many(commands)), strict=True):
                self._take(task_id, Commands.read_watch(reply))

    def _resolve(self, task_id: str, end: Callable[[TaskFuture], None]) -> None:
        with self._lock:
            found = self.pending.pop(task_id, None)
        if found is not None:
            for future in found if isinstance(found, list) else (found,):
                try:
                    end(future)
                except Exception as error:
                    log.exception("a future's callback failed")
                    if not future.done():  # it was no callback: nobody shall wait for ever
                        _give_exception(error, future)
                except BaseException:  # SystemExit in a callback ends neither us nor its task
                    if not self.is_me():
                        raise
                    log.exception("a future's callback wanted to end this thread")
                finally:
                    future._settled()

    # -- cancelling ------------------------------------------------------------------------------

    def cancel(self, futures: Iterable[TaskFuture]) -> None:
        """Cancel those that no worker has; each of these is told so before this returns."""
        wanted = {future.task_id: future for future in futures if not future.done()}
        gone: list[TaskFuture] = []
        with self._sending, self._lock:  # what was just being sent has arrived after this
            for task_id, future in list(wanted.items()):
                others = self.pending.get(task_id)
                if isinstance(others, list) and len(others) > 1 and future in others:
                    others.remove(future)  # a cached call that others wait for too
                    gone.append(wanted.pop(task_id))
            unsent = [item for item in self._outbox if item.fields[0] in wanted]
            if unsent:
                taken = {item.fields[0] for item in unsent}
                kept = [item for item in self._outbox if item.fields[0] not in taken]
                self._outbox.clear()
                self._outbox.extend(kept)
                for task_id in taken:
                    self.pending.pop(task_id, None)
                    gone.append(wanted.pop(task_id))
        for future in gone:
            future._cancelled()
            future._settled()
        if unsent:
            self._some.set()
        for task_id, word in (self._producer.cancel(*wanted) if wanted else {}).items():
            if word == "cancelled":
                self._resolve(task_id, lambda future: future._cancelled())
            elif word == "unknown":
                self._doubtful.append(task_id)

    # -- the end ---------------------------------------------------------------------------------

    def outstanding(self) -> list[TaskFuture]:
        """Every future that waits."""
        with self._lock:
            found = list(self.pending.values())
        return [f for item in found for f in (item if isinstance(item, list) else [item])]

    def is_me(self) -> bool:
        """Whether this is one of the sender's own threads, as in a future's callback."""
        return threading.current_thread() in self._threads

    def refuse(self) -> None:
        """No new work from now on."""
        with self._lock:
            self.closed = True

    def end(self, *, join: bool = True) -> None:
        """Send what waits, and bring no more answers; safe to call twice, from any thread."""
        self.refuse()
        started = time.monotonic()
        if self._outbox and not self.ended.is_set():
            self._flush(patient=True)
        self.ended.set()
        self._some.set()
        for thread in self._threads if join else ():
            while thread.is_alive() and not self.is_me():
                self._wake()
                thread.join(0.05)
        if not join:
            self._wake()
        if self._threads and not self._away:
            # It expires by itself: no reason to wait for a server that has kept us waiting.
            with contextlib.suppress(RedistqError, ConnectionLost, OSError):
                self._broker.call(("UNLINK", self.inbox.key, self._life), started + FAREWELL_S)
        with self._lock:
            self._begun.clear()
        for future in self.outstanding():
            why = RedistqError(
                f"the client was closed before task {future.task_id} had ended; the task goes on: "
                f"Client(...).future({future.task_id!r}) asks for it"
            )
            self._resolve(future.task_id, partial(_give_exception, why))

    def _wake(self) -> None:
        if self.inbox.connection is not None:
            self.inbox.connection.interrupt()
        self._some.set()

    def _after_fork(self) -> None:
        """In a forked process: the threads are not here, and the parent's futures are not ours."""
        orphans = self.outstanding_unlocked()
        self._reset()
        self._blobs.after_fork()
        for future in orphans:
            future._condition = threading.Condition()
            vars(future)["_done_callbacks"] = []
            _give_exception(
                RedistqError(f"task {future.task_id} belongs to the process that forked this one"),
                future,
            )

    def outstanding_unlocked(self) -> list[TaskFuture]:
        """As ``outstanding``, where a lock may be held by a thread that is not there any more."""
        found = list(self.pending.values())
        return [f for item in found for f in (item if isinstance(item, list) else [item])]


_senders: weakref.WeakSet[Sender] = weakref.WeakSet()


def _after_fork() -> None:
    for sender in list(_senders):
        sender._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _give_exception(error: BaseException, future: TaskFuture) -> None:
    if not future.done():
        future.set_exception(error)


def _after(entry: str) -> str:
    ms, _, seq = entry.partition("-")
    return f"{ms}-{int(seq) + 1}"

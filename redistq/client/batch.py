"""Batch: one durable fan-out; BatchScope: a fan-out tied to a block of code.

Made by clients. A batch lives on the server: its tasks have ids made of its name and their
position, its counters move with every settlement (in the same script), and the order in which
tasks end is a stream of its own. So any kernel that knows its name can find it, wait for it, read
its results and go on with it.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from .. import slots
from ..display.html import badge, escape, panel
from ..display.notebook import say
from ..errors import (
    ConfigurationError,
    ConnectionLost,
    RedistqError,
    ResultTimeout,
    ServerUnavailable,
    TaskCancelled,
    UnknownBatch,
    UnknownTask,
)
from ..functions.call import CALL
from ..logger import logger
from ..producer.diagnosis import Wait
from ..producer.operations import not_stored
from ..producer.results import LEAST_LOOK_S
from ..producer.sansio import BLOCK_LIMIT, LEAST_PATIENCE_S
from ..protocol.commands import SETTLED, Command, Commands
from ..protocol.ids import is_text, new_task_id
from ..protocol.options import CallOptions, shown, wait_seconds
from ..protocol.portions import portions
from ..protocol.replies import messages, read
from .futures import TaskFuture, decode_error, decode_result, kept_awake, pass_on
from .progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from .client import Client

log = logger("redistq.client")

_Fields = tuple[str, str, bytes, bytes, str]
_OPEN_TTL_MS = 30 * 86_400_000
"""A batch that nobody finishes is forgotten after 30 days; a finished one after a week."""


class Batch:
    """The tasks of one ``map_batch``, by name.

    ``counts()`` and ``done`` look at the server; ``results()``, ``as_completed()`` and ``wait()``
    wait for it without polling; ``failures()`` is a DataFrame; ``retry_failed()`` and ``cancel()``
    act. ``await batch`` gives its results. An interrupt ends a wait, never the work. Until it has
    ended it keeps its client, and so the workers started there, even where nobody holds either.
    """

    def __init__(
        self,
        client: Client,
        batch_id: str,
        total: int,
        options: CallOptions,
        progress: bool | None = None,
    ) -> None:
        self._held: Client | None = client
        """The client, until the batch has ended: what a notebook remembers keeps no workers."""
        self._known, self._again = client.reference, client.recipe()
        self.id, self.total = batch_id, total
        self._options, self._progress = options, progress
        self._needs: list[str] = []
        """Functions and arguments that the server keeps for its tasks."""
        self._found = True
        """Whether it was there already, begun by who knows which release."""
        self._wanted = False
        """Whether its record says that this client wants its results."""

    @property
    def _client(self) -> Client:
        """The client; when that is gone, another like it, which has no workers of its own."""
        client = self._held or self._known()
        if client is None:
            self._held = client = self._again()
        return client

    # -- starting and finding --------------------------------------------------------------------

    @classmethod
    def start(
        cls,
        client: Client,
        options: CallOptions,
        fn: Callable[..., Any],
        items: Iterable[Any],
        name: str | None,
        resume: bool | str,
        progress: bool | None,
    ) -> Batch:
        """See Client.map_batch."""
        from .client import BATCH_TTL_S, _check_function, _label, unique_name

        _check_function(fn, "map_batch")
        if not isinstance(items, Iterable):
            hint = f"; range({items})?" if isinstance(items, int) else ""
            raise TypeError(f"map_batch takes the items of its calls, not {shown(items)}{hint}")
        if name is not None and not isinstance(name, str):
            raise ConfigurationError(f"a batch's name is text, not {shown(name)}")
        batch_id = name or unique_name()
        odd = any(c.isspace() for c in batch_id) or not is_text(batch_id)
        if odd or not 0 < len(batch_id) <= 100:
            raise ConfigurationError(
                f"a batch's name is 1 to 100 characters without spaces, not {batch_id!r}"
            )
        if resume not in (True, False, "items"):
            raise ConfigurationError(f"resume is True, False or 'items', not {resume!r}")
        options = options.kept(BATCH_TTL_S)
        # Everything is packed before the first task is sent: an item that cannot be pickled
        # leaves nothing behind.
        needs: list[str] = []
        function = client.store_function(fn, options, needs)
        shared: dict[int, Any] = {}
        all_items = list(items)
        packets = [
            client.pack_call(
                _task_id(batch_id, i), function, (item,), {}, options, shared, needs=needs
            )
            for i, item in enumerate(all_items)
        ]
        calls = _Calls.of(fn, all_items) if name else None
        label = options.name or _label(fn)
        batch = cls(client, batch_id, len(packets), options, progress)
        created, total = client.broker.call(
            client.commands.open_batch(batch_id, name or label, len(packets), _OPEN_TTL_MS)
        )
        batch._found, batch._needs = not created, needs
        if not created:
            if not resume:
                raise ConfigurationError(
                    f"there is a batch {batch_id!r} already: choose another name, resume it "
                    "(resume=True), or delete it: client.batch(name).delete()"
                )
            if total != len(packets):
                raise ConfigurationError(
                    f"batch {batch_id!r} was started with {total:,} items and has {len(packets):,} "
                    "now: choose another name, or delete it: client.batch(name).delete()"
                )
        client.open_batches.add(batch_id)
        client.sender.want(batch_id)  # before its first call is there
        batch._wanted = True
        earlier = None
        if not created and calls is not None:
            earlier = batch._compare(calls, resume == "items")
        if created and calls is not None:
            batch._remember(calls.digests)
        batch._send(packets, f"{CALL}:{label}", earlier)
        if earlier is not None:
            batch._remember(earlier.digests)
        client.sender.hold(batch, begun=True)
        if earlier is not None and (words := earlier.words(batch.id, batch.total)):
            say(words, log)
        return batch

    @classmethod
    def find(cls, client: Client, batch_id: str) -> Batch:
        """See Client.batch."""
        command = ("HGET", client.keys.batch(batch_id), "total")
        total = client.broker.call(command)
        if total is None:
            newest = client.broker.call(("ZREVRANGE", client.keys.batches, 0, 99))
            known = [raw.decode("utf-8", "replace") for raw in newest]
            raise UnknownBatch(batch_id, next(iter(get_close_matches(str(batch_id), known, 1)), ""))
        return cls(client, batch_id, read(command, total, int), CallOptions())

    def _remember(self, digests: list[bytes]) -> None:
        """Keep what names the batch's calls as long as the batch itself may be there."""
        seconds = _OPEN_TTL_MS // 1000 + 8 * 86_400
        key = self._client.keys.calls(self.id)
        self._client.broker.call(("SET", key, b"".join(digests), "EX", seconds))

    def _compare(self, calls: _Calls, items_alone: bool) -> _Earlier:
        """What of an earlier run under this name is the answer to these calls, and what is not.

        Raises ConfigurationError when it is still at work on other calls: they may be wanted.
        """
        client = self._client
        stored = client.broker.call(("GET", client.keys.calls(self.id))) or b""
        states = self._states()
        earlier = _Earlier.of(calls, stored, states, items_alone)
        others = (client.keys.task(self._task_id(i)) for i in earlier.others)
        records = _ask(client, (("HMGET", key, "state", "entry") for key in others))
        # By their records: one that failed may have been sent again.
        if waiting := sum(
            (state or entry) is not None and (state or b"").decode() not in SETTLED
            for state, entry in records
        ):
            why = "another version of the function" if earlier.function_changed else "other items"
            raise ConfigurationError(
                f"batch {self.id!r} is still at work, with {why} ({waiting:,} of {self.total:,} "
                "tasks): choose another name, wait for it (client.batch(name).wait()), or end it "
                "(client.batch(name).cancel())"
            )
        if earlier.others:
            # Unknown from here on: should we be cut off, nothing old is taken for an answer.
            self._remember(
                [_UNKNOWN if i in earlier.others else d for i, d in enumerate(earlier.digests)]
            )
        return earlier

    def _send(self, packets: list[bytes], name: str, earlier: _Earlier | None) -> None:
        client = self._client
        opts = client.task_options(self._options, batch=self.id)
        due = self._options.due
        fields = [(self._task_id(i), name, packet, opts, due) for i, packet in enumerate(packets)]
        parts = list(_numbered(fields))
        if earlier is None:
            commands = [
                client.commands.enqueue([f for one in part for f in one]) for _, part in parts
            ]
        else:
            outdated = earlier.outdated
            commands = [self._resubmission(start, part, earlier, outdated) for start, part in parts]
        for (start, part), reply in zip(parts, _ask(client, commands), strict=True):
            if reply and (error := not_stored(client.keys, reply)) is not None:
                raise error
            if earlier is not None:
                # Results that have expired since are made again.
                kept = {start + position - 1 for position in reply}
                earlier.reused -= set(range(start, start + len(part))) - kept

    def _resubmission(
        self, start: int, part: list[_Fields], earlier: _Earlier, outdated: set[int]
    ) -> Command:
        """The call by which some tasks run again, as they are now, unless their results count."""
        rows = (
            (*fields, earlier.states.get(i, ""), "1" if i in outdated else "")
            for i, fields in enumerate(part, start)
        )
        return self._client.commands.resubmit(new_task_id(), rows)

    def _task_id(self, index: int) -> str:
        return _task_id(self.id, index)

    # -- looking ---------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many tasks: total, succeeded, failed, cancelled, waiting (for a worker or for their
        time, or running), and how often one was retried."""
        return self._counts(None)

    def _counts(self, deadline: float | None) -> dict[str, int]:
        command = ("HGETALL", self._client.keys.batch(self.id))
        raw = self._client.broker.call(command, deadline)
        if not raw:
            raise UnknownBatch(self.id)
        fields = dict(zip(raw[::2], raw[1::2], strict=True))
        names = ("total", "succeeded", "failed", "cancelled", "retried")
        counts = read(
            command, fields, lambda fields: {n: int(fields.get(n.encode(), 0)) for n in names}
        )
        ended = counts["succeeded"] + counts["failed"] + counts["cancelled"]
        return {**counts, "waiting": max(counts["total"] - ended, 0)}

    def look(self) -> None:
        """See whether it has ended; then it lets go of its client."""
        try:
            counts = self.counts()
        except UnknownBatch:  # it was deleted
            self._has_ended({})
        else:
            if not counts["waiting"]:
                self._has_ended(counts)

    def _has_ended(self, counts: dict[str, int]) -> None:
        client = self._client
        client.open_batches.discard(self.id)
        if counts and counts["succeeded"] == counts["total"]:  # nothing will be sent again
            needs, self._needs = self._needs, []
            client.blobs.drop(needs)
        elif counts and counts["failed"] and self._needs:
            client.blobs.keep_for_replay(self._needs)
        client.sender.let_go(self)
        self._held = None

    @property
    def done(self) -> bool:
        """Whether every task has come to its end."""
        return self.counts()["waiting"] == 0

    def _states(self) -> dict[int, str]:
        """The last end of every task that had one, by position."""
        states: dict[int, str] = {}
        start = "-"
        while True:
            page = self._client.broker.call(
                ("XRANGE", self._client.keys.settled(self.id), start, "+", "COUNT", 1000)
            )
            for entry, flat in page:
                states.update(self._read(flat))
                start = "(" + entry.decode()
            if len(page) < 1000:
                return states

    def _read(self, flat: list[bytes]) -> Iterator[tuple[int, str]]:
        for task_id, state in zip(flat[::2], flat[1::2], strict=True):
            index = task_id.rpartition(b":")[2]
            if index.isdigit() and len(index) < 16 and int(index) < self.total:
                yield int(index), state.decode("utf-8", "replace")

    # -- waiting ---------------------------------------------------------------------------------

    def _news(
        self, timeout: float | None, stop: threading.Event | None = None
    ) -> Iterator[list[tuple[int, str]]]:
        """Positions and states of tasks that have ended, as news come, until all have, or ``stop``
        is set.

        Raises ResultTimeout. A task that was sent again ends again.
        """
        client, wait = self._client, Wait()
        now, ended = time.monotonic(), client.sender.ended
        if ended.is_set():  # what was there before a shutdown can be read after it
            ended = threading.Event()
        timeout = wait_seconds(timeout)
        end = None if timeout is None else now + timeout
        bar = Progress(self.id, self.total, self._progress)
        connection, last, timeout_s = client.broker.connection(), "0-0", client.broker.timeout
        key = client.keys.settled(self.id)
        try:
            while stop is None or not stop.is_set():
                # Counters first: once they are complete, all news are in the stream already.
                counts = self._counts(None if end is None else max(end, now + LEAST_LOOK_S))
                bar.show(counts)
                if counts["waiting"] and not self._wanted:
                    client.sender.want(self.id)
                    self._wanted = True
                left = min(BLOCK_LIMIT, max(0.01, wait.left(now)))
                left = left if end is None else min(left, end - now)
                block = max(1, int(left * 1000))
                try:
                    most = block if counts["waiting"] else 1
                    command = ("XREAD", "COUNT", 1000, "BLOCK", most, "STREAMS", key, last)
                    patience = timeout_s if end is None else min(timeout_s, end - now - left)
                    with slots.lent():
                        reply = connection.read(
                            command, block / 1000 + max(patience, LEAST_PATIENCE_S)
                        )
                except ConnectionLost as error:
                    now = time.monotonic()
                    if end is not None and now >= end:
                        raise ServerUnavailable(
                            f"no answer from {client.address} ({error}); batch {self.id!r} goes on"
                        ) from error
                    time.sleep(0.1)
                    continue
                now = time.monotonic()
                if news := messages(command, reply):
                    last = news[-1][0]
                    wait.heard(now)
                    client.diagnosis.over()
                    yield [ended for _, flat in news for ended in self._read(flat)]
                if not news and not counts["waiting"]:
                    self._has_ended(counts)
                    return
                if end is not None and now >= end and counts["waiting"]:
                    raise self._timed_out(timeout or 0.0, counts)
                if ended.is_set():
                    raise RedistqError(
                        f"the client was closed before batch {self.id!r} had ended; the batch goes "
                        f"on: Client(...).batch({self.id!r}) finds it"
                    )
                if wait.due(now):
                    client.diagnosis.tell(client.diagnosis.ask((CALL,)))
                time.sleep(0.01)  # lets a burst of small settlements become one read
        except KeyboardInterrupt:
            print(
                f"The wait was stopped; batch {self.id!r} goes on. client.batch({self.id!r}) finds "
                "it again, .cancel() cancels what has not started.",
                file=sys.stderr,
            )
            raise
        finally:
            bar.close()
            connection.close()

    def wait(self, timeout: float | None = None) -> Batch:
        """Wait until every task has ended; raises ResultTimeout after ``timeout`` seconds."""
        for _ in self._news(timeout):
            pass
        return self

    def _timed_out(self, timeout: float, counts: dict[str, int]) -> ResultTimeout:
        ended = counts["total"] - counts["waiting"]
        state = f"unfinished ({ended:,} of {counts['total']:,} tasks have ended)"
        reason = self._client._why_waiting(timeout, (CALL,))
        return ResultTimeout(self.id, timeout, state, reason, "batch")

    def results(self, timeout: float | None = None, on_error: str = "raise") -> list[Any]:
        """All results in the order of the items.

        ``on_error``: "raise" the first error as soon as it is known, "skip" items that failed, or
        "return" the error in the item's place. An error that is raised ends the wait, not the
        batch. Raises ResultTimeout after ``timeout`` seconds.
        """
        _check_on_error(on_error)
        return self._results(timeout, on_error)

    def _results(
        self, timeout: float | None, on_error: str, stop: threading.Event | None = None
    ) -> list[Any]:
        for news in self._news(timeout, stop):
            if on_error == "raise":
                bad = sorted({index for index, state in news if state != "succeeded"})
                for _, _, error in self._ends(bad, ended_only=True):
                    self._failed(error, on_error)
        if stop is not None and stop.is_set():
            return []
        return [
            value
            for _, value, error in self._ends(range(self.total))
            if not self._failed(error, on_error)
        ]

    def as_completed(
        self, timeout: float | None = None, on_error: str = "raise"
    ) -> Iterator[tuple[int, Any]]:
        """Pairs of position and result, as the tasks end; ``on_error`` as for ``results``."""
        _check_on_error(on_error)
        given: set[int] = set()
        for news in self._news(timeout):
            # One that was sent again and ended again is given once.
            new = [index for index in dict.fromkeys(i for i, _ in news) if index not in given]
            for index, value, error in self._ends(new, ended_only=True):
                given.add(index)
                if not self._failed(error, on_error):
                    yield index, value

    def _failed(self, error: BaseException | None, on_error: str) -> bool:
        """Whether an item is left out; raises its error when that was asked for."""
        if error is not None and on_error == "raise":
            error.add_note(
                f"Of batch {self.id!r} this is the first error. results(on_error='return') waits "
                "for all and gives each error in its place; failures() is a table of them."
            )
            raise error
        return error is not None and on_error == "skip"

    def _ends(
        self, indexes: Iterable[int], ended_only: bool = False
    ) -> Iterator[tuple[int, Any, BaseException | None]]:
        """Results and errors of settled tasks; an error stands in its value's place too. A task
        that was sent again, whose earlier end is told of still, is left out with ``ended_only``."""
        client, order = self._client, list(indexes)
        stream = client.keys.stream
        commands = (
            ("HMGET", client.keys.task(self._task_id(i)), "state", "result", "error", "entry")
            for i in order
        )
        answers = zip(order, _ask(client, commands), strict=True)
        for i, (state, result, error, entry) in answers:
            if state == b"succeeded" and result is not None:
                task_id = self._task_id(i)
                try:
                    value = decode_result(client.signer, stream, task_id, result, old=self._found)
                except Exception as why:  # it cannot be read: an error of this task
                    yield i, why, why
                else:
                    yield i, value, None
                continue
            if state == b"failed":
                failure, _ = decode_error(
                    client.signer, stream, self._task_id(i), error, self._found
                )
            elif state == b"cancelled":
                failure = TaskCancelled(self._task_id(i))
            elif ended_only and entry is not None and state in (None, b"delayed"):
                continue
            else:
                failure = UnknownTask(self._task_id(i))
            yield i, failure, failure

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return self._await().__await__()

    async def _await(self) -> list[Any]:
        # A thread of its own: the loop's executor would keep the program from ending.
        import asyncio

        loop, stop = asyncio.get_running_loop(), threading.Event()
        told: asyncio.Future[list[Any]] = loop.create_future()

        def wait_for_all() -> None:
            ended: Future[list[Any]] = Future()
            try:
                ended.set_result(self._results(None, "raise", stop))
            except BaseException as error:  # passed on to who awaits
                ended.set_exception(error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(pass_on, ended, told)

        threading.Thread(target=wait_for_all, name="redistq-await", daemon=True).start()
        try:
            with kept_awake(), slots.lent():
                return await told
        finally:
            stop.set()

    # -- failures --------------------------------------------------------------------------------

    def failures(self) -> pd.DataFrame:
        """One row a failed task, indexed by its position: item, error, message, traceback,
        attempts, task_id."""
        from .dataframes import _pandas

        pandas = _pandas()
        client, rows, index = self._client, [], []
        failed = sorted(i for i, state in self._states().items() if state == "failed")
        commands = (client.commands.watch(self._task_id(i)) for i in failed)
        for i, reply in zip(failed, _ask(client, commands), strict=True):
            watched = Commands.read_watch(reply)
            if watched.state != "failed":
                continue
            _, report = decode_error(
                client.signer,
                client.keys.stream,
                self._task_id(i),
                watched.record["error"],
                self._found,
            )
            index.append(i)
            rows.append(
                (
                    self._item(i, watched.record.get("payload")),
                    report.get("type", ""),
                    report.get("message", ""),
                    report.get("traceback", ""),
                    int(watched.record.get("attempt", b"1")),
                    self._task_id(i),
                )
            )
        columns = ["item", "error", "message", "traceback", "attempts", "task_id"]
        frame = pandas.DataFrame(rows, columns=columns, index=pandas.Index(index, name="position"))
        kinds = dict.fromkeys(("error", "message", "traceback", "task_id"), "str")
        return frame.astype({**kinds, "attempts": "int64"})

    def _item(self, index: int, payload: bytes | None) -> Any:
        if not payload:
            return None
        return self._client.whole_call(self._task_id(index), payload, old=self._found).args[0]

    def retry_failed(self) -> int:
        """Send the failed tasks again, as they were; answers how many."""
        failed = [self._task_id(i) for i, state in self._states().items() if state == "failed"]
        client = self._client
        client.open_batches.add(self.id)
        client.sender.want(self.id)
        self._wanted = True
        again = client.producer.replay(*failed) if failed else 0
        if again:
            self._held = client
            client.sender.hold(self, begun=True)
        return again

    def cancel(self) -> int:
        """Cancel what no worker has yet; answers how many tasks that were."""
        ended = {i for i, state in self._states().items() if state in SETTLED}
        ids = [self._task_id(i) for i in range(self.total) if i not in ended]
        answers = self._client.producer.cancel(*ids) if ids else {}
        return sum(1 for word in answers.values() if word == "cancelled")

    def delete(self) -> None:
        """Forget the batch and its results; what has not started is cancelled before.

        Raises ConfigurationError while tasks of it are running.
        """
        client = self._client
        self.cancel()
        if self.counts()["waiting"]:
            raise ConfigurationError(
                f"tasks of batch {self.id!r} are running: wait for them (batch.wait()) first"
            )
        ids = [self._task_id(i) for i in range(self.total)]
        for part in portions(ids):
            client.producer.purge(*part)
            client.broker.call(("UNLINK", *(client.keys.task(i) for i in part)))
        keys = client.keys
        of_batch = (keys.batch(self.id), keys.settled(self.id), keys.calls(self.id))
        client.broker.call(("UNLINK", *of_batch))
        client.broker.call(("ZREM", client.keys.batches, self.id))
        self._has_ended({})

    # -- looks -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.total

    def __repr__(self) -> str:
        return f"<Batch {self.id!r} of {self.total:,} tasks>"

    def _repr_html_(self) -> str:
        try:
            counts = self.counts()
        except Exception as error:
            return panel(f"Batch {self.id}", escape(error), [])
        rows = [
            (name, f"{counts[name]:,}")
            for name in ("waiting", "succeeded", "failed", "cancelled", "retried")
        ]
        state = "running" if counts["waiting"] else "failed" if counts["failed"] else "succeeded"
        return panel(f"Batch {self.id} of {self.total:,} tasks", badge(state), rows)


_DIGEST = 8
_UNKNOWN = bytes(2 * _DIGEST)


@dataclass(frozen=True, slots=True)
class _Calls:
    """What names the calls of a batch: for each item the fingerprint of function and item."""

    function: bytes
    items: list[bytes]

    @classmethod
    def of(cls, fn: Callable[..., Any], items: list[Any]) -> _Calls:
        """Raises PayloadError naming what no fingerprint can be made of."""
        from ..functions.fingerprint import fingerprint_of

        function = fingerprint_of(fn, "the function")[:_DIGEST]
        return cls(
            function, [fingerprint_of(item, f"item {i}")[:_DIGEST] for i, item in enumerate(items)]
        )

    @property
    def digests(self) -> list[bytes]:
        return [self.function + item for item in self.items]


@dataclass(slots=True)
class _Earlier:
    """An earlier run of a batch beside the calls of now, by position."""

    states: dict[int, str]
    reused: set[int]
    """Those whose results answer the calls of now."""
    others: set[int]
    """Those that were other calls, or nobody knows which."""
    digests: list[bytes]
    """What names each call whose result there will be."""
    known: bool
    function_changed: bool

    @classmethod
    def of(
        cls, calls: _Calls, stored: bytes, states: dict[int, str], items_alone: bool
    ) -> _Earlier:
        digests, reused, others, changed = calls.digests, set(), set(), False
        for i, now in enumerate(digests):
            then = stored[2 * _DIGEST * i : 2 * _DIGEST * (i + 1)]
            same_item = then[_DIGEST:] == now[_DIGEST:]
            changed = changed or (same_item and then != now)
            if then == now or (items_alone and same_item):
                if states.get(i) == "succeeded":
                    reused.add(i)
                if states.get(i) not in ("failed", "cancelled"):
                    digests[i] = then
            else:
                others.add(i)
        return cls(states, reused, others, digests, bool(stored), changed)

    @property
    def outdated(self) -> set[int]:
        """Those with results that answer other calls."""
        return {i for i in self.others if self.states.get(i) == "succeeded"}

    def words(self, batch: str, total: int) -> str:
        """What the user should know of it, in one line; empty when there is nothing."""
        of_old = "with an earlier version of the function, " if self.function_changed else ""
        if self.reused:
            some = f"{len(self.reused):,} of {total:,} results of batch {batch!r} are "
            rest = "" if len(self.reused) == total else f"; {total - len(self.reused):,} run now"
            return f"{some}from an earlier run{', ' + of_old.rstrip(', ') if of_old else ''}{rest}"
        if not self.outdated:
            return ""
        if not self.known:
            why = "of which calls its results are is not known"
        elif self.function_changed:
            why = "the function has changed (resume='items' keeps the results of the same items)"
        else:
            why = "its items are others now"
        return f"batch {batch!r} was run before, and {why}: all {total:,} run now"


class BatchScope:
    """A block whose calls do not outlive it; see Client.batch_scope."""

    def __init__(self, client: Client, options: CallOptions) -> None:
        self._client, self._options = client, options
        self.futures: list[TaskFuture] = []

    def submit(self, fn: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> TaskFuture:
        """As Client.submit."""
        future = self._client._submit(fn, args, kwargs, self._options)
        self.futures.append(future)
        return future

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any]) -> list[TaskFuture]:
        """One future an item."""
        return [self.submit(fn, *args) for args in zip(*iterables, strict=False)]

    def __enter__(self) -> BatchScope:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                wait(self.futures)
            except BaseException:
                self._cancel()
                raise
        else:
            self._cancel()

    def _cancel(self) -> None:
        with contextlib.suppress(RedistqError):  # the block's own error is what counts
            self._client.sender.cancel(self.futures)

    def __repr__(self) -> str:
        done = sum(1 for future in self.futures if future.done())
        return f"<BatchScope {done}/{len(self.futures)} done>"


def _task_id(batch_id: str, index: int) -> str:
    return f"{batch_id}:{index}"


def _ask(client: Client, commands: Iterable[Command]) -> Iterator[Any]:
    """Answers to many calls, a page read to its end before the first of it is given: whoever takes
    them may ask the server in between, or leave early."""
    source = iter(commands)
    while page := list(itertools.islice(source, 100)):
        yield from list(client.broker.call_many(page))


def _numbered(fields: list[_Fields]) -> Iterator[tuple[int, list[_Fields]]]:
    """Tasks in portions for one request each, with the position of the first."""
    start = 0
    for part in portions(fields, lambda task: len(task[2])):
        yield start, part
        start += len(part)


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "skip", "return"):
        raise ConfigurationError(f"on_error is 'raise', 'skip' or 'return', not {on_error!r}")

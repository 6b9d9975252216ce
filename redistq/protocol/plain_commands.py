"""Commands that need no script, and how much one request carries. Never talks to a server.

``PlainCommands`` has those of one queue, by what they are about: tasks, workers, batches, clients,
stored functions and the output of tasks; ``Commands`` adds the scripts. The functions after it
are for streams and keys of which only the name is known. ``portions`` divides many tasks into
requests: a larger one would hold the server, and so all other clients, for too long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

from .keys import QueueKeys
from .pieces import Large, Pieces

Command = tuple[Any, ...]
T = TypeVar("T")

MAX_TASKS = 200
"""Most tasks in one script call: a call of 200 holds the server for about a millisecond."""
MAX_BYTES = 1024 * 1024
"""Payload bytes in one request, about: the task that passes the limit still goes with it."""
BATCH_CLIENT = b"client:"
"""What the fields of a batch's record begin with that name the clients which want its results."""

PING: Command = ("PING",)
"""Ask whether the server takes commands."""
TIME: Command = ("TIME",)
"""Ask for the server's clock; ``read_time`` reads the answer."""
MEMORY_INFO: Command = ("INFO", "memory")
PERSISTENCE_INFO: Command = ("INFO", "persistence")
SNAPSHOT_SETTING: Command = ("CONFIG", "GET", "save")


def read_time(reply: list[Any]) -> int:
    """Return the answer of ``TIME`` in whole ms since the epoch."""
    seconds, micros, *_ = reply
    return int(seconds) * 1000 + int(micros) // 1000


def read_info(reply: bytes) -> dict[str, str]:
    """Return the answer of ``INFO``: values by their names."""
    lines = (line.partition(":") for line in reply.decode().splitlines() if ":" in line)
    return {name: value for name, _, value in lines}


class PlainCommands:
    """The commands of one queue that need no script."""

    def __init__(self, keys: QueueKeys) -> None:
        self.keys = keys
        self.time = TIME
        """Ask for the time that the queue's scripts go by; ``read_time`` reads the answer."""

    # -- tasks -----------------------------------------------------------------------------------

    def has_entries(self) -> Command:
        """Ask whether the stream exists: 1 or 0."""
        return ("EXISTS", self.keys.stream)

    def entry(self, entry: str | bytes) -> Command:
        """Ask for one entry of the stream, as a list of none or one."""
        return ("XRANGE", self.keys.stream, entry, entry)

    def entries(self, start: str | bytes, end: str | bytes, limit: int = MAX_TASKS) -> Command:
        """Ask for entries of the stream between two places, the oldest first: tasks that are ready
        or pending."""
        return ("XRANGE", self.keys.stream, start, end, "COUNT", limit)

    def delayed_count(self) -> Command:
        """Ask how many tasks are delayed."""
        return ("ZCARD", self.keys.delayed)

    def delayed_ids(self, offset: int, limit: int = MAX_TASKS) -> Command:
        """Ask for ids of delayed tasks from a place in the order of their times."""
        return ("ZRANGE", self.keys.delayed, offset, offset + limit - 1)

    def payload(self, task_id: str) -> Command:
        """Ask for the payload that stands in a task's record."""
        return ("HGET", self.keys.task(task_id), "payload")

    def payload_and_options(self, task_id: str) -> Command:
        """Ask for payload and options in a task's record."""
        return ("HMGET", self.keys.task(task_id), "payload", "opts")

    def name_and_options(self, task_id: str) -> Command:
        """Ask for name and options in a task's record, as a delayed task has them."""
        return ("HMGET", self.keys.task(task_id), "name", "opts")

    def state_and_entry(self, task_id: str) -> Command:
        """Ask for state and stream entry in a task's record; None where missing."""
        return ("HMGET", self.keys.task(task_id), "state", "entry")

    def end_of(self, task_id: str) -> Command:
        """Ask for state, result, error, stream entry and reason in a task's record; None where
        missing."""
        fields = ("state", "result", "error", "entry", "reason")
        return Large(("HMGET", self.keys.task(task_id), *fields))

    def progress(self, task_id: str) -> Command:
        """Ask how far a task is, as its handler said last; see progress.py."""
        return ("HGET", self.keys.task(task_id), "progress")

    def checkpoint(self, task_id: str) -> Command:
        """Ask where a task would go on, as its handler said last; None for nowhere."""
        return ("HGET", self.keys.task(task_id), "checkpoint")

    def items_of(self, task_id: str) -> Command:
        """Ask how far what a task has yielded is; None when nothing was."""
        return ("HGET", self.keys.task(task_id), "items")

    def result_of(self, task_id: str) -> Command:
        """Ask for state and result in a task's record; None where missing."""
        return Large(("HMGET", self.keys.task(task_id), "state", "result"))

    def small_result_of(self, task_id: str) -> Command:
        """The same, where the result is known to be small."""
        return ("HMGET", self.keys.task(task_id), "state", "result")

    def result_size(self, task_id: str) -> Command:
        """Ask how many bytes the result in a task's record has; 0 where there is none."""
        return ("HSTRLEN", self.keys.task(task_id), "result")

    def items_read(self, task_id: str) -> Command:
        """Ask whether, and how far, somebody reads what a task yields; None for nobody."""
        return ("HGET", self.keys.task(task_id), "items_read")

    def edges(self, task_id: str) -> Command:
        """Ask which tasks and batches a task runs after, one a line; None for none."""
        return ("HGET", self.keys.task(task_id), "after")

    def waiters_of(self, task_ids: Iterable[str]) -> Command:
        """Ask for the inboxes to notify of each task's end, one to a line; None for none."""
        return ("HMGET", self.keys.waiters, *task_ids)

    def keep_record(self, task_id: str, ttl_s: int) -> Command:
        """Let a task's record expire after that time."""
        return ("EXPIRE", self.keys.task(task_id), ttl_s)

    def delete_records(self, task_ids: Iterable[str]) -> Command:
        """Delete the records of tasks that have ended."""
        return ("UNLINK", *(self.keys.task(task_id) for task_id in task_ids))

    # -- workers and the queue itself ------------------------------------------------------------

    def is_known(self) -> Command:
        """Ask whether the queue ever had a worker, an end of a task or a delayed one: 0 for no."""
        keys = self.keys
        return ("EXISTS", keys.meta, keys.counters, keys.history, keys.dead)

    def groups(self) -> Command:
        """Ask for the consumer groups of the stream, as the server lists them."""
        return ("XINFO", "GROUPS", self.keys.stream)

    def workers_alive(self, now_ms: int) -> Command:
        """Ask for names of the workers whose deadline has not passed."""
        return ("ZRANGEBYSCORE", self.keys.workers, now_ms, "+inf")

    def names_and_home(self, consumer: str) -> Command:
        """Ask what a worker runs (one name to a line) and which home it belongs to."""
        return ("HMGET", self.keys.worker(consumer), "names", "home")

    def waiting_count(self) -> Command:
        """Ask how many tasks of the queue, of all priorities, wait."""
        return ("ZCARD", self.keys.waiting)

    def waiting_refs(self, offset: int, limit: int = MAX_TASKS) -> Command:
        """Ask which tasks wait, the oldest first: see ``waits.id_and_priority``."""
        return ("ZRANGE", self.keys.waiting, offset, offset + limit - 1)

    def set_paused(self, paused: bool) -> Command:
        """Pause the queue, or let it go on; ``announce_paused`` lets workers know at once."""
        return ("HSET", self.keys.meta, "paused", int(paused))

    def announce_paused(self, paused: bool) -> Command:
        """Announce to workers what ``set_paused`` has set."""
        return ("PUBLISH", self.keys.channel, "paused" if paused else "resumed")

    def deploys(self, programs: Iterable[str]) -> Command:
        """Ask for the deploys of each program whose schedules were declared; None for none."""
        return ("HMGET", self.keys.meta, *(f"deploys:{program}" for program in programs))

    def history_page(self, newest: str, oldest: str, limit: int) -> Command:
        """Ask for ends of attempts from an entry back to another, the newest first."""
        return ("XREVRANGE", self.keys.history, newest, oldest, "COUNT", limit)

    # -- limits ----------------------------------------------------------------------------------

    def limit_fields(self, fields: Iterable[str]) -> Command:
        """Ask for fields of the hash of limits; see ``limits.fields_of``. None where missing."""
        return ("HMGET", self.keys.limits, *fields)

    def limits_page(self, cursor: str | bytes, limit: int = MAX_TASKS) -> Command:
        """Ask for some of the hash of limits, and the place to go on from ('0' at the end)."""
        return ("HSCAN", self.keys.limits, cursor, "COUNT", limit)

    # -- schedules -------------------------------------------------------------------------------

    def schedule(self, name: str) -> Command:
        """Ask for the record of a schedule; None where there is none. See schedules.py."""
        return ("HGET", self.keys.schedules, name)

    def schedules_page(self, cursor: str | bytes, limit: int = MAX_TASKS) -> Command:
        """Ask for some of the schedules, and the place to go on from ('0' at the end)."""
        return ("HSCAN", self.keys.schedules, cursor, "COUNT", limit)

    # -- batches ---------------------------------------------------------------------------------

    def newest_batches(self, limit: int) -> Command:
        """Ask for ids of the newest batches, the newest first."""
        return ("ZREVRANGE", self.keys.batches, 0, limit - 1)

    def has_batch(self, batch_id: str) -> Command:
        """Ask whether the batch exists: 1 or 0."""
        return ("EXISTS", self.keys.batch(batch_id))

    def batch_total(self, batch_id: str) -> Command:
        """Ask how many tasks a batch has; None for an unknown one."""
        return ("HGET", self.keys.batch(batch_id), "total")

    def batch_totals(self, batch_id: str) -> Command:
        """Ask how many tasks a batch has, and how many it was opened with where it has grown; None
        where missing."""
        return ("HMGET", self.keys.batch(batch_id), "total", "opened")

    def batch_record(self, batch_id: str) -> Command:
        """Ask for the counters of a batch, and the clients that want its results."""
        return ("HGETALL", self.keys.batch(batch_id))

    def want_batch(self, batch_id: str, inbox: str) -> Command:
        """Leave in a batch's record that the client with that inbox wants its results."""
        return ("HSET", self.keys.batch(batch_id), BATCH_CLIENT.decode() + inbox, "")

    def batch_function(self, batch_id: str) -> Command:
        """Ask for the function that a batch's calls are of since it was updated; None where it
        was not. See functions/versions.py."""
        return ("HGET", self.keys.batch(batch_id), "function")

    def end_and_maker(self, task_id: str) -> Command:
        """Ask for state, name and error in a task's record, of which the last two say which version
        of a batch's function it was; None where missing."""
        return ("HMGET", self.keys.task(task_id), "state", "name", "error")

    def settled_page(self, batch_id: str, start: str, limit: int) -> Command:
        """Ask for the ends of a batch's tasks from a place on, in the order in which they came."""
        return ("XRANGE", self.keys.settled(batch_id), start, "+", "COUNT", limit)

    def calls_of(self, batch_id: str) -> Command:
        """Ask for what names the calls of a batch; see ``name_calls``."""
        return ("GET", self.keys.calls(batch_id))

    def calls_between(self, batch_id: str, start: int, end: int) -> Command:
        """Ask for the bytes from ``start`` to before ``end`` of that."""
        return ("GETRANGE", self.keys.calls(batch_id), start, end - 1)

    def name_calls(self, batch_id: str, digests: bytes, ttl_s: int) -> Command:
        """Keep what names the calls of a batch, by position."""
        return ("SET", self.keys.calls(batch_id), digests, "EX", ttl_s)

    def last_end(self, batch_id: str) -> Command:
        """Ask for the entry of the latest ends of a batch's tasks, as a list of none or one."""
        return ("XREVRANGE", self.keys.settled(batch_id), "+", "-", "COUNT", 1)

    def next_end(self, batch_id: str, after: str, block_ms: int) -> Command:
        """Wait for an end of a batch's tasks after that entry."""
        return read_stream(self.keys.settled(batch_id), after, 1, block_ms)

    def delete_batch(self, batch_id: str) -> Command:
        """Delete a batch's record, ends, names of calls and shape; ``unlist_batch`` is the other
        half."""
        keys = self.keys
        made = (keys.batch, keys.settled, keys.calls, keys.graph)
        return ("UNLINK", *(key(batch_id) for key in made))

    def unlist_batch(self, batch_id: str) -> Command:
        """Take a batch out of the list of batches."""
        return ("ZREM", self.keys.batches, batch_id)

    # -- graphs ----------------------------------------------------------------------------------

    def store_shape(self, batch_id: str, fields: Mapping[str, Any]) -> Command:
        """Keep parts of the shape of a graph; ``expire_shape`` says for how long."""
        flat = chain.from_iterable(fields.items())
        return ("HSET", self.keys.graph(batch_id), *flat)

    def expire_shape(self, batch_id: str, ttl_s: int) -> Command:
        """Let the shape of a graph expire after that time."""
        return ("EXPIRE", self.keys.graph(batch_id), ttl_s)

    def shape(self, batch_id: str, fields: Iterable[str]) -> Command:
        """Ask for parts of the shape of a graph; None where missing."""
        return ("HMGET", self.keys.graph(batch_id), *fields)

    def node(self, task_id: str) -> Command:
        """Ask for what the record of a graph's task says of its state; None where missing."""
        fields = ("state", "entry", "reason", "attempt", "run_ms", "worker", "finished_ms")
        return ("HMGET", self.keys.task(task_id), *fields)

    # -- clients ---------------------------------------------------------------------------------

    def sign_of_life(self, inbox: str) -> Command:
        """Ask for the process of the client with that inbox; None when its sign has expired."""
        return ("GET", self.keys.client(inbox))

    def give_sign(self, inbox: str, process: str, life_s: int) -> Command:
        """Say that the client with that inbox lives, and in which process."""
        return ("SET", self.keys.client(inbox), process, "EX", life_s)

    def renew_sign(self, inbox: str, life_s: int) -> Command:
        """Say that the client still lives; the answer is 0 when its sign has expired."""
        return ("EXPIRE", self.keys.client(inbox), life_s)

    def delete_client(self, inbox: str) -> Command:
        """Delete a client's inbox and its sign of life."""
        return ("UNLINK", self.keys.inbox(inbox), self.keys.client(inbox))

    # -- stored functions and arguments, and what tasks print ------------------------------------

    def blob(self, name: str) -> Command:
        """Ask for a stored function or argument; None when it is not there."""
        return Large(("GET", self.keys.blob(name)))

    def store_blob(self, name: str, packet: bytes | Pieces, ttl_s: int) -> Command:
        """Store a function or argument, unless it is there."""
        return Large(("SET", self.keys.blob(name), packet, "EX", ttl_s, "NX"))

    def log_lines(self, task_id: str) -> Command:
        """Ask for all that is kept of a task's output."""
        return ("XRANGE", self.keys.logs(task_id), "-", "+")


# -- keys of which only the name is known ----------------------------------------------------------


def scan_queues(kind: str, cursor: str | bytes, limit: int) -> Command:
    """Ask for a part of the server's keys that are streams (``stream``) or delayed tasks of a queue
    (``delayed``), and for the place to go on from ('0' at the end)."""
    what = ("TYPE", "stream") if kind == "stream" else ("MATCH", "delayed:*")
    return ("SCAN", cursor, *what, "COUNT", limit)


def read_stream(key: str, after: str, limit: int, block_ms: int) -> Command:
    """Wait for entries of a stream after the last one that was read."""
    return ("XREAD", "COUNT", limit, "BLOCK", block_ms, "STREAMS", key, after)


def read_streams(keys: Mapping[str, str], limit: int, block_ms: int) -> Command:
    """The same for several streams, each with the last entry that was read."""
    head = ("XREAD", "COUNT", limit, "BLOCK", block_ms, "STREAMS")
    return (*head, *keys, *keys.values())


def trim_stream(key: str, first: str) -> Command:
    """Delete the entries of a stream before that one."""
    return ("XTRIM", key, "MINID", first)


def append_line(key: str, source: str, line: bytes, most: int) -> Command:
    """Append a line to the output of a task, of which about so many are kept."""
    return ("XADD", key, "MAXLEN", "~", most, "*", "source", source, "line", line)


def expire(key: str, ttl_s: int) -> Command:
    """Let a key expire after that time."""
    return ("EXPIRE", key, ttl_s)


def delete(keys: Sequence[str]) -> Command:
    """Delete keys."""
    return ("UNLINK", *keys)


# -- how much one request carries ------------------------------------------------------------------


def fill(portion: list[T], source: Iterator[T], size: Callable[[T], int]) -> None:
    """Move items from the source to the portion until it is full or the source is empty.

    What was taken is in the portion also when an interrupt ends this early.
    """
    total = 0
    while len(portion) < MAX_TASKS and total < MAX_BYTES:
        for item in source:
            portion.append(item)
            total += size(item)
            break
        else:
            return


def portions(items: Iterable[T], size: Callable[[T], int] = lambda _: 0) -> Iterator[list[T]]:
    """Yield the items in portions for one request each, in order."""
    source = iter(items)
    while True:
        portion: list[T] = []
        fill(portion, source, size)
        if not portion:
            return
        yield portion

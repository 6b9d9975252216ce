"""Leftovers: the calls on the server whose clients have ended.

Used by clients, which say how many there are before they start workers, and drop them when asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..display.notebook import say
from ..display.text import plural
from ..errors import RedistqError
from ..functions.written import CALL
from ..logger import logger
from ..protocol.homes import Home
from ..protocol.options import NO_OPTIONS, TaskOptions
from ..protocol.plain_commands import BATCH_CLIENT, read_time
from ..protocol.waits import by_priority
from .queues import MARK, ClientQueue, has_ended

if TYPE_CHECKING:
    from .session import Session

log = logger("redistq.client")

UNPROVEN_S = 7 * 86_400
"""Age from which calls without proof count as left behind: by then the server has dropped their
functions, so that they could only fail."""
PAGE = 100
"""Entries looked at in one request; each comes with its payload."""
LEFTOVERS_SEEN = 1000
"""Most calls that are looked at to say how many were left by clients that have ended."""


@dataclass(slots=True)
class Leftovers:
    """The calls in one queue that clients have left which have ended."""

    queue: ClientQueue
    home: Home
    own: str
    """The inbox of the client that asks."""
    everywhere: bool
    """Whether calls of all folders and environments count, not only those that run here."""
    _alive: dict[str, bool] = field(default_factory=dict)
    _batches: dict[str, tuple[bool, list[str]]] = field(default_factory=dict)

    def pages(self, most: int | None = None) -> Iterator[list[tuple[str, bool]]]:
        """Yield ids of calls that were left and wait, page by page, and whether each is of a batch
        with a name. The first ``most`` entries that wait are looked at; None: all, and the delayed
        ones too.
        """
        now_ms = read_time(self.queue.broker.call(self.queue.commands.time))
        start = self._unread()
        seen = 0
        while start and (most is None or seen < most):
            page = self.queue.broker.call(self.queue.commands.entries(start, "+", PAGE))
            rows = []
            for entry, flat in page:
                fields = dict(zip(flat[::2], flat[1::2], strict=False))
                age_s = (now_ms - int(entry.partition(b"-")[0])) / 1000
                task = (fields.get(b"id"), fields.get(b"name"), fields.get(b"opts"))
                rows.append((*task, age_s > UNPROVEN_S))
            yield self._left(rows)
            seen += len(page)
            start = "(" + page[-1][0].decode() if len(page) == PAGE else ""
        if most is None:
            # Looked at before the first of them leaves, which would move the others.
            yield from list(self._waiting())
            yield from list(self._delayed())

    def _waiting(self) -> Iterator[list[tuple[str, bool]]]:
        commands = self.queue.commands
        start = 0
        while refs := self.queue.broker.call(commands.waiting_refs(start, PAGE)):
            yield self._of_records(by_priority(refs).get(self.queue.priority, []))
            start += PAGE

    def _delayed(self) -> Iterator[list[tuple[str, bool]]]:
        commands = self.queue.commands
        start = 0
        while ids := self.queue.broker.call(commands.delayed_ids(start, PAGE)):
            names = [raw.decode("utf-8", "replace") for raw in ids]
            yield self._of_records([name for name in names if name[:1] != "\n"])  # no timers
            start += PAGE

    def _of_records(self, ids: list[str]) -> list[tuple[str, bool]]:
        """Return those left behind of tasks whose records hold name and options."""
        asked = map(self.queue.commands.name_and_options, ids)
        known = list(self.queue.broker.call_many(asked)) if ids else []
        rows = zip(ids, known, strict=True)
        return self._left([(task_id.encode(), *row, False) for task_id, row in rows])

    def _unread(self) -> str:
        """Return where the entries begin that no worker was given; '' without a stream."""
        commands = self.queue.commands
        if not self.queue.broker.call(commands.has_entries()):
            return ""
        for row in self.queue.broker.call(commands.groups()):
            group = dict(zip(row[::2], row[1::2], strict=False))
            if group.get(b"name") == commands.group.encode():
                return "(" + bytes(group[b"last-delivered-id"]).decode()
        return "-"

    def _left(
        self, rows: Sequence[tuple[bytes | None, bytes | None, bytes | None, bool]]
    ) -> list[tuple[str, bool]]:
        found = []
        for raw, name, opts, old in rows:
            if not raw or (name or b"").partition(b":")[0] != CALL.encode():
                continue  # a named task belongs to no client
            try:
                task_id = raw.decode()
                options = TaskOptions.read(opts) if opts else NO_OPTIONS
            except (ValueError, TypeError):
                continue  # no task of ours
            if options.home not in (None, self.home.name) and not self.everywhere:
                continue
            named, wanted = self._of_batch(options.batch) if options.batch else (False, [])
            wanted = [*wanted, *([options.inbox] if options.inbox else [])]
            if not self._wanted(wanted, old):
                found.append((task_id, named))
        if not found:
            return []
        waiters = self.queue.broker.call(
            self.queue.commands.waiters_of(task_id for task_id, _ in found)
        )
        return [
            one
            for one, waiting in zip(found, waiters, strict=True)
            if not waiting or not self._wanted(waiting.decode("utf-8", "replace").split("\n"))
        ]

    def _of_batch(self, batch: str) -> tuple[bool, list[str]]:
        """Return whether a batch was given its name, and the clients that want its results."""
        if batch not in self._batches:
            raw = self.queue.broker.call(self.queue.commands.batch_record(batch))
            fields = dict(zip(raw[::2], raw[1::2], strict=True))
            wanted = [
                name.removeprefix(BATCH_CLIENT).decode("utf-8", "replace")
                for name in fields
                if name.startswith(BATCH_CLIENT)
            ]
            self._batches[batch] = fields.get(b"name") == batch.encode(), wanted
        return self._batches[batch]

    def _wanted(self, inboxes: list[str], old: bool = False) -> bool:
        """Return whether one of these may be a living client's. Where none of the clients gives
        signs of life, what is not ``old`` may be."""
        proven = [name for name in inboxes if name.startswith(MARK)]
        if len(proven) < len(inboxes) or not inboxes:
            return not old or any(map(self._lives, proven))
        return any(map(self._lives, proven))

    def _lives(self, inbox: str) -> bool:
        if inbox == self.own:
            return True
        if inbox not in self._alive:
            sign = self.queue.broker.call(self.queue.commands.sign_of_life(inbox))
            self._alive[inbox] = sign is not None and not has_ended(sign)
        return self._alive[inbox]

    def drop(self, batches: bool) -> int:
        """Cancel them, those of named batches only with ``batches``; return how many that were."""
        dropped = 0
        for page in self.pages():
            ids = [task_id for task_id, named in page if batches or not named]
            dropped += list(self.queue.cancel(ids).values()).count("cancelled")
        return dropped


def leftovers_in(session: Session, priority: str, everywhere: bool = False) -> Leftovers:
    """Return what clients have left that have ended, in the queue of that priority."""
    settings = session.settings
    own = session.exchange.presence.inbox.name
    return Leftovers(session.queue(priority), settings.home, own, everywhere or settings.shared)


def say_what_was_left(session: Session) -> None:
    """Say which calls of others, of a kernel that died perhaps, workers started now run first."""
    if len(session.exchange.pending) or session.open_batches:
        return
    queue = session.queue()
    stream = queue.keys.stream
    try:
        shot = queue.snapshot()
        if not shot.ready or shot.oldest_ms is None:
            return
        oldest = session.broker.call(queue.commands.entries(str(shot.oldest_ms), "+", 1))
        if not oldest or not _is_function_call(oldest[0][1]):
            return
        pages = leftovers_in(session, "normal").pages(LEFTOVERS_SEEN)
        named = [of_batch for page in pages for _, of_batch in page]
    except RedistqError:
        return  # starting workers will say what is wrong
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(shot.oldest_ms / 1000))
    say(
        f"{plural(shot.ready, 'task')} of other clients, the oldest from {when}, "
        f"{'stand before yours' if shot.ready > 1 else 'stands before yours'} in queue "
        f"{stream!r} and {'are' if shot.ready > 1 else 'is'} run first; "
        f"{_advice(named)}a queue of your own is Client(queue='...')",
        log,
    )


def _advice(named: list[bool]) -> str:
    """Return what can be done about calls that were left; ``named`` tells of each whether it is of
    a batch with a name."""
    if not named:
        return ""
    free = named.count(False)
    of_batches = named.count(True)
    verb = "client.drop_leftovers()" if free else "client.drop_leftovers(batches=True)"
    more = f", batches=True also the {of_batches:,} of named batches" if free and of_batches else ""
    many = f"{len(named):,} of them are" if len(named) > 1 else "1 of them is"
    return f"{many} of clients that have ended: {verb} drops these{more}; "


def _is_function_call(fields: list[bytes]) -> bool:
    """Return whether the fields of a stream entry are those of a call that some client sent."""
    name = dict(zip(fields[::2], fields[1::2], strict=False)).get(b"name", b"")
    return name.partition(b":")[0] == CALL.encode()

"""What workers and their supervisors ask of a queue's scripts, and how the answers are read.

``WorkerCommands`` is the part of ``Commands`` that is theirs; never talks to a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from . import scripts
from .answers import HeartbeatReply, Recovered, text_of, words_by_name, words_of
from .pieces import Large, Pieces
from .plain_commands import MAX_TASKS, Command, PlainCommands

_flat = chain.from_iterable


class WorkerCommands(PlainCommands):
    """The calls of workers and supervisors of one queue and consumer group."""

    group: str
    _scripts: scripts.QueueScripts
    _settle: scripts.Call

    # -- workers ---------------------------------------------------------------------------------

    def create_group(self) -> Command:
        """Create stream and group where they are missing."""
        return self._scripts.create_group()

    def fetch(self, consumer: str, count: int, block_ms: int | None, cursor: str = ">") -> Command:
        """Read new entries (``>``), or this consumer's own pending ones from a cursor."""
        block = () if block_ms is None else ("BLOCK", block_ms)
        return (
            "XREADGROUP",
            "GROUP",
            self.group,
            consumer,
            "COUNT",
            count,
            *block,
            "STREAMS",
            self.keys.stream,
            cursor,
        )

    def fetch_any(
        self, consumer: str, count: int, block_ms: int, streams: Sequence[str]
    ) -> Command:
        """Wait for new entries of several streams, up to ``count`` of each."""
        ends = (">",) * len(streams)
        head = ("XREADGROUP", "GROUP", self.group, consumer, "COUNT", count, "BLOCK", block_ms)
        return (*head, "STREAMS", *streams, *ends)

    def settle(
        self,
        consumer: str,
        outcomes: Iterable[Sequence[Any]],
        gated: bytes = b"",
        children: bytes = b"",
    ) -> Command:
        """Settle outcomes of (entry, id, state, name, attempt, run_ms, body, ttl, inbox, note,
        batch). ``gated`` says what those of them hold that are gated;
        ``children`` are the tasks to add with them: see settle.lua."""
        flat = list(_flat(outcomes))
        command = self._settle(flat, consumer=consumer, gated=gated, children=children)
        return Large(command) if Pieces in map(type, flat[6::11]) else command

    def retry(self, consumer: str, attempts: Iterable[Sequence[Any]]) -> Command:
        """Retry (entry, id, state, name, attempt, run_ms, error, delay_ms, note)."""
        return self._scripts.retry(_flat(attempts), consumer)

    def report(self, consumer: str, attempts: Iterable[Sequence[Any]]) -> Command:
        """Keep what running attempts say: (entry, id, progress, age_ms, text, checkpoint)."""
        return self._scripts.report(_flat(attempts), consumer=consumer)

    def suspend(self, consumer: str, attempts: Iterable[Sequence[Any]]) -> Command:
        """Put off (entry, id, kind, name, attempt, run_ms, number, event, delay_ms, taken,
        last)."""
        return self._scripts.suspend(_flat(attempts), consumer=consumer)

    def step(
        self, consumer: str, task: tuple[str, str], number: int, name: str, run_ms: str, body: bytes
    ) -> Command:
        """Keep what a step of a running task, of (entry, id), came to; the answer is 0 when its
        lease was lost."""
        entry, task_id = task
        return self._scripts.step(
            consumer=consumer,
            entry=entry,
            id=task_id,
            number=number,
            name=name,
            run_ms=run_ms,
            body=body,
        )

    def expect(
        self,
        consumer: str,
        task: tuple[str, str],
        number: int,
        name: str,
        taken: int,
        last: str,
        timeout_ms: int | str,
    ) -> Command:
        """Take the event that a running task waits for, where there is one; the answer is a word,
        the server's time, and the step: see expect.lua."""
        entry, task_id = task
        return self._scripts.expect(
            consumer=consumer,
            entry=entry,
            id=task_id,
            number=number,
            name=name,
            taken=taken,
            last=last,
            timeout=timeout_ms,
        )

    def release(
        self, consumer: str, entries: Iterable[bytes], drained_only: bool = False
    ) -> Command:
        """Give unstarted entries back; the answer counts those off this consumer's hands.

        ``drained_only``: only when nothing else is unread, else the answer is 0.
        """
        return self._scripts.release(entries, consumer=consumer, drained_only=int(drained_only))

    def park(self, consumer: str, grace_ms: int, tasks: Iterable[Sequence[Any]]) -> Command:
        """Put (entry, id, name) back for a worker that knows the name; with a fourth, what the
        payload needs, for one that has it."""
        rows = ((*task, "") if len(task) == 3 else task for task in tasks)
        return self._scripts.park(_flat(rows), consumer=consumer, grace=grace_ms)

    def regate(self, consumer: str, entries: Iterable[bytes]) -> Command:
        """Hand back entries whose name has a rule or is paused; the answer is one word an entry."""
        return self._scripts.regate(entries, consumer=consumer)

    def quarantine(self, consumer: str, entry: bytes, reason: str) -> Command:
        """Set a corrupt entry aside."""
        return self._scripts.quarantine(consumer=consumer, entry=entry, reason=reason)

    def append_items(self, consumer: str, chunks: Iterable[Sequence[Any]]) -> Command:
        """Keep chunks of what tasks yield: (entry, id, generation, first, count, window, keep, ttl,
        body); ``read_appended`` reads the answer."""
        return self._scripts.append_items(_flat(chunks), consumer=consumer)

    @staticmethod
    def read_appended(reply: list[Any]) -> list[tuple[str, str]]:
        """Return the answer of ``append_items``: a word for each chunk, and of one that is broken
        the error's words."""
        return [
            (text_of(item[0]), words_of(item[1])) if type(item) is list else (text_of(item), "")
            for item in reply
        ]

    # -- supervisors -------------------------------------------------------------------------------

    def rights(self, consumer: str) -> Command:
        """Ask what a worker will do and its user may not."""
        return self._scripts.rights(consumer=consumer)

    @staticmethod
    def read_rights(reply: list[bytes]) -> list[str]:
        """Return the answer of ``rights``: a command and its key, one text each."""
        text = [part.decode("utf-8", "replace") for part in reply]
        return [f"{c} {k}".rstrip() for c, k in zip(text[::3], text[1::3], strict=True)]

    def register(self, consumer: str, lease_ms: int, details: dict[str, Any]) -> Command:
        """Announce a worker; the answer is the group and lease in use."""
        return self._scripts.register(chain(*details.items()), consumer=consumer, lease=lease_ms)

    def heartbeat(self, lease_ms: int, workers: Iterable[tuple[str, str]]) -> Command:
        """One heartbeat for (consumer, said) of each worker: the entries it runs, with spaces
        between, and after a line feed what it uses; '=' for the same as before."""
        return self._scripts.heartbeat(_flat(workers), lease=lease_ms)

    @staticmethod
    def read_heartbeat(reply: list[Any]) -> HeartbeatReply:
        """Return the answer of ``heartbeat``."""
        told = reply[4]
        wishes = tuple(
            (int(told[i]), told[i + 1].decode(), told[i + 2].decode())
            for i in range(0, len(told), 3)
        )
        names = tuple(reply[5].decode("utf-8", "replace").split("\n")) if reply[5] else ()
        return HeartbeatReply(reply[0], reply[1], bool(reply[2]), tuple(reply[3]), wishes, names)

    def recover(
        self,
        max_recoveries: int,
        *,
        consumer: str = "",
        started: Iterable[str | bytes] | None = None,
        limit: int = MAX_TASKS,
    ) -> Command:
        """Take back a dead worker's tasks: one reported by name, or one past its deadline.

        ``started`` lists what it was running (None: unknown, all of it may have been).
        """
        return self._scripts.recover(
            () if started is None else started,
            limit=limit,
            max_recoveries=max_recoveries,
            consumer=consumer,
            started="*" if started is None else "only",
        )

    @staticmethod
    def read_recover(reply: list[Any]) -> Recovered:
        """Return the answer of ``recover``."""
        recovered, dead, more, consumer, broken = reply
        return Recovered(recovered, dead, bool(more), consumer.decode(), words_by_name(broken))

    def adopt(self, lease_ms: int) -> Command:
        """Give ownerless consumers a deadline; the answer counts them."""
        return self._scripts.adopt(lease=lease_ms)

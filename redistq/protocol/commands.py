"""Commands: every script as a typed call, built here and nowhere else.

A call is a tuple of command arguments that a broker sends; what comes back is read by the
function beside it. Used by producers, workers, supervisors and monitors; never talks to a server.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from . import scripts, simulated
from .answers import Answered as Answered
from .answers import Fired as Fired
from .answers import HeartbeatReply as HeartbeatReply
from .answers import Promoted as Promoted
from .answers import Recovered as Recovered
from .answers import Refused as Refused
from .answers import Watched as Watched
from .answers import denies as denies
from .answers import objects_to_content as objects_to_content
from .answers import text_of, words_by_name
from .answers import words_of as words_of
from .codec import dumps
from .keys import DEFAULT_GROUP, QueueKeys
from .keys import SETTLED as SETTLED
from .plain_commands import MAX_TASKS as MAX_TASKS
from .plain_commands import Command as Command
from .snapshot import Snapshot as Snapshot
from .snapshot import WorkerRow as WorkerRow
from .snapshot import read_snapshot
from .worker_commands import WorkerCommands

_flat = chain.from_iterable

HISTORY_MAX = 10_000
"""Events kept in the history stream, about."""
DEAD_TTL_MS = 30 * 86_400_000
"""How long a failed task can be inspected and replayed: 30 days."""
CANCELLED_TTL_MS = 86_400_000
"""How long the record of a cancelled task is kept: a day."""


FORCE = "force"
PLACES = ("waiting", "delayed", "stream")
"""Where tasks are that have not ended, as ``find`` names it; in the stream are the ready ones."""
WISHES = ("ask", FORCE)
"""What may be wished of a running task: that it ends; and its process, where it does not."""
EXPIRED = "not started by its deadline"
"""Why a task has expired."""
CONTINUED = "continued"
"""What ``settle`` is told of a task that ends as one of its children does."""
SCHEDULES_TIMER = '\n["schedules"]'
"""The member of the delayed set that stands for the earliest schedule."""
ASKED = "asked to end"
"""The words with which a script answers that a task is to be settled as cancelled instead."""


def new_consumer_name(host: str) -> str:
    """Return a name that no other worker process has or had: it is part of the fence."""
    return f"{host}:{uuid.uuid4().hex[:12]}"


class Commands(WorkerCommands):
    """The calls of one queue and consumer group: its scripts, and the plain commands."""

    def __init__(
        self,
        keys: QueueKeys,
        group: str = DEFAULT_GROUP,
        *,
        history_max: int = HISTORY_MAX,
        dead_ttl_ms: int = DEAD_TTL_MS,
    ) -> None:
        super().__init__(keys)
        self.group = group
        own = {
            "group": group,
            "history_max": str(history_max),
            "dead_ttl": str(dead_ttl_ms),
            "channel": keys.channel,
        }
        clock = simulated.clock_of(keys.stream)
        if clock is None:
            self._scripts = scripts.QueueScripts(keys, own)
        else:
            self._scripts = scripts.QueueScripts(keys, own, simulated.load, (clock,))
            self.time = simulated.read_clock(keys.stream)
        self._enqueue: Command = self._scripts.enqueue(())
        self._settle = self._scripts.settle

    # -- producers -------------------------------------------------------------------------------

    def enqueue_one(
        self, id: str, name: str, payload: bytes, opts: bytes | str, due: str
    ) -> Command:
        """Add one task; the answer is empty, [1] when the id was known, or as of ``enqueue``."""
        return (*self._enqueue, id, name, payload, opts, due)

    def enqueue(self, fields: Sequence[Any]) -> Command:
        """Add many tasks, five fields each: id, name, payload, opts, due ('' now, '+N' in N ms,
        'N' at server time N ms). ``read_refused`` reads the answer: known ids are "lost"."""
        return (*self._enqueue, *fields)

    def enqueue_gated(self, fields: Sequence[Any]) -> Command:
        """Add tasks of which some have to wait for others, for room or for their turn: as
        ``enqueue``, with the conditions as a sixth field ('' none). ``read_gated`` reads the
        answer."""
        return self._scripts.enqueue_gated(fields)

    @staticmethod
    def read_gated(reply: list[Any]) -> list[Answered]:
        """Return the answer of ``enqueue_gated``."""
        found = []
        for item in reply:
            if type(item) is not list:
                found.append(Answered(item - 1, "known"))
            elif len(item) == 3:
                found.append(Answered(item[0] - 1, "refused", text_of(item[2]), words_of(item[1])))
            else:
                position, outcome, task_id, detail = item
                found.append(
                    Answered(position - 1, text_of(outcome), text_of(task_id), words_of(detail))
                )
        return found

    def limit(
        self, key: str, rule: str = "", *, paused: str = "", penalty_ms: int | str = ""
    ) -> Command:
        """Set or take away ("-") a key's rule, pause it ("1") or let it go on ("0"), and let
        nothing in for so long; the answer is the rule before."""
        return self._scripts.limit(key=key, rule=rule, paused=paused, penalty=penalty_ms)

    def recount(
        self, places: Sequence[bytes], counted: dict[bytes, int], limit: int, most: int
    ) -> Command:
        """Count slots in the stream from these places on, one a lane; see recount.lua."""
        normal, high, low = places
        flat = [part for pair in counted.items() for part in pair]
        return self._scripts.recount(
            flat, limit=limit, most=most, normal=normal, high=high, low=low
        )

    @staticmethod
    def read_refused(reply: list[Any]) -> Refused:
        """Return the answer of ``enqueue``, ``resubmit``, ``settle`` or ``retry``."""
        lost = []
        broken = {}
        for item in reply:
            if type(item) is list:
                broken[item[0] - 1] = words_of(item[1])
            else:
                lost.append(item - 1)
        return Refused(lost, broken)

    def cancel(self, ids: Sequence[str], ttl_ms: int = CANCELLED_TTL_MS, wish: str = "") -> Command:
        """Cancel waiting tasks; the answer is one word a task. ``wish``: one of WISHES, of those
        that run."""
        return self._scripts.cancel(ids, ttl=ttl_ms, wish=wish)

    def find(self, place: str, start: str, *, name: str = "", batch: str = "") -> Command:
        """A page of ids of tasks in one of PLACES, by name or batch; the answer is ids, where the
        next page begins, and how many were looked at: see find.lua."""
        return self._scripts.find(place=place, start=start, most=MAX_TASKS, name=name, batch=batch)

    def replay(
        self, ids: Sequence[str], before: str = "+inf", offset: int = 0, anew: bool = False
    ) -> Command:
        """Dead letters back to the stream: these ids, or the oldest CALL_LIMIT after an offset.
        ``anew``: the steps that they have done are forgotten."""
        return self._scripts.replay(
            ids, limit=MAX_TASKS, before=before, offset=offset, anew=int(anew)
        )

    def resubmit(self, call: str, tasks: Iterable[Sequence[Any]]) -> Command:
        """Run tasks of (id, name, payload, opts, due, counted, outdated) as they are given now.

        Those that wait, run or have a result that counts stay as they are: ``read_refused`` calls
        them "lost". ``call`` names the call: sent again under this name it changes nothing more.
        """
        return self._scripts.resubmit(_flat(tasks), call=call)

    def resubmit_gated(self, call: str, tasks: Iterable[Sequence[Any]]) -> Command:
        """The same for tasks that may have to wait, with their conditions as an eighth field, each
        after those it depends on."""
        return self._scripts.resubmit_gated(_flat(tasks), call=call)

    def purge(self, ids: Sequence[str], before: str = "+inf") -> Command:
        """Delete dead letters: these ids, or the oldest CALL_LIMIT."""
        return self._scripts.purge(ids, limit=MAX_TASKS, before=before)

    def watch(self, task_id: str, inbox: str = "") -> Command:
        """Ask how a task stands; with an inbox, which is notified when it settles."""
        return self._scripts.watch(id=task_id, inbox=inbox)

    @staticmethod
    def read_watch(reply: list[Any]) -> Watched:
        """Return the answer of ``watch``."""
        names = (name.decode("utf-8", "replace") for name in reply[1][::2])
        fields = dict(zip(names, reply[1][1::2], strict=True))
        return Watched(reply[0].decode(), fields, reply[2].decode())

    def open_batch(self, batch_id: str, name: str, total: int, ttl_ms: int) -> Command:
        """Open a batch or find it; the answer is whether it was opened now, and its total."""
        return self._scripts.open_batch(batch=batch_id, name=name, total=total, ttl=ttl_ms)

    def grow_batch(
        self, batch_id: str, start: int, end: int, names: bytes, ttl_ms: int, names_ttl_ms: int
    ) -> Command:
        """Let a batch of ``start`` tasks have ``end`` of them, whose calls are named so; the answer
        is how many it has, or -1 for no such batch."""
        return self._scripts.grow_batch(
            batch=batch_id, start=start, end=end, names=names, ttl=ttl_ms, names_ttl=names_ttl_ms
        )

    def update_batch(self, batch_id: str, version: int, function: bytes, made: str) -> Command:
        """Let a batch's calls be of that version of its function; the answer is the version, or
        the one that another client has set, below zero, or 0 for no such batch."""
        return self._scripts.update_batch(
            batch=batch_id, version=version, function=function, made=made
        )

    def hold(self, blob: str, client: str, ttl_ms: int, brief_ms: int) -> Command:
        """Keep a stored function or argument for a client; the answer is whether there is one."""
        return self._scripts.hold(name=blob, client=client, ttl=ttl_ms, brief=brief_ms)

    def drop(self, blobs: Sequence[str], client: str, brief_ms: int) -> Command:
        """A client needs these no more."""
        return self._scripts.drop(blobs, client=client, brief=brief_ms)

    def send_event(
        self, name: str, mark: str, body: bytes, keep_ms: int, task: str = ""
    ) -> Command:
        """Let those that wait for an event go on, or one task alone; ``mark`` names this event.
        ``steps.read_sent`` reads the answer."""
        return self._scripts.send_event(
            name=name, mark=mark, body=body, keep=keep_ms, task=task, limit=MAX_TASKS
        )

    def recall(self, task_id: str, *, whole: bool) -> Command:
        """Ask for the steps that a task has done, with what they came to or their heads alone; see
        steps.read_recalled."""
        return self._scripts.recall(id=task_id, whole=int(whole))

    # -- schedulers ------------------------------------------------------------------------------

    def promote(self, limit: int = MAX_TASKS) -> Command:
        """Move due tasks to the stream."""
        return self._scripts.promote(limit=limit)

    @staticmethod
    def read_promote(reply: list[Any]) -> Promoted:
        """Return the answer of ``promote``."""
        moved, due, now, broken, fires = reply
        schedules = dict(zip(map(text_of, fires[::2]), fires[1::2], strict=True)) if fires else {}
        return Promoted(moved, due if due >= 0 else None, now, words_by_name(broken), schedules)

    # -- schedules -------------------------------------------------------------------------------

    def set_schedule(
        self,
        name: str,
        rule: str = "",
        definition: str = "",
        payload: bytes = b"",
        *,
        source: str = "",
        paused: str = "",
        next_ms: int | str = "",
        anchor_ms: int | str = "",
        again_ms: int | str = "",
        most: int = 0,
        keeps: Iterable[str] = (),
    ) -> Command:
        """Make or change a schedule, pause it ("1") or let it go on ("0"); with the rule "-" delete
        it. The answer is a word and the record as it was: see set_schedule.lua."""
        return self._scripts.set_schedule(
            name=name,
            rule=rule,
            definition=definition,
            payload=payload,
            source=source,
            paused=paused,
            next=next_ms,
            anchor=anchor_ms,
            again=again_ms,
            most=most,
            keeps="\n".join(keeps),
        )

    def deploy(self, program: str, deploy: str, step: str) -> Command:
        """Ask whether the schedules that a program declares are newer than those that are there
        ("ask"), or say that they are there now ("done"); the answer is a word."""
        return self._scripts.deploy(program=program, deploy=deploy, step=step)

    def fire(
        self,
        name: str,
        occurrences: Iterable[tuple[str, int]],
        *,
        version: int | str = "",
        expected_ms: int | str = "",
        next_ms: int | str = "",
        past_ms: int | str = "",
        again_ms: int | str = "",
        skipped: int = 0,
        catches_up: bool = False,
    ) -> Command:
        """Add the tasks of occurrences (id, time in ms), and where a version is given move the
        schedule's next time; ``read_fire`` reads the answer."""
        return self._scripts.fire(
            _flat(occurrences),
            name=name,
            version=version,
            expected=expected_ms,
            next=next_ms,
            past=past_ms,
            again=again_ms,
            skipped=skipped,
            catches_up=int(catches_up),
        )

    @classmethod
    def read_fire(cls, reply: list[Any]) -> Fired:
        """Return the answer of ``fire``."""
        return Fired(text_of(reply[0]), words_of(reply[1]), cls.read_gated(reply[2]))

    # -- readers of what tasks yield -------------------------------------------------------------

    def read_items(
        self, task_id: str, generation: str, first: int, taken: str, most: int
    ) -> Command:
        """A page of what a task has yielded; ``items.read_page`` reads the answer."""
        return self._scripts.read_items(
            id=task_id, generation=generation, first=first, taken=taken, most=most
        )

    # -- monitors --------------------------------------------------------------------------------

    def snapshot(self, workers: int = 100) -> Command:
        """Every figure at one instant."""
        return self._scripts.snapshot(limit=workers)

    def tick(
        self,
        after: str,
        known_dead: Iterable[tuple[str, int]],
        *,
        held: Mapping[str, str] | None = None,
        workers: int,
        events: int,
        running: int,
        dead: int,
        batches: int,
        limits: int = 8,
        schedules: int = 8,
    ) -> Command:
        """All of one dashboard refresh; ``held`` are entries in workers' hands that are known, with
        their ids. ``tick.read_tick`` reads the answer."""
        return self._scripts.tick(
            _flat(known_dead),
            after=after,
            workers_limit=workers,
            events=events,
            running=running,
            dead_limit=dead,
            batches_limit=batches,
            limits_limit=limits,
            schedules_limit=schedules,
            held=dumps(held or {}),
        )

    def browse(
        self, kind: str, limit: int, start: str = "", *, full: bool = True, task_id: str = ""
    ) -> Command:
        """A page of pending, delayed, waiting or dead tasks, or of one task's history: see
        browse.lua."""
        return self._scripts.browse(kind=kind, limit=limit, start=start, full=int(full), id=task_id)

    def events(
        self, places: Sequence[str], running: Iterable[tuple[str, str]], limit: int = MAX_TASKS
    ) -> Command:
        """What has happened since three places: of ends, entries, and entries handed over; see
        events.lua. ``running``: ids, and their progress as it was told."""
        ended, added, started = places
        return self._scripts.events(
            _flat(running), limit=limit, ended=ended, added=added, started=started
        )

    def why(self, task_id: str) -> Command:
        """What one task waits for; ``waits.read_why`` reads the answer."""
        return self._scripts.why(id=task_id)

    def consumers(self) -> Command:
        """The group's consumers, as the server lists them."""
        return ("XINFO", "CONSUMERS", self.keys.stream, self.group)

    read_snapshot = staticmethod(read_snapshot)

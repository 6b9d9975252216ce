"""A model of the gate in plain Python.

The model knows each task's gate, its parents, what it returned, and how these ended; it does not
know in which order the scripts let tasks in. After every step it reads what the server holds, asks
`gate_checks` about what must always hold, and whether each change was one that this step may make.
The steps stand in `gate_steps`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from support import gate_checks as checks
from support.gate_checks import IN_STREAM, demand
from support.gate_world import LANES, Gate, GateWorld, Seen, edge, options
from support.script_world import TTL, Broken

CONSUMERS = ("a", "b")
LIMIT_KEYS = ("a", "b", "t:1", "t:2")
ORDER_KEYS = ("o1", "o2")
GROUPS = ("g1", "g2", "g3")
UNIQUE_KEYS = ("u",)
NAME_KEY = "name:job"
RULED = (*LIMIT_KEYS, "t:*", "group:g1", "o1", NAME_KEY)
RULES = (
    "at_most=1",
    "at_most=2",
    "at_most=3",
    "-",
    "rate=1 per=60000 burst=1",
    "at_most=2 rate=2 per=60000 burst=2",
    "at_most=1 excess=drop",
    "at_most=1 excess=cancel_new",
    "at_most=1 excess=cancel_running",
    "at_most=1 on_failure=pause",
)
CONFLICTS = ("", "keep", "replace", "push 60000", "again", "again")
ASKED = "asked to end; its worker is gone"
NOT_STORED = ("joined", "replaced", "pushed")
ENDLESS = "b"
"""The batch of each lane that is never full."""


def satisfied(policy: str, state: str) -> bool:
    """Whether a parent that ended so lets its child go on."""
    return policy == "e" or (state == "succeeded") == (policy == "s")


@dataclass
class Edge:
    """One parent of a task; ``met`` once it has ended: whether it lets the task go on."""

    policy: str
    parent: str
    met: bool | None = None
    batch: bool = False
    """Whether the parent is a batch."""

    @property
    def line(self) -> str:
        """As the conditions of a task have it."""
        return edge(self.parent, self.policy, "b" if self.batch else "t")


@dataclass
class Batch:
    """A batch that ends: with so many tasks."""

    total: int
    members: list[str] = field(default_factory=list)
    ended: str = ""
    """How it stands since its last task has ended; '' before."""

    @property
    def full(self) -> bool:
        """Whether it has all of its tasks."""
        return len(self.members) >= self.total


@dataclass
class Known:
    """What the model knows of a task."""

    gate: Gate
    edges: list[Edge] = field(default_factory=list)
    replays: int = 0
    started: bool = False
    """Whether it has been in the stream."""
    tried: bool = False
    """Whether an attempt of it has ended."""
    shared: bool = False
    """Whether another has its unique key: it runs once more after that one."""
    in_line: bool = True
    """Whether it came in the order in which it was added: without parents, due time, priority."""
    batch: str = ""
    returned: str = ""
    """What it returned, and ends as; '' once it has ended."""
    as_returned: str = ""
    """How that ended."""

    @property
    def opts(self) -> str:
        """Its options, as they are sent."""
        return options(self.gate.text, self.batch, after=bool(self.edges))


class Followed:
    """The model of one queue, which follows what happens there."""

    def __init__(self, world: GateWorld) -> None:
        self.world = world
        self.tasks: dict[str, Known] = {}
        self.batches: dict[str, Batch] = {}
        """Those that end, by their refs."""
        self.held: list[tuple[str, str, str, dict[str, str]]] = []
        self.calls = 0
        self.happened: set[str] = set()
        for lane in LANES:
            for consumer in CONSUMERS:
                world.lanes[lane].register(consumer, names="other")
            commands = world.lanes[lane].commands
            world.lanes[lane].call(commands.open_batch(ENDLESS, "job", 1_000_000, int(TTL)))
        self.seen = world.look()

    # -- following -------------------------------------------------------------------------------

    def follow(
        self, expected: Mapping[str, str] | None = None, dropped: Sequence[str] = ()
    ) -> Seen:
        """Look, and compare with what the step may have changed."""
        expected = expected or {}
        before, now = self.seen, self.world.look()
        self.seen = now
        checks.check(now)
        demand(
            set(now.tasks) == set(self.tasks), f"{set(now.tasks) ^ set(self.tasks)} came or went"
        )
        ended = {
            ref: task.state
            for ref, task in now.tasks.items()
            if task.ended and not (ref in before.tasks and before.tasks[ref].ended)
        }
        self._resolve(ended)
        for ref, state in expected.items():
            demand(ended.get(ref) == state, f"{ref!r} should be {state}, it {ended.get(ref)}")
        for ref, state in ended.items():
            if ref not in expected:
                self._may_end(ref, state, dropped)
            self.tasks[ref].returned = ""
        self._parents(now)
        self._returned(now)
        self._batches(now)
        self._limits(before, now)
        self._locks(now)
        self._arrivals(now)
        self.happened |= {f"waits for {t.record['reason']}" for _, t in checks.waiting(now)}
        self.happened |= set(ended.values())
        return now

    def _resolve(self, ended: Mapping[str, str]) -> None:
        over = dict(ended)
        for of, batch in self.batches.items():
            states = [self.seen.tasks[ref].state for ref in batch.members]
            if (
                batch.full
                and not batch.ended
                and all(self.seen.tasks[r].ended for r in batch.members)
            ):
                batch.ended = "succeeded" if set(states) == {"succeeded"} else "failed"
                over[f"b:{of}"] = batch.ended
                self.happened.add(f"a batch {batch.ended}")
        for known in self.tasks.values():
            for one in known.edges:
                name = f"b:{one.parent}" if one.batch else one.parent
                if one.met is None and name in over:
                    one.met = satisfied(one.policy, over[name])
            if known.returned in over:
                known.as_returned = over[known.returned]

    def _may_end(self, ref: str, state: str, dropped: Sequence[str]) -> None:
        known = self.tasks[ref]
        if known.returned and state == known.as_returned:
            self.happened.add(f"ends as what it returned, {state}")
            return
        if state == "cancelled" and (ref in dropped or any(e.met is False for e in known.edges)):
            return
        reason = self.seen.tasks[ref].record.get("reason", "")
        for words in ("dropped by limit ", "made room for another under "):
            if state == "cancelled" and reason.startswith(words):
                demand(reason.removeprefix(words) in known.gate.slots, f"{ref!r} {reason}")
                return
        if state == "cancelled" and reason == ASKED:
            return
        if state == "expired" and known.gate.expires and not known.tried:
            return
        raise Broken(f"{ref!r} ended by itself: {state}")

    def _parents(self, now: Seen) -> None:
        if checks.busy(now, "after", "end"):
            return
        for ref, known in self.tasks.items():
            task = now.tasks[ref]
            if not known.edges or task.ended:
                continue
            demand(all(e.met is not False for e in known.edges), f"{ref!r} lives without its need")
            ready = all(e.met for e in known.edges)
            waits = task.place == "waiting" and task.record["reason"] == "parents"
            waits = waits and not known.returned
            demand(waits != ready, f"{ref!r} is {task.place}; all its parents have ended: {ready}")

    def _returned(self, now: Seen) -> None:
        for ref, known in self.tasks.items():
            task = now.tasks[ref]
            demand(
                bool(known.returned) == ("continued" in task.record),
                f"{ref!r} returned {known.returned!r}, its record: {task.record}",
            )
            if not known.returned:
                continue
            waits = task.place == "waiting" and task.record["reason"] == "parents"
            demand(waits, f"{ref!r} returned {known.returned!r}, and is {task.place}")
            over = now.tasks[known.returned].ended
            demand(not over or checks.busy(now, "after"), f"{ref!r} waits for what has ended")

    def _batches(self, now: Seen) -> None:
        for of, batch in self.batches.items():
            says = now.batches[of]
            for state in checks.ENDS:
                count = sum(now.tasks[ref].state == state for ref in batch.members)
                said = int(says.get(state, 0))
                demand(said == count, f"the batch {of!r} counts {said} {state}, has {count}")
            demand(int(says["total"]) == batch.total, f"{of!r} has {batch.total} tasks: {says}")
            demand(bool(batch.ended) == ("finished_ms" in says), f"{of!r} {batch.ended}: {says}")
            if batch.ended and not checks.busy(now, "after"):
                demand(f"b:{of}" not in now.edges, f"{of!r} has ended, and has edges")

    @staticmethod
    def _limits(before: Seen, now: Seen) -> None:
        was, used = checks.used(before), checks.used(now)
        for key, count in used.items():
            if count <= was.get(key, 0):
                continue
            both = set(before.kind("p")) & set(now.kind("p"))
            demand(key not in both, f"{key!r} is paused, and let one in")
            holders = [t for t in now.tasks.values() if key in t.gate.slots]
            alone = sum(t.place in IN_STREAM or t.gate.order == key for t in holders) == 1
            at_most = now.rule(key).get("at_most", count)
            demand(alone or count <= int(at_most), f"{count} slots of {key!r}, at most {at_most}")

    def _locks(self, now: Seen) -> None:
        for ref, known in self.tasks.items():
            alive = not now.tasks[ref].ended and not known.replays
            if alive and known.gate.unique and known.gate.scope == "s":
                holder = now.unique.get(known.gate.unique, "nobody")
                demand(known.shared or holder == f"s{ref}", f"{holder!r} holds the key of {ref!r}")

    def _arrivals(self, now: Seen) -> None:
        for key in ORDER_KEYS:
            earlier: str | None = None
            for ref, known in self.tasks.items():
                if known.gate.order != key or not known.in_line:
                    continue
                task = now.tasks[ref]
                known.started = known.started or task.place in IN_STREAM
                if known.started and earlier:
                    raise Broken(f"{ref!r} started before {earlier!r}, which came before it")
                if not known.started and not task.ended and not checks.ending(now, ref):
                    earlier = earlier or ref
        for ref, known in self.tasks.items():
            known.started = known.started or now.tasks[ref].place in IN_STREAM

    def twice(self, lane: str, command: Sequence[Any], *, same_answer: bool = True) -> Any:
        """Send a command, and send it again: nothing more changes."""
        world = self.world
        first = world.send(lane, command)
        one = world.look()
        second = world.send(lane, command)
        other = world.look()
        demand(not same_answer or first == second, f"answered {first}, sent again {second}")
        changes = different(one, other) if not one.timers else []  # else it goes on with them
        demand(not changes, f"sent again it changed something: {changes}")
        return first

    def ids(self) -> list[str]:
        """Refs of all tasks."""
        return list(self.tasks)

    # -- what waits for what ---------------------------------------------------------------------

    def needs(self, ref: str) -> Iterator[str]:
        """What a task waits for: tasks, and batches as ``b:`` and their refs."""
        known = self.tasks[ref]
        for one in known.edges:
            if one.met is None:
                yield f"b:{one.parent}" if one.batch else one.parent
        if known.returned:
            yield known.returned

    def reach(self, names: Sequence[str]) -> set[str]:
        """All that these wait for, and themselves."""
        found: set[str] = set()
        left = list(names)
        while left:
            name = left.pop()
            if name in found:
                continue
            found.add(name)
            if name.startswith("b:"):
                left += self.batches[name[2:]].members
            elif name in self.tasks:
                left += self.needs(name)
        return found

    def edges_to(self, picks: Sequence[tuple[int, str]], avoid: Sequence[str] = ()) -> list[Edge]:
        """Edges at some of the latest tasks and batches, but for those that wait for ``avoid``."""
        latest = [*self.ids()[-8:], *(f"b:{of}" for of in list(self.batches)[-3:])]
        found: dict[str, Edge] = {}
        for pick, policy in picks:
            if latest and not self.reach([name := latest[pick % len(latest)]]) & set(avoid):
                found[name] = self.edge_to(name, policy)
        return list(found.values())

    def edge_to(self, name: str, policy: str) -> Edge:
        """One edge, as its parent stands."""
        if name.startswith("b:"):
            state = self.batches[name[2:]].ended
            return Edge(policy, name[2:], satisfied(policy, state) if state else None, batch=True)
        task = self.seen.tasks.get(name)
        met = satisfied(policy, task.state) if task and task.ended else None
        return Edge(policy, name, met)


def different(one: Seen, other: Seen) -> list[str]:
    """What differs between two looks, but the time."""
    found = []
    for name in ("limits", "waiting", "lines", "shares", "unique", "edges", "timers", "orphans"):
        if getattr(one, name) != getattr(other, name):
            found.append(f"{name}: {getattr(one, name)} != {getattr(other, name)}")
    for ref in one.tasks.keys() | other.tasks.keys():
        if one.tasks.get(ref) != other.tasks.get(ref):
            was, is_now = one.tasks.get(ref), other.tasks.get(ref)
            lines = [
                f"{name} {getattr(was, name, None)} != {getattr(is_now, name, None)}"
                for name in ("places", "record", "fields")
                if getattr(was, name, None) != getattr(is_now, name, None)
            ]
            found.append(f"{ref!r}: {lines}")
    return found

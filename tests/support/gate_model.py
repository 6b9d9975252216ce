"""A model of the gate in plain Python, and the steps that are taken on it and on a real server.

The model knows each task's gate, its parents, and how they ended; it does not know in which order
the scripts let tasks in. After every step it reads what the server holds, asks `gate_checks` about
what must always hold, and whether each change was one that this step may make.

Every step takes small numbers, which say what it picks: a state machine draws them, and `GateWalk`
rolls them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from support import gate_checks as checks
from support.gate_checks import IN_STREAM, demand
from support.gate_world import (
    LANES,
    Gate,
    GateWorld,
    Seen,
    edge,
    gated,
    lane_of,
    ref_of,
)
from support.script_world import (
    LEASE_MS,
    TTL,
    Broken,
    attempt_ended,
    outcome,
    payload_of,
    resubmitted,
)

CONSUMERS = ("a", "b")
LIMIT_KEYS = ("a", "b", "t:1", "t:2")
ORDER_KEYS = ("o1", "o2")
GROUPS = ("g1", "g2", "g3")
UNIQUE_KEYS = ("u",)
RULED = (*LIMIT_KEYS, "t:*", "group:g1", "o1")
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


def satisfied(policy: str, state: str) -> bool:
    """Whether a parent that ended so lets its child go on."""
    return policy == "e" or (state == "succeeded") == (policy == "s")


@dataclass
class Edge:
    """One parent of a task; ``met`` once it has ended: whether it lets the task go on."""

    policy: str
    parent: str
    met: bool | None = None


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


class GateModel:
    """The model, and the steps; all of them check what they did."""

    def __init__(self, world: GateWorld) -> None:
        self.world = world
        self.tasks: dict[str, Known] = {}
        self.held: list[tuple[str, str, str, dict[str, str]]] = []
        self.calls = 0
        self.happened: set[str] = set()
        for lane in LANES:
            for consumer in CONSUMERS:
                world.lanes[lane].register(consumer, names="other")
            commands = world.lanes[lane].commands
            world.lanes[lane].call(commands.open_batch("b", "job", 1_000_000, int(TTL)))
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
        self._parents(now)
        self._limits(before, now)
        self._locks(now)
        self._arrivals(now)
        self.happened |= {f"waits for {t.record['reason']}" for _, t in checks.waiting(now)}
        self.happened |= set(ended.values())
        return now

    def _resolve(self, ended: Mapping[str, str]) -> None:
        for known in self.tasks.values():
            for one in known.edges:
                if one.met is None and one.parent in ended:
                    one.met = satisfied(one.policy, ended[one.parent])

    def _may_end(self, ref: str, state: str, dropped: Sequence[str]) -> None:
        known = self.tasks[ref]
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
            demand(waits != ready, f"{ref!r} is {task.place}; all its parents have ended: {ready}")

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
                if not known.started and not task.ended:
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
        changes = different(one, other)
        demand(not changes, f"sent again it changed something: {changes}")
        return first

    def ids(self) -> list[str]:
        """Refs of all tasks."""
        return list(self.tasks)

    # -- adding ----------------------------------------------------------------------------------

    def add(
        self,
        gates: Sequence[Gate],
        *,
        lane: int = 1,
        parents: Sequence[tuple[int, str]] = (),
        due: str = "",
        conflict: str = "",
        batch: bool = False,
    ) -> None:
        """New tasks of one lane with gates; ``parents`` pick among the latest tasks."""
        where = LANES[lane % 3]
        edges = self._edges(parents)
        fields: list[str] = []
        refs = []
        for gate in gates:
            id = f"t{len(self.tasks) + len(refs)}"
            refs.append((ref_of(where, id), gate))
            lines = [edge(e.parent, e.policy) for e in edges]
            fields += gated(id, gate.text, lines, conflict, due, "b" if batch else "")
        command = self.world.lanes[where].commands.enqueue_gated(fields)
        if conflict.startswith("push"):
            reply = self.world.send(where, command)
        else:
            reply = self.twice(where, command, same_answer=False)
        self._added(refs, reply, edges, due)

    def _edges(self, parents: Sequence[tuple[int, str]]) -> list[Edge]:
        latest = self.ids()[-8:]
        found: dict[str, Edge] = {}
        for pick, policy in parents:
            if latest:
                parent = latest[pick % len(latest)]
                task = self.seen.tasks[parent]
                met = satisfied(policy, task.state) if task.ended else None
                found[parent] = Edge(policy, parent, met)
        return list(found.values())

    def _added(
        self, refs: Sequence[tuple[str, Gate]], reply: Any, edges: Sequence[Edge], due: str
    ) -> None:
        said = {item[0]: item for item in reply if isinstance(item, list)}
        demand(len(said) == len(reply), f"new tasks were called known: {reply}")
        dropped = []
        for position, (ref, gate) in enumerate(refs, 1):
            word = said[position][1] if position in said else ""
            self.happened.add(word.partition(" ")[0] or "added")
            if word in NOT_STORED:
                self._stands(ref, gate, said[position])
                continue
            if word and word not in ("dropped", "again"):
                demand(word.startswith("too heavy"), f"{ref!r} was refused: {word}")
                continue
            if word == "dropped":
                dropped.append(ref)
            in_line = not (edges or due or gate.priority) and word != "again"
            self.tasks[ref] = Known(gate, copy.deepcopy(list(edges)), in_line=in_line)
            if word == "again":
                value = self.seen.unique[gate.unique]
                holder = value.partition(" ")[2] if value[0] == "d" else value[1:]
                self.tasks[holder].shared = True
                self.tasks[ref].edges.append(Edge("e", holder))
        self.follow(dropped=dropped)

    def _stands(self, ref: str, gate: Gate, said: Sequence[Any]) -> None:
        word = said[1]
        stands = next((r for r in self.tasks if lane_of(r)[1] == said[2]), said[2])
        known = self.tasks.get(stands)
        demand(gate.unique and known, f"{ref!r} was {word}: {stands!r} is nobody")
        if word == "replaced" and known:
            lane, id = lane_of(stands)
            self.world.lanes[lane].payloads[id] = payload_of(lane_of(ref)[1])
            known.in_line = False

    # -- workers ---------------------------------------------------------------------------------

    def fetch(self, lane: int, consumer: int, count: int) -> None:
        """A worker reads."""
        where, who = LANES[lane % 3], CONSUMERS[consumer % 2]
        for entry, fields in self.world.fetch(who, count, where):
            self.held.append((where, who, entry, fields))
        self.follow()

    def _pick(self, pick: int, stale: bool) -> tuple[str, str, str, dict[str, str]] | None:
        there = self.held[-20:]
        if not stale:
            there = [h for h in there if self._owns(h)]
        return there[pick % len(there)] if there else None

    def _owns(self, held: tuple[str, str, str, dict[str, str]]) -> bool:
        lane, consumer, entry, fields = held
        task = self.seen.tasks[ref_of(lane, fields["id"])]
        return task.fields.get("entry") == entry and task.fields.get("consumer") == consumer

    def settle(self, pick: int, state: str, *, stale: bool = False, spawn: int = 0) -> None:
        """A worker ends a task; with it come children."""
        held = self._pick(pick, stale)
        if held is None:
            return
        lane, consumer, entry, fields = held
        ref, owns = ref_of(lane, fields["id"]), self._owns(held)
        row = outcome(
            entry,
            fields["id"],
            state,
            attempt=fields["attempt"],
            body="{}",
            batch="b" if '"batch"' in fields["opts"] else "",
        )
        new = [f"t{len(self.tasks) + n}" for n in range(spawn if state == "succeeded" else 0)]
        gate = Gate({"a": 1})
        children = [(1, gated(id, gate.text)) for id in new]
        command = self.world.settling(row, consumer=consumer, lane=lane, children=children)
        reply = self.twice(lane, command)
        if owns:
            demand(reply == [], f"{consumer!r} has {ref!r}, its settlement: {reply}")
            for id in new:
                self.tasks[ref_of(lane, id)] = Known(gate)
        self.follow({ref: state} if owns else {}, dropped=[ref_of(lane, id) for id in new])

    def retry(self, pick: int, state: str, delay_ms: int, *, stale: bool = False) -> None:
        """An attempt failed, or a task sleeps."""
        held = self._pick(pick, stale)
        if held is None:
            return
        lane, consumer, entry, fields = held
        row = attempt_ended(
            entry, fields["id"], state, attempt=fields["attempt"], delay_ms=delay_ms
        )
        owns = self._owns(held)
        reply = self.twice(lane, self.world.lanes[lane].commands.retry(consumer, [row]))
        asked = reply == [[1, "asked to end"]]
        demand(not owns or asked or reply == [], f"an own retry was answered {reply}")
        self.tasks[ref_of(lane, fields["id"])].tried |= owns and not asked
        self._not_in_line(ref_of(lane, fields["id"]), delay_ms)
        self.follow()

    def _not_in_line(self, ref: str, delay_ms: int) -> None:
        if delay_ms and not self.tasks[ref].gate.order:
            self.tasks[ref].in_line = False

    def park(self, pick: int, grace_ms: int) -> None:
        """A worker does not know the name."""
        held = self._pick(pick, stale=False)
        if held is None:
            return
        lane, consumer, entry, fields = held
        ref = ref_of(lane, fields["id"])
        command = self.world.lanes[lane].commands.park(
            consumer, grace_ms, [(entry, fields["id"], fields["name"])]
        )
        (word,) = self.twice(lane, command)
        said = ("parked", "dead", [1, "asked to end"])
        demand(word in said, f"{ref!r} is this worker's, and was {word}")
        self.follow({ref: "failed"} if word == "dead" else {})

    def release(self, pick: int) -> None:
        """Unstarted work goes back."""
        held = self._pick(pick, stale=False)
        if held is None:
            return
        lane, consumer, entry, _ = held
        self.twice(lane, self.world.lanes[lane].commands.release(consumer, [entry.encode()]))
        self.follow()

    def die(self, lane: int, consumer: int, *, started: bool, limit: int = 200) -> None:
        """A worker is dead: what it had goes back, or is a dead letter."""
        where, who = LANES[lane % 3], CONSUMERS[consumer % 2]
        commands = self.world.lanes[where].commands
        tasks = {
            ref: task
            for ref, task in self.seen.tasks.items()
            if lane_of(ref)[0] == where and task.fields.get("consumer") == who
        }
        running = [t.fields["entry"] for t in tasks.values()] if started else []
        asked = self.world.db.hkeys(f"wishes:{self.world.lanes[where].keys.stream}:{who}")
        worn = {
            ref: "failed"
            for ref, task in tasks.items()
            if started and int(task.fields["recovered"]) >= 1 and task.fields["entry"] not in asked
        }
        more, first = True, {}
        while more:
            reply = self.world.send(
                where, commands.recover(1, consumer=who, started=running, limit=limit)
            )
            more = bool(reply[2])
            first = worn if not more else {}
            if more:
                checks.check(self.world.look())
        self.follow(first)
        self.world.lanes[where].register(who, names="other")

    # -- others ----------------------------------------------------------------------------------

    def cancel(self, picks: Sequence[int]) -> None:
        """Tasks of any place are cancelled, all of one lane."""
        if not self.tasks:
            return
        refs = [self.ids()[pick % len(self.tasks)] for pick in picks]
        lane = lane_of(refs[0])[0]
        mine = list(dict.fromkeys(r for r in refs if lane_of(r)[0] == lane))
        command = self.world.lanes[lane].commands.cancel([lane_of(r)[1] for r in mine], int(TTL))
        before = self.seen
        words = self.world.send(lane, command)
        expected = {}
        for ref, word in zip(mine, words, strict=True):
            task = before.tasks[ref]
            if task.place == "pending":
                demand(word == "running", f"{ref!r} runs, and was {word}")
            elif task.ended:
                demand(word == task.state, f"{ref!r} was {task.state}, and is {word}")
            elif word == "cancelled":
                expected[ref] = "cancelled"
            else:  # the end of another of these has ended or started it, in the same call
                demand(len(mine) > 1, f"{ref!r} is {task.place}, and was {word}")
        self.follow(expected)
        one = self.seen
        self.world.send(lane, command)
        again = self.world.look()
        changed = [r for r in mine if again.tasks[r].state != one.tasks[r].state and len(mine) == 1]
        demand(not changed, f"cancelled again, {changed} changed")
        self.follow(
            {
                r: "cancelled"
                for r in mine
                if again.tasks[r].state == "cancelled" and not one.tasks[r].ended
            }
        )

    def replay(self, pick: int) -> None:
        """A dead letter runs again."""
        dead = [ref for ref, task in self.seen.tasks.items() if task.state == "failed"]
        if not dead:
            return
        ref = dead[pick % len(dead)]
        lane, id = lane_of(ref)
        reply = self.world.send(lane, self.world.lanes[lane].commands.replay([id]))
        demand(reply == [1, 0, 0], f"the replay of {ref!r} was answered {reply}")
        self._again(ref)

    def _again(self, ref: str) -> None:
        known = self.tasks[ref]
        self.tasks[ref] = replace(
            known, replays=known.replays + 1, edges=[], started=False, in_line=False
        )
        self.happened.add("again by hand")
        self.seen.tasks[ref].places = ["nowhere"]
        self.follow()

    def resubmit(self, pick: int) -> None:
        """An ended task of the batch runs again, with the gate that it is given now."""
        refs = [
            ref
            for ref, task in self.seen.tasks.items()
            if task.state in ("failed", "cancelled") and '"batch"' in task.record.get("opts", "")
        ]
        if not refs:
            return
        ref = refs[pick % len(refs)]
        lane, id = lane_of(ref)
        opts = self.seen.tasks[ref].record["opts"]
        self.calls += 1
        row = (*resubmitted(id, opts=opts), "")
        command = self.world.lanes[lane].commands.resubmit_gated(f"call-{self.calls}", [row])
        reply = self.twice(lane, command)
        if reply:
            why = reply[0][1]
            refused = why.startswith(("too heavy", "its unique key is taken"))
            demand(refused, f"the resubmission of {ref!r} was answered {reply}")
            self.follow()
        else:
            self._again(ref)

    def promote(self, *, time_passes: bool) -> None:
        """Schedulers run timers and move what is due."""
        if time_passes:
            self.world.pass_time()
        self.world.promote()
        self.follow()

    def set_limit(self, key: int, rule: int, lane: int = 1) -> None:
        """A rule changes."""
        where = LANES[lane % 3]
        command = self.world.lanes[where].commands.limit(
            RULED[key % len(RULED)], RULES[rule % len(RULES)]
        )
        self.twice(where, command, same_answer=False)
        self.follow()

    def pause(self, key: int, *, paused: bool) -> None:
        """A key is paused or resumed."""
        names = (*RULED, "o2", "group:g2")
        command = self.world.normal.commands.limit(
            names[key % len(names)], "", paused="1" if paused else "0"
        )
        self.twice("normal", command)
        self.follow()

    def penalize(self, key: int) -> None:
        """A key lets nobody in for a while."""
        self.world.limit(LIMIT_KEYS[key % len(LIMIT_KEYS)], penalty=60_000)
        self.follow()

    def beat(self) -> None:
        """Workers beat."""
        for world in self.world.lanes.values():
            world.call(world.commands.heartbeat(LEASE_MS, [(c, "=") for c in CONSUMERS]))

    # -- the end ---------------------------------------------------------------------------------

    def drain(self) -> None:
        """No rule and no pause is left, and a well-behaved worker ends it all."""
        for key in (*RULED, "o2", "group:g2", "group:g3"):
            self.world.limit(key, "-", paused="0")
        self.follow()
        for lane in range(3):
            for consumer in range(2):
                self.die(lane, consumer, started=False)
        for _ in range(100):
            self.promote(time_passes=True)
            if all(task.ended for task in self.seen.tasks.values()):
                break
            for lane in range(3):
                self.fetch(lane, 0, 50)
            for held in [h for h in self.held if self._owns(h)]:
                lane, consumer, entry, fields = held
                if self._owns(held):
                    batch = "b" if '"batch"' in fields["opts"] else ""
                    row = outcome(entry, fields["id"], attempt=fields["attempt"], batch=batch)
                    reply = self.world.settle(row, consumer=consumer, lane=lane)
                    demand(reply == [], f"outcomes of the only worker were refused: {reply}")
                    self.follow({ref_of(lane, fields["id"]): "succeeded"})
        left = [ref for ref, task in self.seen.tasks.items() if not task.ended]
        demand(not left, f"{left} never end: {[self.seen.tasks[r].record for r in left]}")
        self.conserved()

    def conserved(self) -> None:
        """The law of conservation, lane by lane, with history, counters and payloads."""
        for lane, world in self.world.lanes.items():
            world.check(
                {
                    lane_of(ref)[1]: known.replays
                    for ref, known in self.tasks.items()
                    if lane_of(ref)[0] == lane
                }
            )


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

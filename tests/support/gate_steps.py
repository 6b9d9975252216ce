"""The steps that are taken on the model of the gate, and on a real server at once.

Every step takes small numbers, which say what it picks: a state machine draws them, and `GateWalk`
rolls them. Each calls its verb twice where the second call is to change nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from support import gate_checks as checks
from support.gate_checks import demand
from support.gate_model import (
    CONSUMERS,
    ENDLESS,
    LIMIT_KEYS,
    NAME_KEY,
    NOT_STORED,
    RULED,
    RULES,
    Batch,
    Edge,
    Followed,
    Known,
)
from support.gate_scenes_recount import recount
from support.gate_world import LANES, Gate, gated, lane_of, options, ref_of
from support.script_world import (
    LEASE_MS,
    TTL,
    attempt_ended,
    outcome,
    payload_of,
    resubmitted,
)

Held = tuple[str, str, str, dict[str, str]]


class GateModel(Followed):
    """The model, and the steps; all of them check what they did."""

    # -- adding ----------------------------------------------------------------------------------

    def add(
        self,
        gates: Sequence[Gate],
        *,
        lane: int = 1,
        parents: Sequence[tuple[int, str]] = (),
        due: str = "",
        conflict: str = "",
        batch: bool | int = False,
    ) -> None:
        """New tasks of one lane with gates; ``parents`` pick among the latest tasks and batches,
        ``batch`` among those with room, 0 none, True the one that is never full."""
        where = LANES[lane % 3]
        edges = self.edges_to(parents)
        into = self._batch_for(where, batch, edges, gates)
        fields: list[str] = []
        refs = []
        for gate in gates:
            id = f"t{len(self.tasks) + len(refs)}"
            refs.append((ref_of(where, id), gate))
            lines = [e.line for e in edges]
            fields += gated(id, gate.text, lines, conflict, due, into)
        command = self.world.lanes[where].commands.enqueue_gated(fields)
        if conflict.startswith("push"):
            reply = self.world.send(where, command)
        else:
            reply = self.twice(where, command, same_answer=False)
        self._added(refs, reply, edges, due, into)

    def _batch_for(
        self, lane: str, pick: bool | int, edges: Sequence[Edge], gates: Sequence[Gate]
    ) -> str:
        if not pick or pick is True:
            return ENDLESS if pick else ""
        after = self.reach([f"b:{e.parent}" if e.batch else e.parent for e in edges])
        open_ones = [
            lane_of(of)[1]
            for of, batch in self.batches.items()
            if lane_of(of)[0] == lane
            and len(batch.members) + len(gates) <= batch.total
            and f"b:{of}" not in after
        ]
        if any(gate.unique for gate in gates) or not open_ones:
            return ENDLESS
        return open_ones[pick % len(open_ones)]

    def _member(self, ref: str, batch: str) -> None:
        if of := self.batches.get(ref_of(lane_of(ref)[0], batch)) if batch else None:
            of.members.append(ref)

    def open_batch(self, lane: int, total: int) -> None:
        """A batch of so many tasks."""
        where = LANES[lane % 3]
        id = f"batch{len(self.batches)}"
        command = self.world.lanes[where].commands.open_batch(id, "job", total, int(TTL))
        self.twice(where, command, same_answer=False)
        self.batches[ref_of(where, id)] = Batch(total)
        self.follow()

    def _added(
        self,
        refs: Sequence[tuple[str, Gate]],
        reply: Any,
        edges: Sequence[Edge],
        due: str,
        batch: str,
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
            self.tasks[ref] = Known(gate, copy.deepcopy(list(edges)), in_line=in_line, batch=batch)
            self._member(ref, batch)
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
            batch=self.tasks[ref].batch,
        )
        new = self._new_ids(spawn if state == "succeeded" else 0)
        gate = Gate({"a": 1})
        children = [(1, gated(id, gate.text)) for id in new]
        command = self.world.settling(row, consumer=consumer, lane=lane, children=children)
        reply = self.twice(lane, command)
        if owns:
            demand(reply == [], f"{consumer!r} has {ref!r}, its settlement: {reply}")
            for id in new:
                self.tasks[ref_of(lane, id)] = Known(gate)
        self.follow({ref: state} if owns else {}, dropped=[ref_of(lane, id) for id in new])

    def _new_ids(self, count: int) -> list[str]:
        return [f"t{len(self.tasks) + n}" for n in range(count)]

    def give_back(
        self,
        pick: int,
        gates: Sequence[Gate],
        *,
        chained: bool = False,
        parents: Sequence[tuple[int, str]] = (),
        stale: bool = False,
        in_batch: bool = False,
        there: int | None = None,
    ) -> None:
        """A worker's task returns others, and ends as the last of them does; or as one that is
        ``there`` already."""
        held = self._pick(pick, stale)
        if held is None:
            return
        lane, consumer, entry, fields = held
        ref, owns = ref_of(lane, fields["id"]), self._owns(held)
        known = self.tasks[ref]
        batch = known.batch if in_batch else ""
        if batch and batch != ENDLESS:
            batch = ""  # the batch of which it is one ends after it
        avoid = [ref, *(f"b:{of}" for of, b in self.batches.items() if ref in b.members)]
        edges = self.edges_to(parents, avoid)
        new = dict(zip(self._new_ids(len(gates)), gates, strict=True))
        children, made, before = [], {}, list(edges)
        for id, gate in new.items():
            lines = [e.line for e in before]
            children.append((1, gated(id, gate.text, lines, batch=batch)))
            made[ref_of(lane, id)] = Known(gate, copy.deepcopy(before), in_line=False, batch=batch)
            if chained:
                before = [Edge("s", ref_of(lane, id))]
        last = ref_of(lane, list(new)[-1])
        if there is not None:
            last = self._there(lane, there, avoid) or last
        row = outcome(
            entry,
            fields["id"],
            "continued",
            attempt=fields["attempt"],
            body=lane_of(last)[1],
            batch=known.batch,
        )
        command = self.world.settling(row, consumer=consumer, lane=lane, children=children)
        reply = self.twice(lane, command)
        asked = reply == [[1, "asked to end"]]
        accepted = owns and not asked
        demand(not owns or asked or reply == [], f"{ref!r} is its worker's, its return: {reply}")
        if accepted:
            self.tasks |= made
            known.tried, known.returned, known.as_returned = True, last, ""
            if self.seen.tasks[last].ended if last in self.seen.tasks else False:
                known.as_returned = self.seen.tasks[last].state
            self.happened.add("returned")
        self.follow(dropped=list(made) if accepted else ())

    def _there(self, lane: str, pick: int, avoid: Sequence[str]) -> str:
        others = [
            ref
            for ref in self.ids()[-8:]
            if lane_of(ref)[0] == lane and not self.reach([ref]) & set(avoid)
        ]
        return others[pick % len(others)] if others else ""

    def regate(self, pick: int) -> None:
        """A worker hands back a task whose name has a rule or is paused."""
        held = self._pick(pick, stale=False)
        if held is None:
            return
        lane, consumer, entry, fields = held
        ref = ref_of(lane, fields["id"])
        known = self.tasks[ref]
        ruled = {"r" + NAME_KEY, "p" + NAME_KEY} & set(self.seen.limits)
        command = self.world.lanes[lane].commands.regate(consumer, [entry.encode()])
        (word,) = self.twice(lane, command, same_answer=False)
        if NAME_KEY in known.gate.limits or not ruled:
            demand(word == "free", f"{ref!r} needs no other key, and was {word}")
        elif word != [1, "asked to end"]:
            demand(word == "regated", f"{ref!r} is under a rule for its name, and was {word}")
            known.gate = replace(known.gate, limits={NAME_KEY: 1, **known.gate.limits})
            known.in_line = known.in_line and bool(known.gate.order)
            self.happened.add("regated")
        self.follow()

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

    def cancel(self, picks: Sequence[int], wish: str = "") -> None:
        """Tasks of any place are cancelled, all of one lane; of those that run it is wished."""
        if not self.tasks:
            return
        refs = [self.ids()[pick % len(self.tasks)] for pick in picks]
        lane = lane_of(refs[0])[0]
        mine = list(dict.fromkeys(r for r in refs if lane_of(r)[0] == lane))
        command = self.world.lanes[lane].commands.cancel(
            [lane_of(r)[1] for r in mine], int(TTL), wish
        )
        before = self.seen
        words = self.world.send(lane, command)
        expected = {}
        for ref, word in zip(mine, words, strict=True):
            task = before.tasks[ref]
            if task.place == "pending":
                demand(word == ("asked" if wish else "running"), f"{ref!r} runs, and was {word}")
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
        self.follow()

    def _again(self, *refs: str) -> None:
        """These run again; a dead letter that is replayed has no parents any more."""
        for ref in refs:
            known = self.tasks[ref]
            self.tasks[ref] = replace(
                known, replays=known.replays + 1, edges=[], started=False, in_line=False
            )
            self._unreleased(ref, f"t:{ref}")
            batch = ref_of(lane_of(ref)[0], known.batch)
            if of := self.batches.get(batch):
                of.ended = ""
                self._unreleased(batch, f"b:{batch}")
            self.seen.tasks[ref].places = ["nowhere"]
        self.happened.add("again by hand")

    def _unreleased(self, parent: str, name: str) -> None:
        """Who a timer was to release waits for the new end."""
        waiting = [row[1:].partition(" ") for row in self.seen.edges.get(name, ())]
        for place, _, child in waiting:
            if self.seen.tasks[child].record.get("place") == place:
                for one in self.tasks[child].edges:
                    if (one.parent, one.batch) == (parent, name[0] == "b"):
                        one.met = None

    def resubmit(self, picks: Sequence[int], *, gated_again: bool, keep_edges: bool = True) -> None:
        """Ended tasks of one lane run again, each after those before it that it depends on."""
        ended = [ref for ref, task in self.seen.tasks.items() if task.ended]
        if not ended:
            return
        lane = lane_of(ended[picks[0] % len(ended)])[0]
        ended = [ref for ref in ended if lane_of(ref)[0] == lane]
        refs = sorted({ended[pick % len(ended)] for pick in picks}, key=self.ids().index)
        self.calls += 1
        commands = self.world.lanes[lane].commands
        made: dict[str, list[Edge]] = {}
        rows: list[Any] = []
        for n, ref in enumerate(refs):
            known, id = self.tasks[ref], lane_of(ref)[1]
            edges = self._edges_again(ref, refs[:n], keep_edges) if gated_again else []
            opts = options(known.gate.text, known.batch, after=bool(edges))
            row = resubmitted(id, opts=opts, outdated=True)
            rows.append((*row, "\n".join(e.line for e in edges)) if gated_again else row)
            made[ref] = edges
        call = f"call-{self.calls}"
        command = (commands.resubmit_gated if gated_again else commands.resubmit)(call, rows)
        reply = self.twice(lane, command)
        refused = {refs[item[0] - 1]: item[1] for item in reply}
        for ref, why in refused.items():
            known_why = why.startswith(("too heavy", "its unique key is taken", "unknown parent"))
            demand(known_why, f"the resubmission of {ref!r} was answered {reply}")
        again = [ref for ref in refs if ref not in refused]
        self._again(*again)
        for ref in again:
            self.tasks[ref].edges, self.tasks[ref].tried = made[ref], False
            for one in made[ref]:
                if one.parent in again:
                    one.met = None
            self.world.lanes[lane].payloads.pop(lane_of(ref)[1], None)
            if made[ref] and len(again) > 1:
                self.happened.add("a graph again")
        self.follow(dropped=again)

    def _edges_again(self, ref: str, earlier: Sequence[str], keep: bool) -> list[Edge]:
        """The edges of a task that runs again: those it had, and one at the task before it."""
        avoid = {ref, *(f"b:{of}" for of, b in self.batches.items() if ref in b.members)}
        avoid |= {
            f"b:{of}"
            for of, b in self.batches.items()
            if not avoid.isdisjoint(self.reach([f"b:{of}"]))
        }
        wanted = {
            f"b:{e.parent}" if e.batch else e.parent: e.policy
            for e in (self.tasks[ref].edges if keep else ())
        }
        if earlier:
            wanted.setdefault(earlier[-1], "s")
        return [
            self.edge_to(name, policy)
            for name, policy in wanted.items()
            if not self.reach([name]) & avoid
        ]

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

    def recount(self, limit: int) -> None:
        """An operator counts the slots in use: none is wrong."""
        code, flat = recount(self.world, limit)
        demand(code == 1 and not flat, f"counted in steps of {limit}: {code} {flat}")
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
        for of, batch in list(self.batches.items()):
            for _ in range(batch.total - len(batch.members)):
                lane, id = lane_of(of)
                (new,) = self._new_ids(1)
                self.world.add(new, gate="", lane=lane, batch=id)
                self.tasks[ref_of(lane, new)] = Known(Gate(), batch=id)
                self._member(ref_of(lane, new), id)
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
                    batch = self.tasks[ref_of(lane, fields["id"])].batch
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

"""A queue with its three priorities as the gate's scripts see it: gated tasks, limits, timers.

`GateWorld` adds and moves tasks over the lanes of one queue; `Seen` is all that the server holds of
them at one instant, read in two round trips, for the checks in `gate_checks`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from support.script_world import Entry, World, payload_of
from support.servers import Server

LANES = ("high", "normal", "low")
FAR = "+600000"
TIMER = "\n"
DOOR = "door"


# -- what a gate says ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate:
    """The gate of one task, read from its text or to be written to it."""

    limits: Mapping[str, int] = field(default_factory=dict)
    order: str = ""
    group: str = ""
    weight: int = 1
    """Of the group."""
    priority: int = 0
    unique: str = ""
    scope: str = "s"
    expires: str = ""

    @property
    def text(self) -> str:
        """The lines, in the order that is agreed."""
        lines = [f"k{weight} {key}" for key, weight in self.limits.items()]
        lines += [f"o {self.order}"] if self.order else []
        lines += [f"g{self.weight} {self.group}"] if self.group else []
        lines += [f"p {self.priority}"] if self.priority else []
        lines += [f"u{self.scope} {self.unique}"] if self.unique else []
        lines += [f"x {self.expires}"] if self.expires else []
        return "\n".join(lines)

    @property
    def slots(self) -> dict[str, int]:
        """What it takes of each key while its task stands in the stream."""
        taken = dict(self.limits)
        if self.order:
            taken[self.order] = taken.get(self.order, 0) + 1
        if self.group:
            taken[f"group:{self.group}"] = taken.get(f"group:{self.group}", 0) + 1
            taken[DOOR] = taken.get(DOOR, 0) + 1
        return taken

    @classmethod
    def read(cls, text: str) -> Gate:
        """A gate from its text."""
        found: dict[str, Any] = {}
        limits: dict[str, int] = {}
        for line in text.split("\n") if text else ():
            head, _, rest = line.partition(" ")
            if head == "a":
                continue
            if head[0] == "k":
                limits[rest] = limits.get(rest, 0) + int(head[1:])
            elif head[0] == "g":
                found |= {"group": rest, "weight": int(head[1:] or 1)}
            elif head[0] == "u":
                found |= {"unique": rest, "scope": head[1:]}
            elif head[0] == "p":
                found["priority"] = int(rest)
            else:
                found[{"o": "order", "x": "expires"}[head]] = rest
        return cls(limits, **found)


def options(gate: str, batch: str = "", *, after: bool = False) -> str:
    """The options of a task, as entry and record hold them; one with parents is gated, too."""
    lines = (["a"] if after else []) + ([gate] if gate else [])
    given = {"gate": "\n".join(lines)} if lines else {}
    given |= {"batch": batch} if batch else {}
    return json.dumps(given, separators=(",", ":")) if given else ""


@lru_cache(4096)
def gate_of(opts: str) -> Gate:
    """The gate among a task's options."""
    return Gate.read(json.loads(opts).get("gate", "") if opts else "")


def ref_of(lane: str, id: str) -> str:
    """What names a task over all lanes."""
    return id if lane == "normal" else f"!{lane}\n{id}"


def lane_of(ref: str) -> tuple[str, str]:
    """Lane and id of what a ref names."""
    if not ref.startswith("!"):
        return "normal", ref
    lane, _, id = ref[1:].partition("\n")
    return lane, id


# -- what the server holds -----------------------------------------------------------------------


@dataclass
class SeenTask:
    """One task: every place where it stands, and its record."""

    record: dict[str, str]
    places: list[str]
    fields: dict[str, str]
    """Of its entry, or of its record when it is in none."""

    @property
    def place(self) -> str:
        """The one place."""
        return self.places[0] if self.places else "nowhere"

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self.places == ["settled"]

    @property
    def state(self) -> str:
        """The record's word."""
        return self.record.get("state", "")

    @property
    def gate(self) -> Gate:
        """Its gate, wherever its options are."""
        return gate_of(self.fields.get("opts", ""))


@dataclass
class Seen:
    """Everything that the server holds of a queue, its lanes and its gate."""

    now_ms: int
    limits: dict[str, str]
    waiting: dict[str, float]
    lines: dict[str, dict[str, float]]
    """Members of each waiting line, by what follows the prefix in its key."""
    shares: dict[str, float]
    unique: dict[str, str]
    edges: dict[str, list[str]]
    batches: dict[str, dict[str, str]]
    """What each batch says of itself, by its ref."""
    timers: dict[tuple[str, ...], float]
    """What a timer says, and when it is due."""
    tasks: dict[str, SeenTask]
    orphans: list[str]
    """Entries that are pending and gone, or in the stream and never read."""

    def kind(self, letter: str) -> dict[str, str]:
        """The fields of one kind in the hash of limits, by their keys."""
        return {k[1:]: v for k, v in self.limits.items() if len(k) > 1 and k[0] == letter}

    def rule(self, key: str) -> dict[str, str]:
        """The rule for a key: its own, or its pattern's."""
        rules = self.kind("r")
        text = rules.get(key)
        if text is None and ":" in key:
            text = rules.get(key[: key.index(":") + 1] + "*")
        return dict(word.split("=", 1) for word in (text or "").split())


class GateWorld:
    """One queue with its three lanes on one server; made again, it takes over what is there."""

    def __init__(self, server: Server, *, mutants: Mapping[str, str] | None = None) -> None:
        self.lanes = {
            lane: World(
                server, queue="tasks" if lane == "normal" else f"tasks!{lane}", mutants=mutants
            )
            for lane in LANES
        }
        self.normal = self.lanes["normal"]
        self.db = server.client()
        self._opts: dict[tuple[str, str], str] = {}

    def close(self) -> None:
        """Close the connections."""
        self.db.close()
        for world in self.lanes.values():
            world.close()

    # -- calls -----------------------------------------------------------------------------------

    def add(
        self,
        *ids: str,
        gate: Gate | str = "",
        after: Sequence[str] = (),
        conflict: str = "",
        due: str = "",
        lane: str = "normal",
        batch: str = "",
        name: str = "job",
    ) -> Any:
        """Add gated tasks with one gate; ``after`` are edges as `edge` writes them."""
        text = gate.text if isinstance(gate, Gate) else gate
        fields = [
            part for id in ids for part in gated(id, text, after, conflict, due, batch, name=name)
        ]
        return self.send(lane, self.lanes[lane].commands.enqueue_gated(fields))

    def send(self, lane: str, command: Sequence[Any]) -> Any:
        """Call a script of one lane."""
        return readable(self.lanes[lane].call(command))

    def limit(
        self,
        key: str,
        rule: str = "",
        *,
        paused: str = "",
        penalty: int | str = "",
        lane: str = "normal",
    ) -> Any:
        """Set a limit, or pause, resume or punish a key."""
        commands = self.lanes[lane].commands
        return self.send(lane, commands.limit(key, rule, paused=paused, penalty_ms=penalty))

    def fetch(self, consumer: str = "w", count: int = 10, lane: str = "normal") -> list[Entry]:
        """Read new entries of one lane."""
        read = self.lanes[lane].fetch(consumer, count)
        self._opts |= {(lane, entry): fields["opts"] for entry, fields in read}
        return read

    def settle(self, *outcomes: Any, consumer: str = "w", lane: str = "normal") -> Any:
        """Settle outcomes."""
        return self.send(lane, self.settling(*outcomes, consumer=consumer, lane=lane))

    def settling(
        self,
        *outcomes: Any,
        consumer: str = "w",
        lane: str = "normal",
        children: Sequence[tuple[int, Sequence[str]]] = (),
    ) -> Any:
        """The command that settles outcomes of what was read here; ``children`` come with them."""
        opts = [self._opts.get((lane, row[0]), "") for row in outcomes]
        gates: dict[str, list[int]] = {}
        for at, text in enumerate(opts, 1):
            if '"gate"' in text:
                gates.setdefault(json.loads(text)["gate"], []).append(at)
        gated = json.dumps([[text, *at] for text, at in gates.items()]) if gates else ""
        said = spawned(children).encode()
        return self.lanes[lane].commands.settle(consumer, outcomes, gated, said)

    def promote(self) -> None:
        """Run every timer and move every task that is due, in all lanes, until none is."""
        for _ in range(100):
            for world in self.lanes.values():
                world.promote()
            if not self.something_due():
                return
        raise AssertionError("what is due never ends")

    def something_due(self) -> bool:
        """Whether any lane has something due now."""
        now = self.normal.now_ms()
        return any(self.db.zcount(world.keys.delayed, "-inf", now) for world in self.lanes.values())

    # -- moving the clock ------------------------------------------------------------------------

    def pass_time(self) -> None:
        """All that waits for a time has it behind itself: due times, timers, rates, locks."""
        for world in self.lanes.values():
            world.make_due()
        for name in self.db.hkeys(self.normal.keys.limits):
            if name[:1] == "t":
                self.db.hset(self.normal.keys.limits, name, "1")
        for key, value in self.db.hgetall(self.normal.keys.unique).items():
            if value[0] == "d":
                self.db.hset(self.normal.keys.unique, key, f"d1 {value.partition(' ')[2]}")

    # -- looking ---------------------------------------------------------------------------------

    def look(self) -> Seen:
        """All there is, at one instant."""
        keys = self.normal.keys
        names = sorted(self.db.keys("*"))
        lines = [n for n in names if n.startswith(keys.waiting_prefix)]
        edges = [n for n in names if n.startswith(keys.dependants_prefix)]
        records = [
            (ref_of(lane, n[len(world.keys.task_prefix) :]), n)
            for lane, world in self.lanes.items()
            for n in names
            if n.startswith(world.keys.task_prefix)
        ]
        batches = [
            (ref_of(lane, n[len(prefix) :]), n)
            for lane, world in self.lanes.items()
            for prefix in (world.keys.batch(""),)
            for n in names
            if n.startswith(prefix)
        ]
        pipe = self.db.pipeline(transaction=False)
        pipe.time().hgetall(keys.limits).zrange(keys.waiting, 0, -1, withscores=True)
        pipe.zrange(keys.shares, 0, -1, withscores=True).hgetall(keys.unique)
        for n in lines:
            pipe.zrange(n, 0, -1, withscores=True)
        for n in edges:
            pipe.lrange(n, 0, -1)
        for world in self.lanes.values():
            pipe.zrange(world.keys.delayed, 0, -1, withscores=True).xrange(world.keys.stream)
            pipe.xpending_range(world.keys.stream, world.keys_group, "-", "+", 100_000)
            pipe.xinfo_groups(world.keys.stream)
        for _, n in [*records, *batches]:
            pipe.hgetall(n)
        answers = iter(pipe.execute())
        seconds, micros = next(answers)
        seen = Seen(
            now_ms=seconds * 1000 + micros // 1000,
            limits=next(answers),
            waiting=dict(next(answers)),
            shares=dict(next(answers)),
            unique=next(answers),
            lines={n[len(keys.waiting_prefix) :]: dict(next(answers)) for n in lines},
            edges={n[len(keys.dependants_prefix) :]: next(answers) for n in edges},
            batches={},
            timers={},
            tasks={},
            orphans=[],
        )
        lanes = {lane: [next(answers) for _ in range(4)] for lane in LANES}
        for ref, _ in records:
            record = next(answers)
            seen.tasks[ref] = SeenTask(record, [], record)
        seen.batches = {ref: next(answers) for ref, _ in batches}
        for lane, (delayed, entries, pending, groups) in lanes.items():
            self._place(seen, lane, delayed, entries, pending, groups[0]["last-delivered-id"])
        for ref in seen.waiting:
            seen.tasks.setdefault(ref, SeenTask({}, [], {})).places.append("waiting")
        for task in seen.tasks.values():
            if task.state in ENDS:
                task.places.append("settled")
        return seen

    @staticmethod
    def _place(seen: Seen, lane: str, delayed: Any, entries: Any, pending: Any, last: str) -> None:
        held = {row["message_id"]: row["consumer"] for row in pending}
        for member, score in delayed:
            if member.startswith(TIMER):
                words = tuple(json.loads(member[1:]))
                seen.timers[words] = min(score, seen.timers.get(words, score))
            else:
                ref = ref_of(lane, member)
                seen.tasks.setdefault(ref, SeenTask({}, [], {})).places.append("delayed")
        for entry, fields in entries:
            ref = ref_of(lane, fields["id"])
            task = seen.tasks.setdefault(ref, SeenTask({}, [], {}))
            task.places.append("pending" if entry in held else "unread")
            task.fields = fields | {"entry": entry, "consumer": held.get(entry, "")}
            if held.pop(entry, None) is None and _number(entry) <= _number(last):
                seen.orphans.append(f"{entry} of {ref!r} will never be read")
        seen.orphans += [f"{entry} is pending and gone" for entry in held]


ENDS = ("succeeded", "failed", "cancelled", "expired")


def edge(ref: str, policy: str = "s", kind: str = "t") -> str:
    """One line of a task's conditions: it comes after what a ref names."""
    lane, id = lane_of(ref)
    return f"{policy}{kind}{'' if lane == 'normal' else '!' + lane} {id}"


def gated(
    id: str,
    gate: str = "",
    after: Sequence[str] = (),
    conflict: str = "",
    due: str = "",
    batch: str = "",
    name: str = "job",
) -> tuple[str, ...]:
    """One task as ``enqueue_gated`` takes it."""
    conditions = "\n".join([*after, *([f"?{conflict}"] if conflict else [])])
    return (id, name, payload_of(id), options(gate, batch, after=bool(after)), due, conditions)


def spawned(children: Sequence[tuple[int, Sequence[str]]]) -> str:
    """Children as ``settle`` takes them: each with the position of its outcome."""
    return "".join(
        f"{len(str(part).encode())}:{part}"
        for position, fields in children
        for part in (position, *fields)
    )


def readable(reply: Any) -> Any:
    """An answer with its words as text."""
    if isinstance(reply, bytes):
        return reply.decode("utf-8", "replace")
    return [readable(item) for item in reply] if isinstance(reply, list) else reply


def _number(entry: str) -> tuple[int, int]:
    ms, _, seq = entry.partition("-")
    return int(ms), int(seq)

"""What must always hold of the gate, asked of the server's own data after any step.

Every check takes what `GateWorld.look` has seen and raises `Broken`. None of them knows what was
done before: how a step may change things is the model's business (`gate_model`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from support.gate_world import DOOR, ENDS, Seen, SeenTask, lane_of, ref_of
from support.script_world import Broken

IN_STREAM = ("unread", "pending")
REASONS = ("parents", "limit", "rate", "order", "share", "paused")


def check(seen: Seen, *, zeros: bool = False) -> None:
    """Every invariant; ``zeros``: a write that was undone may have left a count of nothing."""
    one_place(seen)
    records(seen)
    slots(seen, zeros=zeros)
    lines(seen)
    nobody_waits_in_vain(seen)
    strict_order(seen)
    locks(seen)
    edges(seen)
    readers(seen)
    no_leftovers(seen)


def demand(condition: object, what: str) -> None:
    """One thing that must hold."""
    if not condition:
        raise Broken(what)


def one_place(seen: Seen) -> None:
    """Each task is in exactly one of five places, and its record says which."""
    demand(not seen.orphans, f"{seen.orphans}")
    for ref, task in seen.tasks.items():
        demand(len(task.places) == 1, f"{ref!r} is in {len(task.places)} places: {task.places}")
        place = task.place
        demand(task.record, f"{ref!r} is {place} and has no record")
        if place in IN_STREAM:
            demand("state" not in task.record, f"{ref!r} is {place}, its record: {task.state}")
            entry = task.fields.get("entry")
            demand(task.record.get("entry") == entry, f"{ref!r}: the record names another entry")
        elif place != "settled":
            demand(task.state == place, f"{ref!r} is {place}, its record says {task.state}")
            demand(task.record.get("entry") == "", f"{ref!r} is {place} with an entry")
            counts = {"attempt", "recovered"} & set(task.record)
            demand(len(counts) == 2 or (not counts and place == "waiting"), f"{ref!r}: {counts}")
            for name in ("name", "payload", "opts"):
                demand(name in task.record, f"{ref!r} is {place} without {name}")


def records(seen: Seen) -> None:
    """Of gated tasks: the gate stands in the record until the end, and what belongs to waiting
    only while it waits."""
    for ref, task in seen.tasks.items():
        record = task.record
        if task.ended and any(timer[:2] == ("close", ref) for timer in seen.timers):
            continue
        if task.ended:
            left = {"held", "under", "place", "parents", "due"} & set(record)
            demand(not left, f"{ref!r} has ended, and its record still has {sorted(left)}")
            continue
        if task.place == "waiting":
            demand(record.get("reason") in REASONS, f"{ref!r} waits: {record.get('reason')!r}")
        else:
            left = {"under", "place", "parents"} & set(record)
            demand(not left, f"{ref!r} is {task.place}, its record has {sorted(left)}")
        if "held" in record:
            turn = record["held"] == "o" and task.gate.order and task.place not in IN_STREAM
            demand(turn, f"{ref!r} is {task.place} and holds {record['held']!r}")


def used(seen: Seen) -> dict[str, int]:
    """Slots in use by key, counted from the tasks that take them."""
    counted: Counter[str] = Counter()
    for task in seen.tasks.values():
        gate = task.gate
        if task.place in IN_STREAM:
            counted.update(gate.slots)
        elif not task.ended and task.record.get("held") == "o" and gate.order:
            counted[gate.order] += 1
    return dict(counted)


def slots(seen: Seen, *, zeros: bool = False) -> None:
    """Slots in use are the weights of what stands in the stream; no zero is left."""
    if busy(seen, "close", "free"):
        return
    said = {key: int(value) for key, value in seen.kind("s").items()}
    counted = used(seen)
    for key in sorted({*said, *counted}):
        demand(
            said.get(key, 0) == counted.get(key, 0),
            f"{said.get(key, 0)} slots of {key!r} are in use, the stream holds {counted.get(key)}",
        )
    demand(zeros or 0 not in said.values(), f"a key with no slot in use has a field: {said}")


def lines(seen: Seen) -> None:
    """Each waiting task stands in the one line that its record names, and is counted there."""
    stands: dict[str, list[str]] = defaultdict(list)
    for name, members in seen.lines.items():
        for ref in members:
            stands[ref].append(name)
    for ref, task in waiting(seen):
        if ending(seen, ref):
            continue
        record = task.record
        under = record.get("under", "")
        since = seen.waiting[ref]
        demand(since > 0 and since % 1 == 0, f"{ref!r} waits since {since!r}")
        if record["reason"] == "parents":
            demand(not under and not stands[ref], f"{ref!r} waits for parents in {stands[ref]}")
            unread = int(record.get("parents", 0)) > 0 or busy(seen, "after")
            demand(unread, f"{ref!r} waits for no parents")
            continue
        name = f"{DOOR}\n{task.gate.group}" if under == DOOR else under
        demand(stands[ref] == [name], f"{ref!r} waits under {under!r}, stands in {stands[ref]}")
        place = float(record.get("place", "nan"))
        strict = under == task.gate.order and under not in task.gate.limits
        score = place - (0 if strict else task.gate.priority * 6_000_000)
        demand(seen.lines[name][ref] == score, f"{ref!r} has the place {place}, not its score")
        takes = under in task.gate.slots or under.startswith("name:")
        demand(takes, f"{ref!r} waits under {under!r}, which it does not name")
        if under == task.gate.order and under not in task.gate.limits:
            said = record["reason"]
            demand(said in ("order", "rate", "paused"), f"{ref!r} waits: {said}")
    strangers = {ref: where for ref, where in stands.items() if ref not in seen.waiting}
    demand(not strangers, f"in a line, and not waiting: {strangers}")
    counted: Counter[str] = Counter()
    for name, members in seen.lines.items():
        counted[name.partition("\n")[0]] += len(members)
    said = {key: int(value) for key, value in seen.kind("w").items()}
    demand(said == dict(counted), f"waiting is counted as {said}, there are {dict(counted)}")
    doors = {name.partition("\n")[2] for name in seen.lines if name.startswith(f"{DOOR}\n")}
    demand(doors == set(seen.shares), f"groups at the door {doors}, with shares {set(seen.shares)}")


def waiting(seen: Seen) -> Iterator[tuple[str, SeenTask]]:
    """All tasks that wait."""
    return ((ref, task) for ref, task in seen.tasks.items() if task.place == "waiting")


def has_timer(seen: Seen, key: str) -> bool:
    """Whether a timer will let more in under a key."""
    pattern = key[: key.index(":") + 1] if ":" in key else key
    return any(
        timer[:2] == ("more", key) or (timer[0] == "keys" and pattern.startswith(timer[1]))
        for timer in seen.timers
    )


def busy(seen: Seen, *kinds: str) -> bool:
    """Whether a timer has something of these kinds to do yet."""
    return any(timer[0] in kinds for timer in seen.timers)


def ending(seen: Seen, ref: str) -> bool:
    """Whether a timer will end a task."""
    return any(timer[:2] == ("end", ref) for timer in seen.timers)


def blocked(seen: Seen, key: str, weight: int, taken: Mapping[str, int]) -> str:
    """Why a task of a weight has no room under a key; '' when it has."""
    rule = seen.rule(key)
    pattern = key[: key.index(":") + 1] + "*" if ":" in key else key
    if {key, pattern} & set(seen.kind("p")):
        return "paused"
    now_used = taken.get(key, 0)
    if any(task.gate.order == key for _, task in waiting(seen)) and now_used:
        return "order"
    at_most = rule.get("at_most")
    if key == DOOR and at_most is None and "d" in seen.limits:
        at_most = seen.limits["d"].partition(" ")[0]
    if at_most is not None and now_used and now_used + weight > int(at_most):
        return "limit"
    each = float(rule.get("per", 1000)) / float(rule["rate"]) if "rate" in rule else 0
    spare = (float(rule.get("burst", 1)) - 1) * each
    if float(seen.kind("t").get(key, 0)) - spare > seen.now_ms:
        return "rate"
    return ""


def nobody_waits_in_vain(seen: Seen) -> None:
    """The first in each line has no room, or a timer will let it in."""
    if busy(seen, "close", "free"):
        return
    taken = used(seen)
    for name, members in seen.lines.items():
        key = name.partition("\n")[0]
        first = min(members, key=lambda ref: (members[ref], ref))
        task = seen.tasks[first]
        if ending(seen, first):
            continue
        weight = task.gate.slots.get(key, 1)
        why = blocked(seen, key, weight, taken)
        if why in ("", "rate") and not has_timer(seen, key):
            raise Broken(f"{first!r} waits under {key!r}, which has room, and no timer: {why!r}")


def strict_order(seen: Seen) -> None:
    """Under an order key at most one task runs, or is between its attempts."""
    for key, count in seen.kind("s").items():
        holders = [
            ref
            for ref, task in seen.tasks.items()
            if task.gate.order == key
            and (task.place in IN_STREAM or task.record.get("held") == "o")
        ]
        demand(len(holders) <= 1, f"{holders} are in order under {key!r}, all at once ({count})")


def locks(seen: Seen) -> None:
    """A unique lock points to a task that has not ended, unless a clock or a start ends it."""
    if busy(seen, "close"):
        return
    for key, value in seen.unique.items():
        if value[0] == "d":
            continue
        ref = value[1:]
        task = seen.tasks.get(ref)
        demand(task and not task.ended, f"the unique key {key!r} is held by {ref!r}, which is not")
        gate = task.gate if task else None
        demand(gate and gate.unique == key, f"{ref!r} holds {key!r}, which it does not name")


def edges(seen: Seen) -> None:
    """No edge stands at a parent that has ended, unless a timer goes on with them; each waiting
    task has as many edges as parents that have not ended."""
    counted: Counter[tuple[str, str]] = Counter()
    for name, rows in seen.edges.items():
        if name.startswith("t:") and not any(t[:2] == ("after", name) for t in seen.timers):
            parent = seen.tasks.get(name[2:])
            demand(parent and not parent.ended, f"edges of {name!r}, which has ended: {rows}")
        for row in rows:
            place, _, child = row[1:].partition(" ")
            demand(place.isdigit(), f"an edge of {name!r} that is none: {row!r}")
            counted[child, place] += 1
    if busy(seen, "after"):
        return
    for ref, task in waiting(seen):
        if task.record["reason"] == "parents" and not ending(seen, ref):
            said = int(task.record["parents"])
            has = counted[ref, task.record["place"]]
            demand(said == has, f"{ref!r} waits for {said} parents, has {has}")


def readers(seen: Seen) -> None:
    """A record says how many dependants may read it that have not ended."""
    if busy(seen, "read", "seen", "readers", "after", "end"):
        return
    counted: Counter[str] = Counter()
    for task in seen.tasks.values():
        kept = [task.record.get(name, "") for name in ("after", "read")]
        for line in filter(None, "\n".join(kept).split("\n")):
            lane, _, id = line[2:].partition(" ")
            if line[1] == "t":
                counted[f"{lane}\n{id}" if lane else id] += 1
    for ref, task in seen.tasks.items():
        if "continued" in task.record:
            child = task.record["continued"].split(" ", 2)[2]
            counted[ref_of(lane_of(ref)[0], child)] += 1
    for ref, task in seen.tasks.items():
        said = int(task.record.get("readers", 0))
        demand(said == counted[ref], f"{said} may read {ref!r}, {counted[ref]} name it")
        expires = task.record.get("keep_ms")
        demand(not (task.ended and said and not expires), f"{ref!r} will expire unread")


def no_leftovers(seen: Seen) -> None:
    """A queue in which nothing lives has nothing of the gate but rules, rates and clocks."""
    if any(not task.ended for task in seen.tasks.values()):
        return
    left = {key: n for key, n in (seen.kind("s") | seen.kind("w")).items() if n != "0"}
    demand(not left, f"nothing lives, and the limits have {left}")
    demand(not seen.lines and not seen.waiting, f"nothing lives, and waits: {seen.lines}")
    demand(not seen.shares, f"nothing lives, and has shares: {seen.shares}")
    if not seen.timers:
        ended = {f"b:{of}" for of, says in seen.batches.items() if "finished_ms" in says}
        at = {name: rows for name, rows in seen.edges.items() if name[0] == "t" or name in ended}
        demand(not at, f"nothing lives, and has edges: {at}")


def states(seen: Seen) -> Counter[str]:
    """How many ended how."""
    return Counter(task.state for task in seen.tasks.values() if task.state in ENDS)

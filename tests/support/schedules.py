"""Schedules in tests: as they stand, and moved in time, since no server's clock can be set."""

from __future__ import annotations

import json
from typing import Any

import redis

from redistq.protocol.commands import SCHEDULES_TIMER


def record(db: redis.Redis, name: str) -> dict[str, Any]:
    """What stands in a schedule's record."""
    value: Any = db.hget("schedules:tasks", name)
    found: dict[str, Any] = json.loads(value.partition("\n")[0])
    return found


def shift(db: redis.Redis, name: str, by_ms: int, *fields: str) -> dict[str, Any]:
    """Move a schedule's times, so that it looks as it will, or did, at another time of the clock:
    when it fires next, and, unless other fields are named, from when its interval counts and what
    was done. Back by a day is as if nothing had run for a day."""
    value: Any = db.hget("schedules:tasks", name)
    # The payload of a function is no text: it comes and goes as it is.
    line, _, payload = value.encode("utf-8", "surrogateescape").partition(b"\n")
    found: dict[str, Any] = json.loads(line)
    for field in fields or ("next", "anchor", "past"):
        if found[field]:
            found[field] += by_ms
    db.hset("schedules:tasks", name, json.dumps(found).encode() + b"\n" + payload)
    db.zadd("due:tasks", {name: found["next"]})
    first: Any = db.zrange("due:tasks", 0, 0, withscores=True)
    db.zadd("delayed:tasks", {SCHEDULES_TIMER: first[0][1]})
    db.publish("wake:tasks", int(first[0][1]))
    return found


def occurrences(db: redis.Redis, name: str) -> list[int]:
    """The times of a schedule's tasks in the stream, in the order in which they were added."""
    entries: Any = db.xrange("tasks")
    ids = [fields["id"] for _, fields in entries]
    return [int(task_id.rpartition("@")[2]) for task_id in ids if task_id.startswith(f"{name}@")]

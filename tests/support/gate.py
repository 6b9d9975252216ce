"""Tasks that may not run yet and the limits that hold them, as the scripts write them: by hand.

Used by tests of what looks at a queue, which thereby need no worker to keep a limit used up.
"""

from __future__ import annotations

import json
from typing import Any

import redis

from redistq.protocol.keys import QueueKeys, at_priority


class HandMade:
    """Waiting tasks and limits of one queue, written field by field."""

    def __init__(self, db: redis.Redis, queue: str = "tasks") -> None:
        self.db = db
        self.queue = queue
        self.keys = QueueKeys(queue)
        self._place = 0

    def now_ms(self) -> int:
        """The server's time."""
        seconds, micros = self.db.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def rule(self, key: str, text: str, **facts: Any) -> None:
        """A limit key with its rule ('' none) and facts by their letter: s, t, p."""
        if text:
            self.db.hset(self.keys.limits, f"r{key}", text)
        for letter, value in facts.items():
            self.db.hset(self.keys.limits, f"{letter}{key}", value)

    def waits(
        self,
        task_id: str,
        reason: str,
        under: str = "",
        *,
        priority: str = "normal",
        since_ms: int | None = None,
        gate: str = "",
        **fields: Any,
    ) -> None:
        """A task that waits, for a reason, under a key; ``gate`` is the text of its options."""
        keys = QueueKeys(at_priority(self.queue, priority))
        ref = task_id if priority == "normal" else f"!{priority}\n{task_id}"
        since = self.now_ms() if since_ms is None else since_ms
        self._place = max(self._place + 1, since * 1000)
        record = {
            "entry": "",
            "state": "waiting",
            "name": "work",
            "payload": '{"n":1}',
            "opts": json.dumps({"gate": gate}, separators=(",", ":")) if gate else "",
            "reason": reason,
            "under": under or None,
            "place": self._place,
            **fields,
        }
        self.db.hset(keys.task(task_id), mapping={k: v for k, v in record.items() if v is not None})
        self.db.zadd(self.keys.waiting, {ref: since})
        if under:
            line = under
            if under == "door":
                line += "\n" + gate.partition("g1 ")[2].partition("\n")[0]
            self.db.zadd(self.keys.waiting_prefix + line, {ref: self._place})
            self.db.hincrby(self.keys.limits, f"w{under}", 1)

    def some_of_everything(self) -> None:
        """Keys with and without rules, and a task for each reason to wait."""
        now = self.now_ms()
        self.rule("tenant:*", "at_most=3")
        self.rule("tenant:a", "", s=3)
        self.rule("api", "rate=5 per=1000", s=0, t=now + 60_000)
        self.rule("gpu", "at_most=1 excess=wait", s=1, p=now - 5_000)
        self.rule("free", "", s=2)
        self.rule("invoice:7", "", s=1)
        self.waits("p0", "parents", since_ms=now - 90_000, parents=2, after="st a\nst b\neb x")
        self.waits("l1", "limit", "tenant:a", since_ms=now - 60_000, gate="k1 tenant:a")
        self.waits("l2", "limit", "tenant:a", since_ms=now - 50_000, priority="high")
        self.waits("r1", "rate", "api", since_ms=now - 40_000)
        self.waits("u1", "paused", "gpu", since_ms=now - 30_000)
        self.waits("o1", "order", "invoice:7", since_ms=now - 20_000, gate="o invoice:7")
        self.waits("s1", "share", "door", since_ms=now - 10_000, gate="g1 acme")

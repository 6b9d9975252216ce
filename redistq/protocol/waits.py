"""Why tasks wait, and how the limits stand: read from the server's answers, and said in words.

Used by producers, which tell what a task waits for, and by monitors. Never talks to a server. A
``ref`` names a task over all priorities of a queue: the id, or the priority's mark and the id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

REASONS = ("parents", "limit", "rate", "order", "share", "paused")
"""Why a task may wait."""
SHOWN = 5
"""Most parents that are named."""
_LANES = ("!high\n", "!low\n")


@dataclass(frozen=True, slots=True)
class LimitState:
    """One limit key at one instant; times in ms of the server's clock.

    ``rule`` is the key or pattern whose rule holds ('' none: then the slots in use are counted
    only). ``in_use`` are the slots of the tasks that are ready or running, ``waiting`` the tasks
    that wait under the key. ``next_token_ms`` is from when on the rate lets the next task go (None:
    at once, or no rate); ``paused_ms`` since when the key is paused (None: it is not).
    """

    key: str
    rule: str = ""
    at_most: int | None = None
    rate: float | None = None
    per_ms: int = 1000
    burst: int = 1
    excess: str = ""
    weight: float | None = None
    on_failure: str = ""
    in_use: int = 0
    waiting: int = 0
    next_token_ms: float | None = None
    paused_ms: int | None = None

    @property
    def said_rate(self) -> str:
        """The rate to read: '5 each 1 s'; '' for none."""
        return "" if self.rate is None else f"{self.rate:g} each {self.per_ms / 1000:g} s"


@dataclass(frozen=True, slots=True)
class Why:
    """What one task waits for: see why.lua. ``line`` counts those before it (None: no line)."""

    now_ms: int
    reason: str
    under: str
    line: int | None
    limit: LimitState | None
    parents: int
    of_parents: int
    first_parents: tuple[str, ...]

    def words(self) -> str:
        """Return it in words; '' for a task that does not wait."""
        if not self.reason:
            return ""
        if self.reason == "parents":
            return self._parents()
        turn = "" if self.line is None else f", {ordinal(self.line + 1)} in line"
        return f"waits {self._key()}{turn}"

    def _parents(self) -> str:
        many = self.of_parents or self.parents
        said = f"{self.parents:,} of {many:,} parents" if many > 1 else "its parent"
        names = ", ".join(self.first_parents)
        more = ", …" if names and self.parents > len(self.first_parents) else ""
        return f"waits for {said}" + (f": {names}{more}" if names else "")

    def _key(self) -> str:
        key, limit = self.under, self.limit or LimitState(self.under)
        if self.reason == "limit":
            used = (
                "" if limit.at_most is None else f" ({limit.in_use:,} of {limit.at_most:,} in use)"
            )
            return f"for limit {key}{used}"
        if self.reason == "rate":
            rate = f" ({limit.said_rate})" if limit.said_rate else ""
            ms = max(0.0, (limit.next_token_ms or 0) - self.now_ms)
            return f"for the rate of {key}{rate}: next token in {ms / 1000:.1f} s"
        if self.reason == "order":
            return f"for its turn in the order of {key}"
        if self.reason == "share":
            return f"for the fair share of group {key}"
        if self.reason == "paused":
            return f"until {key} is resumed"
        return f"under {key} ({self.reason})"


def read_why(reply: list[Any]) -> Why:
    """Return the answer of ``Commands.why``."""
    now_ms, reason, under, line, limit, left, total, first = reply
    return Why(
        now_ms=now_ms,
        reason=_text(reason),
        under=_text(under),
        line=line if line >= 0 else None,
        limit=read_limit(limit) if limit else None,
        parents=left,
        of_parents=total,
        first_parents=tuple(_parent(_text(raw)) for raw in first),
    )


def read_limit(row: list[bytes]) -> LimitState:
    """Return a limit key as ``waits``, ``why`` and ``tick`` answer it."""
    key, by, rule, in_use, waiting, arrival, paused = map(_text, row)
    return _state(key, by, rule, in_use, waiting, arrival, paused)


def read_reasons(flat: list[bytes]) -> dict[str, int]:
    """Return how many of the waiting tasks that were looked at wait for which reason."""
    return {_text(flat[i]): int(flat[i + 1]) for i in range(0, len(flat), 2)}


def limits_of(facts: Mapping[str, str]) -> list[LimitState]:
    """Return all limit keys of a queue, from the fields of its limits; most waiting first."""
    by_kind: dict[str, dict[str, str]] = {kind: {} for kind in "rswtp"}
    for name, value in facts.items():
        if len(name) > 1 and name[0] in by_kind:
            by_kind[name[0]][name[1:]] = value
    rules, paused = by_kind["r"], by_kind["p"]
    found = []
    for key in {key for kind in by_kind.values() for key in kind}:
        pattern = key.partition(":")[0] + ":*" if ":" in key else ""
        by = key if key in rules else pattern if pattern in rules else ""
        in_use, waiting, arrival = (by_kind[kind].get(key, "") for kind in "swt")
        since = paused.get(key) or paused.get(pattern, "")
        found.append(_state(key, by, rules.get(by, ""), in_use, waiting, arrival, since))
    return sorted(found, key=lambda s: (-s.waiting, not s.rule, -s.in_use, s.key))


def _state(
    key: str, by: str, rule: str, in_use: str, waiting: str, arrival: str, paused: str
) -> LimitState:
    words = dict(word.split("=", 1) for word in rule.split() if "=" in word)
    rate = _number(words.get("rate", ""))
    per_ms = int(_number(words.get("per", "")) or 1000)
    burst = int(_number(words.get("burst", "")) or 1)
    arrives = _number(arrival)
    at_most = _number(words.get("at_most", ""))
    since = _number(paused)
    return LimitState(
        key=key,
        rule=by,
        at_most=None if at_most is None else int(at_most),
        rate=rate,
        per_ms=per_ms,
        burst=burst,
        excess=words.get("excess", "wait" if rule else ""),
        weight=_number(words.get("weight", "")),
        on_failure=words.get("on_failure", "skip" if rule else ""),
        in_use=int(_number(in_use) or 0),
        waiting=int(_number(waiting) or 0),
        next_token_ms=arrives - (burst - 1) * per_ms / rate if rate and arrives else None,
        paused_ms=None if since is None else int(since),
    )


def id_and_priority(ref: str) -> tuple[str, str]:
    """Return the id that a ref names, and its priority."""
    for lane in _LANES:
        if ref.startswith(lane):
            return ref[len(lane) :], lane[1:-1]
    return ref, "normal"


def ordinal(number: int) -> str:
    """Return a place in words: 1st, 2nd, 3rd, 4th …"""
    last = 4 if number % 100 in (11, 12, 13) else number % 10
    return f"{number:,}" + {1: "st", 2: "nd", 3: "rd"}.get(last, "th")


def _parent(named: str) -> str:
    task_id, priority = id_and_priority(named[1:])
    of = "" if priority == "normal" else f" ({priority})"
    return f"batch {task_id}{of}" if named[:1] == "b" else f"{task_id}{of}"


def by_priority(refs: Iterable[bytes]) -> dict[str, list[str]]:
    """Return the ids that refs name, by priority."""
    found: dict[str, list[str]] = {}
    for ref in refs:
        task_id, priority = id_and_priority(_text(ref))
        found.setdefault(priority, []).append(task_id)
    return found


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

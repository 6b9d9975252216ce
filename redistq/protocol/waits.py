"""Why tasks wait, and how the limits stand: read from the server's answers, and said in words.

Used by producers, which tell what a task waits for, and by monitors. Never talks to a server. A
``ref`` names a task over all priorities of a queue: the id, or the priority's mark and the id.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .limits import LimitState, state_of

REASONS = ("parents", "limit", "rate", "order", "share", "paused")
"""Why a task may wait."""
SHOWN = 5
"""Most parents that are named."""
_LANES = ("!high\n", "!low\n")


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
    returned: str = ""
    """The task that it returned, as which it ends; '' none."""
    named: tuple[str, ...] = ()
    """The refs of those of the first parents that are tasks."""
    running: frozenset[str] = frozenset()
    """Which of these run, as far as somebody has looked."""

    def words(self) -> str:
        """Return it in words; '' for a task that does not wait."""
        if not self.reason:
            return ""
        if self.returned:
            return f"waits for what it returned: {self.returned}"
        if self.reason == "parents":
            return self._parents()
        turn = "" if self.line is None else f", {ordinal(self.line + 1)} in line"
        return f"waits {self._key()}{turn}"

    def _parents(self) -> str:
        many = self.of_parents or self.parents
        said = f"{self.parents:,} of {many:,} parents" if many > 1 else "its parent"
        running = {_parent(f"t{ref}") for ref in self.running}
        names = ", ".join(f"{p} (running)" if p in running else p for p in self.first_parents)
        more = ", …" if names and self.parents > len(self.first_parents) else ""
        return f"waits for {said}" + (f": {names}{more}" if names else "")

    def _key(self) -> str:
        key, limit = self.under, self.limit or LimitState(key=self.under)
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
        returned=_parent(_text(first[0])) if first and first[0][:1] == b"=" else "",
        named=tuple(_text(raw[1:]) for raw in first if raw[:1] == b"t"),
    )


def read_limit(row: list[bytes]) -> LimitState:
    """Return a limit key as ``why`` and ``tick`` answer it."""
    key, by, rule, *values = map(_text, row)
    found = {letter + key: value for letter, value in zip("swtp", values, strict=True) if value}
    return state_of(key, {**found, "r" + by: rule} if by else found)


def read_reasons(flat: list[bytes]) -> dict[str, int]:
    """Return how many of the waiting tasks that were looked at wait for which reason."""
    return {_text(flat[i]): int(flat[i + 1]) for i in range(0, len(flat), 2)}


def most_waiting_first(states: Iterable[LimitState]) -> list[LimitState]:
    """Return limit keys in the order in which people ask about them."""
    return sorted(states, key=lambda s: (-s.waiting, not s.has_rule, -s.in_use, s.key))


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

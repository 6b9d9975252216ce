"""Limits: the keys that tasks run under, and the rules that hold for a key.

Used by producers, clients and monitors. ``limit`` declares in code which key a task has, made of
its payload, and the rule of that key; ``Rule`` is the rule as the server holds it, and
``LimitState`` what stands there of one key. Never talks to a server.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..errors import ConfigurationError, TooHeavy
from .checks import Seconds, count, milliseconds, seconds, shown
from .keys import MAX_CHARACTERS, check_line

EXCESS = ("wait", "drop", "cancel_new", "cancel_running")
"""What becomes of a task that finds no room: it waits; it ends at once, as cancelled (two words for
it); or the oldest that holds the key is asked to end."""
ON_FAILURE = ("skip", "pause")
"""What a task's final failure does to the key of its strict order: nothing, or it pauses it."""
MAX_RATE = 1_000_000_000.0
"""Most tasks in the time of a rate."""
DOOR = "door"
"""The key of the queue's door, through which the tasks of all groups go; no task's own."""
GROUP_MARK = "group:"
"""What the key of a share group begins with."""


def check_key(what: str, key: Any) -> str:
    """Return the key when a task may have it; raises ConfigurationError, which says what may."""
    check_line(what, key)
    if key == DOOR or key.endswith("*"):
        raise ConfigurationError(
            f"{what} cannot be {key!r}: {DOOR!r} is the queue's own, and a key that ends in * "
            "stands for all that begin like it; use another word"
        )
    return str(key)


def check_rule_key(key: Any) -> str:
    """Return the key when a rule may stand under it: a task's, or ``prefix:*`` for all that begin
    with the prefix; raises ConfigurationError."""
    if key == DOOR:
        return DOOR
    if not isinstance(key, str) or not key.endswith("*"):
        return check_key("the key of a rule", key)
    check_line("the key of a rule", key)
    if key.find(":") != len(key) - 2 or len(key) < 3:
        raise ConfigurationError(
            f"{key!r} is no key of a rule: a rule for many keys is for all that begin alike up to "
            "and with their first colon, such as 'tenant:*' for 'tenant:a' and 'tenant:b'"
        )
    return key


@dataclass(frozen=True)
class Rule:
    """What holds for a key: how many slots, how fast, and what becomes of what finds no room.

    ``at_most`` slots in use at a time (a task takes one, or its weight); ``rate`` tasks each
    ``per`` seconds, ``burst`` of them at once. None: no such limit. ``excess`` is "wait", "drop",
    "cancel_new" or "cancel_running". ``weight`` is the share of a group. ``on_failure="pause"``
    pauses a key of strict order when one of its tasks has failed for good.
    """

    at_most: int | None = None
    rate: float | None = None
    per: float = 1.0
    burst: int = 1
    excess: str = "wait"
    weight: int = 1
    on_failure: str = "skip"

    @classmethod
    def of(
        cls,
        key: str,
        at_most: int | None = None,
        rate: float | None = None,
        per: Seconds = 1.0,
        burst: int | None = None,
        excess: str = "wait",
        weight: int | None = None,
        on_failure: str = "skip",
    ) -> Rule:
        """Return the rule that is given for a key; raises ConfigurationError."""
        of = f"of the limit {key!r}"
        if at_most is not None and _is_zero(at_most):
            raise ConfigurationError(
                f"at_most {of} is 1 or more: with no room at all its tasks would wait for ever; to "
                f"let nothing in for now: producer.limits.pause({key!r})"
            )
        if rate is None and burst is not None:
            raise ConfigurationError(f"burst {of} goes with a rate: rate=5, per=1, burst=10")
        if excess not in EXCESS:
            raise ConfigurationError(f"excess {of} is {_one_of(EXCESS)}, not {shown(excess)}")
        if on_failure not in ON_FAILURE:
            raise ConfigurationError(
                f"on_failure {of} is {_one_of(ON_FAILURE)}, not {shown(on_failure)}"
            )
        return cls(
            None if at_most is None else count(f"at_most {of}", at_most, least=1),
            None if rate is None else _rate(of, key, rate),
            seconds(f"per {of}", per, positive=True) if rate is not None else 1.0,
            1 if burst is None else count(f"burst {of}", burst, least=1),
            excess,
            1 if weight is None else count(f"weight {of}", weight, least=1),
            on_failure,
        )

    def written(self) -> str:
        """Return the rule as the server holds it: words, a blank between; never empty."""
        words = []
        if self.at_most is not None:
            words.append(f"at_most={self.at_most}")
        if self.rate is not None:
            words.append(f"rate={self.rate:.15g} per={milliseconds(self.per)} burst={self.burst}")
        if self.excess != "wait":
            words.append(f"excess={self.excess}")
        if self.weight != 1:
            words.append(f"weight={self.weight}")
        if self.on_failure != "skip":
            words.append(f"on_failure={self.on_failure}")
        return " ".join(words) or "weight=1"

    @classmethod
    def read(cls, text: str) -> Rule:
        """Return the rule that stands on the server; what cannot be read is passed over."""
        return cls(**_values(text))

    def __str__(self) -> str:
        shown_as = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(Rule) if _is_set(self, f))
        return ", ".join(shown_as) or "no limit"


@dataclass(frozen=True)
class LimitState(Rule):
    """How a key stands: its rule, how many slots are in use, how many tasks wait there, and whether
    it is paused. Times are ms of the server's clock."""

    key: str = ""
    in_use: int = 0
    waiting: int = 0
    rule_key: str = ""
    """The key or pattern whose rule holds; '' for none: then its slots are counted only."""
    next_token_ms: float | None = None
    """From when on the rate lets the next task in; None: no rate, or none was let in lately."""
    paused_ms: int | None = None
    """Since when it is paused; None: it is not."""

    @property
    def paused(self) -> bool:
        """Whether it is paused."""
        return self.paused_ms is not None

    @property
    def has_rule(self) -> bool:
        """Whether a rule holds: the key's own, or that for all keys that begin like it."""
        return bool(self.rule_key)

    @property
    def said_rate(self) -> str:
        """The rate to read: '5 each 1 s'; '' for none."""
        return "" if self.rate is None else f"{self.rate:g} each {self.per:g} s"


def pattern_of(key: str) -> str:
    """Return the pattern whose rule holds for a key without one of its own; '' for none."""
    prefix, colon, _ = key.partition(":")
    return f"{prefix}:*" if prefix and colon else ""


def state_of(key: str, found: Mapping[str, str]) -> LimitState:
    """Return how a key stands, by the fields of the hash of limits: a letter and a key each."""
    pattern = pattern_of(key)
    by = next((name for name in (key, pattern) if name and found.get("r" + name)), "")
    values = _values(found.get("r" + by, "") if by else "")
    rule = Rule(**values)
    arrival = _number(found.get("t" + key, ""))
    since = found.get("p" + key) or found.get("p" + pattern) or ""
    each = rule.per * 1000 / rule.rate if rule.rate else 0.0
    return LimitState(
        **values,
        key=key,
        in_use=_whole(found.get("s" + key, "")),
        waiting=_whole(found.get("w" + key, "")),
        rule_key=by,
        next_token_ms=arrival - (rule.burst - 1) * each if each and arrival else None,
        paused_ms=_whole(since) if since else None,
    )


def fields_of(key: str) -> list[str]:
    """Return the fields of the hash of limits that ``state_of`` reads."""
    return [letter + key for letter in "rswtp"] + [letter + pattern_of(key) for letter in "rp"]


def states_of(found: Mapping[str, str]) -> dict[str, LimitState]:
    """Return how each key stands of which the hash of limits knows more than its last rate."""
    keys = sorted({name[1:] for name in found if len(name) > 1 and name[0] in "rswp"})
    return {key: state_of(key, found) for key in keys}


# -- declared in code ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit declared in code: see ``limit``."""

    template: str
    weight: int = 1
    rule: Rule | None = None
    key: Callable[[Any], Any] | None = None
    rule_key: str = ""
    """The key of the rule: the limit's own, or ``prefix:*`` for all it makes."""

    def key_of(self, payload: Any) -> str | None:
        """Return the key of a task with this payload; None for none. Raises ConfigurationError."""
        try:
            value = payload if self.key is None else self.key(payload)
            if value is None and self.key is not None:
                return None
            named = value if isinstance(value, Mapping) else {}
            key = string.Formatter().vformat(self.template, (value,), named)
        except Exception as error:  # broad: the user's function, and the values' own code
            raise ConfigurationError(
                f"the key {self.template!r} cannot be made of this payload "
                f"({type(error).__name__}: {error}): its names are looked up in the payload, a "
                "mapping; give a function of the payload as key=..., whose value fills {}"
            ) from error
        what = f"the key that {self.template!r} makes"
        if len(key) > MAX_CHARACTERS:
            raise ConfigurationError(
                f"{what} is {len(key):,} characters long and the most is {MAX_CHARACTERS}: take a "
                f"part of it, or a digest: {key!r:.80}…"
            )
        return check_key(what, key)


def limit(
    template: str = "{}",
    *,
    at_most: int | None = None,
    rate: float | None = None,
    per: Seconds = 1.0,
    burst: int | None = None,
    excess: str = "wait",
    weight: int = 1,
    on_failure: str = "skip",
    key: Callable[[Any], Any] | None = None,
) -> Limit:
    """Declare a limit, for ``limits=[...]`` of ``add_task`` and ``@task``: a key made of the
    payload, and what holds for it.

    ``limit("tenant:{tenant}", at_most=3)``: of the tasks of one tenant three at a time; names are
    looked up in the payload. ``limit("host:{}", key=lambda payload: ..., rate=5)`` takes what the
    function returns (None: the task is not limited). A task takes ``weight`` of the slots.

    The rule is set by a producer's first such task, when the queue has none; it holds for all keys
    that begin alike up to the first colon. Raises ConfigurationError.
    """
    if not isinstance(template, str):
        raise ConfigurationError(f"a limit's key is text such as 'tenant:{{tenant}}': {template!r}")
    if key is not None and not callable(key):
        raise ConfigurationError(f"key is a function of the payload, not {shown(key)}")
    weight = count(f"the weight of limit {template!r}", weight, least=1)
    rule_key = _rule_key(template)
    given = (at_most, rate, burst)
    if given == (None, None, None) and (excess, on_failure) == ("wait", "skip"):
        return Limit(template, weight, None, key)
    if not rule_key:
        raise ConfigurationError(
            f"the rule of {template!r} has no key: it holds for all keys that begin alike up to "
            "their first colon, so write one colon before what the payload gives: "
            "'tenant:{tenant}'"
        )
    rule = Rule.of(template, at_most, rate, per, burst, excess, None, on_failure)
    check_heavy(template, weight, rule)
    return Limit(template, weight, rule, key, check_rule_key(rule_key))


def check_heavy(key: str, weight: int, rule: Rule) -> None:
    """Raise TooHeavy for a weight that no rule's room is enough for."""
    if rule.at_most is not None and weight > rule.at_most:
        raise TooHeavy(f"weight {weight} of {key!r} is above at_most={rule.at_most}")


def _rule_key(template: str) -> str:
    """Return the key for the rule of all keys that a template makes; '' where there is none."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigurationError(
            f"the key {template!r} cannot be read: {error}; names stand in braces: "
            "'tenant:{tenant}'"
        ) from None
    begin = "".join(part[0] for part in parts[:1])
    if all(part[1] is None for part in parts):
        return "".join(part[0] for part in parts)
    return f"{begin}*" if len(begin) > 1 and begin.find(":") == len(begin) - 1 else ""


# -- reading and checking --------------------------------------------------------------------------


def _values(text: str) -> dict[str, Any]:
    words: Sequence[str] = text.split(" ")
    raw = dict(word.split("=", 1) for word in words if "=" in word)
    found: dict[str, Any] = {}
    for name, kind in (("at_most", int), ("rate", float), ("burst", int), ("weight", int)):
        value = _number(raw.get(name, ""))
        if value is not None:
            found[name] = kind(value)
    per_ms = _number(raw.get("per", ""))
    if per_ms is not None:
        found["per"] = per_ms / 1000
    for name, words in (("excess", EXCESS), ("on_failure", ON_FAILURE)):
        if raw.get(name) in words:
            found[name] = raw[name]
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < 1e15 else None


def _whole(text: str) -> int:
    try:
        return max(int(float(text)), 0)
    except (ValueError, OverflowError):
        return 0


def _is_set(rule: Rule, field: Any) -> bool:
    return bool(getattr(rule, field.name) != field.default)


def _is_zero(value: Any) -> bool:
    return type(value) in (int, float) and value == 0


def _rate(of: str, key: str, rate: Any) -> float:
    usual = isinstance(rate, int | float) and not isinstance(rate, bool)
    if usual and 0 < rate <= MAX_RATE:
        return float(rate)
    raise ConfigurationError(
        f"rate {of} is a number of tasks above 0 (each `per` seconds) and at most {MAX_RATE:,.0f}, "
        f"not {shown(rate)}; to let nothing in for now: producer.limits.pause({key!r})"
    )


def _one_of(words: Sequence[str]) -> str:
    return f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}"

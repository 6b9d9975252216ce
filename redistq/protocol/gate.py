"""The gate's options: what must be so before an accepted task may run.

Used by producers, clients, handlers and workers. Parents, limits, strict order, a share group,
priority, uniqueness and expiry are checked here and written as two texts: ``Gate.text``, which
stays with the task (the option ``gate`` of its entry), and ``Gate.conditions``, which only the
call that adds it carries. lua/README.md says what their lines mean. Never talks to a server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..errors import ConfigurationError
from .checks import Seconds, count, milliseconds, seconds, shown
from .keys import PRIORITY_MARK, check_line, without_priority
from .limits import GROUP_MARK, Limit, check_key, limit
from .options import OPTIONS_OF_GATE

MOST_PARENTS = 10_000
"""Parents of one task."""
MOST_KEYS = 32
"""Limit keys of one task."""
HIGHEST_PRIORITY = 10
HAS_PARENTS = "a"
"""The line of a gate by which a task has parents."""
POLICIES = {"success": "s", "end": "e", "failure": "f"}
"""What a task may ask of a parent, and the letter it has in a condition."""
SCOPES = {"settled": "s", "started": "t"}
"""Until when a unique key is taken, and the letter that has in the gate."""
_DEADLINE = re.compile(r"^x (\d{1,15})$", re.M)
CONFLICTS = ("keep", "replace", "push", "again")
MOST_PUSHED_S = 3600.0
"""How long a task is pushed back at most, from when it was added, where nothing is said."""


class _Task(Protocol):
    """A future, or whatever else stands for one task of a queue."""

    @property
    def task_id(self) -> str: ...


class _Batch(Protocol):
    """A batch of a client."""

    @property
    def id(self) -> str: ...
    @property
    def queue(self) -> Any: ...


Parent = str | _Task | _Batch
"""A task's id, a future, or a batch."""
Parents = Parent | Iterable[Parent] | Mapping[Any, str]
"""One or several; a mapping says what is asked of each: "success", "end" or "failure"."""
Key = str | Limit | Callable[[Any], Any]
"""A key, or what makes one of the payload."""
Limits = Key | Iterable[Key] | Mapping[Any, int]
"""One key or several; a mapping says how many slots of each the task takes."""
Group = Key | tuple[Key, int]
"""The name of a share group, or its name and the slots the task takes."""


@dataclass(frozen=True, slots=True)
class Unique:
    """A key of which there is one task at a time, and what becomes of a second one.

    ``scope``: until the task that has the key is "settled" or has "started", or for so many seconds
    since it was added. ``conflict``: "keep" the one there is; "replace" its payload, unless it has
    started; "push" back its due time too, to ``most`` seconds after it was added at the latest; or
    run the new one, too, "again" after the one that runs. ``add_task`` answers the id of the one
    that stands, and what happened.
    """

    key: Key
    scope: str | float = "settled"
    conflict: str = "keep"
    most: Seconds = MOST_PUSHED_S
    mark: str = field(init=False, repr=False)
    """The scope as it stands in the gate."""

    def __post_init__(self) -> None:
        if not callable(self.key) and not isinstance(self.key, Limit):
            check_line("a unique key", self.key)
        mark = SCOPES.get(self.scope, "") if isinstance(self.scope, str) else ""
        if not mark:
            try:
                mark = f"d{milliseconds(seconds('scope', self.scope, positive=True))}"
            except ConfigurationError:
                raise ConfigurationError(
                    "the scope of a unique key is 'settled', 'started', or for how many seconds "
                    f"it is taken, not {shown(self.scope)}"
                ) from None
        if self.conflict not in CONFLICTS:
            raise ConfigurationError(
                "the conflict of a unique key is 'keep', 'replace', 'push' or 'again', not "
                f"{shown(self.conflict)}"
            )
        object.__setattr__(self, "mark", mark)
        object.__setattr__(self, "most", seconds("most", self.most, positive=True))

    @property
    def policy(self) -> str:
        """What happens on a conflict, as a condition."""
        most = f" {milliseconds(float(self.most))}" if self.conflict == "push" else ""
        return "" if self.conflict == "keep" else f"?{self.conflict}{most}"


UniqueKey = Key | Unique


@dataclass(frozen=True, slots=True)
class Gate:
    """What was asked for one task, checked and written."""

    text: str
    conditions: str
    limits: tuple[Limit, ...] = ()
    """Those declared in code with a rule, which the queue may not have yet."""

    @classmethod
    def of(cls, given: Mapping[str, Any], payload: Any, stream: str) -> Gate | None:
        """Return the gate of a task with this payload that is added to a stream; None where nothing
        is asked. Other options are passed over. Raises ConfigurationError."""
        asked = {name: given[name] for name in given if name in OPTIONS_OF_GATE}
        lines: list[str] = []
        declared: list[Limit] = []
        if (limits := asked.get("limits")) is not None:
            weights = _weights(limits, payload, declared)
            lines += [f"k{weight} {key}" for key, weight in weights.items()]
        if (order := asked.get("order")) is not None:
            key = _key("order", order, payload, declared)
            lines += [f"o {key}"] if key else []
        if (group := asked.get("group")) is not None:
            lines += _group_lines(group, payload, declared)
        _check_distinct(lines)
        if priority := asked.get("priority"):
            lines.append(f"p {_priority(priority)}")
        conditions: list[str] = []
        if (unique := asked.get("unique")) is not None:
            unique = unique if isinstance(unique, Unique) else Unique(unique)
            key = _key("unique", unique.key, payload, declared)
            if key:
                lines.append(f"u{unique.mark} {key}")
                conditions = [unique.policy] if unique.policy else []
        if (expires := asked.get("expires")) is not None:
            lines.append(f"x +{milliseconds(seconds('expires', expires, positive=True))}")
        if (after := asked.get("after")) is not None and (edges := edges_of(after, stream)):
            conditions = [*edges, *conditions]
            lines.insert(0, HAS_PARENTS)
        if not lines and not conditions:
            return None
        return cls("\n".join(lines), "\n".join(conditions), tuple(declared))


def with_parents(text: str) -> str:
    """Return the text of a gate, of a task that has parents, too: their results are kept for it."""
    if text.startswith(HAS_PARENTS):
        return text
    return f"{HAS_PARENTS}\n{text}" if text else HAS_PARENTS


def handler_gate(given: Mapping[str, Any], whose: str) -> dict[str, Any]:
    """Return the gate's options that ``@task`` was given, checked as far as they can be without a
    payload; names in braces in their keys are looked up in the payload of each task.

    Raises ConfigurationError, which names ``whose`` they are.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    if (limits := asked.get("limits")) is not None:
        if isinstance(limits, Mapping):
            asked["limits"] = {_made_later(key): n for key, n in limits.items()}
        elif isinstance(limits, Iterable) and not isinstance(limits, str):
            asked["limits"] = [_made_later(key) for key in limits]
        else:
            asked["limits"] = _made_later(limits)
    if "order" in asked:
        asked["order"] = _made_later(asked["order"])
    if (group := asked.get("group")) is not None:
        asked["group"] = (
            (_made_later(group[0]), *group[1:])
            if isinstance(group, tuple) and group
            else _made_later(group)
        )
    if (unique := asked.get("unique")) is not None:
        unique = unique if isinstance(unique, Unique) else Unique(unique)
        asked["unique"] = replace(unique, key=_made_later(unique.key))
    if "expires" in asked:
        asked["expires"] = seconds(f"the expires of {whose}", asked["expires"], positive=True)
    if "priority" in asked:
        _priority(asked["priority"])
    return asked


def deadline_of(text: str) -> int | None:
    """Return the time of the server by which a task with this gate is to start, in ms; None for
    none."""
    found = _DEADLINE.search(text)
    return int(found[1]) if found else None


def unique_key_in(text: str) -> str | None:
    """Return the unique key of a task with this gate; None for one that has none."""
    for line in text.split("\n"):
        if line[:1] == "u":
            return line.partition(" ")[2]
    return None


def names_key(opts: bytes, name: bytes) -> bool:
    """Return whether the options of an entry have the key of its task's name among their limits."""
    if b'"gate"' not in opts or b"name:" not in opts:
        return False
    try:
        text = str(json.loads(opts).get("gate", ""))
    except (ValueError, AttributeError):
        return False
    key = f"name:{name.decode('utf-8', 'replace')}"
    return any(line.partition(" ")[2] == key for line in text.split("\n"))


# -- parents ---------------------------------------------------------------------------------------


def edges_of(after: Any, stream: str) -> list[str]:
    """Return the conditions that ``after`` stands for, one for each parent; see Parents."""
    parents: Iterable[tuple[Any, Any]]
    if isinstance(after, Mapping):
        parents = after.items()
    elif isinstance(after, str) or _stands_for_one(after):
        parents = ((after, "success"),)
    elif isinstance(after, Iterable):
        parents = ((parent, "success") for parent in after)
    else:
        raise _no_parent(after)
    found: dict[str, str] = {}
    for parent, policy in parents:
        if not isinstance(policy, str) or policy not in POLICIES:
            raise ConfigurationError(
                "what a task asks of a parent is 'success', 'end' or 'failure', not "
                f"{shown(policy)}"
            )
        name = _name_of(parent, stream)
        letter = POLICIES[policy]
        if found.setdefault(name, letter) != letter:
            raise ConfigurationError(f"after names {shown(parent)} twice, with two policies")
        if len(found) > MOST_PARENTS:
            raise ConfigurationError(
                f"a task has at most {MOST_PARENTS:,} parents: to run after more, let a batch be "
                "the parent, which is one however many tasks it has: batch = "
                "client.map_batch(...), after=batch"
            )
    return [letter + name for name, letter in found.items()]


def _stands_for_one(parent: Any) -> bool:
    return _is_task(parent) or (hasattr(parent, "id") and hasattr(parent, "queue"))


def _is_task(parent: Any) -> bool:
    return isinstance(getattr(parent, "task_id", None), str)  # a graph has a method of this name


def _name_of(parent: Any, stream: str) -> str:
    """Return how a condition names a parent: its kind, ``t`` or ``b``, its priority, a blank and
    its id."""
    if isinstance(parent, str):
        queue = getattr(parent, "queue", None) or stream  # a TaskId knows its queue
        return "t" + _in_lane(parent, queue, stream)
    if not _stands_for_one(parent):
        raise _no_parent(parent)
    queue = getattr(parent, "queue", stream)
    queue = queue if isinstance(queue, str) else queue.keys.stream
    if _is_task(parent):
        return "t" + _in_lane(parent.task_id, queue, stream)
    return "b" + _in_lane(parent.id, queue, stream)


def _in_lane(name: str, queue: str, stream: str) -> str:
    check_line("the id of a parent", name)
    base, _, priority = queue.partition(PRIORITY_MARK)
    if base != without_priority(stream):
        raise ConfigurationError(
            f"{name!r} is of queue {base!r} and cannot be a parent in {stream!r}: what depends on "
            "one another belongs to one queue"
        )
    return f"{PRIORITY_MARK}{priority} {name}" if priority else f" {name}"


def _no_parent(parent: Any) -> ConfigurationError:
    return ConfigurationError(
        "after takes tasks' ids, futures or batches, one or a list of them, or a mapping of these "
        f"to 'success', 'end' or 'failure', not {shown(parent)}"
    )


# -- keys ------------------------------------------------------------------------------------------


def _key(what: str, key: Any, payload: Any, declared: list[Limit]) -> str | None:
    """Return the key that was given, or is made of the payload; None where there is none. A limit
    with a rule is noted as declared."""
    if isinstance(key, Limit):
        if key.rule is not None and what not in ("limits", "order"):
            raise ConfigurationError(
                f"{what} takes a key alone: redistq.limit({key.template!r}) without a rule; the "
                "rule of a group is set by producer.limits.set('group:NAME', ...)"
            )
        if key.rule is not None:
            declared.append(key)
        return key.key_of(payload)
    if callable(key):
        return Limit("{}", key=key).key_of(payload)
    if not isinstance(key, str):
        raise ConfigurationError(
            f"{what} is a key (text), or redistq.limit(...) or a function that makes one of the "
            f"payload, not {shown(key)}"
        )
    return check_key(f"the key of {what}", key)


def _weights(limits: Any, payload: Any, declared: list[Limit]) -> dict[str, int]:
    """Return how many slots of each key a task takes."""
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(limits, Mapping):
        pairs = limits.items()
    elif isinstance(limits, Iterable) and not isinstance(limits, str):
        pairs = ((key, None) for key in limits)
    else:
        pairs = ((limits, None),)
    found: dict[str, int] = {}
    for given, weight in pairs:
        key = _key("limits", given, payload, declared)
        if key is None:
            continue
        if weight is None:
            weight = given.weight if isinstance(given, Limit) else 1
        weight = count(f"the weight of {key!r}", weight, least=1)
        found[key] = max(weight, found.get(key, 0))
    if len(found) > MOST_KEYS:
        raise ConfigurationError(f"a task has at most {MOST_KEYS} limits, not {len(found)}")
    return found


def _group_lines(group: Any, payload: Any, declared: list[Limit]) -> list[str]:
    weight: Any = 1
    if isinstance(group, tuple):
        if len(group) != 2:
            raise ConfigurationError(f"group is a name, or (name, weight), not {shown(group)}")
        group, weight = group
    name = _key("group", group, payload, declared)
    if name is None:
        return []
    weight = count("the weight in a group", weight, least=1)
    check_line(f"the key of a group, {GROUP_MARK!r} and its name,", GROUP_MARK + name)
    return [f"g{weight} {name}"]


def _check_distinct(lines: list[str]) -> None:
    """Raise ConfigurationError where one key is to do two things for the same task."""
    seen: set[str] = set()
    for line in lines:
        key = line.partition(" ")[2]
        key = GROUP_MARK + key if line.startswith("g") else key
        if key in seen:
            raise ConfigurationError(
                f"{key!r} is named twice: a key is for one of limits, order and group; call them "
                f"by different words, such as 'order:{key}'"[:300]
            )
        seen.add(key)


def _made_later(key: Any) -> Any:
    """Return a key of a handler; with names in braces, it is made of each task's payload."""
    if isinstance(key, str) and "{" in key:
        return limit(key)
    if not isinstance(key, str | Limit) and not callable(key):
        raise ConfigurationError(
            "a handler's key is text, such as 'tenant:{tenant}', redistq.limit(...) or a function "
            f"of the payload, not {shown(key)}"
        )
    return key if not isinstance(key, str) else check_key("a handler's key", key)


def _priority(value: Any) -> int:
    if isinstance(value, str):
        raise ConfigurationError(
            f"priority is a whole number, {-HIGHEST_PRIORITY} to {HIGHEST_PRIORITY}, for a place "
            f"in the lines of waiting tasks, not {shown(value)}; 'high' and 'low' are queues of "
            "their own: TaskProducer(stream='tasks!high'), client.options(priority='high')"
        )
    return count("priority", value, least=-HIGHEST_PRIORITY, most=HIGHEST_PRIORITY)

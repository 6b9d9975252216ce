"""The gate's options: checked with words that help, and written as lua/README.md says."""

from __future__ import annotations

from typing import Any

import pytest

from redistq.errors import ConfigurationError, TooHeavy
from redistq.protocol.gate import MOST_KEYS, MOST_PARENTS, Gate, Unique, handler_gate
from redistq.protocol.keys import QueueKeys
from redistq.protocol.limits import (
    Limit,
    LimitState,
    Rule,
    check_rule_key,
    limit,
    state_of,
    states_of,
)
from redistq.protocol.options import TaskOptions


def text_of(payload: Any = None, **given: Any) -> str:
    """The text of a task's gate, its lines joined by bars; '' for none."""
    gate = Gate.of(given, payload, "tasks")
    return gate.text.replace("\n", "|") if gate else ""


def conditions_of(stream: str = "tasks", **given: Any) -> list[str]:
    """What the call says that adds the task."""
    gate = Gate.of(given, None, stream)
    return gate.conditions.split("\n") if gate and gate.conditions else []


class Queue:
    """What futures and batches say of the queue that they are in."""

    def __init__(self, stream: str) -> None:
        self.keys = QueueKeys(stream)


class Future:
    """What stands for a client's future here."""

    def __init__(self, task_id: str, queue: str = "tasks") -> None:
        self.task_id = task_id
        self.queue = Queue(queue)


class Batch:
    """What stands for a client's batch here."""

    def __init__(self, batch_id: str, queue: str = "tasks") -> None:
        self.id = batch_id
        self.queue = Queue(queue)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"limits": "k"}, "k1 k"),
        ({"limits": ["a", "b b"]}, "k1 a|k1 b b"),
        ({"limits": {"a": 2, "b": 1}}, "k2 a|k1 b"),
        ({"limits": ["a", limit("a", weight=3)]}, "k3 a"),
        ({"limits": lambda payload: None}, ""),
        ({"order": "account:7"}, "o account:7"),
        ({"group": "a"}, "g1 a"),
        ({"group": ("a", 2)}, "g2 a"),
        ({"priority": -10}, "p -10"),
        ({"priority": 0}, ""),
        ({"unique": "u"}, "us u"),
        ({"unique": Unique("u", "started")}, "ut u"),
        ({"unique": Unique("u", 1.5)}, "ud1500 u"),
        ({"unique": Unique("u", "1m")}, "ud60000 u"),
        ({"expires": 1.5}, "x +1500"),
        ({"expires": "1m"}, "x +60000"),
        (
            {"expires": 1, "unique": "u", "priority": 3, "group": "g", "order": "o", "limits": "k"},
            "k1 k|o o|g1 g|p 3|us u|x +1000",
        ),
        (dict.fromkeys(("after", "limits", "order", "group", "unique", "expires", "priority")), ""),
        ({"after": [], "limits": []}, ""),
        ({"retries": 3}, ""),
    ],
)
def test_what_is_asked_is_written_in_its_lines(given: dict[str, Any], text: str) -> None:
    """One line each, always in the same order; nothing at all where nothing is asked."""
    assert text_of(**given) == text


def test_parents_are_named_over_all_priorities() -> None:
    """Ids, futures and batches, one or several, each with what is asked of it."""
    assert conditions_of(after="a") == ["st a"]
    assert conditions_of(after=["a", Future("b"), Batch("c")]) == ["st a", "st b", "sb c"]
    assert conditions_of(after=(one for one in ("a", "a"))) == ["st a"]
    assert conditions_of("tasks!low", after=["a", Future("b")]) == ["st!low a", "st b"]
    assert conditions_of(after=[Batch("c", "tasks!high")]) == ["sb!high c"]
    assert conditions_of(after={"a": "end", "b": "failure"}) == ["et a", "ft b"]


def test_a_conflict_is_said_with_the_call() -> None:
    """After the parents; nothing is said of the usual."""
    assert conditions_of(unique=Unique("u", conflict="keep")) == []
    assert conditions_of(unique=Unique("u", conflict="again"), after="a") == ["st a", "?again"]
    assert conditions_of(unique=Unique("u", conflict="push", most=5)) == ["?push 5000"]
    assert conditions_of(unique=Unique("u", conflict="push")) == ["?push 3600000"]
    assert conditions_of(unique=Unique("u", conflict="replace")) == ["?replace"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"limits": "a\nb"}, "one line"),
        ({"limits": "x" * 201}, "1 to 200"),
        ({"limits": ""}, "1 to 200"),
        ({"limits": "door"}, "the queue's own"),
        ({"limits": "tenant:*"}, "ends in"),
        ({"limits": 5}, "not 5"),
        ({"limits": [5]}, "not 5"),
        ({"limits": {"k": 0}}, "1 or more"),
        ({"limits": {"k": "2"}}, "not '2'"),
        ({"limits": [f"k{n}" for n in range(MOST_KEYS + 1)]}, f"at most {MOST_KEYS}"),
        ({"limits": "k", "order": "k"}, "named twice"),
        ({"limits": "group:a", "group": "a"}, "named twice"),
        ({"order": ["a"]}, "order is a key"),
        ({"group": ("a",)}, "name, weight"),
        ({"group": ("a", 0)}, "1 or more"),
        ({"group": "x" * 195}, "1 to 200"),
        ({"group": limit("a:{}", at_most=1)}, "without a rule"),
        ({"priority": 11}, "at most 10"),
        ({"priority": 1.5}, "whole number"),
        ({"priority": "high"}, "tasks!high"),
        ({"unique": 5}, "a unique key"),
        ({"expires": 0}, "above 0"),
        ({"expires": "soon"}, "expires"),
        ({"after": 5}, "after takes"),
        ({"after": [None]}, "after takes"),
        ({"after": ""}, "one line"),
        ({"after": {"a": "done"}}, "'success', 'end' or 'failure'"),
        ({"after": [Future("a", "others")]}, "one queue"),
        ({"after": (str(n) for n in range(MOST_PARENTS + 1))}, "let a batch be the parent"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(given: dict[str, Any], words: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigurationError, match=words):
        Gate.of(given, None, "tasks")


def test_as_many_parents_as_may_be() -> None:
    """The limit itself is taken, and the same parent twice counts once."""
    most = [str(n) for n in range(MOST_PARENTS)]
    assert len(conditions_of(after=[*most, *most])) == MOST_PARENTS
    with pytest.raises(ConfigurationError, match="two policies"):
        conditions_of(after={"a": "end", Future("a"): "success"})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Unique("a\nb"),
        lambda: Unique("a", scope="ever"),
        lambda: Unique("a", scope=0),
        lambda: Unique("a", conflict="fight"),
        lambda: Unique("a", conflict="push", most=0),
    ],
)
def test_a_unique_key_is_checked_where_it_is_made(wrong: Any) -> None:
    """With words for what it may be."""
    with pytest.raises(ConfigurationError):
        wrong()


# -- limits declared in code -----------------------------------------------------------------------


def test_a_limit_makes_its_key_of_the_payload() -> None:
    """By names in it, or by a function; and knows which key its rule has."""
    tenant = limit("tenant:{tenant}", at_most=3)
    assert (tenant.key_of({"tenant": "a", "n": 1}), tenant.rule_key) == ("tenant:a", "tenant:*")
    host = limit("host:{}", key=lambda payload: payload["url"].split("/")[2], rate=5)
    assert host.key_of({"url": "https://a.b/c"}) == "host:a.b"
    assert limit("n:{}").key_of(7) == "n:7"
    assert limit(key=lambda payload: None).key_of({}) is None
    assert limit("fixed", at_most=1).rule_key == "fixed"
    assert limit("{{x}}", at_most=1).rule_key == "{x}"
    gate = Gate.of({"limits": [tenant, "k"]}, {"tenant": "a"}, "tasks")
    assert gate is not None
    assert (gate.text, gate.limits) == ("k1 tenant:a\nk1 k", (tenant,))


@pytest.mark.parametrize(
    ("made", "payload", "words"),
    [
        (lambda: limit("tenant:{tenant}"), {"other": 1}, "KeyError"),
        (lambda: limit("tenant:{tenant}"), None, "KeyError"),
        (lambda: limit("tenant:{}", key=lambda payload: 1 / payload), 0, "ZeroDivisionError"),
        (lambda: limit("tenant:{}"), "x" * 300, "307 characters"),
        (lambda: limit("tenant:{}"), "a\nb", "one line"),
        (lambda: limit("{tenant}", at_most=1), None, "has no key"),
        (lambda: limit("a:b:{tenant}", at_most=1), None, "has no key"),
        (lambda: limit("tenant:{tenant", at_most=1), None, "cannot be read"),
        (lambda: limit(5), None, "is text"),  # type: ignore[arg-type]
        (lambda: limit("k", key=5), None, "function"),  # type: ignore[arg-type]
        (lambda: limit("k", weight=0), None, "1 or more"),
        (lambda: limit("k", at_most=0), None, "limits.pause"),
        (lambda: limit("k", rate=0), None, "above 0"),
        (lambda: limit("k", rate=-1), None, "above 0"),
        (lambda: limit("k", rate=float("nan")), None, "above 0"),
        (lambda: limit("k", burst=2), None, "goes with a rate"),
        (lambda: limit("k", rate=1, per=0), None, "per"),
        (lambda: limit("k", at_most=1, excess="throw"), None, "'wait', 'drop'"),
        (lambda: limit("k", at_most=1, on_failure="stop"), None, "'skip' or 'pause'"),
    ],
)
def test_a_limit_that_cannot_work_says_so(made: Any, payload: Any, words: str) -> None:
    """Where it is declared, or at the first payload that it cannot take."""
    with pytest.raises(ConfigurationError, match=words):
        made().key_of(payload)


def test_a_task_heavier_than_all_there_is_is_refused_where_it_is_declared() -> None:
    """It would wait for ever."""
    with pytest.raises(TooHeavy, match="for ever"):
        limit("k", at_most=2, weight=3)


def test_a_handler_says_how_keys_are_made_of_payloads() -> None:
    """Names in braces are looked up in each payload; what can be checked at once is."""
    gate = handler_gate(
        {
            "limits": ["tenant:{tenant}", "mail"],
            "order": "account:{account}",
            "group": ("{tenant}", 2),
            "unique": Unique("report:{day}", conflict="replace"),
            "expires": "1m",
            "priority": None,
        },
        "task 'a'",
    )
    payload = {"tenant": "t", "account": 7, "day": "monday"}
    assert text_of(payload, **gate) == (
        "k1 tenant:t|k1 mail|o account:7|g2 t|us report:monday|x +60000"
    )
    for wrong in ({"expires": 0}, {"priority": "high"}, {"limits": [5]}, {"order": ("a",)}):
        with pytest.raises(ConfigurationError):
            handler_gate(wrong, "task 'a'")


# -- rules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"at_most": 3}, "at_most=3"),
        ({"rate": 5}, "rate=5 per=1000 burst=1"),
        ({"rate": 2.5, "per": "1m", "burst": 10}, "rate=2.5 per=60000 burst=10"),
        ({"at_most": 1, "excess": "drop"}, "at_most=1 excess=drop"),
        ({"weight": 3}, "weight=3"),
        ({"on_failure": "pause"}, "on_failure=pause"),
        ({}, "weight=1"),
    ],
)
def test_a_rule_that_was_written_is_read_again(given: dict[str, Any], text: str) -> None:
    """The same in every part; what nobody here wrote is passed over."""
    rule = Rule.of("k", **given)
    assert rule.written() == text
    assert Rule.read(text) == rule
    assert Rule.read("at_most=x new=5 rate= " + text) == rule


@pytest.mark.parametrize("key", ["*", "a*", ":*", "a:b:*", "a:b*", "", "x" * 201, 5])
def test_a_rule_for_many_keys_ends_at_their_first_colon(key: Any) -> None:
    """Any other pattern is refused, with an example of one."""
    with pytest.raises(ConfigurationError):
        check_rule_key(key)
    assert [check_rule_key(key) for key in ("a", "a:b", "a:*", "door")] == [
        *("a", "a:b", "a:*", "door"),
    ]


def test_how_a_key_stands_is_read_from_the_hash() -> None:
    """Its own rule, or that for all that begin alike; and whatever else is known of it."""
    found = {
        "rtenant:*": "at_most=3",
        "stenant:a": "2",
        "wtenant:a": "5",
        "rtenant:b": "rate=1",
        "ptenant:b": "17",
        "n": "5",
        "v": "1.5",
        "d": "4 99",
        "tmail": "1.5",
        "smail": "1",
    }
    states = states_of(found)
    assert list(states) == ["mail", "tenant:*", "tenant:a", "tenant:b"]
    assert states["tenant:a"] == LimitState(
        at_most=3, key="tenant:a", in_use=2, waiting=5, rule_key="tenant:*"
    )
    assert (states["tenant:b"].at_most, states["tenant:b"].rate) == (None, 1.0)
    assert states["tenant:b"].paused
    assert not states["tenant:a"].paused
    assert (states["mail"].in_use, states["mail"].has_rule) == (1, False)
    assert state_of("tenant:a", {"ptenant:*": "17"}).paused


def test_the_gate_of_an_entry_is_read_with_its_options() -> None:
    """As text; what is no text was not written by redistq."""
    opts = TaskOptions(retries=1).written(gate="k1 ä\no b")
    assert TaskOptions.read(opts).gate == "k1 ä\no b"
    assert TaskOptions.read(b'{"gate":5}').gate is None
    assert TaskOptions.read(b'{"retries":5}').gate is None
    assert b'"gate":""' in TaskOptions().written(gate="")


def test_a_limit_is_the_same_wherever_it_is_declared() -> None:
    """So a producer sets its rule once."""
    assert len({limit("a:{}", at_most=1), limit("a:{}", at_most=1)}) == 1
    assert isinstance(limit("a"), Limit)

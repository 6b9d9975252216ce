"""The scripts of schedules: what they promise, and that a bug in any of it is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis
from support.mutants import Mutant, first_failure, must_be_caught, mutated
from support.schedules import occurrences, record, shift
from support.servers import Server

from redistq.protocol import scripts
from redistq.protocol.commands import SCHEDULES_TIMER, Command, Commands, Fired, Promoted
from redistq.protocol.keys import QueueKeys

HOUR = 3_600_000
RULE, OTHER = '{"every": 3600000}', '{"every": 60000}'


class Agenda:
    """The schedules of a queue, on whose server the scripts may have other texts."""

    def __init__(self, server: Server, texts: dict[str, str]) -> None:
        self.db = redis.Redis(port=server.port, protocol=2, decode_responses=True)
        self._wire = redis.Redis(port=server.port, protocol=2)
        self._texts = {scripts.load(verb).sha: text for verb, text in texts.items()}
        self.commands = Commands(QueueKeys("tasks"))

    def close(self) -> None:
        self.db.close()
        self._wire.close()

    def call(self, command: Command) -> Any:
        text = self._texts.get(command[1]) or scripts.text_of(command[1])
        return self._wire.execute_command("EVAL", text, *command[2:])

    def now(self) -> int:
        seconds, micros = self.db.time()
        return int(seconds * 1000 + micros // 1000)

    def set(self, rule: str = RULE, payload: bytes = b"1", **more: Any) -> str:
        adds = {"task": "job", "opts": "", "conditions": "", "catch_up": ""}
        now = self.now()
        given = {"next_ms": now + HOUR, "anchor_ms": now, "again_ms": 5000, "most": 2, **more}
        name = given.pop("name", "s")
        call = self.commands.set_schedule(name, rule, json.dumps(adds), payload, **given)
        return str(self.call(call)[0].decode())

    def promote(self) -> Promoted:
        return Commands.read_promote(self.call(self.commands.promote()))

    def fire(self, *times: int, of: dict[str, Any] | None = None, **more: Any) -> Fired:
        has = of or record(self.db, "s")
        given = {"version": has["version"], "expected_ms": has["next"], "again_ms": 5000}
        given |= {"next_ms": times[-1] + HOUR, "past_ms": times[-1], **more}
        call = self.commands.fire("s", [(f"s@{at}", at) for at in times], **given)
        return Commands.read_fire(self.call(call))

    def due(self) -> float | None:
        found: Any = self.db.zscore("due:tasks", "s")
        return found

    def timer(self) -> float | None:
        found: Any = self.db.zscore("delayed:tasks", SCHEDULES_TIMER)
        return found


def expect(true: object, what: str) -> None:
    if not true:
        raise AssertionError(what)


def it_fires_once(agenda: Agenda) -> None:
    """Who has computed from what stands gets through, once; the next time stands then."""
    expect(agenda.set() == "new", "it is new")
    has = shift(agenda.db, "s", -HOUR - 5)
    expect(set(agenda.promote().schedules) == {"s"}, "it is due")
    expect(agenda.fire(has["next"], of=has).outcome == "fired", "it fires")
    for late in (has, {**has, "version": has["version"] + 1}, {**has, "next": has["next"] + 1}):
        expect(agenda.fire(has["next"] + 7, of=late).outcome == "stale", f"{late} is stale")
    stands = record(agenda.db, "s")
    wrong = {**stands, "version": stands["version"] - 1}
    expect(agenda.fire(has["next"] + 8, of=wrong).outcome == "stale", "it has another version")
    expect(occurrences(agenda.db, "s") == [has["next"]], "once")
    expect(stands["next"] == has["next"] + HOUR == agenda.due() == agenda.timer(), "it moves on")
    expect((stands["past"], stands["fired"], stands["last"]) == (
        *(has["next"], 1, f"s@{has['next']}"),
    ), "it is counted")  # fmt: skip


def who_dies_is_replaced(agenda: Agenda) -> None:
    """What was named and not fired is named again, some time later."""
    agenda.set()
    shift(agenda.db, "s", -HOUR - 5)
    done = agenda.promote()
    expect(set(done.schedules) == {"s"}, "it is named")
    expect(not agenda.promote().schedules, "only once")
    expect(agenda.due() == done.now_ms + 5000 == agenda.timer(), "and later again")
    agenda.db.zadd("due:tasks", {"s": 1})
    agenda.db.zadd("delayed:tasks", {SCHEDULES_TIMER: 1})
    expect(set(agenda.promote().schedules) == {"s"}, "it is named again")


def what_is_not_due_is_not_named(agenda: Agenda) -> None:
    """A score that is out of step is put right; what is no record leaves; a lost timer comes
    back."""
    agenda.set()
    agenda.db.zadd("due:tasks", {"s": 1, "gone": 1})
    agenda.db.zadd("delayed:tasks", {SCHEDULES_TIMER: 1})
    expect(not agenda.promote().schedules, "it is not due")
    expect(agenda.due() == record(agenda.db, "s")["next"] == agenda.timer(), "and put right")
    expect(agenda.db.zcard("due:tasks") == 1, "the other is gone")
    agenda.db.delete("delayed:tasks")
    agenda.promote()
    expect(agenda.timer() == agenda.due(), "the timer is back")


def set_again_it_goes_on(agenda: Agenda) -> None:
    """The same changes nothing; another payload keeps the times; another rule has new ones."""
    agenda.set()
    first = shift(agenda.db, "s", -1000, "next")
    expect(agenda.set() == "same", "it is the same")
    expect(record(agenda.db, "s") == first, "nothing has changed")
    expect(agenda.set(payload=b"2") == "changed", "its payload has")
    second = record(agenda.db, "s")
    expect(second["next"] == first["next"], "not its time")
    expect(second["version"] > first["version"], "but its version")
    expect(agenda.set(OTHER, next_ms=first["next"] + 9) == "changed", "its rule has")
    expect(record(agenda.db, "s")["next"] == first["next"] + 9 == agenda.due(), "and its time")
    agenda.db.delete("due:tasks", "delayed:tasks")
    expect(agenda.set(OTHER) == "same", "the same")
    expect(agenda.due() == agenda.timer() == first["next"] + 9, "and there again")


def times_that_have_been_do_not_come_again(agenda: Agenda) -> None:
    """Unless the clock was ahead by a day."""
    agenda.set()
    past = agenda.now() + 5000
    agenda.fire(past)
    expect(agenda.set(OTHER, next_ms=past) == "late", "that has been")
    expect(agenda.set(OTHER, next_ms=past + 1) == "changed", "that has not")
    shift(agenda.db, "s", 2 * 86_400_000, "past")
    expect(agenda.set(RULE, next_ms=past) == "changed", "the clock was ahead")


def a_pause_holds(agenda: Agenda) -> None:
    """Nothing fires; it goes on at the time that is given then."""
    agenda.set()
    has = record(agenda.db, "s")
    call = agenda.commands.set_schedule
    agenda.call(call("s", paused="1", again_ms=1000))
    expect(agenda.due() is None, "it is not due")
    expect(agenda.timer() is None, "nor is anything")
    expect(agenda.fire(has["next"], of=record(agenda.db, "s")).outcome == "stale", "it fires not")
    expect(agenda.set(payload=b"3") == "changed", "it is set")
    expect(agenda.due() is None, "and paused")
    at = agenda.now() + 77_000
    agenda.call(call("s", paused="0", next_ms=at, anchor_ms=5, again_ms=1000))
    expect(record(agenda.db, "s")["next"] == at == agenda.due() == agenda.timer(), "it goes on")
    expect(agenda.call(call("no", paused="1", again_ms=1))[0] == b"unknown", "none there")


def deleted_it_is_gone(agenda: Agenda) -> None:
    """And there are as many as there may be."""
    agenda.set()
    agenda.set(name="t", next_ms=agenda.now() + 5)
    expect(agenda.set(name="u") == "full", "two are the most")
    delete = agenda.commands.set_schedule
    expect(agenda.call(delete("t", "-"))[0] == b"deleted", "it is deleted")
    expect(agenda.timer() == agenda.due(), "the other is the next")
    expect(agenda.call(delete("s", "-"))[0] == b"deleted", "it, too")
    expect(not agenda.db.exists("schedules:tasks", "due:tasks", "delayed:tasks"), "nothing is left")
    expect(agenda.call(delete("s", "-"))[0] == b"unknown", "it was")


def a_fault_stops_there(agenda: Agenda) -> None:
    """What cannot be stored is the next again; what is there already is known."""
    agenda.set()
    at = record(agenda.db, "s")["next"]
    agenda.db.set(f"task:tasks:s@{at + 2}", "something else")
    fired = agenda.fire(at, at + 1, at + 2, at + 3)
    expect(fired.outcome == "fault", "it is told")
    expect("WRONGTYPE" in fired.words, "in words")
    has = record(agenda.db, "s")
    expect((has["next"], has["fired"]) == (at + 2, 2), "it stays the next")
    expect("WRONGTYPE" in has["fault"], "and says why")
    expect(agenda.fire(at + 2).outcome == "fault", "again")
    expect(record(agenda.db, "s")["next"] == at + 2, "and stays")
    agenda.db.delete(f"task:tasks:s@{at + 2}")
    agenda.fire(at + 1, version="")
    expect(record(agenda.db, "s")["next"] == at + 2, "by hand it moves nothing")
    known = agenda.fire(at + 1, at + 2)
    expect([a.position for a in known.others] == [0], "one is known")
    expect(known.others[0].outcome == "known", "it is")
    has = record(agenda.db, "s")
    expect((has["fired"], has["fault"]) == (3, ""), "all is well")
    expect(occurrences(agenda.db, "s") == [at, at + 1, at + 2], "each is there once")


SCENES: list[Callable[[Agenda], None]] = [
    *(it_fires_once, who_dies_is_replaced, what_is_not_due_is_not_named, set_again_it_goes_on),
    *(times_that_have_been_do_not_come_again, a_pause_holds, deleted_it_is_gone),
    a_fault_stops_there,
]
MUTANTS = [
    Mutant("any version", "int(has.version) ~= VERSION or ", "", ("fire",)),
    Mutant("any time", "int(has.next) ~= EXPECTED or ", "", ("fire",)),
    Mutant("a pause fires", "~= EXPECTED or has.paused)", "~= EXPECTED)", ("fire",)),
    Mutant(
        "the time stays",
        "has.next = tonumber(ARGV[6]), tonumber",
        "has.older = tonumber(ARGV[6]), tonumber",
        ("fire",),
    ),
    Mutant(
        "it is due as before",
        "redis.call('ZADD', due_of(has.lane), int(has.next), NAME)",
        "",
        ("fire",),
    ),
    Mutant(
        "a fault is passed over", "tonumber(at_fault or ARGV[5])", "tonumber(ARGV[5])", ("fire",)
    ),
    Mutant(
        "by hand it moves",
        "if VERSION ~= '' and at_fault ~= EXPECTED then\n  has.skipped",
        "if at_fault ~= EXPECTED then\n  has.skipped",
        ("fire",),
    ),
    Mutant("a fault says nothing", "has.fault = fault", "has.fault = ''", ("fire",)),
    Mutant("no timer after it", "then ring(has.lane) end\nreturn", "then end\nreturn", ("fire",)),
    Mutant("known is fired", "elseif happened == 'known' then", "elseif false then", ("fire",)),
    Mutant("named again and again", "or now + has.again)", "or now)", ("promote",)),
    Mutant("the timer stays due", "  ring(OF_LANE)\n", "", ("promote",)),
    Mutant("a lost timer is lost", "elseif #due == 0 then", "elseif false then", ("promote",)),
    Mutant("named before its time", "if has.next <= now then", "if true then", ("promote",)),
    Mutant("what is gone stays", "redis.call('ZREM', due_set, names[i])", "", ("promote",)),
    Mutant("set again it begins anew", "local goes_on = has and", "local goes_on = false and"),
    Mutant("what has been comes again", "if has and next <= has.past", "if false and next <= 0"),
    Mutant("a day ahead for ever", "and has.past - now < 86400000", ""),
    Mutant("paused, and due", "if redis.call('ZREM', due, NAME) == 1 then ring(made.lane) end", ""),
    Mutant("a pause ends with set", "PAUSED == '' and was_paused", "false"),
    Mutant("resumed at the old time", "and not (was_paused and not made.paused)", ""),
    Mutant(
        "any payload is the same", "and string.sub(value, -#payload - 1) == '\\n' .. payload", ""
    ),
    Mutant(
        "the version stays",
        "made.version, made.again = math.max(now, made.version + 1)",
        "made.version, made.again = made.version",
    ),
    Mutant(
        "deleted, and due", "if redis.call('ZREM', due_of(lane), NAME) == 1 then ring(lane) end", ""
    ),
    Mutant("as many as you like", ">= tonumber(ARGV[10])", "< 0", ("set_schedule",)),
    Mutant(
        "what was lost is not put back",
        "not same or not redis.call('ZSCORE', due, NAME) "
        "or not redis.call('ZSCORE', DELAYED, ALARM)",
        "not same",
    ),
    Mutant("no timer for the next", "  redis.call('ZADD', delayed, first[2], ALARM)\n", ""),
    Mutant(
        "a timer for none",
        "if not first[2] then return redis.call('ZREM', delayed, ALARM) end",
        "if not first[2] then return end",
    ),
]


def caught_by(server: Server, texts: dict[str, str], first: str = "") -> str:
    scenes: Iterator[Any] = ((scene.__name__, scene) for scene in SCENES)
    return first_failure(server, lambda: Agenda(server, texts), scenes, first)


def test_the_scripts_keep_their_word(every_server: Server) -> None:
    """On every server."""
    assert caught_by(every_server, {}) == ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_bug_is_caught(server: Server, mutant: Mutant) -> None:
    """Each of them breaks a promise."""
    must_be_caught("schedule_mutations", mutant, partial(caught_by, server))


@pytest.mark.parametrize("first", ["", "no scene", a_pause_holds.__name__])
def test_a_scene_that_misses_a_bug_is_not_the_last(server: Server, first: str) -> None:
    """A hint that is missing, outdated or wrong lets no bug pass."""
    found = caught_by(server, mutated(MUTANTS[0]), first)
    assert found
    assert not found.startswith(a_pause_holds.__name__)

"""Bugs put on purpose into what keeps steps and events: each is caught by a test of theirs, or by a
walk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import test_scripts_steps as probes
from support.mutants import Mutant, first_failure, must_be_caught
from support.script_world import Walk, World
from support.servers import Server

PROBES: list[Callable[[World], None]] = [
    probes.test_a_step_is_kept_for_the_next_attempt,
    probes.test_heads_come_without_what_steps_came_to,
    probes.test_nobody_else_may_write_a_step,
    probes.test_looking_at_a_task_carries_no_steps,
    probes.test_a_task_sleeps_and_goes_on,
    probes.test_only_who_has_a_task_puts_it_off,
    probes.test_a_task_that_sleeps_is_cancelled,
    probes.test_an_event_lets_go_on_who_waits,
    probes.test_an_event_that_came_before_is_taken,
    probes.test_messages_to_one_task_come_in_order,
    probes.test_messages_are_bounded,
    probes.test_a_wait_that_is_over_is_over,
    probes.test_a_task_that_runs_takes_its_event_itself,
    probes.test_who_waits_no_more_leaves_the_list,
    probes.test_lanes_share_events,
    probes.test_a_gated_task_gives_its_keys_back_while_it_sleeps,
    probes.test_a_full_server_takes_steps,
    lambda world: probes.test_replay_goes_on_or_begins_anew(world, anew=False),
    lambda world: probes.test_replay_goes_on_or_begins_anew(world, anew=True),
    lambda world: probes.test_resubmit_keeps_the_steps_of_the_same_call(world, "", True, ""),
    lambda world: probes.test_resubmit_keeps_the_steps_of_the_same_call(world, "0", False, ""),
    lambda world: probes.test_resubmit_keeps_the_steps_of_the_same_call(world, "", True, "k1 k"),
    lambda world: probes.test_resubmit_keeps_the_steps_of_the_same_call(world, "1", False, "k1 k"),
]
LONG: list[Callable[[World], None]] = [
    probes.test_who_waits_again_is_not_met_on_the_way,
    probes.test_more_than_one_call_lets_go_on_are_let_go_on_by_a_timer,
]
"""Seconds each: for what nothing else catches."""

FENCE = "if #pending(ARGV[3], ARGV[3], 1, CONSUMER) == 0 then return"
WAITS = "if has[1] ~= 'delayed' or has[2] ~= 'event' then return false end\n"
MUTANTS = [
    Mutant(
        "send: once more",
        "~= mark .. '\\n' then\n    if redis",
        "then\n    if redis",
        ("send_event",),
    ),
    Mutant(
        "send: nobody is put apart", "redis.call('RENAME', waiting, going)", "", ("send_event",)
    ),
    Mutant("step: anybody's", FENCE, "if false then return", ("step",)),
    Mutant("step: whoever has it", "ARGV[3], 1, CONSUMER)", "ARGV[3], 1)", ("step",)),
    Mutant("step: a full server refuses", "redis.call('XDEL', STREAM, '0-0')\n", "", ("step",)),
    Mutant("step: only the last is known", "math.max(last, tonumber(number))", "number", ("step",)),
    Mutant("expect: anybody's", FENCE, "if false then return", ("expect",)),
    Mutant("expect: twice", "if kind == 'e' or kind == 't' then", "if false then", ("expect",)),
    Mutant("expect: never over", "now >= tonumber(due)", "false", ("expect",)),
    Mutant("expect: does not wait at all", "tonumber(ARGV[9]) <= 0", "true", ("expect",)),
    Mutant("expect: over is not written", " 0 t -')", " 0 w 1')", ("expect",)),
    Mutant("event: the same again", "if mark == last then return nil end\n", ""),
    Mutant("event: messages out of order", "taken + 1, name", "taken, name", ("expect",)),
    Mutant("event: messages stay", "== 1 then\n    redis.call('HINCRBY'", "== 2 then\n    x('y'"),
    Mutant("took: still awaits", "redis.call('HDEL', record, 'awaits')\n", "", ("expect",)),
    Mutant("reach: whoever it is", WAITS, ""),
    Mutant("reach: any name", "if of ~= name then return false end\n", "", ("send_event",)),
    Mutant(
        "reach: not woken", "redis.call('ZADD', DELAYED, 'XX', int(NOW), id)", "", ("send_event",)
    ),
    Mutant("reach: the rest never", "if #refs == limit then", "if false then", ("send_event",)),
    Mutant("promote: forgets events", "events[#events + 1] = words", "words = nil", ("promote",)),
    Mutant("send: twice", "if before ~= mark then", "if true then", ("send_event",)),
    Mutant("send: without bounds", ">= 1000", ">= 1001", ("send_event",)),
    Mutant(
        "send: to who has ended",
        "has[1] ~= 'waiting' then return { 0, has[1] } end",
        "false then end",
        ("send_event",),
    ),
    Mutant("send: this lane alone", "{ HOME, '', '!high', '!low' }", "{ HOME }", ("send_event",)),
    Mutant("send: kept for ever", ", 'PX', ARGV[4])", ")", ("send_event",)),
    Mutant("suspend: of another", "owned({ entry }, CONSUMER)[entry]", "true", ("suspend",)),
    Mutant("suspend: not dropped", "      drop(entry)\n      if due", "      if due", ("suspend",)),
    Mutant("suspend: against a wish", "wish(entry, CONSUMER) and", "nil and", ("suspend",)),
    Mutant(
        "suspend: misses an event",
        "if of_event then mark, body =",
        "if false then mark, body =",
        ("suspend",),
    ),
    Mutant(
        "suspend: without its step",
        "    keep_step(record, number, head .. int(due), '')\n",
        "",
        ("suspend",),
    ),
    Mutant(
        "suspend: keys are kept",
        "pcall(give_back, slept[i][1]",
        "pcall(type, slept[i][1]",
        ("suspend",),
    ),
    Mutant("suspend: its deadline counts", "task.opts = started_opts(task.opts)", "", ("suspend",)),
    Mutant(
        "suspend: not in the list", "if of_event then listed(id, event, due) end", "", ("suspend",)
    ),
    Mutant(
        "suspend: the list is for ever",
        "redis.call('PEXPIRE', list",
        "type('PEXPIRE', list",
        ("suspend",),
    ),
    Mutant("suspend: nobody leaves the list", "  sweep(list, event)\n", "", ("suspend",)),
    Mutant(
        "suspend: not counted", "redis.pcall('HINCRBY', KEYS[5], 'snoozed', 1)", "1", ("suspend",)
    ),
    Mutant(
        "cancel: stays in the list",
        "if event then redis.pcall('ZREM'",
        "if false then redis.pcall('ZREM'",
        ("cancel",),
    ),
    Mutant("gate: a started task is dropped", " and not asked.started", "", ("promote",)),
    Mutant("watch: carries steps", "if more then", "if false then", ("watch",)),
    Mutant("recall: whole", "if ARGV[2] ~= '1' then", "if false then", ("recall",)),
    Mutant("replay: never anew", "if ARGV[5] == '1' then", "if false then", ("replay",)),
    Mutant("replay: always anew", "if ARGV[5] == '1' then", "if true then", ("replay",)),
    Mutant("resubmit: steps of another call", "if whole_again and", "if false and", ("resubmit",)),
    Mutant("resubmit: steps are lost", "if whole_again and", "if true and", ("resubmit",)),
    Mutant(
        "resubmit_gated: steps are lost",
        "if (kept[7] or kept[8]) and not anew",
        "if false",
        ("resubmit_gated",),
    ),
    Mutant("resubmit_gated: of another call", " and not anew then", " then", ("resubmit_gated",)),
]


def caught_by(server: Server, texts: dict[str, str], first: str = "") -> str:
    """The first probe or walk that something is wrong for; empty when all pass."""
    scenes = [(f"probe {n}", probe) for n, probe in enumerate(PROBES)]
    scenes += [(f"walk {n}", lambda world, n=n: Walk(world, n).run(100)) for n in range(4)]
    scenes += [(f"long {n}", probe) for n, probe in enumerate(LONG)]
    return first_failure(server, lambda: World(server, mutants=texts), scenes, first)


def test_nothing_is_wrong_with_the_scripts_as_they_are(server: Server) -> None:
    """Or catching a mutant would prove nothing."""
    assert caught_by(server, {}) == ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_mutant_is_caught(server: Server, mutant: Mutant) -> None:
    """A bug put into the scripts is noticed."""
    must_be_caught("step_mutations", mutant, partial(caught_by, server))

"""Bugs put into the gate's scripts on purpose are caught, every one: by a scene or a walk.

As in test_mutations: without a mutant all scenes and walks pass, so what fails is the mutant.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from support.gate_scenes import SCENES
from support.gate_scenes_again import AGAIN
from support.gate_scenes_recount import RECOUNT
from support.gate_scenes_returned import RETURNED
from support.gate_walk import GateWalk
from support.gate_world import GateWorld
from support.mutants import Mutant, bounded, first_failure, must_be_caught
from support.servers import Server

WALKS = 6
ALL = [*RETURNED, *AGAIN, *RECOUNT, *SCENES]

MUTANTS = [
    # limits
    Mutant(
        "whoever comes overtakes", "if not first and now.waiting > 0 then return reason end", ""
    ),
    Mutant("one more than the limit", "now.used + term.weight > most", "now.used > most"),
    Mutant(
        "a slot is one, whatever the weight", "recount(now, term.weight, 0)", "recount(now, 1, 0)"
    ),
    Mutant("a pause is no obstacle", "if now.paused then return 'paused' end", ""),
    Mutant("a rate is no obstacle", "if free_at > NOW then return 'rate', free_at end", ""),
    Mutant("no burst", "((now.rule.burst or 1) - 1) * each\n", "0\n"),
    Mutant("no token is taken", "+ term.weight * rule.per / rule.rate\n    redis", "\n    redis"),
    Mutant(
        "no timer for a rate",
        "if at then timer(math.max(at, NOW + TICK_MS)",
        "if false then timer(at",
    ),
    Mutant(
        "the least urgent first",
        "or place - priority * AGEING_US\n  add_to",
        "or place + priority * AGEING_US\n  add_to",
    ),
    Mutant(
        "who comes before the first waits",
        "return not first or (term.order",
        "return false and (term.order",
    ),
    Mutant("dropped, and waits", "excess == 'drop' or excess == 'cancel_new'", "false"),
    Mutant("a limit changes, and nobody is asked", "later('more', KEY)", "", ("limit",)),
    Mutant(
        "a pattern changes, and nobody is asked",
        "later('keys', string",
        "_ = ('keys', string",
        ("limit",),
    ),
    Mutant("a penalty of nothing", "NOW + tonumber(PENALTY)", "NOW", ("limit",)),
    # slots
    Mutant("no slot is given back", "freed[term.key] = (freed[term.key] or 0) + term.weight", ""),
    Mutant(
        "a slot twice",
        "freed[term.key] = (freed[term.key] or 0) + term.weight",
        "freed[term.key] = (freed[term.key] or 0) + 2 * term.weight",
    ),
    Mutant(
        "a free slot calls nobody",
        "  now.used = now.used - n\n  if now.waiting > 0 then later('more', key) end\n",
        "  now.used = now.used - n\n",
    ),
    Mutant("zeros are left", "if counted[field] > 0 then", "if true then"),
    Mutant("counted no more", "  write('HSET', set, 2)\n", ""),
    Mutant(
        "in the stream, and waiting",
        "    remove_from(WAITING, ref_of(id))\n  end\n  let_in",
        "  end\n  let_in",
    ),
    Mutant(
        "in the stream together, and waiting",
        "    redis.call('ZREM', WAITING, unpack(refs, 1, n))\n",
        "",
    ),
    Mutant(
        "in together, and in their line", "    redis.call('ZREM', line, unpack(refs, 1, n))\n", ""
    ),
    Mutant(
        "in together, and no slot taken",
        "    recount(now, used - now.used, -n)\n",
        "    recount(now, 0, -n)\n",
    ),
    Mutant(
        "too heavy together",
        "or room and term.weight > room then",
        "then",
    ),
    Mutant(
        "let go by its parents, and waiting",
        "    leave(WAITING, ref)\n    found.waits",
        "    found.waits",
    ),
    Mutant(
        "let go, and its record has no entry",
        "HSET', record, 'entry', entry)\n  if type",
        "HSET', record, 'entry', '')\n  if type",
    ),
    Mutant("let in, and still under a key", "'opts', 'under' }", "'opts' }"),
    Mutant("let in, and still behind parents", "'opts', 'parents' }", "'opts' }"),
    Mutant(
        "after its parents it has no count",
        "'attempt', task.attempt, 'recovered',\n      task.recovered)",
        "'at', 0)",
    ),
    Mutant("behind, and not counted", "  count(now.w, 1)\n  now.waiting", "  now.waiting"),
    Mutant("behind, and in no line", "members[n + 1], members[n + 2] = text, ref", "_ = 1"),
    Mutant(
        "behind, where there is room",
        "or used + term.weight <= most or term.weight > 1 then",
        "or term.weight > 1 then",
    ),
    Mutant(
        "in, and in its line",
        "if redis.call('ZREM', line, ref) == 1 then",
        "if redis.call('ZSCORE', line, ref) then",
    ),
    Mutant(
        "in by its turn, and in its line",
        "  remove_from(line, ref)\n  local now = standing(term)",
        "  local now = standing(term)",
    ),
    Mutant(
        "a line of one is counted for ever",
        "    recount(now, 0, -1)\n  end\n  if term.group",
        "  end\n  if term.group",
    ),
    Mutant(
        "settle: slots stay taken",
        "elseif ended[i] then\n      closed(",
        "elseif false then\n      closed(",
        ("settle",),
    ),
    Mutant(
        "settle: slots of many stay taken",
        "if n > 0 then give_back(nil, asked.keys, true, false, n) end",
        "",
        ("settle",),
    ),
    Mutant(
        "recover: a dead letter's slots stay taken",
        "if gate ~= '' then closed(",
        "if false then closed(",
        ("recover",),
    ),
    Mutant(
        "park: a dead letter's slots stay taken",
        "if gate ~= '' then closed(",
        "if false then closed(",
        ("park",),
    ),
    Mutant(
        "retry: slots stay taken",
        "if not at_once then give_back(id, keys, true, true) end",
        "",
        ("retry",),
    ),
    Mutant("promote: no keys are asked", "if waits and kept[5] and", "if false and", ("promote",)),
    Mutant(
        "replay: no keys are asked",
        "local opts, gate = again_opts(kept[4] or '')",
        "local opts, gate = kept[4] or '', ''",
        ("replay",),
    ),
    Mutant(
        "promote: no timer is run", "later(words[1], words[2], words[3])", "_ = 1", ("promote",)
    ),
    Mutant(
        "a place is given to two calls",
        "    redis.call('HSET', LIMITS, 'n', int(noted_place))",
        "    redis.call('HSET', LIMITS, 'n', '0')",
    ),
    Mutant("a call does it all", "local steps = 200", "local steps = 1000000"),
    Mutant("what is left over is forgotten", "put_off(NOW, kind, what, detail)", ""),
    # order and shares
    Mutant("an order of many", "return term.order and 1 or", "return"),
    Mutant(
        "overtaken while it waits for a limit",
        "if i > 1 and keys[1].order and not kept then",
        "if false then",
    ),
    Mutant("the order is free between attempts", "if stays and term.order then", "if false then"),
    Mutant("all is kept between attempts", "if stays and term.order then", "if stays then"),
    Mutant("a failure pauses nothing", "rule.on_failure == 'pause'", "rule.on_failure == 'stop'"),
    Mutant("groups take no turns", "turn.time + 1 / (", "turn.time + 0 / ("),
    Mutant("a group of nobody takes its turn", "if not refs[2] then", "if false then"),
    Mutant("no group has a second turn", "(not turn or turn.time >= least)", "false"),
    Mutant("in by turns, whatever their rule", "now.rule.rate or obstacle(first, false)", "false"),
    Mutant("in by turns, and no slot of theirs", "  if now then recount(now, 1, 0) end\n", ""),
    Mutant("in by turns, and no slot of the door", "recount(now, 1, -1)", "recount(now, 0, -1)"),
    Mutant("in by turns, and in their line", "if turn.left[1] then redis", "if false then redis"),
    Mutant("in by turns, and waiting", "if left[1] then redis", "if false then redis"),
    Mutant(
        "new groups together take no turns",
        "newcomers[n + 1], newcomers[n + 2] = newcomers.since, term.group",
        "_ = 1",
    ),
    Mutant(
        "new groups together stand in no line",
        "written = redis.pcall('ZADD', line, text, ref)",
        "written = 1",
    ),
    Mutant(
        "shares are kept by groups of nobody",
        "  if redis.call('EXISTS', line) == 0 then redis.call('ZREM', SHARES, group) end\n",
        "",
    ),
    # parents
    Mutant("any end will do", "if policy == 'e' or", "if true or"),
    Mutant("any end must be a success", "if policy == 'e' or", "if"),
    Mutant("the first parent is enough", "  if found.parents > 1 then\n", "  if false then\n"),
    Mutant("what has some parents left has all", "'parents', -found.ended)", "'parents', 0)"),
    Mutant(
        "no time is waited for after parents",
        "  if due > NOW then\n    redis.call('ZADD', DELAYED",
        "  if false then\n    redis.call('ZADD', DELAYED",
    ),
    Mutant(
        "nobody is told of dependants",
        "if redis.call('HSETNX', WAITERS, id, '>') == 1 then return end",
        "if true then return end",
    ),
    Mutant(
        "after others, and no edge",
        "edges[#edges + 1] = string.sub(conditions, from, from) .. edge",
        "",
    ),
    Mutant(
        "after others, and no reader", "    of[i].readers = of[i].readers + 1\n    from", "    from"
    ),
    Mutant(
        "after others, and not waiting",
        "all[last + 1], all[last + 2] = NOW_TEXT, ref_of(id)\n  local from",
        "local from",
    ),
    Mutant(
        "in by turns, and past who is in line",
        "  local at = #turn.left + (leaving and leaving(turn.line) or 0)\n",
        "  local at = turn.at or 0\n  turn.at = at + 1\n",
    ),
    Mutant(
        "in, and not counted for who is behind",
        "ok, term = pcall(go_simply, refs",
        "ok, term = true, go_simply(refs",
    ),
    Mutant(
        "in by turns, and not counted for who is behind",
        "ok, goes_on = pcall(take_turn, turn",
        "goes_on = take_turn(turn",
    ),
    Mutant("of a group, and nothing else", "'^g(%d*) ([^\\n]*)$'", "'^g(%d*) ([^\\n]*)'"),
    Mutant("ended before others, and waited for", "if found.state ~= '' or found", "if found"),
    Mutant("what is not read ahead is nothing", "has = ahead > 4 and has", "has = has"),
    Mutant(
        "an ended parent is waited for",
        "if of[i].state == '' then unended = unended + 1 end",
        "unended = unended + 1",
    ),
    Mutant(
        "a parent that nobody knows",
        "  if not has[1] and not has[2] then return nil end\n  if has[1] and has[1] ~= 'delayed'",
        "  if has[1] and has[1] ~= 'delayed'",
    ),
    Mutant(
        "an unmet need is no end",
        "unmet = unmet or why(policy, kind",
        "local _ = unmet or why(policy, kind",
    ),
    Mutant("a batch ends, and nobody hears", "    if has[6] then\n", "    if false then\n"),
    Mutant(
        "a parent's result expires unread",
        "    redis.pcall('PERSIST', record)\n  end\n  later('after'",
        "  end\n  later('after'",
    ),
    Mutant(
        "a parent's record is kept for ever",
        "then redis.call('PEXPIRE', of, has[3]) end",
        "then _ = 1 end",
    ),
    Mutant("who has read is not counted", "if asked.parents then later(", "if false then later("),
    Mutant(
        "who has read and ended is not counted", "later('read', ref_of(ARGV[11 * i - 3]))", "_ = 1"
    ),
    Mutant(
        "kept for readers there are none of",
        "kept[i] = redis.pcall('HEXISTS', TASK .. ids[i], 'readers') == 1",
        "kept[i] = true",
    ),
    Mutant(
        "settle: children of what was refused",
        "if ended[tonumber(child[1])] then",
        "if true then",
        ("settle",),
    ),
    Mutant(
        "an end without its reason",
        "and policy ~= '=' and why(policy, what, state)\n",
        "and policy ~= '=' and why(policy, what, state) and ' '\n",
    ),
    # unique keys, deadlines
    Mutant(
        "a unique key is never locked", "    redis.call('HSET', UNIQUE, asked.unique, value)\n", ""
    ),
    Mutant(
        "a unique key is never free",
        "redis.call('HDEL', UNIQUE, asked.unique) end\n  end\n  if state",
        "_ = 1 end\n  end\n  if state",
    ),
    Mutant("started, and still unique", "(scope == 't' and stands == 'running')", "false"),
    Mutant("unique for ever", "    if tonumber(until_ms) <= NOW then return nil end\n", ""),
    Mutant("the dead are unique", "  elseif stands == 'ended' or", "  elseif"),
    Mutant(
        "replaced by nothing",
        "    put_in(holder, task.payload)\n    return 'replaced'\n  end\n  if word == 'push'",
        "    return 'replaced'\n  end\n  if word == 'push'",
    ),
    Mutant(
        "pushed without end", "if most ~= '' then due = math.min", "if false then due = math.min"
    ),
    Mutant(
        "once more, at once",
        "    task.conditions = task.conditions .. '\\net' .. holder.lane .. ' ' .. holder.id\n",
        "",
    ),
    Mutant("no deadline", "if asked.expires and asked.expires < NOW then", "if false then"),
    Mutant(
        "a deadline for what has started",
        "task.opts = again_opts(task.opts)",
        "",
        ("retry",),
    ),
    Mutant("cancelled in its line", "      pcall(leave_line, ref_of(id), has[1], gate)\n", ""),
    Mutant("cancelled, and nobody steps up", "      later('more', has[1])", "      --"),
    Mutant("replayed, it is no parent", "pcall(parent_again, ids[i], kept[9])", "", ("replay",)),
    # again, before timers have done what follows
    Mutant(
        "resubmitted, it is no parent",
        "  parent_again(task.id, kept[6])\n",
        "",
        ("resubmit_gated",),
    ),
    Mutant(
        "released by the end before",
        "state = stands_now(what, string.sub(state, 1, -2))",
        "state = string.sub(state, 1, -2)",
    ),
    Mutant(
        "released as it had ended before",
        "if string.sub(state, -1) == ' ' then",
        "if string.sub(state, -1) == '.' then",
    ),
    Mutant("a batch again, and nobody hears", "'finished_ms') == 1\n", "'finished_ms') == 9\n"),
    Mutant("read by an earlier life for ever", "if kept[9] or kept[10] then", "if false then"),
    Mutant(
        "the new edges are read, too",
        "  elseif edges == '' or not ENDS[has[3]] then",
        "  elseif false then",
    ),
    Mutant(
        "two that read it are one timer",
        "later('seen', ref_of(child), ref_of(id))",
        "later('seen', ref_of(child))",
    ),
    Mutant(
        "its own key is another's", "(has[2] or '') == '' and 'ended'", "not has[2] and 'ended'"
    ),
    # a name with a rule
    Mutant("regate: no key more", "  task.opts = with_key(task.opts, key)\n", "", ("regate",)),
    Mutant(
        "regate: what it held is taken", "pcall(give_back, task.id", "_ = (task.id", ("regate",)
    ),
    Mutant(
        "regate: its turn is free",
        "terms(gate).keys, true, true)",
        "terms(gate).keys, true, false)",
        ("regate",),
    ),
    Mutant(
        "regate: what names the key waits again", "term_of(gate, key) or not", "not", ("regate",)
    ),
    Mutant(
        "regate: what is to end",
        "wish(entry, CONSUMER) and 'asked",
        "false and 'asked",
        ("regate",),
    ),
    Mutant("what is returned is in a circle", "if waits_for(i, of", "if false and waits_for(i, of"),
    Mutant(
        "what is there is in a circle",
        "elseif waits_for(settled[k]",
        "elseif false and (settled[k]",
    ),
    Mutant("in its batch, and not stored", "  if stored and batch ~= ''", "  if batch ~= ''"),
    # counted again
    Mutant("recount: nothing is given back", "free_key(key, before - after)", "", ("recount",)),
    Mutant(
        "recount: what is kept is free",
        "if first and first.order then count",
        "if false then count",
    ),
    Mutant(
        "recount: one lane", "from, '+', 'COUNT', left)", "from, '+', 'COUNT', i < 3 and left or 0)"
    ),
    Mutant("recount: what still runs is free", "running = running + 1", "running = 0"),
    Mutant("recount: from the start again", "'(' .. places[i]", "'-'", ("recount",)),
    Mutant("recount: what was counted is forgotten", "counted[ARGV[at]] = ", "local _ = "),
    Mutant(
        "recount: no weights", "or 0) + term.weight\nend\nlocal left", "or 0) + 1\nend\nlocal left"
    ),
    Mutant("recount: nobody is let in", "later('keys', '', '0')", "", ("recount",)),
    Mutant("recount: who stands in no line waits", "if ref and has[5] == 'waiting'", "if false"),
    Mutant(
        "recount: not in use, and nobody minds", "before < after and not exact", "before < after"
    ),
    Mutant("recount: all there is at once", "if size > MOST then", "if false then"),
    # what a task returned
    Mutant("returned, and slots kept", "give_back(ARGV[11 * i - 3]", "_ = (ARGV[11 * i - 3]"),
    Mutant(
        "returned, and unique no more", "if ended[i] and ARGV[11 * i - 2] ==", "if ended[i] == "
    ),
    Mutant("told that it returned", "elseif state ~= 'continued' then", "else", ("settle",)),
    Mutant(
        "counted as it returned",
        "        go_on(i, at, tasks[i])\n",
        "        go_on(i, at, tasks[i])\n        counts[state] = 1\n",
    ),
    Mutant("a return sent twice is lost", "{ 'from' } or", "{ 'entry' } or"),
    Mutant(
        "a return of what is to end",
        "if wish(entries[i], CONSUMER) then error('asked to end', 0) end",
        "",
    ),
    Mutant("no edge at what is returned", "redis.call('RPUSH', line, edge) == 1", "false"),
    Mutant("what is returned is not marked", "mark_parent(child)", ""),
    Mutant("what is returned is not read", "redis.call('HINCRBY', of, 'readers', 1) == 1", "false"),
    Mutant("read for ever", "if child then later('seen'", "if false then later('seen'"),
    Mutant("read for ever at the end", "  later('seen', ref_of(child), ref_of(id)) --", "--"),
    Mutant("what cannot be added never ends", "has[1] or has[2] or 'cancelled'", "has[1]"),
    Mutant("what had ended never ends", "has[1] or has[2] or 'cancelled'", "has[2] or 'cancelled'"),
    Mutant("always succeeded", "return state, has[2] end", "return 'succeeded', has[2] end"),
    Mutant("no dead letter", "      redis.call('ZADD', DEAD, int(NOW), id)\n", ""),
    Mutant("its end frees no key", "if gate ~= '' then closed(id, state, gate, false) end", ""),
    Mutant(
        "nobody hears of its end", "notify_all(id, state, body, option(task.opts", "_ = ((task.opts"
    ),
    Mutant(
        "no batch hears of its end",
        "  tally_one(batch, id, state, int(NOW))\n  later('seen'",
        "  later('seen'",
    ),
    Mutant(
        "replaced after its start",
        "elseif (has[4] and stands == 'waiting') or",
        "elseif",
    ),
    Mutant(
        "a deadline for what has returned",
        "'continued') == 1 then return end",
        "'continued') == 2 then return end",
    ),
    Mutant(
        "given back twice",
        "    give_back(id, keys, true, false)\n",
        "    give_back(id, keys, true, false)\n    give_back(id, keys, true, false)\n",
    ),
]


def caught_by(server: Server, texts: dict[str, str], first: str = "") -> str:
    """The first scene or walk that something is wrong for; empty when all pass."""
    scenes: list[tuple[str, Callable[[GateWorld], None]]] = [(s.__name__, s) for s in ALL]
    scenes += [(f"walk {n}", lambda world, n=n: GateWalk(world, n).run(100)) for n in range(WALKS)]
    walks = [(f"bounded {name}", walk) for name, walk in scenes[-WALKS:]]
    attempts: list[Callable[[], str]] = [
        lambda: first_failure(server, lambda: GateWorld(server, mutants=texts), scenes, first),
        lambda: first_failure(
            server, lambda: GateWorld(server, mutants=bounded(3, texts)), walks, first
        ),
    ]
    if first.startswith("bounded"):
        attempts.reverse()
    return attempts[0]() or attempts[1]()


def test_nothing_is_wrong_with_the_gate_as_it_is(server: Server) -> None:
    """Scenes and walks pass without a mutant, or catching one would prove nothing."""
    assert caught_by(server, {}) == ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_bug_in_the_gate_is_caught(server: Server, mutant: Mutant) -> None:
    """A bug put into the gate's scripts is noticed by a scene or a walk."""
    must_be_caught("gate_mutations", mutant, partial(caught_by, server))

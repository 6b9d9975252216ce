"""The checkers are checked: bugs put into the scripts on purpose must be caught, every one.

Each mutant is a plausible mistake, made by replacing text in the scripts as they are sent to the
server. It is caught by the random walks, or by one of the probes: short scenes, each for what a
walk does not see (a full server, a silence, who is told). Without a mutant all of them pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import redis
from support.mutants import Mutant, first_failure, must_be_caught
from support.script_world import (
    LEASE_MS,
    TTL,
    Broken,
    Walk,
    World,
    attempt_ended,
    outcome,
    resubmitted,
)
from support.servers import Server

WALKS = 12
MINUTE = 60_000


# -- probes --------------------------------------------------------------------------------------


def expect(condition: object, what: str) -> None:
    """One thing that must hold in a probe."""
    if not condition:
        raise Broken(what)


def handed_out_again(world: World) -> None:
    """The same entry given to another consumer is no longer the first one's."""
    world.add("a", "b", "c")
    read = world.fetch("old")
    world.db.xgroup_destroy(world.keys.stream, world.commands.group)
    world.ensure_group()
    world.fetch("new")
    lost = world.settle("old", *(outcome(entry, f["id"]) for entry, f in read))
    expect(lost == [1, 2, 3], "a forked worker's settlement was accepted")
    world.check(dict.fromkeys("abc", 0))


def anothers_work(world: World) -> None:
    """Nothing a consumer sends changes what is pending for another, or what nobody has read."""
    world.add(*map(str, range(5)))
    read = [(entry, f["id"]) for entry, f in world.fetch("owner", 3)]
    read.append((world.record("4")["entry"], "4"))
    before = world.fingerprint()
    world.settle("w", *(outcome(entry, id) for entry, id in read))
    world.retry("w", *(attempt_ended(entry, id) for entry, id in read))
    world.park("w", *((entry, id, "job") for entry, id in read))
    world.call(world.commands.release("w", [entry for entry, _ in read]))
    world.call(world.commands.quarantine("w", read[0][0], "no task"))
    expect(world.fingerprint() == before, "a consumer changed what is not its own")


def full_server(world: World) -> None:
    """Beyond maxmemory tasks that run can end, due ones move, and heartbeats get through."""
    world.register("w")
    world.add("ends", "again", "parked", "released", "recovered")
    world.add("later", due="+60000")
    world.make_due()
    read = [(entry, f["id"]) for entry, f in world.fetch("w")]
    world.expire("w")
    beats = [world.commands.heartbeat(LEASE_MS, [(consumer, "1-1")]) for consumer in ("w", "v")]
    world.db.config_set("maxmemory", 1)
    try:
        expect(world.settle("w", outcome(*read[0])) == [], "a full server settles nothing")
        expect(world.retry("w", attempt_ended(*read[1])) == [], "a full server retries nothing")
        expect(world.park("w", (*read[2], "job")) == ["parked"], "a full server parks nothing")
        expect(world.call(world.commands.release("w", [read[3][0]])) == 1, "nothing was given back")
        for beat in beats:  # after a silence, and as usual
            world.call(beat)
        expect(world.db.zscore(world.keys.workers, "v"), "a heartbeat was swallowed")
        world.promote()
        expect(world.recover(consumer="w").recovered == 1, "a full server recovers nothing")
    finally:
        world.db.config_set("maxmemory", 0)
    ids = ["ends", "again", "parked", "released", "recovered", "later"]
    world.check(dict.fromkeys(ids, 0))


def interrupted_promote(world: World) -> None:
    """An error in the midst of promote loses no task."""
    world.add("a", due="+60000")
    world.make_due()
    try:
        world.promote()
    except redis.exceptions.ResponseError as error:
        expect("injected" in str(error), f"promote failed: {error}")
    places = len(world.entries()) + world.db.zcard(world.keys.delayed)
    expect(places >= 1, "a task was lost between the delayed set and the stream")


def silence(world: World) -> None:
    """After a silence living workers keep their tasks; without one the dead lose theirs."""
    world.register("w")
    world.register("v")
    world.expire("w")
    world.expire("v")
    world.call(world.commands.heartbeat(LEASE_MS, [("w", "=")]))
    expect(world.recover().consumer == "", "a silence was held against a worker")
    world.expire("v")
    world.call(world.commands.heartbeat(LEASE_MS, [("w", "=")]))
    expect(world.recover().consumer == "v", "a dead worker was spared")
    expect(world.recover().consumer == "", "a living worker was recovered")


def earliest(world: World) -> None:
    """A beat answers the earliest deadline of all, as it is after the beat."""
    for late, beating in (
        ((), "w"),
        ((), "wvw"),
        (("w",), "w"),
        (("w", "v"), "wv"),
        (("v",), "w"),
        (("w", "v", "x"), "w"),
    ):
        for consumer, lease_ms in (("w", 5000), ("v", 6000), ("x", LEASE_MS + MINUTE)):
            world.register(consumer, lease_ms=lease_ms)
        for consumer in late:
            world.expire(consumer, by_ms=5000)
        beat = world.commands.heartbeat(LEASE_MS, [(consumer, "=") for consumer in beating])
        answer = world.commands.read_heartbeat(world.call(beat)).earliest_deadline_ms
        least = world.db.zrange(world.keys.workers, 0, 0, withscores=True)[0][1]
        expect(answer == least, f"{answer} is not the earliest deadline, {least} is")


def poison(world: World) -> None:
    """A task that kills every worker ends as a dead letter."""
    world.add("a")
    for _ in range(4):
        if not world.fetch("w", 1):
            break
        world.recover(consumer="w", max_recoveries=2)
    expect(world.state("a") == "failed", "a poison pill went round for ever")
    expect(world.record("a").get("payload"), "a dead letter without payload")
    world.check({"a": 0})


def uncharged(world: World) -> None:
    """What merely waited in a worker that died is not charged, and no dead letter."""
    world.add("ran", "waited")
    (ran, _), _ = world.fetch("w")
    world.recover(consumer="w", started=[ran])
    counts = {f["id"]: f["recovered"] for _, f in world.entries()}
    expect(counts == {"ran": "1", "waited": "0"}, f"charged: {counts}")


def room(world: World) -> None:
    """What waits for room is no dead letter, says what it needs, and comes back rarely."""
    world.add("a")
    entry, _ = world.one("w")
    long_ago = world.now_ms() - 1_000_000
    world.db.hset(world.keys.task("a"), mapping={"parked_ms": long_ago, "unknown_ms": long_ago})
    now = world.now_ms()
    said = world.park("w", (entry, "a", "job", "room for gpu=2"), grace_ms=0)
    expect(said == ["parked"], f"what waits for room: {said}")
    kept = world.db.hmget(world.keys.task("a"), "reason", "needs", "unknown_ms")
    expect(kept == [b"room", b"gpu=2", None], f"its record says {kept}")
    expect(world.db.zscore(world.keys.delayed, "a") >= now + 15_000, "it comes back often")


def page_by_page(world: World) -> None:
    """A consumer is not removed while anything is pending for it."""
    world.add(*map(str, range(7)))
    world.fetch("w")
    while world.recover(consumer="w", limit=3).more:
        world.check({str(i): 0 for i in range(7)})
    world.check({str(i): 0 for i in range(7)})


def told_once(world: World) -> None:
    """A watcher that is the task's own inbox too hears once; settled tasks have no waiters."""
    world.add("a", opts='{"inbox":"box"}')
    world.watch("a", "box")
    world.watch("a", "other")
    world.watch("a", "other")
    entry, _ = world.one("w")
    world.settle("w", outcome(entry, "a", inbox="box"))
    expect(len(world.told("box")) == 1, "an inbox was told twice, or never")
    expect(len(world.told("other")) == 1, "a watcher was told twice, or never")
    expect(world.db.pttl(world.keys.inbox("box")) > 0, "an inbox is kept for ever")
    expect(not world.db.exists(world.keys.waiters), "an address stays behind")


def sent_again(world: World) -> None:
    """A call sent again after a lost answer is answered as it was; a late one is refused."""
    world.add("settled", "retried", "unkept", "taken")
    read = [(entry, f["id"]) for entry, f in world.fetch("w")]
    for _ in range(2):
        expect(world.settle("w", outcome(*read[0])) == [], "an own settlement was called lost")
        expect(world.retry("w", attempt_ended(*read[1])) == [], "an own retry was called lost")
        expect(world.settle("w", outcome(*read[2], ttl="0")) == [], "unkept, and called lost")
    expect(world.add("unkept") == [1], "a task was run again by an enqueue sent again")
    world.recover(consumer="w")
    expect(world.retry("w", attempt_ended(*read[3])) == [1], "taken away, and not called lost")


def results_expire(world: World) -> None:
    """Records of settled tasks expire, those of waiting ones never do."""
    world.add("a", "b", "c")
    read = world.fetch("w", 2)
    world.settle("w", outcome(read[0][0], "a"), outcome(read[1][0], "b", "failed", body="{}"))
    world.cancel("c")
    expect(all(world.ttl_ms(id) > 0 for id in "abc"), "a record is kept for ever")
    world.call(world.commands.replay(["b"]))
    expect(world.ttl_ms("b") == -1, "a replayed task's record expires")


def order(world: World) -> None:
    """Due tasks become ready in the order of their due times."""
    for id, score in (("c", 3), ("a", 1), ("b", 2)):
        world.add(id, due="+60000")
        world.db.zadd(world.keys.delayed, {id: score})
    world.call(world.commands.promote(2))
    expect([f["id"] for _, f in world.entries()] == ["a", "b"], "due tasks out of order")


def half_written(world: World) -> None:
    """A task that cannot be put back whole is where it was, and its neighbours are put back."""
    world.add("now", "later")
    read = [(entry, f["id"]) for entry, f in world.fetch("w")]
    before = world.record("later")
    world.db.set(world.keys.delayed, "no set")
    reply = world.call(
        world.commands.retry(
            "w", [attempt_ended(*read[0]), attempt_ended(*read[1], delay_ms=MINUTE)]
        )
    )
    world.db.delete(world.keys.delayed)
    broken = list(world.commands.read_refused(reply).broken)
    expect(broken == [1], f"of the two tasks these were called broken: {broken}")
    expect(world.record("later") == before, "the record of a task that stays was changed")
    expect([f["id"] for _, f in world.entries()].count("now") == 1, "a neighbour was undone")
    world.check({"now": 0, "later": 0})


def blobs_are_needed(world: World) -> None:
    """A blob stays for whoever needs it, and not for ever: see hold.lua and drop.lua."""
    db, prefix, brief = world.db, world.keys.blob_prefix, 2_000

    def hold(name: str, client: str, ttl_ms: int = MINUTE) -> int:
        return int(world.call(world.commands.hold(name, client, ttl_ms, brief)))

    def drop(name: str, client: str) -> int:
        return int(world.call(world.commands.drop([name], client, brief)))

    def left(name: str) -> int:
        return int(db.pttl(prefix + name))

    db.set(prefix + "a", "a", px=brief)
    expect(hold("missing", "me") == 0, "a blob that is not there was called stored")
    expect(not db.exists(f"{prefix}missing:user"), "a user of nothing stays behind")
    expect(hold("a", "me") == 1, "a blob was called missing")
    expect(left("a") > brief, "a blob that is needed expires at once")
    expect(brief < left("a:user") <= MINUTE, "who needs it is kept too long, or too short")
    expect(drop("a", "other") == 0, "what a stranger does not need was dropped")
    expect(left("a") > brief, "a stranger's word shortened a blob's time")
    expect(drop("a", "me") == 1, "nothing was dropped")
    expect(0 < left("a") <= brief, "a blob that nobody needs is kept, or gone at once")
    expect(not db.exists(prefix + "a:user"), "a user who needs nothing is still noted")
    expect(hold("a", "other") == 1, "a blob was called missing")
    hold("a", "me")
    expect(drop("a", "me") + drop("a", "other") == 0, "one of several dropped what all need")
    expect(left("a") > brief, "one of several shortened a blob's time")
    db.set(prefix + "long", "b", px=10 * MINUTE)
    hold("long", "me")
    expect(left("long") > MINUTE, "a time that was longer was shortened")
    db.set(prefix + "ever", "c")
    hold("ever", "me")
    expect(left("ever") == -1, "what was for ever expires")


def rights_are_tried(world: World) -> None:
    """What the user may not do is named with its key, and trying it changes nothing."""
    world.add("a")
    before = world.fingerprint()
    expect(world.call(world.commands.rights("w")) == [], "a user who may do all was refused")
    expect(world.fingerprint() == before, "trying the rights changed something")
    keys = world.keys
    for command, key in (
        ("XADD", keys.stream),
        ("XADD", keys.history),
        ("HSET", keys.worker("w")),
        ("ZADD", keys.delayed),
        ("PEXPIRE", keys.task("w")),
        ("DEL", keys.worker("w")),
    ):
        all_but = ("reset", "on", ">any", "~*", "&*", "+@all", f"-{command.lower()}")
        world.db.execute_command("ACL", "SETUSER", "law", *all_but)
        world.call(("AUTH", "law", "any"))
        try:
            said = world.commands.read_rights(world.call(world.commands.rights("w")))
        finally:
            world.call(("AUTH", "default", "any"))
            world.db.execute_command("ACL", "DELUSER", "law")
        expect(f"{command} {key}" in said, f"{command} on {key} is not named: {said}")
        expect(all(words.startswith(command) for words in said), f"named as well: {said}")
    expect(world.fingerprint() == before, "trying the rights changed something")


def again(world: World) -> None:
    """A resubmitted task runs as it is given now, once for each call, and counts for its batch."""
    world.call(world.commands.open_batch("b", "job", 10, int(TTL)))
    world.call(world.commands.open_batch("c", "job", 10, int(TTL)))
    world.add("a", "counts", opts='{"batch":"b"}', name="old")
    read = world.fetch("w")
    ends = [outcome(e, f["id"], name="old", batch="b", body="{}") for e, f in read]
    world.settle("w", (*ends[0][:2], "failed", *ends[0][3:]), ends[1])
    for _ in range(2):
        kept = world.resubmit("1", resubmitted("a"), resubmitted("counts"))
        expect(kept == [2], f"left as they were: {kept}")
        for entry, fields in world.fetch("w"):
            expect(fields["name"] == "job", "it ran as it was given before")
            world.settle("w", outcome(entry, "a", "failed", batch="b", body="{}"))
    counted = world.db.hmget(world.keys.batch("b"), "failed", "succeeded")
    expect(counted == [b"1", b"1"], f"the batch counts {counted}")
    world.db.config_set("maxmemory", 1)
    try:
        world.resubmit("2", resubmitted("a"))
        raise Broken("a full server takes more")
    except redis.exceptions.ResponseError:
        pass
    finally:
        world.db.config_set("maxmemory", 0)
    world.check({"a": 1, "counts": 0})
    world.resubmit("3", resubmitted("a", opts='{"batch":"c"}', due="+60000"))
    world.check({"a": 2, "counts": 0})
    for batch, ends in (("b", b"1"), ("c", None)):
        counted = world.db.hget(world.keys.batch(batch), "failed")
        expect(counted == ends, f"batch {batch} counts {counted} ends, of which one was in b")


PROBES: list[Callable[[World], None]] = [
    handed_out_again,
    anothers_work,
    full_server,
    interrupted_promote,
    silence,
    earliest,
    poison,
    uncharged,
    room,
    page_by_page,
    told_once,
    sent_again,
    results_expire,
    order,
    half_written,
    blobs_are_needed,
    rights_are_tried,
    again,
]


# -- mutants -------------------------------------------------------------------------------------


ACK = "  redis.call('XACK', STREAM, GROUP, entry)\n"
DEL = "  redis.call('XDEL', STREAM, entry)\n"
ACK_MANY = "redis.pcall('XACK', STREAM, GROUP, unpack(drops, from, to))"
DEL_MANY = "  redis.call('XDEL', STREAM, unpack(drops, from, to))\n"
ZREM_DUE = "  redis.call('ZREM', DELAYED, unpack(leaving, from, to))\n"
ZREM_ONE = "  redis.call('ZREM', DELAYED, due[i])\n"
IF_WAITS = "      if waits then refused = whole(ready, due[i], record, kept) end\n"
BY_DUE = "'ZRANGEBYSCORE', DELAYED, '-inf', int(now)"
BY_DUE_LAST = "'ZREVRANGEBYSCORE', DELAYED, int(now), '-inf'"
ADD = "add(task.id, task.name, task.payload, task.attempt, task.recovered, task.opts)"
MAY_DROP = "  redis.call('XACK', STREAM, GROUP, '0-0')\n  redis.call('XDEL', STREAM, '0-0')\nend"
PAGE_FULL = (
    "if #page == LIMIT and recovered + dead > 0 then "
    "return { recovered, dead, 1, consumer, broken } end\n"
)
NOT_SILENT = "  if tonumber(freshest) >= now + lease / 2 then return false end\n"
REFUSED = "allow_growth(KEYS[1])\n    redis.call('ZADD', KEYS[1], unpack(beats, from, to))\n"
AGAIN = REFUSED.partition("\n")[2]
BEFORE_GRACE = "allow_growth(KEYS[1])\n  extend"
OTHERS = "if not beating[low[i]] then"
LOG = "local function log_attempt(id, name, state, worker, attempt, entry, run_ms, note)\n"
TWICE = "  redis.call('XADD', HISTORY, '*', 'id', id, 'state', state)\n"
KNOWN_DELAYED = "local made = redis.pcall('HSETNX', record, 'entry', '')"
WAITS = "local waits = false and kept[1]"
KEPT = "'HDEL', record, 'name'"
OLD_NAME = "add(id, redis.call('HGET', TASK .. id, 'name') or ARGV[at + 1]"
FULL = "if not string.find(full.err, 'greater than 0-0', 1, true) then"
ANYBODYS = "setmetatable({}, { __index = function() return true end })"

NEVER_KEPT = "if false then redis.pcall('HSET'"
MUTANTS = [
    Mutant("the owner is not asked", "entry, entry, 1, consumer)", "entry, entry, 1)"),
    Mutant("the range hint is of all consumers", "2 * n + 64, consumer)", "2 * n + 64)"),
    Mutant("settle: anything", "if mine[entry] then", "if true then", ("settle",)),
    Mutant("settle: XDEL without XACK", ACK_MANY, "1"),
    Mutant("settle: XACK without XDEL", DEL_MANY, ""),
    Mutant("settle: sent again it is lost", "record[3] == CONSUMER", "false", ("settle",)),
    Mutant("drop: XDEL without XACK", ACK, ""),
    Mutant("drop: XACK without XDEL", DEL, ""),
    Mutant(
        "promote: ZREM before XADD, and an error between them",
        IF_WAITS,
        ZREM_ONE + "  if not denied('') then error('injected') end\n" + IF_WAITS,
    ),
    Mutant("promote: no ZREM", ZREM_DUE, ""),
    Mutant(
        "promote: only the first leaves the set", "unpack(leaving, from", "unpack({due[1]}, from"
    ),
    Mutant("promote: still delayed", "'state', 'reason', 'name'", "'reason', 'name'"),
    Mutant("promote: the attempt starts anew", "kept[3] or '1'", "'1'"),
    Mutant("promote: the latest first", BY_DUE, BY_DUE_LAST),
    Mutant("promote: grows first", "if #due > 0 then redis.call('ZREM', DELAYED, '') end\n", ""),
    Mutant("heartbeat: refused for ever", REFUSED, AGAIN, ("heartbeat",)),
    Mutant("heartbeat: refused and swallowed", AGAIN, "", ("heartbeat",)),
    Mutant("heartbeat: the grace rule grows first", BEFORE_GRACE, "extend", ("heartbeat",)),
    Mutant("heartbeat: no grace", "tonumber(low[#low]) < now + lease / 2", "false", ("heartbeat",)),
    Mutant(
        "heartbeat: answers as before the grace",
        "lease)\n  low = lowest()",
        "lease)",
        ("heartbeat",),
    ),
    Mutant("heartbeat: looks at too few", "0, #beats / 2,", "0, #beats / 2 - 1,", ("heartbeat",)),
    Mutant("heartbeat: an old deadline of its own", OTHERS, "if true then", ("heartbeat",)),
    Mutant(
        "heartbeat: forgets its own deadline",
        "tonumber(beats[1] or low[2]",
        "(1e15",
        ("heartbeat",),
    ),
    Mutant("heartbeat: forgets the others", OTHERS, "if false then", ("heartbeat",)),
    Mutant("heartbeat: only the first", "from, to)", "1, 2)", ("heartbeat",)),
    Mutant("retry: not counted", "int(tonumber(task.attempt) + 1)", "task.attempt"),
    Mutant("retry: a snooze is counted", "if state == 'retried' then task", "if true then task"),
    Mutant("a full server: what takes memory comes first", MAY_DROP, "end"),
    Mutant("retry: sent again it is lost", "~= entry .. ' ' .. CONSUMER then", "~= 0 then"),
    Mutant(
        "recover: what it put back was the dead worker's own doing",
        "requeue(entry, task)",
        "requeue(entry, task, entry .. ' ' .. consumer)",
        ("recover",),
    ),
    Mutant("requeue: no new entry", "redis.call('HSET', record, 'entry', new)", "", ("release",)),
    Mutant("requeue: no payload", "'name', task.name, 'payload', task.payload, ", ""),
    Mutant("requeue: not in the set", "  redis.call('ZADD', DELAYED, due, task.id)\n", ""),
    Mutant("recover: not counted", "(charged and 1 or 0)", "0"),
    Mutant(
        "recover: all is charged",
        "started[entry] or not (exact or slots and slots <= 0)",
        "true",
    ),
    Mutant("recover: no limit", "if charged and count > MAX_RECOVERIES then", "if false then"),
    Mutant(
        "recover: DELCONSUMER with entries pending",
        PAGE_FULL + "if #broken == 0 and #page < LIMIT then",
        "if #broken == 0 then",
    ),
    Mutant("recover: no deadline", "'-inf', '(' .. int(now)", "'-inf', '+inf'"),
    Mutant("grace: a silence proves death", NOT_SILENT, "  if true then return false end\n"),
    Mutant("grace: always silence", NOT_SILENT, ""),
    Mutant("finish: two events", LOG, LOG + TWICE),
    Mutant("finish: no dead letter", "    redis.call('ZADD', DEAD, now, id)\n", "", ("settle",)),
    Mutant("finish: no expiry", "      redis.call('PEXPIRE', record, ttl_ms)\n", ""),
    Mutant(
        "settle: waiters are kept", "  redis.pcall('HDEL', WAITERS, unpack(told, from, to))\n", ""
    ),
    Mutant("finish: waiters are not told", "if type(waiting) == 'string' then", "if false then"),
    Mutant("finish: a waiting inbox is told twice", "if address ~= inbox then", "if true then"),
    Mutant("finish: unkept is unknown", "'PEXPIRE', record, 60000", "'DEL', record"),
    Mutant("inboxes are for ever", "  redis.pcall('PEXPIRE', key, 3600000)\n", ""),
    Mutant("cancel: running ones too", "if #held == 1 then", "if false then", ("cancel",)),
    Mutant(
        "cancel: the entry stays", "redis.call('XDEL', STREAM, task.entry)\n", "\n", ("cancel",)
    ),
    Mutant("cancel: stays delayed", "    redis.call('ZREM', DELAYED, id)\n", "", ("cancel",)),
    Mutant("cancel: no batch is told", "tally_one(batch, id, state, int(NOW))", "", ("cancel",)),
    Mutant("batch: each end twice", "'HINCRBY', key, state, n)", "'HINCRBY', key, state, 2 * n)"),
    Mutant(
        "batch: replayed and counted",
        "beside(redis.pcall('HINCRBY', BATCH .. batch, state, -1))",
        "",
    ),
    Mutant("enqueue: doubled", DEL.replace("  ", " " * 6, 1), "", ("enqueue",)),
    Mutant("enqueue: delayed anew", KNOWN_DELAYED, KNOWN_DELAYED + " made = 1", ("enqueue",)),
    Mutant("release: anybody's", "owned(entries, CONSUMER)", ANYBODYS, ("release",)),
    Mutant("park: anybody's", "owned({ entry }, CONSUMER)", ANYBODYS, ("park",)),
    Mutant("park: room is waited for in vain", "known = true", "known = false", ("park",)),
    Mutant("park: room is no reason", "room and 'room' or 'unknown'", "'unknown'", ("park",)),
    Mutant("park: room as often as names", "room and 15000 or 2000", "2000", ("park",)),
    Mutant("park: needs are not kept", "if room then redis.pcall('HSET'", NEVER_KEPT, ("park",)),
    Mutant("replay: still dead", "redis.call('ZREM', DEAD, id)", "", ("replay",)),
    Mutant("resubmit: still dead", "    redis.call('ZREM', DEAD, id)\n", "", ("resubmit",)),
    Mutant("resubmit: expires", "    redis.call('PERSIST', record)\n", "", ("resubmit",)),
    Mutant(
        "resubmit: its end stays counted", "  pcall(uncount, batch, ended)\n", "", ("resubmit",)
    ),
    Mutant("resubmit: what waits, too", "local waits = kept[1]", WAITS, ("resubmit",)),
    Mutant("resubmit: what counts, too", "and ARGV[at + 6] ~= '1'", "and false", ("resubmit",)),
    Mutant("resubmit: sent again, it runs again", "kept[3] ~= ARGV[3]", "true", ("resubmit",)),
    Mutant("resubmit: still ended", "'HDEL', record, 'state', 'name'", KEPT, ("resubmit",)),
    Mutant("resubmit: not in the set", "'ZADD', DELAYED, int(due), id", "'TIME'", ("resubmit",)),
    Mutant("resubmit: as it was given before", "add(id, ARGV[at + 1]", OLD_NAME, ("resubmit",)),
    Mutant("resubmit: of any batch", "option(kept[4], 'batch') ~= batch", "false", ("resubmit",)),
    Mutant("resubmit: grows a full server", FULL, "if false then", ("resubmit",)),
    Mutant("replay: expires", "redis.call('PERSIST', record)", "", ("replay",)),
]


UNDO = "  undo(noted)\n"
TTL_OF_USER = "alone or 'several', 'PX', ttl)"
NOT_LONGER = "if left > ttl then ttl = left end\n"
IS_USER = "look('', 'GET', key .. ':user') == ARGV[1]"
NO_USER = "    redis.call('DEL', key .. ':user')\n"
BRIEFLY = "redis.call('PEXPIRE', key, ARGV[2])"
TRY_XADD = "may('XADD', STREAM, '0-0', 'id', '')"
TRY_SETS = "ipairs({ KEYS[2], KEYS[6], KEYS[9], KEYS[15]"
TRY_EXPIRY = "ipairs({ TASK, INBOX,"

MUTANTS += [
    Mutant("whole: nothing is undone", UNDO, "", ("retry",)),
    Mutant("whole: the neighbours are undone", "  noted = {}\n", "", ("retry",)),
    Mutant("whole: what failed is done", "  return said(answer)\n", "  return nil\n", ("retry",)),
    Mutant("hold: what is missing is there", "if left == -2 then return 0 end\n", "", ("hold",)),
    Mutant("hold: whoever comes last", "alone or 'several'", "alone or ARGV[2]", ("hold",)),
    Mutant("hold: whoever came first", "'several'", "alone", ("hold",)),
    Mutant("hold: the user is for ever", TTL_OF_USER, "alone or 'several')", ("hold",)),
    Mutant("hold: shortens", NOT_LONGER, "", ("hold",)),
    Mutant("hold: what was for ever expires", "if left ~= -1 then", "if true then", ("hold",)),
    Mutant("hold: keeps nothing", "redis.call('PEXPIRE', key, ttl)", "", ("hold",)),
    Mutant("drop: anybody's", IS_USER, "true", ("drop",)),
    Mutant("drop: the user stays", NO_USER, "", ("drop",)),
    Mutant("drop: at once", BRIEFLY, "redis.call('DEL', key)", ("drop",)),
    Mutant("drop: never", BRIEFLY, "1", ("drop",)),
    Mutant("rights: nothing is refused", "not denied(reply.err)", "true", ("rights",)),
    Mutant("rights: any error is a refusal", " or not denied(reply.err)", "", ("rights",)),
    Mutant("rights: writes", TRY_XADD, TRY_XADD.replace("0-0", "*"), ("rights",)),
    Mutant("rights: the stream is not tried", TRY_XADD, "", ("rights",)),
    Mutant("rights: not all sets", TRY_SETS, "ipairs({ KEYS[6], KEYS[9], KEYS[15]", ("rights",)),
    Mutant("rights: not all expiries", TRY_EXPIRY, "ipairs({ INBOX,", ("rights",)),
    Mutant("rights: leaves a worker", "  redis.call('DEL', WORKER)\n", "", ("rights",)),
    Mutant("rights: no keys", "({ ... })[1] or ''", "''", ("rights",)),
]


def caught_by(server: Server, texts: dict[str, str], first: str = "") -> str:
    """The first probe or walk that something is wrong for; empty when all pass."""
    scenes: list[tuple[str, Callable[[World], None]]] = [(p.__name__, p) for p in PROBES]
    scenes += [(f"walk {n}", lambda world, n=n: Walk(world, n).run(100)) for n in range(WALKS)]
    return first_failure(server, lambda: World(server, mutants=texts), scenes, first)


def test_nothing_is_wrong_with_the_scripts_as_they_are(server: Server) -> None:
    """Probes and walks pass without a mutant, or catching one would prove nothing."""
    assert caught_by(server, {}) == ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_mutant_is_caught(server: Server, mutant: Mutant) -> None:
    """A bug put into the scripts is noticed by a probe or a walk."""
    must_be_caught("mutations", mutant, partial(caught_by, server))

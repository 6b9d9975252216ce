"""A queue as the Lua scripts see it: fake consumers, and the checker of what must always hold.

Used by the tests of the scripts. It speaks to a real server, but runs no handler and no thread:
time is moved by changing scores, never by sleeping.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis

from redistq.protocol import replies, scripts
from redistq.protocol.commands import Commands
from redistq.protocol.keys import QueueKeys
from support.servers import Server

LEASE_MS = 10_000
TTL = "600000"
TERMINAL = ("succeeded", "failed", "cancelled", "expired")
Outcome = tuple[Any, ...]
Entry = tuple[str, dict[str, str]]


class Broken(AssertionError):
    """Something that must always hold does not."""


def outcome(
    entry: str,
    id: str,
    state: str = "succeeded",
    *,
    name: str = "job",
    attempt: str = "1",
    run_ms: str = "1.000",
    body: str = "null",
    ttl: str = TTL,
    inbox: str = "",
    note: str = "",
    batch: str = "",
) -> Outcome:
    """One outcome as ``settle`` takes it."""
    return (entry, id, state, name, attempt, run_ms, body, ttl, inbox, note, batch)


def attempt_ended(
    entry: str,
    id: str,
    state: str = "retried",
    *,
    name: str = "job",
    attempt: str = "1",
    run_ms: str = "1.000",
    error: str = "",
    delay_ms: int = 0,
    note: str = "",
) -> Outcome:
    """One attempt as ``retry`` takes it."""
    return (entry, id, state, name, attempt, run_ms, error, delay_ms, note)


def resubmitted(
    id: str,
    *,
    name: str = "job",
    payload: str | None = None,
    opts: str = '{"batch":"b"}',
    due: str = "",
    counted: str = "",
    outdated: bool | None = None,
) -> Outcome:
    """One task as ``resubmit`` takes it; one called "outdated" is."""
    old = id == "outdated" if outdated is None else outdated
    payload = payload_of(id) if payload is None else payload
    return (id, name, payload, opts, due, counted, "1" if old else "")


def put_off(
    entry: str,
    id: str,
    *,
    event: str = "",
    delay_ms: int | str = 60_000,
    number: int = 1,
    name: str = "job",
    attempt: str = "1",
    taken: int = 0,
    last: str = "-",
) -> Outcome:
    """One attempt as ``suspend`` takes it: its task sleeps, or waits for an event."""
    kind = "event" if event else "sleep"
    return (entry, id, kind, name, attempt, "1.000", number, event, delay_ms, taken, last)


class World:
    """One queue on one server. ``mutants`` replaces the text of scripts by their name."""

    def __init__(
        self,
        server: Server,
        *,
        queue: str = "tasks",
        history_max: int = 1_000_000,
        mutants: Mapping[str, str] | None = None,
    ) -> None:
        self.db, self.port = server.client(decode_responses=False), server.port
        self._wire = self.db.connection_pool.get_connection()
        self.keys = QueueKeys(queue)
        self.commands = Commands(self.keys, history_max=history_max)
        self.payloads: dict[str, str] = {}
        """What tasks carry that were replaced by others; of all others see `payload_of`."""
        self._texts: dict[str, tuple[str, str]] = {}
        for name, text in (mutants or {}).items():
            sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            self._texts[scripts.load(name).sha] = (sha, text)
        self.ensure_group()

    def close(self) -> None:
        """Close the connections."""
        self.db.connection_pool.release(self._wire)
        self.db.close()

    # -- calls -----------------------------------------------------------------------------------

    def call(self, command: Sequence[Any]) -> Any:
        """One call as a broker sends it, when it is as the script's header says, and so is the
        answer."""
        if command[0] != "EVALSHA":
            return self._request(*command)
        scripts.check(command)
        sha, text = self._texts.get(command[1]) or (command[1], scripts.text_of(command[1]))
        try:
            reply = self._request("EVALSHA", sha, *command[2:])
        except redis.exceptions.NoScriptError:
            reply = self._request("EVAL", text, *command[2:])
        return replies.checked(command, reply)

    def _request(self, *command: Any) -> Any:
        # On a bare connection: the client would make dictionaries of some answers.
        self._wire.send_command(*command)
        return self._wire.read_response()

    def ensure_group(self) -> None:
        """Make stream and group when they are not there."""
        self.call(self.commands.create_group())

    def add(self, *ids: str, due: str = "", opts: str = "", name: str = "job") -> list[int]:
        """Enqueue tasks; each one's payload says its id."""
        fields: list[Any] = []
        for id in ids:
            fields += [id, name, payload_of(id), opts, due]
        return self.call(self.commands.enqueue(fields))

    def fetch(self, consumer: str, count: int = 10) -> list[Entry]:
        """Read new entries for a consumer."""
        reply = self.call(self.commands.fetch(consumer, count, None))
        return [_entry(entry, flat) for entry, flat in (reply[0][1] if reply else ())]

    def one(self, consumer: str) -> tuple[str, str]:
        """Read one new entry; its entry id and task id."""
        ((entry, fields),) = self.fetch(consumer, 1)
        return entry, fields["id"]

    def settle(self, consumer: str, *outcomes: Outcome) -> list[int]:
        """Settle outcomes."""
        return self.call(self.commands.settle(consumer, outcomes))

    def retry(self, consumer: str, *attempts: Outcome) -> list[int]:
        """Retry attempts."""
        return self.call(self.commands.retry(consumer, attempts))

    def suspend(self, consumer: str, *attempts: Outcome) -> list[int]:
        """Put attempts off."""
        return self.call(self.commands.suspend(consumer, attempts))

    def park(self, consumer: str, *tasks: tuple[str, ...], grace_ms: int = 60_000) -> list[str]:
        """Park tasks of (entry, id, name), or (entry, id, name, what they lack)."""
        answer = self.call(self.commands.park(consumer, grace_ms, tasks))
        return ["broken" if type(word) is list else word.decode() for word in answer]

    def cancel(self, *ids: str) -> list[str]:
        """Cancel tasks."""
        return [word.decode() for word in self.call(self.commands.cancel(ids, int(TTL)))]

    def resubmit(self, call: str, *tasks: Outcome) -> Any:
        """Run tasks again as they are given now."""
        return self.call(self.commands.resubmit(call, tasks))

    def register(self, consumer: str, names: str = "job", lease_ms: int = LEASE_MS) -> Any:
        """Announce a worker."""
        return self.call(self.commands.register(consumer, lease_ms, {"host": "h", "names": names}))

    def recover(self, **options: Any) -> Any:
        """Recover one dead worker's tasks."""
        return Commands.read_recover(
            self.call(self.commands.recover(options.pop("max_recoveries", 2), **options))
        )

    def promote(self) -> Any:
        """Move due tasks."""
        return Commands.read_promote(self.call(self.commands.promote()))

    def watch(self, id: str, inbox: str = "") -> Any:
        """How a task stands."""
        return Commands.read_watch(self.call(self.commands.watch(id, inbox)))

    def state(self, id: str) -> str:
        """A task's state."""
        return self.watch(id).state

    # -- moving the clock ------------------------------------------------------------------------

    def expire(self, consumer: str, by_ms: int = 1) -> None:
        """Let a worker's deadline have passed."""
        self.db.zadd(self.keys.workers, {consumer: self.now_ms() - by_ms})

    def make_due(self) -> None:
        """Let every delayed task be due now, in the order it had."""
        for position, id in enumerate(self.db.zrange(self.keys.delayed, 0, -1)):
            self.db.zadd(self.keys.delayed, {id: 1 + position}, xx=True)

    def now_ms(self) -> int:
        """The server's clock."""
        seconds, micros = self.db.time()
        return seconds * 1000 + micros // 1000

    # -- looking ---------------------------------------------------------------------------------

    def record(self, id: str) -> dict[str, str]:
        """A task's record."""
        return _text(self.db.hgetall(self.keys.task(id)))

    def pending(self) -> dict[str, str]:
        """Which entry is pending for whom."""
        try:
            rows = self.db.xpending_range(self.keys.stream, self.keys_group, "-", "+", 100_000)
        except redis.ResponseError:
            return {}
        return {row["message_id"].decode(): row["consumer"].decode() for row in rows}

    @property
    def keys_group(self) -> str:
        """The consumer group."""
        return self.commands.group

    def entries(self) -> list[Entry]:
        """Everything in the stream."""
        return [
            (entry.decode(), _text(fields)) for entry, fields in self.db.xrange(self.keys.stream)
        ]

    def history(self) -> list[dict[str, str]]:
        """Every event of the history."""
        return [_text(fields) for _, fields in self.db.xrange(self.keys.history)]

    def counters(self) -> dict[str, int]:
        """The totals."""
        return {k: int(v) for k, v in _text(self.db.hgetall(self.keys.counters)).items()}

    def told(self, inbox: str) -> list[dict[str, str]]:
        """What one client was told."""
        return [_text(fields) for _, fields in self.db.xrange(self.keys.inbox(inbox))]

    def dead(self) -> list[str]:
        """Ids of the dead letters, oldest first."""
        return [id.decode() for id in self.db.zrange(self.keys.dead, 0, -1)]

    def fingerprint(self, *, without: Sequence[str] = ()) -> dict[str, Any]:
        """All that the server holds, for comparing before and after."""
        readers: dict[bytes, Callable[[bytes], Any]] = {
            b"hash": self.db.hgetall,
            b"zset": lambda key: self.db.zrange(key, 0, -1, withscores=True),
            b"stream": self.db.xrange,
            b"string": self.db.get,
            b"list": lambda key: self.db.lrange(key, 0, -1),
        }
        found: dict[str, Any] = {"pending": self.pending()}
        for key in sorted(self.db.scan_iter()):
            if key.decode() not in without:
                expires = self.db.pttl(key) >= 0
                found[key.decode()] = (readers[self.db.type(key)](key), expires)
        return found

    def ttl_ms(self, id: str) -> int:
        """What is left of a record's life; -1 when it does not expire."""
        left: int = self.db.pttl(self.keys.task(id))
        return left

    def twice(self, action: Callable[[], Any]) -> Any:
        """Do it, do it again: the second answer is the first, and nothing has changed by it."""
        first = action()
        before = self.fingerprint()
        again = action()
        assert again == first
        assert self.fingerprint() == before
        return first

    # -- what must always hold -------------------------------------------------------------------

    def check(self, accepted: Mapping[str, int], *, history: bool = True) -> None:
        """Conservation. ``accepted`` maps every task id to how often it was replayed.

        Each task is in exactly one place and can go on from there; it ended once, and once more
        for each replay; its counts are what its history says (unless ``history`` could not be
        written); its payload is what was sent.
        """
        pending, delayed, waiting = self.pending(), self._delayed(), self._waiting()
        places: dict[str, list[str]] = {id: [] for id in accepted}
        last = self._last_delivered()
        in_stream = set()
        for entry, fields in self.entries():
            in_stream.add(entry)
            if entry in pending:
                where = "pending"
            elif _order(entry) > last:
                where = "unread"
            else:
                raise Broken(f"{fields['id']} is in the stream, but nobody will ever read it")
            places[fields["id"]].append(where)
            self._check_waiting(fields["id"], entry, fields, history)
        for entry in pending:
            if entry not in in_stream:
                raise Broken(f"entry {entry} is pending and gone")
        for where, ids in (("delayed", delayed), ("waiting", waiting)):
            for id in ids:
                places[id].append(where)
                self._check_waiting(id, "", self.record(id), history)
        dead = set(self.dead())
        for id in accepted:
            state = self.record(id).get("state")
            if state in TERMINAL:
                places[id].append("settled")
            elif state != ("delayed" if id in delayed else "waiting" if id in waiting else None):
                raise Broken(f"{id} is in {places[id]}, its record says {state}")
            if (state == "failed") != (id in dead):
                raise Broken(f"{id} is {state}, but among the dead: {id in dead}")
        for id, where in places.items():
            if len(where) != 1:
                raise Broken(f"{id} is in {len(where)} places: {where}")
        if history:
            self._check_history(accepted, places)

    def _delayed(self) -> list[str]:
        """Tasks in the delayed set; a timer, which begins with a line feed, is none."""
        members = [id.decode() for id in self.db.zrange(self.keys.delayed, 0, -1)]
        return [id for id in members if not id.startswith("\n")]

    def _waiting(self) -> list[str]:
        """Tasks of this lane that wait at the gate."""
        _, mark, lane = self.keys.stream.partition("!")
        refs = (ref.decode() for ref in self.db.zrange(self.keys.waiting, 0, -1))
        named = [ref.rpartition("\n")[::2] for ref in refs]
        return [id for of, id in named if of == mark + lane]

    def _last_delivered(self) -> tuple[int, int]:
        for row in self.db.xinfo_groups(self.keys.stream):
            if row["name"].decode() == self.keys_group:
                return _order(row["last-delivered-id"].decode())
        return (0, 0)

    def _check_waiting(self, id: str, entry: str, fields: Mapping[str, str], history: bool) -> None:
        record = self.record(id)
        if record.get("entry") != entry:
            raise Broken(f"{id} waits in {entry!r}, its record says {record.get('entry')!r}")
        if self.db.pttl(self.keys.task(id)) >= 0:
            raise Broken(f"the record of {id} expires although it waits")
        payload = self.payloads.get(id, payload_of(id))
        if fields.get("payload") != payload or fields.get("name") != "job":
            raise Broken(f"{id} has lost what was sent: {fields}")
        if not history:
            return
        retried = recovered = 0
        for event in self.history():
            if event["id"] == id:
                retried += event["state"] == "retried"
                recovered += event["state"] == "recovered"
                if event["state"] in TERMINAL:  # it was replayed since, with a clean slate
                    retried = recovered = 0
        attempt, found = int(fields.get("attempt", 1)), int(fields.get("recovered", 0))
        if attempt != 1 + retried:
            raise Broken(f"{id} was retried {retried} times, its attempt is {attempt}")
        if found != recovered:
            raise Broken(f"{id} was recovered {recovered} times, it says {found}")

    def _check_history(self, accepted: Mapping[str, int], places: Mapping[str, list[str]]) -> None:
        ended = Counter(e["id"] for e in self.history() if e["state"] in TERMINAL)
        for id, replays in accepted.items():
            expected = replays + (places[id] == ["settled"])
            if ended[id] != expected:
                raise Broken(f"{id} ended {ended[id]} times, not {expected}")
        states = Counter(e["state"] for e in self.history() if e["state"] != "continued")
        if dict(states) != {k: v for k, v in self.counters().items() if v}:
            raise Broken(f"counters {self.counters()} are not what happened: {dict(states)}")


class Walk:
    """A seeded random walk: several consumers, with duplicated, reordered and late calls."""

    CONSUMERS = ("a", "b", "c")

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.random = world, random.Random(seed)
        self.accepted: dict[str, int] = {}
        self.batched: set[str] = set()
        self.held: list[tuple[str, str, dict[str, str]]] = []  # consumer, entry, fields; ever read
        self.sent: list[Sequence[Any]] = []
        self.watched: dict[str, str] = {}
        self.resubmissions = 0
        self._moves = [
            *[self._add] * 3,
            *[self._fetch] * 5,
            *[self._settle] * 4,
            *[self._retry] * 2,
            *[self._suspend] * 2,
            self._step,
            self._send_event,
            self._park,
            self._release,
            *[self._promote] * 2,
            *[self._die] * 2,
            self._beat,
            self._cancel,
            self._replay,
            *[self._resubmit] * 2,
            self._watch,
            *[self._again] * 4,
        ]
        for consumer in self.CONSUMERS:
            world.register(consumer, names="other")  # so that parked tasks are of no known name
        world.call(world.commands.open_batch("b", "job", 1_000_000, int(TTL)))

    def run(self, steps: int, check_every: int = 8) -> None:
        """Walk; raises Broken at the first check that fails."""
        for step in range(1, steps + 1):
            self.random.choice(self._moves)()
            if step % check_every == 0:
                self.check()
        self.drain()

    def check(self) -> None:
        """Conservation, and a batch that agrees with the records of its tasks."""
        world = self.world
        world.check(self.accepted)
        ended = Counter(world.record(id).get("state") for id in self.batched)
        batch = _text(world.db.hgetall(world.keys.batch("b")))
        told = Counter(
            id.decode() for _, flat in world.db.xrange(world.keys.settled("b")) for id in flat
        )
        for state in TERMINAL:
            if int(batch.get(state, 0)) != ended[state]:
                raise Broken(f"the batch says {batch}, its tasks {dict(ended)}")
        for id in self.batched:
            ends = self.accepted[id] + (world.record(id).get("state") in TERMINAL)
            if told[id] != ends:
                raise Broken(f"the batch was told {told[id]} times of {id}, which ended {ends}")

    def drain(self) -> None:
        """A well-behaved worker ends it all; everything settled, every watcher told once."""
        world = self.world
        for consumer in self.CONSUMERS:
            while world.recover(consumer=consumer, started=[], max_recoveries=99).more:
                pass
        world.make_due()
        while world.promote().moved:
            pass
        while batch := world.fetch("last", 50):
            rows = [outcome(e, f["id"], batch=_batch_of(f)) for e, f in batch]
            lost = world.settle("last", *rows)
            if lost:
                raise Broken(f"outcomes of the only worker were refused: {lost}")
        self.check()
        for id in self.accepted:
            if world.record(id).get("state") not in TERMINAL:
                raise Broken(f"{id} never ended")
        for id, inbox in self.watched.items():
            told = [news for news in world.told(inbox) if news["id"] == id]
            if len(told) != 1:
                raise Broken(f"{inbox} was told {len(told)} times of {id}")

    def _send(self, command: Sequence[Any]) -> Any:
        self.sent.append(command)
        return self.world.call(command)

    def _add(self) -> None:
        ids = [f"t{len(self.accepted) + i}" for i in range(self.random.randint(1, 3))]
        due = self.random.choice(["", "", "+60000", "1"])
        opts = self.random.choice(["", '{"batch":"b"}'])
        fields: list[Any] = []
        for id in ids:
            fields += [id, "job", payload_of(id), opts, due]
            self.accepted[id] = 0
        if opts:
            self.batched.update(ids)
        self._send(self.world.commands.enqueue(fields))

    def _fetch(self) -> None:
        consumer = self.random.choice(self.CONSUMERS)
        for entry, fields in self.world.fetch(consumer, self.random.randint(1, 4)):
            self.held.append((consumer, entry, fields))

    def _some_held(self) -> list[tuple[str, str, dict[str, str]]]:
        """Entries of one consumer: mostly such as it has now, at times long gone or another's."""
        chance = self.random
        recent = self.held[-20:]
        if chance.random() < 0.7:
            pending = self.world.pending()
            recent = [h for h in recent if pending.get(h[1]) == h[0]]
        if not recent:
            return []
        consumer = chance.choice(recent)[0]
        mine = [h for h in recent if h[0] == consumer]
        chosen = chance.sample(mine, min(len(mine), chance.randint(1, 4)))
        if chance.random() < 0.2:
            wrong = chance.choice(self.CONSUMERS)
            chosen = [(wrong, entry, fields) for _, entry, fields in chosen]
        return chosen

    def _settle(self) -> None:
        if held := self._some_held():
            state = self.random.choice(["succeeded", "succeeded", "failed"])
            ttl = self.random.choice([TTL, TTL, "0"])
            rows = [
                outcome(entry, f["id"], state, attempt=f["attempt"], ttl=ttl, batch=_batch_of(f))
                for _, entry, f in held
            ]
            self._send(self.world.commands.settle(held[0][0], rows))

    def _retry(self) -> None:
        if held := self._some_held():
            state = self.random.choice(["retried", "retried", "snoozed"])
            delay = self.random.choice([0, 60_000])
            rows = [
                attempt_ended(entry, f["id"], state, attempt=f["attempt"], delay_ms=delay)
                for _, entry, f in held
            ]
            self._send(self.world.commands.retry(held[0][0], rows))

    def _suspend(self) -> None:
        if held := self._some_held():
            event = self.random.choice(["", "paid", "paid"])
            number = self.random.randint(1, 3)
            rows = [
                put_off(entry, f["id"], event=event, number=number, attempt=f["attempt"])
                for _, entry, f in held
            ]
            self._send(self.world.commands.suspend(held[0][0], rows))

    def _step(self) -> None:
        for consumer, entry, f in self._some_held():
            task = (entry, f["id"])
            calls = self.world.commands
            self._send(calls.step(consumer, task, self.random.randint(1, 3), "s", "1.0", b"1"))
            self._send(calls.expect(consumer, task, self.random.randint(1, 3), "paid", 0, "-", 0))

    def _send_event(self) -> None:
        mark = str(self.random.random())
        for task in ("", *self._some_ids()[:1]):
            command = self.world.commands.send_event("paid", mark, b"1", 60_000, task)
            self._send(command)

    def _park(self) -> None:
        if held := self._some_held():
            grace = self.random.choice([60_000, 60_000, 0])
            rows = [(entry, f["id"], f["name"]) for _, entry, f in held]
            self._send(self.world.commands.park(held[0][0], grace, rows))

    def _release(self) -> None:
        if held := self._some_held():
            drained = self.random.random() < 0.3
            entries = [entry for _, entry, _ in held]
            self._send(self.world.commands.release(held[0][0], entries, drained))

    def _promote(self) -> None:
        if self.random.random() < 0.7:
            self.world.make_due()
        self._send(self.world.commands.promote(self.random.randint(1, 10)))

    def _die(self) -> None:
        consumer = self.random.choice(self.CONSUMERS)
        started: list[str] | None = None
        if self.random.random() < 0.5:
            mine = [entry for c, entry, _ in self.held if c == consumer]
            started = self.random.sample(mine, min(len(mine), 2))
        limit = self.random.choice([2, 200])
        if self.random.random() < 0.5:
            self.world.expire(consumer)
            command = self.world.commands.recover(2, started=started, limit=limit)
        else:
            command = self.world.commands.recover(
                2, consumer=consumer, started=started, limit=limit
            )
        self._send(command)

    def _beat(self) -> None:
        self._send(self.world.commands.heartbeat(LEASE_MS, [(c, "=") for c in self.CONSUMERS]))
        self._send(self.world.commands.adopt(LEASE_MS))

    def _some_ids(self) -> list[str]:
        ids = list(self.accepted)
        return self.random.sample(ids, min(len(ids), self.random.randint(1, 4)))

    def _cancel(self) -> None:
        if ids := self._some_ids():
            wish = self.random.choice(["", "", "ask", "force"])
            self._send(self.world.commands.cancel(ids, int(TTL), wish))

    def _replay(self) -> None:
        ids = self.world.dead()[:3]
        if ids:
            # Not through _send: sent again later it would be another replay, not the same one.
            reply = self.world.call(self.world.commands.replay(ids))
            if reply != [len(ids), 0, 0]:
                raise Broken(f"replay of {len(ids)} dead letters answered {reply}")
            for id in ids:
                self.accepted[id] += 1

    def _resubmit(self) -> None:
        ids = self.random.sample(sorted(self.batched), min(len(self.batched), 4))
        due = self.random.choice(["", "", "+60000"])
        rows = [resubmitted(id, due=due, outdated=self.random.random() < 0.3) for id in ids]
        ended = {id: self.world.record(id).get("state") for id in ids}
        command = self.world.commands.resubmit(f"call-{self.random.random()}", rows)
        # Not through _send: sent again after another resubmission it would be one more.
        kept = {ids[position - 1] for position in self.world.call(command)}
        if self.random.random() < 0.5:
            self.world.call(command)
        for id, _, _, _, _, _, outdated in rows:
            again = ended[id] in ("failed", "cancelled") or (
                ended[id] == "succeeded" and outdated == "1"
            )
            if again == (id in kept):
                raise Broken(f"{id}, {ended[id]}, was resubmitted: {again}, but {kept} were kept")
            self.accepted[id] += again
            self.resubmissions += again

    def _watch(self) -> None:
        for id in self._some_ids():
            if id in self.watched:
                continue
            inbox = f"box-{id}"
            if self.world.watch(id, inbox).state in ("queued", "running", "delayed"):
                self.watched[id] = inbox

    def _again(self) -> None:
        if self.sent:
            back = self.random.choice([1, 1, 2, 5, 20])
            self.world.call(self.sent[-min(back, len(self.sent))])


def payload_of(id: str) -> str:
    """The payload that a task with this id carries in these tests."""
    return f'{{"of":"{id}"}}'


def _batch_of(fields: Mapping[str, str]) -> str:
    return "b" if "batch" in fields["opts"] else ""


def _entry(entry: bytes, flat: list[bytes]) -> Entry:
    text = [item.decode("utf-8", "replace") for item in flat]
    return entry.decode(), dict(zip(text[::2], text[1::2], strict=True))


def _text(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in fields.items()}


def _order(entry: str) -> tuple[int, int]:
    ms, _, seq = entry.partition("-")
    return int(ms), int(seq)

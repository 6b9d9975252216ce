"""What may not run yet, as a monitor shows it: waiting tasks, limits, and timers among the delayed.

The tasks are written by hand, as the scripts leave them.
"""

from __future__ import annotations

import time

import pandas as pd
import pytest
from support.farm import Farm, fill
from support.gate import HandMade

from redistq import ConfigurationError
from redistq.protocol.limits import states_of
from redistq.protocol.waits import ordinal

# -- figures ---------------------------------------------------------------------------------------


def test_waiting_tasks_are_a_figure_of_their_own(farm: Farm, gate: HandMade) -> None:
    """They are neither queued nor delayed, and count for all priorities of the queue."""
    gate.some_of_everything()
    shot = farm.monitor.snapshot()
    assert (shot.ready, shot.delayed, shot.waiting) == (0, 0, 7)
    assert shot.waiting_since_ms is not None
    assert 89_000 < shot.now_ms - shot.waiting_since_ms < 95_000
    stats = farm.monitor.stats
    assert (stats["waiting"], stats["expired"]) == (7, 0)
    assert stats["health"] == "bad"
    assert "no worker runs and 7 tasks wait" in stats["reason"]


def test_a_queue_whose_tasks_all_wait_is_not_idle(farm: Farm, gate: HandMade) -> None:
    """Its health says how many may not run yet."""
    farm.register("w1")
    assert farm.monitor.tick().health[0] == "idle"
    gate.waits("x", "limit", "k")
    assert farm.monitor.tick().health == ("ok", "1 worker, 0 tasks running, 1 task may not run yet")


def test_timers_among_the_delayed_are_no_tasks(farm: Farm, gate: HandMade) -> None:
    """They are counted nowhere, listed nowhere, and are no next due time; a page of them is passed
    over."""
    now = farm.now_ms()
    task_id = farm.producer.add_task("later", delay=60)
    farm.client.zadd("delayed:tasks", {f"\nrate\nk{n}": now + n for n in range(90)})
    gate.waits("x", "rate", "k1")
    shot = farm.monitor.snapshot()
    assert shot.delayed == 1
    assert shot.next_due_ms is not None
    assert 59_000 < shot.next_due_ms - shot.now_ms <= 60_000
    assert shot.next_timer_ms == now
    for n in (1, 100):
        assert [row.id for row in farm.monitor.records.delayed(n)] == [task_id]
    farm.client.zadd("delayed:tasks", {f"\nrate\nk{n}": now + n for n in range(250)})
    assert [row.id for row in farm.monitor.records.delayed(1)] == [task_id]
    assert list(farm.monitor.delayed["task_id"]) == [task_id]


def test_a_timer_alone_is_seen_where_nothing_waits(farm: Farm) -> None:
    """One that is left over is no delayed task."""
    farm.client.zadd("delayed:tasks", {"\nmore\nk": farm.now_ms() + 1000})
    shot = farm.monitor.snapshot()
    assert (shot.delayed, shot.next_due_ms) == (0, None)
    assert shot.next_timer_ms is not None


def test_a_late_timer_says_that_no_scheduler_runs(farm: Farm, gate: HandMade) -> None:
    """Without a scheduler what waits for a rate would wait for ever."""
    farm.register("w1")
    gate.waits("x", "rate", "k")
    farm.client.zadd("delayed:tasks", {"\nrate\nk": farm.now_ms() - 30_000})
    word, why = farm.monitor.tick().health
    assert word == "warning"
    assert "a timer is 30 s late: no scheduler runs" in why


def test_a_tick_shows_reasons_and_the_keys_that_hold_most(farm: Farm, gate: HandMade) -> None:
    """Counts by reason, and the limit keys with those first under which most tasks wait."""
    gate.some_of_everything()
    tick = farm.monitor.tick()
    assert tick.reasons == {
        "parents": 1,
        "limit": 2,
        "rate": 1,
        "paused": 1,
        "order": 1,
        "share": 1,
    }
    assert [limit.key for limit in tick.limits][:3] == ["tenant:a", "gpu", "api"]
    first = tick.limits[0]
    assert (first.rule_key, first.at_most, first.in_use, first.waiting) == ("tenant:*", 3, 3, 2)
    assert len(farm.monitor.tick(limits=2).limits) == 2
    with pytest.raises(ConfigurationError, match="limits is a whole number"):
        farm.monitor.tick(limits=0)


def test_a_tick_stays_cheap_with_ten_thousand_keys(farm: Farm, gate: HandMade) -> None:
    """Of many keys only those are looked at under which the oldest and the newest tasks wait."""
    many = {f"s{n}:x": 1 for n in range(10_000)} | {f"rt{n}": "at_most=1" for n in range(10_000)}
    farm.client.hset("limits:tasks", mapping=many)
    gate.waits("x", "limit", "5:x", since_ms=farm.now_ms() - 1000)
    gate.waits("y", "limit", "6:x")
    farm.monitor.tick()
    farm.client.config_resetstat()
    tick = farm.monitor.tick()
    assert {limit.key for limit in tick.limits} == {"5:x", "6:x"}
    assert all(limit.in_use == limit.waiting == 1 for limit in tick.limits)
    commands = farm.client.info("commandstats")
    assert "cmdstat_hkeys" not in commands
    assert sum(row["calls"] for row in commands.values()) < 40


# -- frames ----------------------------------------------------------------------------------------


def test_waiting_says_why_under_what_and_since_when(farm: Farm, gate: HandMade) -> None:
    """The oldest first, with its place in the line of its key."""
    gate.some_of_everything()
    found = farm.monitor.get_waiting().set_index("task_id")
    assert list(found.index) == ["p0", "l1", "l2", "r1", "u1", "o1", "s1"]
    reasons = ["parents", "limit", "limit", "rate", "paused", "order", "share"]
    assert list(found["reason"]) == reasons
    assert found.loc["p0", "parents"] == 2
    assert found["place"].isna()["p0"]
    assert list(found["place"])[1:] == [1, 2, 1, 1, 1, 1]
    assert found.loc["l2", "priority"] == "high"
    assert found.loc["l2", "name"] == "work"  # its record is its priority's
    assert pd.Timedelta("59s") < found.loc["l1", "waited"] < pd.Timedelta("70s")
    assert set(found["payload"]) == {'{"n":1}'}
    assert list(farm.monitor.get_waiting(2)["task_id"]) == ["p0", "l1"]


def test_waiting_pages(farm: Farm, gate: HandMade) -> None:
    """More than one call lists are all there, in order."""
    start = farm.now_ms() - 10_000
    for n in range(450):
        gate.waits(f"t{n}", "limit", "k", since_ms=start + n)
    found = farm.monitor.get_waiting(430)
    assert list(found["task_id"]) == [f"t{n}" for n in range(430)]
    assert list(found["place"]) == list(range(1, 431))
    assert found.attrs["redistq"]["truncated"] is True


def test_limits_lists_every_key_and_the_rule_that_holds(farm: Farm, gate: HandMade) -> None:
    """A pattern holds for keys that have no rule of their own."""
    gate.some_of_everything()
    found = farm.monitor.get_limits()
    assert set(found.index) == {"tenant:*", "tenant:a", "api", "gpu", "free", "invoice:7", "door"}
    assert found.loc["tenant:a", "rule"] == "tenant:*"
    assert (found.loc["tenant:a", "at_most"], found.loc["tenant:a", "in_use"]) == (3, 3)
    assert found.loc["api", "rate"] == 5
    assert found.loc["api", "per"] == pd.Timedelta("1s")
    assert pd.Timedelta("50s") < found.loc["api", "next_token_in"] <= pd.Timedelta("60s")
    assert found.loc["free", "rule"] == ""
    assert found["at_most"].isna()["free"]
    assert not found["paused_at"].isna()["gpu"]
    assert found["paused_at"].isna()["api"]
    gate.rule("tenant:a", "at_most=9")
    assert farm.monitor.limits.loc["tenant:a", "at_most"] == 9


def test_ten_thousand_limits_are_all_listed(farm: Farm) -> None:
    """Page after page, each call bounded."""
    farm.client.hset("limits:tasks", mapping={f"st:{n}": n for n in range(10_000)})
    found = farm.monitor.limits
    assert len(found) == 10_000
    assert found["in_use"].sum() == sum(range(10_000))


def test_graphs_are_listed_with_their_depth(farm: Farm) -> None:
    """Beside batches on whose end others depend, which have none; other batches are left out."""
    fill(farm)
    assert list(farm.monitor.graphs.index) == []
    farm.client.hset("batch:tasks:b2", mapping={"dependants": 1, "expired": 1})
    with farm.producer.graph("nightly") as graph:
        first = graph.add("work", 1)
        graph.add("work", 2, after=first)
    found = farm.monitor.get_graphs()
    assert list(found.index) == ["nightly", "b2"]
    assert found.loc["nightly", "layers"] == 2
    assert found["layers"].isna()["b2"]
    assert found.loc["b2", "expired"] == 1
    assert (found.loc["nightly", "total"], found.loc["nightly", "waiting"]) == (2, 2)
    farm.client.hset("graph:tasks:nightly", "summary", "no shape")
    assert list(farm.monitor.graphs.index) == ["b2"]


def test_one_task_says_what_it_waits_for(farm: Farm, gate: HandMade) -> None:
    """The last row is how it stands, and attrs say it in words."""
    gate.some_of_everything()
    task = farm.monitor.get_task("l1")
    assert list(task["state"]) == ["waiting"]
    assert task.attrs["redistq"]["why"] == "waits for limit tenant:a (3 of 3 in use), 1st in line"
    ended = {"state": "expired", "reason": "not started by its deadline"}
    gate.db.hset("task:tasks:l1", mapping=ended)
    task = farm.monitor.get_task("l1")
    assert list(task["state"]) == ["expired"]
    assert task.attrs["redistq"]["why"] == "not started by its deadline"


# -- what can be wrong -----------------------------------------------------------------------------


def test_keys_that_hold_something_else_hide_nothing(farm: Farm) -> None:
    """A monitor goes on where another program wrote to the keys of the gate."""
    farm.producer.add_task("work")
    farm.client.set("waiting:tasks", "x")
    farm.client.set("limits:tasks", "x")
    tick = farm.monitor.tick()
    assert (tick.snapshot.ready, tick.snapshot.waiting, tick.limits) == (1, 0, ())
    assert farm.monitor.records.waiting() == []


def test_rules_that_are_none_are_read_as_far_as_they_can_be() -> None:
    """Words that are unknown or no number are passed over."""
    (found,) = states_of(
        {"rk": "at_most=x rate=2 nonsense per= x=y=z", "n": "7", "sk": "q"}
    ).values()
    assert (found.at_most, found.rate, found.per, found.in_use) == (None, 2.0, 1.0, 0)


def test_places_are_said_as_people_say_them() -> None:
    """1st, 2nd, 3rd, and the teens."""
    said = " ".join(ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 22, 101, 111, 1002))
    assert said == "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 101st 111th 1,002nd"


# -- emptying a queue ------------------------------------------------------------------------------


def test_draining_is_a_wait_with_a_count(farm: Farm) -> None:
    """It says how many are left, and whether the queue was empty in time."""
    seen: list[int] = []
    assert farm.producer.drain(0) is True
    farm.producer.add_tasks([("work", 1), ("work", 2)])
    farm.producer.add_task("later", delay=60)
    before = time.monotonic()
    assert farm.producer.drain(0.3, seen.append) is False
    assert 0.25 < time.monotonic() - before < 5
    assert set(seen) == {3}

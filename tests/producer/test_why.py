"""What a task waits for, in words: from its status, and from a wait for its result.

The tasks are written by hand, as the scripts leave them.
"""

from __future__ import annotations

import asyncio
import re

import pytest
from support.farm import Farm
from support.gate import HandMade

from redistq import AsyncTaskProducer, ResultTimeout, TaskProducer
from redistq.producer.diagnosis import Diagnosis


def test_parents_that_have_not_ended_are_named(farm: Farm, gate: HandMade) -> None:
    """Of three parents one has ended; tasks and batches, also of another priority, are told
    apart."""
    gate.db.hset("task:tasks:done", mapping={"state": "succeeded", "entry": "1-1"})
    gate.db.hset("task:tasks:here", "entry", "1-2")
    gate.db.hset("task:tasks!high:up", "state", "delayed")
    gate.db.hset("batch:tasks:pi", "total", 3)
    after = "st done\nst here\net!high up\nfb pi"
    gate.waits("child", "parents", parents=3, after=after)
    status = farm.producer.get_task("child")
    assert status.state == "waiting"
    assert not status.settled
    assert status.why == "waits for 3 of 4 parents: here, up (high), batch pi"
    gate.db.hset("batch:tasks:pi", "finished_ms", 1)
    gate.db.hset("task:tasks:child", "parents", 2)
    assert farm.producer.get_task("child").why.endswith("parents: here, up (high)")


def test_a_task_of_another_priority_finds_its_line(url: str, gate: HandMade) -> None:
    """Its priority is part of what stands in the line."""
    gate.waits("first", "limit", "k")
    gate.waits("up", "limit", "k", priority="high")
    with TaskProducer(url=url, stream="tasks!high") as producer:
        assert producer.get_task("up").why == "waits for limit k, 2nd in line"


def test_of_many_parents_few_are_looked_at(farm: Farm, gate: HandMade) -> None:
    """The count is the record's; ten thousand parents cost no more than fifty."""
    parents = [f"p{n}" for n in range(10_000)]
    for parent in parents[:100]:
        gate.db.hset(f"task:tasks:{parent}", "entry", "1-1")
    gate.waits("child", "parents", parents=9_999, after="\n".join(f"st {p}" for p in parents))
    farm.producer.get_task("child")
    farm.client.config_resetstat()
    why = farm.producer.get_task("child").why
    assert why == "waits for 9,999 of 10,000 parents: p0, p1, p2, p3, p4, …"
    calls = sum(row["calls"] for row in farm.client.info("commandstats").values())
    assert calls < 70


def test_limits_rates_order_shares_and_pauses_say_who_is_before(farm: Farm, gate: HandMade) -> None:
    """Each reason has its sentence, with figures of the same instant."""
    gate.some_of_everything()
    words = {id: farm.producer.get_task(id).why for id in ("l1", "u1", "o1", "s1", "r1")}
    assert words["l1"] == "waits for limit tenant:a (3 of 3 in use), 1st in line"
    assert words["u1"] == "waits until gpu is resumed, 1st in line"
    assert words["o1"] == "waits for its turn in the order of invoice:7, 1st in line"
    assert words["s1"] == "waits for the fair share of group acme, 1st in line"
    rate = r"waits for the rate of api \(5 each 1 s\): next token in [56]\d\.\d s, 1st in line"
    assert re.fullmatch(rate, words["r1"])


def test_ended_tasks_say_why_they_did_not_run(farm: Farm, gate: HandMade) -> None:
    """The reason in the record, of cancelled and expired tasks alone."""
    for state, reason in (
        ("expired", "not started by its deadline"),
        ("cancelled", "parent x failed"),
    ):
        gate.db.hset("task:tasks:x", mapping={"state": state, "reason": reason, "entry": ""})
        status = farm.producer.get_task("x")
        assert (status.state, status.why, status.settled) == (state, reason, True)
    delayed = farm.producer.add_task("work", delay=60)
    assert farm.producer.get_task(delayed).why == ""


def test_a_wait_that_is_over_says_what_the_task_waits_for(farm: Farm, gate: HandMade) -> None:
    """With workers there, the limit is the reason; without, their absence is."""
    gate.some_of_everything()
    with pytest.raises(ResultTimeout, match=r"no worker serves"):
        farm.producer.get_result("l1", timeout=1)
    farm.register("w1")
    with pytest.raises(ResultTimeout, match=r"still waiting.*it waits for limit tenant:a \(3 of 3"):
        farm.producer.get_result("l1", timeout=1)
    with pytest.raises(ResultTimeout, match=r"still waiting.*it may not run yet"):
        farm.producer.get_result("l1", timeout=0.1)


def test_the_async_producer_says_it_too(url: str, gate: HandMade) -> None:
    """The same words."""

    async def ask() -> tuple[str, bool]:
        async with AsyncTaskProducer(url=url) as producer:
            return (await producer.get_task("l1")).why, await producer.drain(0.2)

    gate.some_of_everything()
    assert asyncio.run(ask()) == ("waits for limit tenant:a (3 of 3 in use), 1st in line", False)


def test_a_client_that_waits_hears_of_one_task_and_how_many_others_there_are(
    farm: Farm, gate: HandMade
) -> None:
    """What the task waits for, in words; and that it is not the only one."""
    gate.some_of_everything()
    farm.register("w1")
    commands = farm.producer.commands
    waiting = farm.producer.snapshot().waiting
    diagnosis = Diagnosis(commands, farm.producer.address, farm.producer.broker.connection)
    said = diagnosis.ask({"work"}, "l1")
    assert said == (
        "task l1 waits for limit tenant:a (3 of 3 in use), 1st in line, "
        f"and {waiting - 1} others may not run yet"
    )
    assert waiting > 1

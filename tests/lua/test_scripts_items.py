"""What tasks yield, as the scripts keep it: only from the attempt that has the task, in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.script_world import TTL, World, outcome, resubmitted
from support.servers import Server

from redistq.protocol.commands import Commands
from redistq.protocol.items import Page, Standing, read_page

DAY = 86_400_000


@pytest.fixture
def world(every_server: Server) -> Iterator[World]:
    """A queue on each server in turn."""
    world = World(every_server)
    yield world
    world.close()


def append(world: World, *chunks: tuple[Any, ...], consumer: str = "w") -> list[str]:
    """Chunks of (entry, id, generation, first, count, body), with no bounds; a word for each."""
    rows = [(*chunk[:5], "", 10**9, DAY, chunk[5]) for chunk in chunks]
    return words(world, rows, consumer)


def words(world: World, rows: list[tuple[Any, ...]], consumer: str = "w") -> list[str]:
    """The word for each of these chunks."""
    answer = Commands.read_appended(world.call(world.commands.append_items(consumer, rows)))
    return [word for word, _ in answer]


def page(world: World, id: str, first: int = 0, generation: str = "", taken: str = "") -> Page:
    """What a reader is answered."""
    command = world.commands.read_items(id, generation, first, taken, 1000)
    return read_page(world.call(command))


def bodies(found: Page) -> list[bytes]:
    """What is in the chunks of a page."""
    return [chunk.body for chunk in found.chunks]


def test_chunks_follow_on_each_other(world: World) -> None:
    """One that leaves a gap, or comes from elsewhere, is told where the items are; sent again
    after a lost answer it changes nothing."""
    world.add("a")
    entry, _ = world.one("w")
    first = (entry, "a", 7, 0, 2, "xx")
    second = (entry, "a", 7, 2, 3, "yyy")
    assert append(world, first, second) == ["kept", "kept"]
    assert append(world, first, second) == ["kept", "kept"]
    stands = f"7 5 0 5 0 2 {entry}"
    assert append(world, (entry, "a", 7, 6, 1, "z")) == [stands]
    assert append(world, (entry, "a", 8, 1, 1, "z")) == [stands]
    assert append(world, (entry, "a", 6, 0, 1, "z")) == [stands]
    found = page(world, "a")
    assert found.standing == Standing(7, 5, 0, entry)
    assert [(c.first, c.count, c.to) for c in found.chunks] == [(0, 2, 2), (2, 3, 5)]
    for index, expected in ((0, [b"xx", b"yyy"]), (1, [b"xx", b"yyy"]), (2, [b"yyy"]), (5, [])):
        assert bodies(page(world, "a", index)) == expected
    assert bodies(page(world, "a", 0, "6")) == []


def test_only_the_attempt_that_has_the_task_adds(world: World) -> None:
    """No other consumer, and no entry that is not pending."""
    world.add("a")
    entry, _ = world.one("w")
    assert append(world, (entry, "a", 1, 0, 1, "x"), consumer="other") == ["lost"]
    assert append(world, ("1-1", "a", 1, 0, 1, "x")) == ["lost"]
    assert world.db.exists("items:tasks:a") == 0
    world.settle("w", outcome(entry, "a"))
    assert append(world, (entry, "a", 1, 0, 1, "x")) == ["lost"]


def test_another_generation_drops_the_one_before(world: World) -> None:
    """With its first chunk, or with none at all; of an earlier task with the id nothing counts."""
    world.add("a")
    entry, _ = world.one("w")
    world.db.xadd("items:tasks:a", {"of": "another"}, "99-9")
    append(world, (entry, "a", 1, 0, 2, "xx"))
    assert append(world, (entry, "a", 2, 0, 1, "y")) == ["kept"]
    assert bodies(page(world, "a")) == [b"y"]
    assert append(world, (entry, "a", 3, 0, 0, "")) == ["kept"]
    found = page(world, "a")
    assert (found.standing.next, found.chunks) == (0, [])
    assert append(world, (entry, "a", 3, 0, 1, "z")) == ["kept"]
    assert bodies(page(world, "a", 0, "3")) == [b"z"]


def test_what_is_unread_and_what_is_kept_is_bounded(world: World) -> None:
    """By the fastest reader; unread chunks stay, read ones go beyond what is kept."""
    world.add("a")
    entry, _ = world.one("w")
    rows = [(entry, "a", 1, n, 1, 30, 20, DAY, "0123456789") for n in range(5)]
    assert words(world, rows[:4]) == ["kept", "kept", "kept", "full"]
    assert page(world, "a").standing.first == 0
    page(world, "a", 2, "1", "20")
    page(world, "a", 1, "1", "10")  # a slower one takes no room away
    assert words(world, rows[3:]) == ["kept", "kept"]
    assert page(world, "a").standing.first == 2
    assert [c.first for c in page(world, "a", 2).chunks] == [2, 3, 4]
    assert page(world, "a", 1).chunks == []
    unbounded = [(entry, "a", 1, 5, 1, "", 20, DAY, "0123456789")]
    assert words(world, unbounded) == ["kept"]
    assert page(world, "a").standing.first == 4


def test_items_go_with_their_task(world: World) -> None:
    """They expire, and go with a dead letter; a task that runs whole again has none."""
    for id in ("a", "b", "c"):
        world.add(id)
        entry, _ = world.one("w")
        append(world, (entry, id, 1, 0, 1, "x"))
        assert 0 < world.db.pttl(f"items:tasks:{id}") <= DAY
        world.settle("w", outcome(entry, id, "succeeded" if id == "b" else "failed", body="{}"))
    assert world.call(world.commands.purge(["a"])) == 1
    assert world.db.exists("items:tasks:a", "task:tasks:a") == 0
    world.resubmit("call", resubmitted("b", outdated=True), resubmitted("c", outdated=False))
    assert page(world, "b").standing == Standing()
    assert page(world, "c").standing.next == 1


def test_a_reader_is_noted_while_the_task_has_not_ended(world: World) -> None:
    """Once; of an unknown task, or one that has ended, nothing is written."""
    assert page(world, "nobody") == Page("", "", Standing(), [])
    assert world.db.exists("task:tasks:nobody") == 0
    world.add("a")
    page(world, "a")
    assert world.db.hget("task:tasks:a", "items_read") == b"0 0"
    world.add("b")
    world.fetch("w")
    read = {fields["id"]: entry for entry, fields in world.entries()}
    world.settle("w", outcome(read["b"], "b", ttl=TTL))
    page(world, "b")
    assert world.db.hget("task:tasks:b", "items_read") is None

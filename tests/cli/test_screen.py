"""The live screen without a terminal: which row is aimed at, batches, groups of failures, and
several queues; one scene with a terminal."""

from __future__ import annotations

from typing import Any

import pytest
from rich.cells import cell_len
from support.farm import Farm
from support.terminals import Terminal

from redistq import TaskMonitor, TaskProducer
from redistq.cli import monitor as cli_monitor
from redistq.cli.lists import LetterRow
from redistq.cli.overview import Overview
from redistq.cli.screen import Screen, feed_of
from redistq.monitor.queues import Queues


@pytest.fixture
def screen(farm: Farm) -> Screen:
    """The screen of the farm's queue, with a worker."""
    farm.register("w1")
    return Screen(feed_of(farm.monitor))


def fail(farm: Farm, name: str, error: str, count: int = 1) -> None:
    """So many tasks of a name that fail by an error."""
    farm.producer.add_tasks([(name, n) for n in range(count)])
    farm.settle("w1", farm.fetch("w1"), error={"type": error, "message": "no", "traceback": "T"})


def picture(shown: Any, width: int = 80, height: int = 24) -> str:
    """What the screen shows of what the server says now; it fits."""
    if isinstance(shown, Screen):
        shown.feed.forget_age()
        shown.feed.ask()
    lines = ["".join(text for text, _ in line) for line in shown.lines(width, height)]
    assert len(lines) == height
    assert all(cell_len(line.rstrip()) <= width for line in lines[4:])
    return "\n".join(lines)


def marked(shown: Any) -> str:
    """The line that is aimed at."""
    return next(line for line in picture(shown).splitlines() if line.startswith("▸"))


def test_the_row_that_is_aimed_at_is_kept(farm: Farm, screen: Screen) -> None:
    """However many come in above it; a list that nobody has moved in, and Home, is on the newest;
    where the row goes, it is the one at its place."""
    fail(farm, "old", "E1")
    assert "old" in marked(screen)
    fail(farm, "new", "E2")
    assert "new" in marked(screen)
    screen.press("tab")
    assert "E2" in marked(screen)
    fail(farm, "newer", "E3")
    assert "E2" in marked(screen)
    screen.press("enter")
    assert "new  failed" in picture(screen)
    screen.press("escape")
    screen.press("home")
    fail(farm, "newest", "E4")
    assert "E4" in marked(screen)
    screen.press("down")
    assert "E3" in marked(screen)
    farm.monitor.replay()
    assert "▸" not in picture(screen)
    fail(farm, "again", "E5")
    assert "E5" in marked(screen)


def test_dead_letters_are_grouped_by_error(farm: Farm, screen: Screen) -> None:
    """The most frequent first, each opens to its tasks; a group, or one task, is sent again."""
    fail(farm, "redistq.call:fetch", "TimeoutError", 3)
    fail(farm, "load", "KeyError")
    screen.press("tab")
    text = picture(screen)
    assert "Dead letters (4), 1 group of the same error" in text
    assert "redistq.call" not in text
    assert marked(screen).split()[:4] == ["▸", "+", "3", "fetch()"]
    screen.press("enter")
    assert picture(screen).count("TimeoutError: no") == 4
    screen.press("down")
    row = screen._aimed()
    assert isinstance(row, LetterRow)
    screen.press("R")
    assert f"Send {row.letter.id} to the workers again? y / n" in picture(screen)
    screen.press("y")
    assert "sent again" in picture(screen)
    assert farm.monitor.snapshot().ready == 1
    screen.press("home")
    screen.press("R")
    assert "Send the tasks fetch() that failed by TimeoutError again? y / n" in picture(screen)
    screen.press("n")
    assert farm.monitor.snapshot().ready == 1
    screen.press("R")
    screen.press("y")
    assert (farm.monitor.snapshot().ready, farm.monitor.snapshot().dead) == (3, 1)


def test_batches_stand_with_their_progress(farm: Farm, screen: Screen) -> None:
    """Those with failures first; Enter shows what failed, R sends it again, c cancels the rest."""
    assert "Batches" not in picture(screen)
    now = farm.now_ms()
    counts = {"total": 1000, "cancelled": 0, "retried": 0}
    for name, succeeded, failed in (("fine", 400, 0), ("bad", 612, 4)):
        farm.client.zadd("batches:tasks", {name: now})
        row = {**counts, "name": name, "succeeded": succeeded, "failed": failed}
        farm.client.hset(f"batch:tasks:{name}", mapping={**row, "created_ms": now})
    fail(farm, "work", "ValueError", 2)
    for letter in farm.monitor.records.dead(1):
        moved = farm.client.hgetall(f"task:tasks:{letter.id}")
        farm.client.hset("task:tasks:bad:7", mapping=moved)
        farm.client.zadd("dead:tasks", {"bad:7": letter.died_ms})
    text = picture(screen)
    lines = [line for line in text.splitlines() if " of 1,000" in line]
    assert "616 of 1,000 (62%)" in lines[0]
    assert lines[0].startswith("  bad               ███████░░░")
    assert "4 failed" in lines[0]
    assert "fine" in lines[1]
    assert "⚠" not in text
    screen.press("backtab")
    assert "c cancel the rest" in picture(screen)
    screen.press("enter")
    text = picture(screen)
    assert "1 × work  ValueError: no" in text
    assert "bad:7" in text
    screen.press("escape")
    screen.press("R")
    assert "Send the failed tasks of bad to the workers again? y / n" in picture(screen)
    screen.press("y")
    assert farm.monitor.snapshot().dead == 2
    screen.press("c")
    assert "Cancel what of bad has not started?" in picture(screen)
    wide = picture(screen, 160)
    assert "▶ running" in wide


def test_many_lists_fit_a_small_terminal(farm: Farm, screen: Screen) -> None:
    """With something in every list each has its heading and a row."""
    fail(farm, "work", "ValueError", 3)
    farm.producer.limits.set("k", at_most=1)
    for _ in range(2):
        farm.producer.add_task("work", limits="k")
    farm.producer.schedules.set("nightly", cron="0 3 * * *", task="work")
    farm.client.zadd("batches:tasks", {"b": farm.now_ms()})
    farm.client.hset("batch:tasks:b", mapping={"total": 3, "created_ms": farm.now_ms()})
    farm.fetch("w1")
    text = picture(screen)
    for heading in ("In hand (", "Batches", "Limits", "Schedules", "Recent (", "Dead letters ("):
        assert heading in text
    assert text.splitlines()[-1].startswith("q quit")


# -- several queues ------------------------------------------------------------------------------


def test_an_overview_leads_to_each_queue(farm: Farm, url: str) -> None:
    """The worst first, Enter goes into one, Esc comes back to the row it was."""
    farm.register("w1")
    with TaskProducer(url=url, stream="images") as images:
        images.add_tasks([("resize", n) for n in range(1234)])
    with TaskMonitor(url=url, stream="images") as inner:
        queues = Queues(farm.producer.address, ["tasks", "images"])
        shown = Overview(queues, lambda name: inner)
        shown.look()
        text = picture(shown)
        assert "Queues: 2 · 1,234 queued" in text
        assert marked(shown).startswith("▸ images")
        assert "✖ no worker" in marked(shown)
        assert text.index("images") < text.index("tasks")
        shown.press("down")
        assert marked(shown).startswith("▸ tasks")
        shown.press("up")
        shown.press("enter")
        assert "images · " in picture(shown)
        assert "Esc queues" in picture(shown)
        shown.press("escape")
        assert marked(shown).startswith("▸ images")
        assert "oldest" in picture(shown, 120)
        shown.press("q")
        assert shown.ended
        queues.close()


def test_all_queues_in_a_terminal(farm: Farm, url: str) -> None:
    """``--queue '*'`` finds them."""
    farm.producer.add_task("work")
    with TaskProducer(url=url, stream="images") as images:
        images.add_task("resize")
    terminal = Terminal(80, 24, "redistq.cli", "dashboard", "--url", url, "--queue", "*")
    try:
        terminal.shows("Queues: 2 ·")
        terminal.press(b"\r")
        terminal.shows("images · ")
        terminal.press(b"\x1b")
        terminal.shows("Queues: 2 ·")
        terminal.press(b"q")
        assert terminal.ends() == 0
        assert terminal.restored()
    finally:
        terminal.close()


def test_a_misspelt_queue_is_said(farm: Farm, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With those that there are, the nearest first; commands of one queue refuse several."""
    farm.producer.add_task("work")
    said = "no such queue yet: taks; there are: tasks"
    for command in ("stats", "dead"):
        assert cli_monitor.main(["--url", url, "--queue", "taks", command]) == 0
        assert said in capsys.readouterr().err
    assert cli_monitor.main(["--url", url, "--queue", "taks", "dashboard"]) == 0
    assert said in capsys.readouterr().out
    assert cli_monitor.main(["--url", url, "--queue", "tasks", "stats"]) == 0
    assert capsys.readouterr().err == ""
    assert cli_monitor.main(["--url", url, "--queue", "a", "--queue", "b", "stats"]) == 2
    assert "`redistq dashboard` shows several" in capsys.readouterr().err
    assert cli_monitor.main(["--url", url, "--queue", "tasks", "--queue", "b", "dashboard"]) == 0
    assert "Queues: 2" in capsys.readouterr().out

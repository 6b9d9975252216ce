"""``redistq monitor limits``, ``waiting``, ``purge-queue`` and ``drain``: seen and changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from support.farm import Farm
from support.gate import HandMade
from support.terminals import Terminal

from redistq import cli_monitor

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process: its exit code, what it printed, its complaints."""

    def run(*args: str, columns: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        try:
            code = cli_monitor.main(["--url", url, *args])
        except SystemExit as error:
            code = int(error.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_limits_are_set_seen_and_deleted(farm: Farm, run: Run) -> None:
    """A rule holds at once; the one before is told; what has none is said."""
    assert run("limits") == (0, "No limits: redistq monitor limits set KEY --at-most N\n", "")
    assert run("limits", "set", "api", "--rate", "5", "--per", "1m", "--burst", "2")[0] == 0
    code, out, err = run("limits", "set", "api", "--at-most", "2", "--excess", "drop")
    assert (code, err) == (0, "")
    assert out == "limit api is set; it was rate=5.0, per=60.0, burst=2\n"
    (row,) = json.loads(run("limits", "--json")[1])
    assert (row["key"], row["at_most"], row["rate"], row["excess"]) == ("api", 2, None, "drop")
    assert run("limits", "delete", "api") == (0, "limit api is deleted: nothing limits it\n", "")
    assert run("limits", "delete", "api") == (3, "", "redistq: api has no rule\n")
    assert json.loads(run("limits", "--json")[1]) == []


def test_slots_of_deleted_entries_are_given_back(farm: Farm, run: Run) -> None:
    """It says which were wrong, and whoever waited goes in."""
    assert run("limits", "recount") == (0, "every slot in use has its task\n", "")
    farm.producer.limits.set("k", at_most=1)
    farm.producer.add_task("work", limits="k")
    waits = farm.producer.add_task("work", limits="k")
    farm.client.xtrim("tasks", maxlen=0)
    assert run("limits", "recount") == (0, "k: 1 slot in use, in truth 0\n", "")
    assert farm.producer.get_task(waits).state == "queued"


def test_a_rule_that_is_none_is_refused(run: Run) -> None:
    """With the sentence of the producer, and the exit code of a wrong setting."""
    for args in (["--at-most", "0"], ["--rate", "-1"], ["--per", "x", "--rate", "1"]):
        code, out, err = run("limits", "set", "api", *args)
        assert (code, out) == (2, ""), args
        assert err
    assert run("limits", "penalize", "api", "--for", "never")[0] == 2


def test_a_key_is_paused_resumed_and_penalized(farm: Farm, run: Run) -> None:
    """What waits goes in when it ends."""
    assert run("limits", "pause", "k") == (0, "k is paused\n", "")
    task_id = farm.producer.add_task("work", limits="k")
    assert farm.producer.get_task(task_id).why == "waits until k is resumed, 1st in line"
    out = run("limits", columns=100)[1]
    assert "paused" in out
    assert run("limits", "resume", "k") == (0, "k is resumed\n", "")
    assert farm.producer.get_task(task_id).state == "queued"
    farm.producer.limits.set("r", rate=100)
    assert run("limits", "penalize", "r", "--for", "1m") == (0, "r lets nothing in for 1m\n", "")
    held = farm.producer.add_task("work", limits="r")
    assert "next token in" in farm.producer.get_task(held).why


def test_the_tables_say_who_waits_for_what(farm: Farm, run: Run) -> None:
    """In a terminal of 80 columns too; the task's own page says it in words."""
    HandMade(farm.client).some_of_everything()
    out = run("waiting")[1]
    for words in ("p0", "parents", "tenant:a", "limit", "rate", "order", "share", "paused"):
        assert words in out
    assert all(len(line) <= 80 for line in out.splitlines())
    out = run("limits")[1]
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "invoice:7" in out
    out = run("task", "l1")[1]
    assert "waits for limit tenant:a (3 of 3 in use), 1st in line" in out
    assert json.loads(run("task", "l1", "--json")[1])["why"].startswith("waits for limit")
    assert re.search(r"^waiting +7 *$", run("stats")[1], re.M)


def test_hostile_keys_stay_text(farm: Farm, run: Run) -> None:
    """A key is what a producer gave."""
    HandMade(farm.client).waits("x", "limit", "[red]\x1b[2J")
    for command in ("waiting", "limits"):
        out = run(command)[1]
        assert "\x1b" not in out
        assert "[red]" in out


def test_purge_queue_asks_and_says_how_many(farm: Farm, run: Run, url: str) -> None:
    """With --yes it does not ask; without a terminal it refuses; anything but yes leaves all."""
    farm.producer.limits.set("k", at_most=1)
    farm.producer.add_tasks({"type": "work", "limits": "k"} for _ in range(3))
    farm.producer.add_task("work", delay=60)
    assert run("purge-queue")[::2] == (2, "redistq: purge-queue needs --yes without a terminal\n")
    terminal = Terminal(80, 24, "redistq.cli_monitor", "--url", url, "purge-queue")
    try:
        terminal.shows("Cancel 4 tasks of all priorities? This cannot be undone. [y/N]")
        terminal.press(b"n\n")
        terminal.shows("nothing was cancelled")
        assert terminal.ends() == 0
    finally:
        terminal.close()
    out = "4 tasks cancelled (2 waiting, 1 delayed, 1 queued)\n"
    assert run("purge-queue", "--yes") == (0, out, "")
    assert run("purge-queue", "--yes") == (0, "0 tasks cancelled\n", "")


def test_drain_waits_and_says_why_it_gave_up(farm: Farm, run: Run) -> None:
    """An empty queue is empty; else the health of the queue is the reason."""
    assert run("drain") == (0, "queue tasks is empty\n", "")
    farm.producer.add_task("work")
    code, out, err = run("drain", "--for", "0.2")
    assert (code, out) == (3, "")
    assert err.startswith("redistq: not empty yet: no worker runs and 1 task waits")

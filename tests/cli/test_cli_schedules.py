"""``redistq schedules``: periodic tasks seen and changed from a terminal."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator

import pytest
import redis
from support.schedules import record

from redistq import TaskProducer, cli_monitor
from redistq.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer for the default server."""
    with TaskProducer(url=url) as producer:
        yield producer


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process: its exit code, what it printed, its complaints."""

    def run(*args: str, columns: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        try:
            code = main(["schedules", "--url", url, *args])
        except SystemExit as error:
            code = int(error.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_a_schedule_is_set_seen_and_deleted(
    producer: TaskProducer, run: Run, db: redis.Redis
) -> None:
    """Every field of it, as a table of 80 columns, JSON and CSV."""
    none = "No schedules: redistq schedules set NAME --cron '0 6 * * mon' --task TASK\n"
    assert run() == run("list") == (0, none, "")
    code, out, err = run(
        *("set", "report", "--cron", "0 6 * * mon", "--tz", "Europe/Berlin", "--task", "send"),
        *("--payload", '{"week": 7}', "--missed", "all", "--retries", "2", "--time-limit", "5m"),
    )
    assert (code, err) == (0, "")
    assert re.match(
        r"schedule report is set: At 06:00 on Monday \(Europe/Berlin\); it fires next at "
        r"\d{4}-\d\d-\d\d 06:00:00 CES?T \(Mon\)\n$",
        out,
    )
    made = producer.schedules["report"]
    assert (made.task, made.payload, made.missed) == ("send", b'{"week":7}', "all")
    opts = json.loads(json.loads(record(db, "report")["definition"])["opts"])
    assert (opts["retries"], opts["timeout"]) == (2, 300)
    assert run("set", "often", "--every", "90", "--task", "job", "--overlap", "allow")[0] == 0
    out = run("list")[1]
    assert all(len(line) <= 80 for line in out.splitlines())
    assert out.index("often") < out.index("report")  # the next first
    assert "every 90 s" in out
    rows = json.loads(run("--json")[1])
    assert [row["schedule"] for row in rows] == ["often", "report"]
    assert rows[1]["rule"] == "At 06:00 on Monday (Europe/Berlin)"
    assert rows[1]["last_state"] is None
    (first, _) = csv.DictReader(io.StringIO(run("list", "--csv")[1]))
    assert (first["state"], first["overlap"]) == ("active", "allow")
    assert run("delete", "often") == (0, "schedule often is deleted\n", "")
    assert run("delete", "often") == (3, "", "redistq: there is no schedule often\n")


def test_a_schedule_is_paused_resumed_and_run(producer: TaskProducer, run: Run) -> None:
    """What is not there is said, with the exit code for it."""
    producer.schedules.set("s", every="1h", task="job")
    assert run("pause", "s") == (0, "schedule s is paused\n", "")
    assert "paused" in run()[1]
    assert json.loads(run("--json")[1])[0]["next_at"] is None
    assert run("resume", "s") == (0, "schedule s is resumed\n", "")
    code, out, err = run("run", "s")
    assert (code, err) == (0, "")
    assert producer.get_task(out.strip()).state == "queued"
    (row,) = json.loads(run("--json")[1])
    assert (row["last_state"], row["last_id"], row["fired"]) == ("queued", out.strip(), 1)
    code, again, err = run("run", "s")
    assert (code, again) == (0, out)
    assert err == "redistq: that task has not ended, and no other runs beside it\n"
    for command in ("pause", "resume", "run"):
        gone = (3, "", "redistq: there is no schedule gone\n")
        assert run(command, "gone") == gone
    assert run("backfill", "gone", "2026-01-01", "2026-01-02") == gone


def test_a_preview_and_a_backfill(producer: TaskProducer, run: Run) -> None:
    """Times are those of the zone, of which a repeated hour shows."""
    code, out, err = run("preview", "--cron", "30 2 * * *", "--tz", "Europe/Berlin", "-n", "3")
    assert (code, err) == (0, "")
    assert len(re.findall(r"^\d{4}-\d\d-\d\d 0[23]:[03]0:00 CES?T \(\w{3}\)$", out, re.M)) == 3
    assert len(run("preview", "--every", "15m")[1].splitlines()) == 5
    producer.schedules.set("s", cron="0 0 * * *", tz="Europe/Berlin", task="job")
    assert run("backfill", "s", "2026-03-01", "2026-03-03") == (0, "3 tasks added\n", "")
    again = run("backfill", "s", "2026-03-02T00:00", "2026-03-04T00:00:00+01:00")
    assert again == (0, "1 task added, 2 there already\n", "")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["set", "s", "--cron", "0 0 31 2 *", "--task", "job"], "never fires"),
        (["set", "s", "--cron", "@daily", "--tz", "Berlin", "--task", "job"], "did you mean"),
        (["set", "s", "--every", "5", "--task", "job", "--payload", "{"], "--payload is JSON"),
        (["set", "s", "--every", "5"], "--task"),
        (["set", "s", "--task", "job"], "--cron --every"),
        (["preview", "--every", "never"], "every is"),
        (["backfill", "s", "yesterday", "2026-01-01"], "a moment is"),
    ],
)
def test_what_is_wrong_is_said(
    producer: TaskProducer, run: Run, args: list[str], words: str
) -> None:
    """With the exit code of a wrong setting."""
    if args[0] == "backfill":
        producer.schedules.set("s", every=5, task="job")
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert words in err


def test_a_hostile_name_stays_text(producer: TaskProducer, run: Run, url: str) -> None:
    """A name is what a producer gave; it is a command of the monitor, too."""
    producer.schedules.set("[red]\x1b[2J", every=5, task="\x1b[31m")
    assert "\x1b" not in run(columns=200)[1]
    assert "[red]" in run()[1]
    assert cli_monitor.main(["--url", url, "schedules"]) == 0

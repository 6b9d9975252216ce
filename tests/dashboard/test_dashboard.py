"""The dashboard without a browser: what it says and shows, its buttons, and how it ends."""

from __future__ import annotations

import gc
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest
from support.farm import EVIL, Farm
from support.servers import Server

from redistq import ConfigurationError, TaskMonitor, TaskProducer, TaskWorker
from redistq.dashboard import failed, page, tables, words
from redistq.dashboard.actions import Actions
from redistq.dashboard.feed import Feed, Point, View
from redistq.dashboard.functions import functions, functions_of
from redistq.dashboard.page import plain
from redistq.dashboard.timeline import timeline
from redistq.dashboard.words import alerts, line, rates
from redistq.display import html
from redistq.display.text import LOOKS, RUNNING, WARNING, clean, duration
from redistq.errors import ServerUnavailable
from redistq.monitor.agenda import ScheduleRow
from redistq.monitor.rows import BatchRow, DeadLetter, Event, Running, progress_since
from redistq.monitor.server import ServerMemory
from redistq.monitor.tick import Tick
from redistq.protocol.commands import Snapshot, WorkerRow
from redistq.protocol.limits import LimitState
from redistq.protocol.progress import Progress
from redistq.protocol.schedules import Schedule
from redistq.protocol.timing import Timing
from redistq.web.desk import said_by

NOW = 1_790_000_000_000
HOSTILE = "<script>alert(1)</script>\" onload='x' &amp; \u202egnp.exe"
ALLOWED = {
    "div",
    "span",
    "strong",
    "img",
    "table",
    "caption",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "details",
    "summary",
    "pre",
}
PLACES = {"xmlns", "viewbox", "preserveaspectratio", "width", "height", "x", "y", "fill"}
PLACES |= {"fill-opacity"}
DRAWN = {"svg", "g", "title", "rect"}
"""Elements of a live picture."""


def snapshot(**more: Any) -> Snapshot:
    """A queue at work, with one worker."""
    worker = WorkerRow(
        "host:abc", NOW + 9_000, 2, {"host": "host", "pid": "7", "threads": "4", "running": "1-0"}
    )
    fields: dict[str, Any] = {
        "now_ms": NOW,
        "ready": 374,
        "pending": 2,
        "delayed": 6,
        "next_due_ms": NOW + 5_000,
        "dead": 1,
        "oldest_ms": NOW - 3_200,
        "group": "workers",
        "lease_ms": 10_000,
        "paused": False,
        "history": 10,
        "workers_total": 1,
        "workers": [worker],
        "counters": {"succeeded": 612, "failed": 4, "retried": 9},
    }
    return Snapshot(**{**fields, **more})


def tick(shot: Snapshot | None = None, **more: Any) -> Tick:
    """One refresh of that queue."""
    running = Running("1-0", "t1", "resize", "host:abc", 2, 1, NOW - 1_500, True, '{"n":1}')
    dead = DeadLetter(
        "t9",
        "publish",
        NOW - 60_000,
        3,
        "host:abc",
        12.0,
        "ValueError",
        "no such album",
        "Traceback (most recent call last):\n  boom",
        '{"n":9}',
    )
    fields: dict[str, Any] = {
        "snapshot": shot or snapshot(),
        "events": (),
        "missed": False,
        "cursor": "1-0",
        "running": (running,),
        "dead": (dead,),
        "batches": (),
    }
    return Tick(**{**fields, **more})


def event(**more: Any) -> Event:
    """The end of one attempt."""
    fields: dict[str, Any] = {
        "entry": "5-0",
        "id": "t2",
        "name": "resize",
        "state": "retried",
        "worker": "host:abc",
        "attempt": 1,
        "finished_ms": NOW - 500,
        "queued_ms": NOW - 2_000,
        "run_ms": 30.0,
        "note": "OSError",
    }
    return Event(**{**fields, **more})


def view(seen: Tick | None = None, **more: Any) -> View:
    """A picture of it."""
    trail = tuple(Point(NOW - 10_000 + 1_000 * n, 1000 - 50 * n, 52 * n) for n in range(11))
    fields: dict[str, Any] = {
        "queue": "images",
        "url": "redis://host:6379/0",
        "tick": seen or tick(),
        "recent": (event(),),
        "trail": trail,
        "live": True,
    }
    return View(**{**fields, **more})


class Reader(HTMLParser):
    """Reads HTML as a browser would: its elements, their attributes, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data + " "


# -- what it says --------------------------------------------------------------------------------


def test_the_header_figures_are_the_snapshots() -> None:
    """Every figure stands with its word, and the clock is the server's."""
    text = re.sub(r"\s+", " ", Reader(page.head(view())).text)
    for part in (
        "374 … queued oldest 3.2 s",
        "2 ▶ running of 4 slots",
        "6 ◷ delayed in 5.0 s",
        "612 ✔ succeeded 9 retried",
        "4 ✖ failed 0.6%, 1 kept",
        "52/s ≫ throughput done in 7.2 s",
        "live · updated 14:13:20 UTC",
    ):
        assert part in text.replace("live · updated", "live · updated"), part


def test_sparklines_are_pictures_with_words() -> None:
    """An image that untrusted notebooks keep, whose alt text says what it shows."""
    reader = Reader(page.head(view()))
    alts = [value for name, value in reader.attributes if name == "alt"]
    assert alts == [
        "Queue depth, last 60 s: 500 now, at most 1,000",
        "Throughput, last 60 s: 52/s now, at most 52/s",
    ]
    sources = [str(value) for name, value in reader.attributes if name == "src"]
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert html.svg([], NOW, "#000000").startswith("<svg")


def scheduled(name: str, **more: Any) -> ScheduleRow:
    """A schedule that fires in five minutes."""
    state = more.pop("last_state", "")
    fields = {"timing": Timing(every_ms=90_000), "task": "x", "missed": "once", "overlap": "skip"}
    fields |= {"paused": False, "next_ms": NOW + 300_000, "version": 1, "queue": "q"}
    return ScheduleRow(Schedule(name=name, **{**fields, **more}), state, NOW)


def test_schedules_say_when_they_fire_and_how_the_last_one_ended() -> None:
    """Rule, next time, last task; a hostile name is text, and a queue without any is told of
    none."""
    rows = (
        scheduled("late", next_ms=NOW - 60_000),
        scheduled("report", fired=3, skipped=1, last_ms=NOW - 90_000, last_state="failed"),
        scheduled("broken", next_ms=NOW, fault="WRONGTYPE it holds something else"),
        scheduled(EVIL, next_ms=NOW - 5),
        scheduled("off", paused=True),
    )
    reader = Reader(page.schedules(view(tick(schedules=rows))))
    text = re.sub(r"\s+", " ", reader.text)
    for part in (
        "late every 90 s ⚠ 1 min late – 0 0",
        "report every 90 s in 5 min",
        "✖ failed 3 1",
        "broken every 90 s ⚠ WRONGTYPE it holds something else",
        "due now",
        "off every 90 s ‖ paused – 0 0",
    ):
        assert part in text, (part, text)
    assert "script" not in reader.tags
    assert page.schedules(view()) == ""
    said = [words for _, words in alerts(view(tick(schedules=rows)))]
    assert any("Schedule late is 1 min late: no scheduler fires it" in words for words in said)


def test_limits_say_how_full_they_are() -> None:
    """Key, rule, slots, waiting tasks and what holds them up; hostile keys are text, and a queue
    without limits is told of none."""
    limits = (
        LimitState(at_most=3, key="tenant:a", rule_key="tenant:*", in_use=3, waiting=20),
        LimitState(rate=5.0, key=EVIL, rule_key=EVIL, waiting=2, next_token_ms=NOW + 400.0),
        LimitState(key="gpu", waiting=1, paused_ms=NOW - 9_000, in_use=1),
        LimitState(key="order", waiting=1, in_use=1),
        LimitState(key="door", waiting=1, in_use=7),
        LimitState(at_most=3, key="tenant:*", rule_key="tenant:*"),
        LimitState(at_most=9, key="wide", rule_key="wide", excess="drop"),
        LimitState(key="counted only", in_use=1),
    )
    shown = tick(
        snapshot(waiting=150, waiting_since_ms=NOW - 5_000),
        limits=limits,
        reasons={"limit": 60, "rate": 30, "parents": 7, "order": 3},
    )
    reader = Reader(tables.limits(view(shown)))
    text = re.sub(r"\s+", " ", reader.text)
    for part in (
        "Waiting: 150; 60 for limits, 30 for rates, 7 for parents, … (of the 100 oldest)",
        "tenant:a at most 3 3 of 3 20 ● full",
        "5 each 1 s 0 2 ◷ next token in 400 ms",
        "gpu – 1 1 ‖ paused for 9.0 s",
        "order – 1 1 ◌ one after the other",
        "door – 7 1 ◌ groups in turn",
        "tenant:* at most 3 0 of 3 0 for each of its keys",
        "wide at most 9, drop 0 of 9 0 ○ has room",
    ):
        assert part in text, part
    assert "counted only" not in text
    assert "script" not in reader.tags
    assert tables.limits(view()) == ""
    head = re.sub(r"\s+", " ", Reader(page.head(view(shown))).text)
    assert "150 ◌ waiting oldest 5.0 s" in head


def test_the_servers_memory_is_shown_and_what_is_short_is_an_alert(server: Server, db: Any) -> None:
    """Beside the address, of its maxmemory where it has one; asked for now and then, and a server
    that does not say it is no trouble."""
    shown = Reader(page.head(view(memory=ServerMemory(12_000_000, 100_000_000)))).text
    assert "redis://host:6379/0 · 12 MB of 100 MB (maxmemory) in use" in shown
    full = view(memory=ServerMemory(95_000_000, 100_000_000, 10**9))
    assert any("nearly full: 95 MB of 100 MB (maxmemory)" in said for _, said in alerts(full))
    machine = view(memory=ServerMemory(95_000_000, None, 100_000_000))
    assert any("95 MB of the machine's 100 MB" in said for _, said in alerts(machine))
    rules = ("reset", "on", ">pw", "~*", "&*", "+@all", "-info")
    db.execute_command("ACL", "SETUSER", "blind", *rules)
    try:
        for user, known in (("", True), ("blind:pw@", False)):
            url = server.url.replace("://", f"://{user}")
            with TaskMonitor(url=url, stream="seen") as monitor:
                found = Feed(monitor)
                found.ask()
                assert (found.view().memory is not None) is known
                db.config_resetstat()
                found.ask()
                assert "cmdstat_info" not in db.info("commandstats") or not known
    finally:
        db.execute_command("ACL", "DELUSER", "blind")


def test_what_waits_without_a_worker_is_an_alert() -> None:
    """Also where nothing is queued and nothing delayed."""
    seen = tick(snapshot(ready=0, pending=0, delayed=0, waiting=2, workers=[], next_due_ms=None))
    assert any("2 tasks may not run yet, and no worker" in said for _, said in alerts(view(seen)))


def test_workers_show_what_they_run() -> None:
    """Name, age and attempt of the running task, and how busy the worker is."""
    text = re.sub(r"\s+", " ", Reader(tables.workers(view())).text)
    assert "Workers: 1, 1 busy" in text
    assert 'resize {"n":1} 1.5 s · attempt 2 · recovered 1×' in text
    assert "and 1 more in hand" in text
    assert "ago" not in text  # a heartbeat that is in time is not spoken of
    assert "Memory CPU" in text
    assert text.endswith("2 of 4 – – ")  # its release does not say
    worker = snapshot().workers[0]
    uses = {**worker.details, "rss": str(470_000_000), "cpu": "137"}
    rows = [
        replace(worker, details={**uses, **more}) for more in ({}, {"memory_limit": "5" + "0" * 8})
    ]
    text = re.sub(r"\s+", " ", Reader(tables.workers(view(tick(snapshot(workers=rows))))).text)
    assert "470 MB 137%" in text
    assert "⚠ 470 MB of 500 MB 137%" in text
    late = [replace(each, deadline_ms=NOW + 2_000) for each in snapshot().workers]
    said = tables.workers(view(tick(snapshot(workers=late))))
    assert "⚠ last heard 8.0 s ago" in said


def test_recent_and_failed_tasks_are_listed() -> None:
    """The state as glyph and word, and a dead letter that opens to its traceback."""
    assert "↻ retried" in tables.recent(view())
    letter = Reader(failed.letter(tick().dead[0]))
    assert letter.tags.count("details") == letter.tags.count("summary") == 1
    assert "ValueError: no such album" in letter.text
    assert "Traceback (most recent call last):\n  boom" in letter.text


def test_a_function_call_reads_as_one() -> None:
    """A Client's task shows the function's name, and not its pickled payload."""
    call = Running("1-0", "t1", "redistq.call:fit", "host:abc", 1, 0, NOW, True, '{"p":"gASV"}')
    letter = replace(tick().dead[0], name="redistq.call:fit", preview='{"p":"gASV"}')
    seen = view(tick(running=(call,), dead=(letter,)), recent=(event(name="redistq.call:fit"),))
    whole = page.page(seen)
    assert whole.count("fit()") == 4  # a group, its letter, what runs, and what has ended
    assert "gASV" not in whole
    assert "redistq.call" not in whole


def test_batches_show_their_progress() -> None:
    """A bar in the colours of its ends, with the numbers as text beside it."""
    batch = BatchRow("b1", "demo", 1000, 612, 4, 0, 9, NOW - 12_000, None)
    reader = Reader(tables.batches(view(tick(batches=(batch,)))))
    widths = [s for name, s in reader.attributes if name == "style" and "width:" in s]
    assert any("width:61.20%;background:#0072B2" in s for s in widths)
    assert any("width:0.40%;background:#D1430A" in s for s in widths)
    assert "616 of 1,000 (62%)" in reader.text


def test_a_batch_says_how_it_ended_and_when_it_will() -> None:
    """Rate and time left while it runs; ended with failures is no success, and all failed is."""
    row = BatchRow("b1", "demo", 1000, 600, 4, 0, 0, NOW - 12_000, None)
    said = tables.batch_line(row, view(rates={"b1": 39.6}, layers={"b1": 3}))
    assert "4 failed · 40/s · 10 s left · for 12 s" in said
    assert "graph of 3 layers" in said
    ended = replace(row, succeeded=996, finished_ms=NOW)
    assert "⚠ ended with failures" in tables.batch_line(ended, view())
    lost = replace(ended, succeeded=0, failed=1000)
    assert "✖ all failed" in tables.batch_line(lost, view())
    assert "✔ ended" in tables.batch_line(replace(ended, succeeded=1000, failed=0), view())


def test_priorities_are_summed(producer: TaskProducer) -> None:
    """Each priority that has tasks is a row, and all together are one; of one there is no table."""
    found = Feed(TaskMonitor(url=str(producer.address), stream="seen"), deep=True)
    found.refresh()
    assert tables.priorities(found.view()) == ""
    url = str(producer.address)
    with TaskProducer(url=url, stream="seen!high") as high:
        high.add_tasks(("resize", n) for n in range(3))
    producer.add_tasks(("resize", n) for n in range(4))
    found = Feed(found.monitor, deep=True)
    found.refresh()
    text = re.sub(r"\s+", " ", Reader(tables.priorities(found.view())).text)
    assert "high 3 0" in text
    assert "normal 4 0" in text
    assert "all 7 0" in text
    assert 'Dashboard(…, queue="seen!high")' in text
    found.monitor.close()


def test_batches_of_other_priorities_stand_among_the_others(producer: TaskProducer) -> None:
    """With their rate and their buttons, which act on that priority."""
    with producer.graph("early") as graph:
        graph.add("resize", 0)
    with TaskProducer(url=str(producer.address), stream="seen!high") as high:
        with high.graph("nightly") as graph:
            graph.add("publish", 1, after=[graph.add("resize", 1)])
        found = Feed(TaskMonitor(url=str(producer.address), stream="seen"), deep=True)
        found.refresh()
        assert [row.name for row in found.view().batches] == ["nightly", "early"]
        said = re.sub(r"\s+", " ", Reader(tables.batches(found.view())).text)
        assert "nightly graph of 2 layers · priority high" in said
        assert "priority" not in said.partition("early")[2]
        action = Actions(found).start("batch-cancel nightly")
        assert action is not None
        assert "2 tasks of nightly cancelled." in said_by(action)
        assert high.graph("nightly").counts()["cancelled"] == 2
        assert producer.graph("early").counts()["cancelled"] == 0
    found.monitor.close()


def test_what_workers_run_of_other_priorities_is_seen() -> None:
    """A worker that runs nothing of this priority is not idle where it runs others."""
    details = {"host": "host", "pid": "7", "threads": "4", "running": ""}
    idle = WorkerRow("host:abc", NOW + 9_000, 0, details)
    own = snapshot(workers=[idle], pending=0)
    busy = replace(idle, pending=3, details={**details, "running": "1-0 2-0 3-0"})
    high = snapshot(workers=[busy, replace(busy, consumer="host:other")])
    seen = view(tick(own, running=()), lanes={"high": high, "normal": own})
    text = re.sub(r"\s+", " ", Reader(tables.workers(seen)).text)
    assert "Workers: 1, 1 busy" in text
    assert "▶ busy 3 of priority high 3 of 4" in text
    assert "and 3 others" in Reader(page.page(seen)).text
    alone = view(tick(own, running=()))
    assert "○ idle – 0 of 4" in re.sub(r"\s+", " ", Reader(tables.workers(alone)).text)


def test_failures_are_grouped_by_error() -> None:
    """The most frequent first, each to be opened; the newest with its traceback."""
    one = tick().dead[0]
    many = tuple(replace(one, id=f"t{n}", traceback="") for n in range(7))
    other = replace(one, id="x1", error_type="OSError", error="away")
    seen = view(tick(snapshot(dead=9)), letters=(other, one, *many))
    text = re.sub(r"\s+", " ", Reader(failed.failures(seen)).text)
    assert "Failed tasks kept for replay: 9 (2 groups)" in text
    assert text.index("8 ✖ ValueError in publish") < text.index("1 ✖ OSError in publish")
    assert "and 3 more" in text
    assert "Traceback (most recent call last): boom" in text


def test_functions_have_figures_of_their_own() -> None:
    """Count, failures, median and p95; where attempts were missed, each has its share of the rate
    that the counters tell."""
    ran = [event(id=f"a{n}", state="succeeded", run_ms=float(n)) for n in range(100)]
    bad = [event(id=f"b{n}", name="publish", state="failed", run_ms=None) for n in range(25)]
    rows = functions_of([*ran, *bad], NOW)
    assert [(row.name, row.count, row.failed) for row in rows] == [
        ("resize", 100, 0),
        ("publish", 25, 25),
    ]
    assert (rows[0].p50_ms, rows[0].p95_ms, rows[1].p50_ms) == (50, 95, None)
    assert rows[0].rate == 100.0
    assert functions_of([*ran, *bad], NOW, 500.0)[0].rate == 400.0
    assert "25 (100%)" in functions(view(events=(*ran, *bad)))


def test_the_timeline_draws_attempts_in_lanes() -> None:
    """Two that overlap are in two lanes, short ones side by side are one bar; on hovering each says
    what it is; a still picture is an image with a sentence."""
    seen = [
        event(id="fetch:7", finished_ms=NOW - 1_000, run_ms=2_000.0, state="failed"),
        event(id="fetch:8", finished_ms=NOW - 500, run_ms=2_000.0, state="succeeded"),
        *(event(id=f"s{n}", finished_ms=NOW - 4_000 - n, run_ms=1.0) for n in range(20)),
    ]
    drawn = timeline(view(events=tuple(seen)))
    titles = re.findall("<title>(.*?)</title>", drawn)
    assert "resize fetch #7: failed, 2.0 s" in titles
    assert "20 × resize: retried, within 20 ms" in titles
    assert len(set(re.findall(r'rect y="(\d+)" height="9"', drawn))) == 3  # one more runs now
    still = timeline(view(events=tuple(seen), live=False))
    assert "<svg" not in still
    assert 'alt="host:abc: 23 attempts, ' in still


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"workers": []}, "376 tasks wait and no worker is listening on queue 'images'"),
        (
            {"workers": [], "ready": 0, "pending": 0},
            "6 tasks delayed and no worker to move them",
        ),
        ({"paused": True}, "Paused: no worker starts another task until you resume. 2 tasks in"),
        (
            {"ready": 0, "pending": 0, "delayed": 0, "next_due_ms": None},
            "Nothing waits and nothing runs. 1 worker ready.",
        ),
        ({"next_due_ms": NOW - 60_000}, "A delayed task is 1 min late: no scheduler moves it."),
        (
            {"workers": [WorkerRow("host:x", NOW - 4_000, 3, {})]},
            "Worker host:x is silent: its heartbeat is 14 s old. 3 tasks in its hands",
        ),
    ],
)
def test_hard_states_have_a_sentence(more: dict[str, Any], sentence: str) -> None:
    """Who looks at a queue that stands still reads why, and what to do."""
    seen = view(tick(snapshot(**more)))
    assert any(sentence in said for _, said in alerts(seen)), alerts(seen)
    assert sentence in plain(seen)


def test_a_server_that_is_away_is_said_first() -> None:
    """The old figures stay, under a sentence that says how old they are."""
    seen = view(problem="No answer from redis://host for 8 s; asking again.")
    assert alerts(seen)[0][1].startswith("✖ No answer from redis://host for 8 s")
    assert "no connection" in page.head(seen)
    nothing = View(queue="q", url="u", problem="No answer")
    assert "No answer" in page.page(nothing)
    assert "No answer" in line(nothing)


def test_a_healthy_queue_has_no_warning() -> None:
    """No alert where there is nothing to say."""
    assert alerts(view()) == []


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "–"),
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1.0 s"),
        (9_949, "9.9 s"),
        (45_000, "45 s"),
        (185_000, "3 min 5 s"),
        (3_600_000, "1 h"),
        (7_800_000, "2 h 10 min"),
        (200_000_000, "2 d 7 h"),
    ],
)
def test_durations_read_well(ms: float | None, text: str) -> None:
    """Two figures at most, in the unit that a person would use."""
    assert duration(ms) == text


def test_rates_come_from_counters_and_survive_a_reset() -> None:
    """A queue that was deleted counts from 0 again; that is no negative throughput."""
    trail = [Point(0, 0, 100), Point(1000, 0, 150), Point(2000, 0, 0)]
    assert [round(rate) for _, rate in rates(trail, 500)] == [50, 0]


class Played:
    """A monitor whose ticks are given: the answers of a server, or of one after the other."""

    queue = "images"
    url = "redis://host:6379/0"
    broker = SimpleNamespace(call=lambda _: b"")

    def __init__(self, *ticks: Tick | Exception) -> None:
        self.ticks = list(ticks)
        self.asked: list[tuple[str | None, dict[str, int]]] = []

    def tick(self, after: str | None, **limits: int) -> Tick:
        self.asked.append((after, limits))
        found = self.ticks.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def at(seconds: float, **more: Any) -> Tick:
    """A tick so long after NOW."""
    return tick(snapshot(now_ms=NOW + int(seconds * 1000)), **more)


def test_a_feed_keeps_the_last_minute_of_one_server() -> None:
    """Points older than the sparkline go; where time went back another server answers, and the
    trail begins anew, while a clock that is set back by less keeps it."""
    monitor = Played(at(0), at(1), at(66), at(65.5), at(-30))
    feed = Feed(monitor, fresh_s=0.0)  # type: ignore[arg-type]
    sizes = []
    for _ in range(5):
        feed.ask()
        sizes.append(len(feed.trail))
    assert sizes == [1, 2, 2, 3, 1]
    assert [after for after, _ in monitor.asked] == [None, "1-0", "1-0", "1-0", "1-0"]


def test_a_feed_says_what_failed_until_there_is_an_answer() -> None:
    """``refresh`` keeps the trouble and the last tick, ``ask`` raises it; an answer ends it."""
    away = ServerUnavailable("no answer from redis://host:6379/0")
    monitor = Played(at(0), away, away, at(1))
    feed = Feed(monitor, fresh_s=0.0, events=200)  # type: ignore[arg-type]
    feed.refresh()
    feed.refresh()
    assert feed.trouble == str(away)
    assert feed.tick is not None
    assert "No answer from redis://host:6379/0 for 0 s; asking again." in feed.view().problem
    with pytest.raises(ServerUnavailable):
        feed.ask()
    feed.refresh()
    assert (feed.trouble, feed.failing_since, feed.view().problem) == ("", None, "")
    assert {limits["events"] for _, limits in monitor.asked} == {200}


def test_a_fresh_picture_is_shared() -> None:
    """Two dashboards that refresh within a moment ask once, unless a button changed something."""
    monitor = Played(at(0), at(1))
    feed = Feed(monitor)  # type: ignore[arg-type]
    feed.refresh()
    feed.refresh()
    assert len(monitor.asked) == 1
    feed.forget_age()
    feed.refresh()
    assert len(monitor.asked) == 2


def test_only_new_failed_tasks_are_read(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came since the last look, and all of them where one went in between."""
    asked: list[int] = []
    real = farm.monitor.records.dead

    def dead(n: int, *, full: bool) -> list[DeadLetter]:
        asked.append(n)
        return real(n, full=full)

    monkeypatch.setattr(farm.monitor.records, "dead", dead)
    feed = Feed(farm.monitor, deep=True)
    for count, gone, wanted in ((5, "", [200]), (3, "", [4]), (0, "", []), (2, "f1", [2, 200])):
        ids = [f"f{len(feed.letters) + n + 1}" for n in range(count)]
        farm.producer.add_tasks({"type": "work", "task_id": task_id} for task_id in ids)
        error = {"type": "ValueError", "message": "no", "traceback": ""}
        farm.settle("w1", farm.fetch("w1"), error=error)
        if gone:
            assert farm.monitor.purge(gone) == 1
        asked.clear()
        feed.forget_age()
        feed.ask()
        assert asked == wanted
        assert [each.id for each in feed.letters] == [each.id for each in real(200, full=False)]


def test_the_text_has_the_facts_of_the_page() -> None:
    """Line by line: figures, batches, failures by group with their newest, functions, workers,
    schedules; a table's columns stand under each other, and no picture or traceback is in it."""
    batch = BatchRow("b1", "demo", 1000, 612, 4, 0, 9, NOW - 12_000, None)
    rows = (scheduled("late", next_ms=NOW - 60_000),)
    seen = view(tick(batches=(batch,), schedules=rows), events=(event(),), letters=tick().dead)
    lines = plain(seen).splitlines()
    for said in (
        "images redis://host:6379/0 · snapshot · updated 14:13:20 UTC",
        "demo · 616 of 1,000 (62%) · ▶ running · 4 failed · 9 retried · nothing ended lately · "
        "for 12 s",
        "1 ✖ ValueError in publish · last 1 min ago · no such album",
        '  14:12:20 publish {"n":9} ✖ failed ValueError: no such album',
        "  resize        1       0        1       1.5 s  30 ms  30 ms  1.0/s",
        "  14:13:19     resize t2  ↻ retried   1.5 s  30 ms  OSError",
    ):
        assert said in lines, (said, lines)
    text = "\n".join(lines)
    assert "52/s ≫ throughput done in 7.2 s" in text
    assert 'resize {"n":1} 1.5 s · attempt 2' in text
    assert "⚠ 1 min late" in text
    assert "Traceback" not in text
    assert "60 s ago" not in text


# -- what it must never do -----------------------------------------------------------------------


def test_hostile_text_is_shown_as_text() -> None:
    """Names, payloads, errors, tracebacks, workers, queues and batches are anybody's input: no
    element and no attribute comes from them, and what turns text around is made visible."""
    worker = WorkerRow(HOSTILE, NOW + 9_000, 1, dict.fromkeys(("host", "pid"), HOSTILE))
    silent = WorkerRow(HOSTILE + "2", NOW - 9_000, 1, {})
    seen = view(
        tick(
            snapshot(workers=[worker, silent]),
            running=(Running("1", HOSTILE, HOSTILE, HOSTILE, 1, 0, NOW, True, HOSTILE),),
            dead=(DeadLetter(HOSTILE, HOSTILE, NOW, 1, HOSTILE, None, *((HOSTILE,) * 4)),),
            batches=(BatchRow(HOSTILE, HOSTILE, 1, 0, 0, 0, 0, NOW, None),),
        ),
        queue=HOSTILE,
        url=HOSTILE,
        recent=(event(name=HOSTILE, note=HOSTILE, state=HOSTILE, worker=HOSTILE),),
        events=(event(id=HOSTILE, name=HOSTILE, note=HOSTILE, state="failed", worker=HOSTILE),),
        letters=(DeadLetter(HOSTILE, HOSTILE, NOW, 1, HOSTILE, None, *((HOSTILE,) * 4)),),
        previews={HOSTILE: HOSTILE},
        problem=HOSTILE,
        notice=HOSTILE,
        ended=HOSTILE,
    )
    whole = page.page(seen)
    reader = Reader(whole)
    assert set(reader.tags) <= ALLOWED | DRAWN
    names = {name for name, _ in reader.attributes}
    known = {
        "style",
        "scope",
        "src",
        "alt",
        "role",
        "aria-label",
        "aria-hidden",
        "class",
        "data-key",
    }
    assert names <= known | PLACES
    still = Reader(page.page(replace(seen, live=False)))
    assert set(still.tags) <= ALLOWED
    assert reader.text.count("<script>alert(1)</script>") >= 12
    assert "\u202e" not in whole
    assert "\u202e" not in plain(seen)


def test_text_is_cut_and_control_characters_are_seen() -> None:
    """A name of a megabyte is no page of a megabyte."""
    assert clean("a" * 1000) == "a" * 59 + "…"
    assert clean("a\x00b\x1b[31mc") == "a\ufffdb\ufffd[31mc"
    long = replace(tick().dead[0], traceback="x" * 100_000, error="y" * 100_000)
    assert len(failed.letter(long)) < 8_000


def test_a_large_queue_renders_fast_and_small() -> None:
    """Ten thousand attempts and a thousand workers: a page of bounded size in milliseconds."""
    workers = [WorkerRow(f"host:{n}", NOW + 9_000, 4, {"threads": "4"}) for n in range(1000)]
    running = tuple(
        Running(f"{n}-0", f"t{n}", "resize", f"host:{n}", 1, 0, NOW, True, "{}") for n in range(64)
    )
    seen = view(
        tick(snapshot(ready=10_000, workers=workers, workers_total=1000), running=running),
        recent=tuple(event(id=str(n)) for n in range(10_000)),
        trail=tuple(Point(NOW - 60_000 + 500 * n, n, n) for n in range(121)),
    )
    best = min(_timed(lambda: page.page(seen)) for _ in range(5))
    assert best < 0.05
    assert len(page.page(seen)) < 50_000
    assert "(the first 12 of 1,000)" in tables.workers(seen)


def _timed(function: Callable[[], Any]) -> float:
    began = time.thread_time()  # of a busy machine others have their share
    function()
    return time.thread_time() - began


def test_every_colour_stands_out_on_white_and_on_black() -> None:
    """3:1 at least, which is what graphics need, in JupyterLab's light and dark theme."""

    def light(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for color in {WARNING, *(face.color for face in LOOKS.values())}:
        for ground in ("#ffffff", "#111111"):
            a, b = sorted((light(color), light(ground)))
            assert (b + 0.05) / (a + 0.05) >= 3.0, (color, ground)


# -- in a notebook, played ------------------------------------------------------------------------


class Stage:
    """Plays the notebook: takes what is displayed, and tells of ended cells."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def publish(self, **message: Any) -> None:
        self.messages.append(message)

    @property
    def html(self) -> str:
        """The newest HTML that was published."""
        return str(self.messages[-1]["data"]["text/html"])


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A played notebook; afterwards no thread and no comm of a dashboard may be left. What another
    test has just seen of a queue of the same name is not shown."""
    comm = pytest.importorskip("comm")
    pytest.importorskip("ipywidgets")
    from redistq.dashboard import feed
    from redistq.dashboard.refresher import refresher
    from redistq.display import notebook

    played = Stage()
    monkeypatch.setattr(notebook, "publish", played.publish)
    monkeypatch.setattr(feed, "_feeds", weakref.WeakValueDictionary())
    before = set(comm.get_comm_manager().comms)
    yield played
    for panel in refresher.panels():
        panel.end("the test is over")
    assert not ui_threads()
    assert set(comm.get_comm_manager().comms) <= before


def ui_threads() -> list[threading.Thread]:
    """The dashboard's threads."""
    return [thread for thread in threading.enumerate() if thread.name == "redistq-ui"]


def wait(condition: Callable[[], Any], failure: str, seconds: float = 15.0) -> None:
    """Wait for the refresher's thread, which has no signal for us."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.02)


def seen_by(panel: Any, front_ends: int) -> None:
    """Say, as a front end would, how many show a dashboard."""
    panel.widgets["root"].set_trait("_view_count", front_ends)


def opened(source: Any, **options: Any) -> Any:
    """A dashboard that is shown, with its panel."""
    from redistq.dashboard import Dashboard

    made = Dashboard(source, mode=options.pop("mode", "widget"), **options)
    made._ipython_display_()
    if made.mode == "widget":
        seen_by(made.panel, 1)  # as the front end says when it shows it
    return made


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer of the queue that is looked at."""
    with TaskProducer(url=url, stream="seen") as made:
        yield made


def test_it_shows_figures_that_move(stage: Stage, producer: TaskProducer) -> None:
    """What is added appears within moments, by the one thread of all dashboards; the bundle has
    HTML and text beside the widget, for whoever has no widgets."""
    made = opened(producer)
    assert sorted(stage.messages[0]["data"]) == [
        "application/vnd.jupyter.widget-view+json",
        "text/html",
        "text/plain",
    ]
    panel = made.panel
    producer.add_tasks(("resize", n) for n in range(7))
    wait(
        lambda: "7 tasks wait and no worker" in panel.widgets["head"].value,
        "the figures stand still",
    )
    assert len(ui_threads()) == 1
    assert made.live
    made.close()
    made.close()
    assert not made.live
    assert not ui_threads()
    assert "stopped: closed" in stage.html
    assert sorted(stage.messages[-1]["data"]) == ["text/html", "text/plain"]


def test_buttons_do_what_they_say(stage: Stage, producer: TaskProducer) -> None:
    """Pause and resume at once; retry and cancel only after a yes."""

    def fail(_: Any) -> None:
        raise ValueError("on purpose")

    panel = opened(producer).panel
    with TaskWorker(url=str(producer.address), stream="seen", task_handlers={"fail": fail}):
        producer.add_task("fail", retries=0)
        wait(
            lambda: "ValueError" in panel.layout.groups.rows[0].line.value,
            "not shown",
        )
    producer.add_tasks({"type": "x", "delay": delay} for delay in (None, None, 3600))

    panel.widgets["pause"].click()
    wait(lambda: producer.snapshot().paused, "not paused")
    wait(lambda: panel.widgets["pause"].description == "Resume", "the button still says Pause")
    panel.widgets["pause"].click()
    wait(lambda: not producer.snapshot().paused, "not resumed")

    wait(
        lambda: panel.widgets["cancel"].description == "Cancel not started (3)", "it does not count"
    )
    panel.widgets["cancel"].click()
    wait(lambda: panel.widgets["confirm"].layout.display == "flex", "it does not ask")
    assert "Cancel 3 tasks not started?" in panel.widgets["question"].value
    panel.widgets["no"].click()
    wait(lambda: panel.widgets["confirm"].layout.display == "none", "it asks on")
    assert producer.snapshot().ready == 2
    panel.widgets["cancel"].click()
    panel.widgets["yes"].click()
    wait(lambda: "3 tasks cancelled" in panel.widgets["notice"].value, "it did not cancel")
    assert (producer.snapshot().ready, producer.snapshot().delayed) == (0, 0)

    panel.widgets["retry"].click()
    panel.widgets["yes"].click()
    wait(lambda: "1 failed task sent again" in panel.widgets["notice"].value, "it did not retry")
    assert (producer.snapshot().ready, producer.snapshot().dead) == (1, 0)


def test_a_limit_key_is_paused_and_resumed(producer: TaskProducer, stage: Stage) -> None:
    """The key that is chosen, which stays chosen while others come; without limits nothing is
    offered."""
    panel = opened(producer).panel
    wait(lambda: "Nothing waits" in panel.widgets["head"].value, "it does not show")
    assert panel.widgets["keys"].layout.display == "none"
    assert panel.widgets["limits"].value == ""
    producer.limits.set("k", at_most=1)
    wait(lambda: panel.widgets["keys"].layout.display == "flex", "no key is offered")
    assert panel.widgets["key"].value == "k"
    panel.widgets["key_pause"].click()
    wait(lambda: panel.widgets["key_pause"].description == "Resume key", "it is not paused")
    assert "k is paused" in panel.widgets["notice"].value
    producer.limits.set("a", at_most=1)
    producer.add_tasks({"type": "x", "limits": "a"} for _ in range(3))
    wait(lambda: panel.widgets["key"].options == ("a", "k"), "the other key is not offered")
    assert panel.widgets["key"].value == "k"
    assert "Waiting: 2; 2 for limits" in panel.widgets["limits"].value
    panel.widgets["key_pause"].click()
    wait(lambda: panel.widgets["key_pause"].description == "Pause key", "it is not resumed")
    wait(
        lambda: panel.widgets["cancel"].description == "Cancel not started (3)", "it does not count"
    )


def test_a_schedule_is_paused_resumed_and_run(producer: TaskProducer, stage: Stage) -> None:
    """The one that is chosen; without schedules nothing is offered."""
    panel = opened(producer).panel
    wait(lambda: "Nothing waits" in panel.widgets["head"].value, "it does not show")
    assert panel.widgets["agenda"].layout.display == "none"
    assert panel.widgets["schedules"].value == ""
    producer.schedules.set("nightly", cron="0 3 * * *", task="x")
    producer.schedules.set("hourly", every="1h", task="x")
    wait(lambda: panel.widgets["schedule"].options == ("hourly", "nightly"), "none is offered")
    panel.widgets["schedule"].value = "nightly"
    panel.widgets["schedule_pause"].click()
    wait(lambda: panel.widgets["schedule_pause"].description == "Resume schedule", "not paused")
    assert "Schedule nightly is paused" in panel.widgets["notice"].value
    assert "‖ paused" in panel.widgets["schedules"].value
    assert producer.schedules["nightly"].paused
    panel.widgets["schedule_pause"].click()
    wait(lambda: panel.widgets["schedule_pause"].description == "Pause schedule", "not resumed")
    panel.widgets["schedule_run"].click()
    wait(lambda: "is added" in panel.widgets["notice"].value, "it is not run")
    assert producer.schedules["nightly"].fired == 1
    wait(lambda: "queued" in panel.widgets["schedules"].value, "its last task is not shown")
    panel.widgets["schedule_run"].click()
    wait(lambda: "has not ended" in panel.widgets["notice"].value, "it is run twice")


def test_a_button_pressed_while_the_server_is_away_says_so(
    stage: Stage, private_server: Callable[..., Server]
) -> None:
    """Nothing is promised: the notice says that it did not work, and the dashboard recovers."""
    server = private_server()
    with TaskProducer(url=server.url, stream="seen") as producer:
        panel = opened(producer).panel
        wait(lambda: "Nothing waits" in panel.widgets["head"].value, "it does not show")
        server.kill()
        wait(lambda: "No answer from" in panel.widgets["head"].value, "it does not notice")
        assert panel.widgets["pause"].disabled
        panel.widgets["pause"].click()  # as if it had been pressed a moment before
        wait(lambda: "That did not work" in panel.widgets["notice"].value, "it does not say so", 30)
        server.start()
        wait(lambda: "Nothing waits" in panel.widgets["head"].value, "it does not recover", 30)
        assert not panel.widgets["pause"].disabled


def test_what_is_open_stays_open(stage: Stage) -> None:
    """A group keeps its place on the page while others come and go, and each of its failed tasks
    its widget, so that an open traceback is not redrawn; of 30, five more are shown on demand."""
    from redistq.dashboard.slots import GroupRows
    from redistq.dashboard.widgets import close

    one = tick().dead[0]
    commands: list[str] = []
    groups = GroupRows(commands.append)

    def show(*numbers: int, others: int = 0) -> None:
        dead = tuple(replace(one, id=f"t{n}", died_ms=NOW + n) for n in numbers)
        dead += tuple(replace(one, id=f"o{n}", error_type="OSError") for n in range(others))
        groups.render(view(letters=dead), False, lambda each: each)

    show(1)
    row = groups.rows[0]
    row.buttons[0].click()
    assert commands == ["group-open ValueError\npublish"]
    groups.turn("ValueError\npublish")
    show(1)
    first = row.letters[f"t1 {NOW + 1}"]
    assert "task t1 " in first.value
    show(4, 3, 2, 1, others=9)
    assert row.letters[f"t1 {NOW + 1}"] is first
    assert [each.key for each in groups.rows[:2]] == ["ValueError\npublish", "OSError\npublish"]
    assert (row.box.layout.order, groups.rows[1].box.layout.order) == ("1", "0")
    show(*range(30, 0, -1))
    assert len(row.letters) == 5
    assert row.more.layout.display == "inline-flex"
    groups.more("ValueError\npublish")
    show(*range(30, 0, -1))
    assert len(row.letters) == 10
    groups.turn("ValueError\npublish")
    show(1)
    assert row.letters == {}
    for widget in groups.widgets():
        close(widget)
    close(groups.box)


def test_groups_and_batches_have_buttons(stage: Stage, producer: TaskProducer) -> None:
    """A group of failures is sent again after a yes, and no other; the failures of a batch are;
    what of a batch has not started is cancelled."""

    def fail(payload: Any) -> None:
        raise (OSError if payload else ValueError)("on purpose")

    panel = opened(producer).panel
    url = str(producer.address)
    with TaskWorker(url=url, stream="seen", task_handlers={"fail": fail}):
        producer.add_tasks({"type": "fail", "payload": n > 1, "retries": 0} for n in range(4))
        wait(lambda: panel.layout.groups.rows[1].key, "two groups are not shown")
    group = next(row for row in panel.layout.groups.rows if row.key.startswith("OSError"))
    group.buttons[0].click()
    wait(lambda: len(group.letters) == 2, "it does not open")
    assert all("in fail" in each.value for each in group.letters.values())
    group.buttons[1].click()
    wait(lambda: panel.widgets["confirm"].layout.display == "flex", "it does not ask")
    panel.widgets["yes"].click()
    wait(lambda: "2 failed tasks sent again" in panel.widgets["notice"].value, "not sent again")
    assert producer.snapshot().dead == 2

    with producer.graph("nightly") as graph:
        for n in range(5):
            graph.add("step", n, delay=3600)
    wait(lambda: panel.layout.batches.rows[0].key == "nightly", "the graph is not shown")
    row = panel.layout.batches.rows[0]
    wait(lambda: "graph of 1 layer" in row.line.value, "its line is not shown")
    row.buttons[1].click()
    wait(lambda: panel.widgets["confirm"].layout.display == "flex", "it does not ask")
    panel.widgets["yes"].click()
    wait(lambda: "5 tasks of nightly cancelled" in panel.widgets["notice"].value, "not cancelled")


def test_several_queues_are_one_dashboard(stage: Stage, producer: TaskProducer) -> None:
    """A row of each, above the one that is chosen; its buttons act on that queue alone. A queue
    that is added is there soon; one that it was not given cannot be chosen."""
    url = str(producer.address)
    producer.add_task("x")
    with TaskProducer(url=url, stream="other") as other:
        other.add_tasks(("y", n) for n in range(3))
        made = opened(url, queues="*")
        panel = made.panel
        wait(lambda: "▸ <strong>other" in panel.widgets["overview"].value, "nothing is chosen")
        assert panel.widgets["tabs"].options == (("other", "other"), ("seen", "seen"))
        assert "Queues: 2" in stage.messages[0]["data"]["text/html"]
        assert "other  ✖ no worker" in made.text()
        panel.widgets["cancel"].click()
        wait(lambda: panel.widgets["confirm"].layout.display == "flex", "it does not ask")
        panel.widgets["tabs"].value = "seen"
        wait(lambda: "▸ <strong>seen" in panel.widgets["overview"].value, "it is not chosen")
        assert made.queue == "seen"
        wait(lambda: "(1)" in panel.widgets["cancel"].description, "it shows the other")
        assert panel.widgets["confirm"].layout.display == "none"  # that was of the other
        panel.widgets["pause"].click()
        wait(lambda: producer.snapshot().paused, "not paused")
        assert not other.snapshot().paused
    with TaskProducer(url=url, stream="new") as new:
        new.add_task("z")
    wait(lambda: len(panel.widgets["tabs"].options) == 3, "a new queue is not found")
    made.choose("new")
    wait(lambda: made.panel.feed.monitor.queue == "new", "it is not shown")
    with pytest.raises(ConfigurationError, match="none of this dashboard's: new, other, seen"):
        made.choose("nothing")
    made.close()
    from redistq.dashboard import Dashboard

    few = Dashboard(producer, queues=["other", "seen"])
    assert few.queue == "other"
    assert few.html().count("▸") == 1
    for wrong in ({"queues": "other"}, {"queues": []}, {"queue": "a", "queues": "*"}):
        with pytest.raises(ConfigurationError):
            Dashboard(url, **wrong)
    with pytest.raises(ConfigurationError, match="has one queue"):
        Dashboard(producer).choose("other")


def test_it_ends_when_its_output_is_cleared(
    stage: Stage, producer: TaskProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by one front end, then by none: it leaves nothing behind, though it is still kept."""
    from redistq.dashboard import widget_panel

    monkeypatch.setattr(widget_panel, "GONE_AFTER_S", 0.2)
    made = opened(producer)
    seen_by(made.panel, 0)
    wait(lambda: not ui_threads(), "it goes on")
    assert not made.live
    assert "stopped: its output was cleared" in stage.html


def test_it_ends_when_nobody_keeps_or_sees_it(
    stage: Stage, producer: TaskProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deleted dashboard that no front end shows ends; one that is shown goes on."""
    from redistq.dashboard import widget_panel

    monkeypatch.setattr(widget_panel, "UNSEEN_AFTER_S", 0.2)
    made = opened(producer)
    panel = made.panel
    del made
    gc.collect()
    time.sleep(0.8)  # what must not happen has no signal: longer than it would have taken
    assert not panel.ended
    panel.audience.seen = False  # as if the view had never been
    seen_by(panel, 0)
    wait(lambda: not ui_threads(), "it goes on")
    assert "stopped: nobody keeps it" in stage.html


def test_it_ends_when_a_cell_is_interrupted(stage: Stage, producer: TaskProducer) -> None:
    """A KeyboardInterrupt in any cell stops all dashboards; other errors do not."""
    from redistq.display import notebook

    first, second = opened(producer), opened(producer)
    notebook.cells.after_cell(SimpleNamespace(error_in_exec=ValueError()))
    time.sleep(0.7)  # what must not happen has no signal: more than one refresh
    assert first.live
    assert second.live
    notebook.cells.after_cell(SimpleNamespace(error_in_exec=KeyboardInterrupt()))
    wait(lambda: not ui_threads(), "it goes on")
    assert not first.live
    assert not second.live
    assert "stopped: the kernel was interrupted" in stage.html


def test_dashboards_share_one_thread_and_one_call(stage: Stage, producer: TaskProducer) -> None:
    """Two dashboards of one queue: one feed, one thread; closing one leaves the other."""
    first, second = opened(producer), opened(TaskMonitor(url=str(producer.address), stream="seen"))
    assert first.feed is second.feed
    assert len(ui_threads()) == 1
    first.close()
    assert second.live
    assert len(ui_threads()) == 1
    second.close()
    assert not ui_threads()


def test_shown_twice_is_one_dashboard(stage: Stage, producer: TaskProducer) -> None:
    """Displayed again it shows the same widgets once more; closed and displayed, new ones."""
    made = opened(producer)
    made._ipython_display_()
    models = [m["data"]["application/vnd.jupyter.widget-view+json"] for m in stage.messages]
    assert models[0] == models[1]
    made.close()
    assert len(stage.messages) == 4  # a last picture in both places
    made._ipython_display_()
    assert made.live
    made.close()


def test_a_faulty_panel_does_not_end_the_others(
    stage: Stage, producer: TaskProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody foresaw is shown, and the thread goes on."""
    panel = opened(producer).panel
    monkeypatch.setattr(panel, "_look", None)
    wait(lambda: "TypeError" in panel.notice, "the fault is not shown")
    other = opened(producer)
    producer.add_task("x")
    wait(lambda: "1 task waits" in other.panel.widgets["head"].value, "the others stand still")
    monkeypatch.undo()


def test_html_mode_is_live_without_widgets(stage: Stage, producer: TaskProducer) -> None:
    """Pictures that take each other's place: no widget, no comm."""
    made = opened(producer, mode="html")
    producer.add_task("x")
    wait(lambda: "1 task waits" in stage.html, "it stands still")
    assert stage.messages[-1]["update"]
    made.close()
    assert "stopped: closed" in stage.html
    assert not ui_threads()


def test_static_and_text_leave_nothing_running(
    stage: Stage, producer: TaskProducer, capsys: pytest.CaptureFixture[str]
) -> None:
    """One picture, or a few lines; no thread either way, and none for a repr."""
    producer.add_task("x")
    made = opened(producer, mode="static")
    assert "1 … queued" in re.sub(r"\s+", " ", Reader(stage.html).text)
    opened(producer, mode="text")
    assert "1 … queued" in capsys.readouterr().out
    assert "1 … queued" in re.sub(r"\s+", " ", Reader(made._repr_html_()).text)
    assert repr(made).startswith("Dashboard(seen: 1 queued")
    assert not ui_threads()


def test_outside_a_notebook_it_is_text(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain IPython has no front end that could show more."""
    opened(url, queue="alone", mode="auto")
    said = capsys.readouterr().out
    assert said.startswith("alone redis://")
    assert "0 … queued" in said


def test_what_cannot_work_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong mode, a refresh above twice a second, a source that knows no queue."""
    from redistq.dashboard import Dashboard

    with pytest.raises(ConfigurationError, match=r"at least 0\.5"):
        Dashboard(url, refresh=0.1)
    with pytest.raises(ConfigurationError, match="not object"):
        Dashboard(object())
    with (
        TaskProducer(url=url) as known,
        pytest.raises(ConfigurationError, match="knows its server"),
    ):
        Dashboard(known, queue="other")
    monkeypatch.setenv("REDISTQ_DASHBOARD", "wonderful")
    with pytest.raises(ConfigurationError, match="REDISTQ_DASHBOARD"):
        Dashboard(url)


def test_all_that_knows_its_queue_is_a_source(url: str) -> None:
    """A URL with a queue, a monitor, a producer and a worker lead to the same feed."""
    from redistq.dashboard import Dashboard

    worker = TaskWorker(url=url, stream="seen", task_handlers={"x": print})
    with TaskProducer(url=url, stream="seen") as a, TaskMonitor(url=url, stream="seen") as b:
        made = [Dashboard(url, queue="seen"), Dashboard(a), b.dashboard(), Dashboard(worker)]
        assert len({id(dashboard.feed) for dashboard in made}) == 1
        assert {dashboard.queue for dashboard in made} == {"seen"}


# -- in a real kernel ----------------------------------------------------------------------------

LOOK = """
import comm, threading
print("left", sum(t.name == "redistq-ui" for t in threading.enumerate()),
      len(comm.get_comm_manager().comms))
"""


class Kernel:
    """A real kernel without a front end."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def run(self, code: str, on_busy: Callable[[], None] | None = None) -> list[dict[str, Any]]:
        """All messages of one cell, comm messages of other threads among them."""
        wanted, found = self.client.execute(code), []
        if on_busy is not None:
            on_busy()
        while True:
            message = self.client.get_iopub_msg(timeout=30)
            found.append(message)
            if (
                message["msg_type"] == "status"
                and message["parent_header"].get("msg_id") == wanted
                and message["content"]["execution_state"] == "idle"
            ):
                return found

    def printed(self, code: str) -> str:
        """What a cell prints."""
        messages = self.run(code)
        return "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")


@pytest.fixture
def kernel(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> Iterator[tuple[Any, Kernel]]:
    """A kernel whose server is the test's, and its manager."""
    pytest.importorskip("ipykernel")
    manager_module = pytest.importorskip("jupyter_client.manager")
    monkeypatch.setenv("REDISTQ_URL", url)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    manager, client = manager_module.start_new_kernel(kernel_name="python3")
    try:
        yield manager, Kernel(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_in_a_kernel_it_refreshes_while_a_cell_is_busy_and_stops_at_an_interrupt(
    kernel: tuple[Any, Kernel], db: Any
) -> None:
    """At most twice a second, from its thread, while the cell sleeps; ■ ends it; deleting one that
    nobody sees ends it too. No thread and no comm is left."""
    manager, cells = kernel
    cells.run(
        "import time\nfrom redistq.dashboard import Dashboard\nd = Dashboard(queue='seen')\nd"
    )
    assert cells.printed(LOOK).startswith("left 1 ")
    # Nobody looks, as far as it knows, and after a while it is refreshed every five seconds. Play
    # the front end that looks: from now on it must be refreshed twice a second.
    time.sleep(1.0)
    cells.run(
        "d.panel.widgets['root'].set_trait('_view_count', 1); from redistq import TaskProducer"
    )
    busy = cells.run(
        "p = TaskProducer(stream='seen')\nfor _ in range(30): p.add_task('x'); time.sleep(0.1)"
    )
    heads = [
        message
        for message in busy
        if message["msg_type"] == "comm_msg"
        and "… queued" in message["content"]["data"].get("state", {}).get("value", "")
    ]
    assert 3 <= len(heads) <= 8

    def interrupt() -> None:
        time.sleep(0.5)  # the cell has to be running; the kernel says so only to its front end
        manager.interrupt_kernel()

    stopped = cells.run("time.sleep(30)", interrupt)
    assert "KeyboardInterrupt" in [m["content"].get("ename") for m in stopped]
    wait(lambda: cells.printed(LOOK) == "left 0 0\n", "something was left behind")

    cells.run("from redistq.dashboard import widget_panel\nwidget_panel.UNSEEN_AFTER_S = 0.3")
    cells.run("display(Dashboard(queue='seen'))")
    wait(lambda: cells.printed(LOOK) == "left 0 0\n", "a dashboard that nobody keeps goes on", 25)


# -- how far running tasks are -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("progress", "said", "width"),
    [
        (Progress(30, 120, "rows", 0, 30), "30 of 120 (25%), 1 min 30 s left · rows", "25.00%"),
        (Progress(0.5, 2, "", 0, 0), "0.5 of 2 (25%)", "25.00%"),
        (Progress(1500, None, "a\nb", 0, 30), "1,500 · a\nb", None),
        (Progress(9, 3, "", 0, 30), "9 of 3 (100%)", "100.00%"),
        (Progress(99, 100, "", 0, 30), "99 of 100 (99%)", "99.00%"),
    ],
)
def test_a_running_task_shows_how_far_it_is(
    progress: Progress, said: str, width: str | None
) -> None:
    """In words, with the time that is left, and as a bar where a total is known."""
    assert words.progress_said(progress, 30_000) == said
    task = Running("1-0", "t1", "resize", "host:abc", 1, 0, NOW, True, "{}", progress)
    reader = Reader(tables.workers(view(tick(running=(task,)))))
    bars = [v for k, v in reader.attributes if k == "style" and "width:" in v and "height:100" in v]
    assert bars == (
        []
        if width is None
        else [f"display:block;height:100%;width:{width};background:{RUNNING.color}"]
    )


def test_what_an_earlier_attempt_said_is_not_shown() -> None:
    """Of a task that was handed to another worker since."""
    assert progress_since(b"1 3 4 1000 2000 x", 2_500) is None
    assert progress_since(b"1 3 4 1000 2000 x", 2_000) == Progress(3, 4, "x", 1.0, 2.0, 1)
    assert progress_since("", 0) is None

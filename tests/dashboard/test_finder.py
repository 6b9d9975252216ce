"""Finding tasks, and one task with its buttons: what is found, what is shown, what is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from redistq import TaskFailed, TaskMonitor, TaskProducer, TaskWorker
from redistq.dashboard.feed import Feed
from redistq.dashboard.finder import rerun_line, search, task_page
from redistq.dashboard.finder_box import copy_button

QUEUE = "seen"


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A queue with one task that failed, one delayed, one queued and one that succeeded."""

    def fetch(payload: Any) -> None:
        if payload["page"] == 7:
            raise ConnectionError("no answer from <b>example.org</b>")

    with TaskProducer(url=url, stream=QUEUE) as made:
        with TaskWorker(url=url, stream=QUEUE, task_handlers={"fetch": fetch}):
            made.add_task("fetch", {"page": 7}, task_id="bad", retries=0)
            made.add_task("fetch", {"page": 1}, task_id="good")
            assert made.get_result("good", timeout=20) is None
            with pytest.raises(TaskFailed):
                made.get_result("bad", timeout=20)
        made.add_task("report", {"month": "May"}, task_id="later", delay=3600)
        made.add_task("publish", {"n": 3}, task_id="next")
        yield made


@pytest.fixture
def feed(producer: TaskProducer, url: str) -> Iterator[Feed]:
    """What a dashboard knows of it."""
    with TaskMonitor(url=url, stream=QUEUE) as monitor:
        found = Feed(monitor, deep=True)
        found.refresh()
        yield found


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("bad", ["bad"]),
        ("connectionerror", ["bad"]),
        ("EXAMPLE.org", ["bad"]),
        ('"page":7', ["bad"]),
        ("fetch", ["bad", "good"]),
        ("May", ["later"]),
        ("next", ["next"]),
        ("nowhere", []),
        ("  ", []),
    ],
)
def test_tasks_are_found_by_what_is_known_of_them(feed: Feed, text: str, ids: list[str]) -> None:
    """Name, id, argument and error, whatever the case; a queued one by its id."""
    assert [found.id for found in search(feed, text)] == ids


def test_a_task_shows_all_that_is_known_of_it(feed: Feed) -> None:
    """Attempts, arguments, error and traceback, as text."""
    task = feed.monitor.records.task("bad")
    shown = task_page(task, ["line 1", "<i>line 2</i>"])
    for part in ("fetch", "✖ failed", "&quot;page&quot;", "Traceback", "Output: 2 lines"):
        assert part.replace("&quot;", '"') in shown.replace("&quot;", '"'), part
    assert "<b>" not in shown
    assert "<i>" not in shown
    kept = task_page(replace(task, output=("<i>line 3</i>",)), [])
    assert "Output: 1 line" in kept
    assert "<i>" not in kept


def wait(condition: Callable[[], Any], failure: str) -> None:
    """Wait for the refresher's thread, which has no signal for us."""
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.02)


def test_a_task_is_opened_retried_edited_and_cancelled(
    producer: TaskProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searched in the field, chosen from the list, and each of its buttons does what it says."""
    pytest.importorskip("ipywidgets")
    from redistq.dashboard import Dashboard
    from redistq.display import notebook

    monkeypatch.setattr(notebook, "publish", lambda **_: None)
    made = Dashboard(producer, mode="widget")
    made._ipython_display_()
    panel: Any = made.panel
    panel.widgets["root"].set_trait("_view_count", 1)
    finder = panel.layout.finder
    notice = panel.widgets["notice"]
    try:
        finder.field.value = "connection"
        wait(lambda: "Traceback" in finder.detail.value, "the one that was found is not shown")
        assert finder.buttons["cancel"].layout.display == "none"
        finder.buttons["edit"].click()
        wait(lambda: '"page": 7' in finder.payload.value, "nothing to edit")
        finder.payload.value = "{"
        wait(lambda: not finder.buttons["send"].disabled, "Send is not there")
        finder.buttons["send"].click()
        wait(lambda: "are no JSON" in notice.value, "it takes what is no JSON")
        before = producer.snapshot().ready
        finder.payload.value = '{"page": 8}'
        finder.buttons["send"].click()
        wait(lambda: "is added, with other arguments than bad" in notice.value, "not sent")
        assert producer.snapshot().ready == before + 1
        finder.buttons["retry"].click()
        wait(lambda: "bad sent again" in notice.value, "not retried")
        assert producer.snapshot().dead == 0
        finder.field.value = "report"
        wait(lambda: "report" in finder.detail.value, "the delayed task is not shown")
        assert finder.buttons["cancel"].layout.display == "inline-flex"
        finder.buttons["cancel"].click()
        wait(lambda: "later: cancelled" in notice.value, "not cancelled")
        wait(lambda: "⊘ cancelled" in finder.detail.value, "it does not show it")
        finder.buttons["close"].click()
        wait(lambda: not finder.detail.value, "it is still shown")
        finder.field.value = "nowhere"
        wait(lambda: "Nothing was found" in notice.value, "it does not say so")
    finally:
        made.close()


def test_a_failed_call_is_copied_to_run_here(producer: TaskProducer) -> None:
    """Its line of code, whole, as text of an attribute; what is no function call has none."""
    with TaskMonitor(url=str(producer.address), stream=producer.keys.stream) as monitor:
        task = monitor.records.task("bad")
    assert rerun_line(task) == ""
    call = replace(task, id='a"b', name="redistq.call:fetch")
    line = "client.future('a\"b').rerun_here(debug=True)"
    assert rerun_line(call) == line
    assert 'data-code="client.future(&#x27;a&quot;b&#x27;)' in copy_button(line)
    assert "user-select:all" in task_page(call, [])
    assert rerun_line(replace(call, state="succeeded")) == ""

"""``redistq events``: a line an event, for people and for programs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

from redistq import TaskProducer, cli
from redistq.cli.events import line_of
from redistq.monitor.events import TaskEvent


def test_what_has_happened_is_printed(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The oldest first; JSON has cursors, from which it goes on."""
    with TaskProducer(url=url) as producer:
        first = producer.add_task("work", 1)
        second = producer.add_task("work", 2)
        producer.cancel(first)
    assert cli.main(["events", "--url", url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:4] for line in lines] == [
        ["added", first, "work"],
        ["ended", first, "work"],
        ["added", second, "work"],
    ]
    assert "cancelled" in lines[1]
    assert cli.main(["events", "--url", url, "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["type"] for event in events] == ["added", "ended", "added"]
    assert cli.main(["events", "--url", url, "--json", "--since", events[1]["cursor"]]) == 0
    assert [json.loads(capsys.readouterr().out)["id"]] == [second]
    assert cli.main(["events", "--url", url, "--since", "yesterday"]) == 2
    assert "cursor" in capsys.readouterr().err


def test_it_follows_a_queue_until_it_is_ended(url: str) -> None:
    """Each line is there as soon as the event is."""
    command = [sys.executable, "-m", "redistq", "events", "--url", url, "-f", "--since", "0"]
    listener = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watch = threading.Timer(30, listener.kill)
    watch.start()
    try:
        assert listener.stdout is not None
        with TaskProducer(url=url) as producer:
            task_id = producer.add_task("work")
            assert task_id in listener.stdout.readline()
            producer.cancel(task_id)
            assert "cancelled" in listener.stdout.readline()
    finally:
        watch.cancel()
        listener.terminate()
        listener.wait(10)
        listener.stdout.close()


def test_lines_say_what_there_is_to_say() -> None:
    """And hostile text stays text."""
    event = TaskEvent("progress", "", 0, "a", "x\x1b[2J", 2, worker="w", done=3, total=4, text="hi")
    line = line_of(event)
    assert line.startswith("00:00:00  progress   a  x")
    assert line.endswith("attempt 2, 3 of 4, hi, on w")
    assert "\x1b" not in line
    assert "missed" in line_of(TaskEvent("gap", "", 0))
    end = TaskEvent("ended", "", 0, "a", "x", 1, "failed", "w", 1500.0, "ValueError")
    assert line_of(end).endswith("failed, on w, after 1.5 s, ValueError")

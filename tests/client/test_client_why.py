"""A future that waits says what its task waits for, where there are workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import gate, serving
from support.workers import until

from redistq import ResultTimeout, TaskProducer


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """A client with one worker process."""
    with serving(1) as client:
        yield client


def test_a_future_under_a_paused_key_says_so(
    client: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """In the error of a wait that is over, in its repr, and once while it waits."""
    caplog.set_level(logging.INFO, "redistq")
    with TaskProducer(url=client.server.url) as producer:
        producer.limits.pause("printer")
        future = client.options(limits="printer").submit(abs, -2)
        words = f"task {future.task_id} waits until printer is resumed, 1st in line"
        with pytest.raises(ResultTimeout, match=words):
            future.result(1.5)
        assert "waits until printer is resumed" in repr(future)
        said = []

        def is_said() -> bool:
            said.append(capsys.readouterr().err)
            return f"still waiting: task {future.task_id} waits" in "".join(said) + caplog.text

        until(is_said, "it is said while it waits", 20)
        producer.limits.resume("printer")
        assert future.result(20) == 2


def test_a_future_does_not_give_the_reason_of_another(tmp_path: Path) -> None:
    """A name that no worker knows is none of the business of a function call beside it."""
    wait_for_it, let_go = gate(tmp_path)
    with serving(1) as client:
        call = client.submit(wait_for_it)
        unknown = client.submit("nobody", 1)
        with pytest.raises(ResultTimeout, match="knows no task 'nobody'"):
            unknown.result(1.5)
        assert "knows no task 'nobody'" in repr(unknown)
        assert repr(call).endswith(" pending>")
        let_go()
        call.result(20)


def test_a_parent_that_runs_is_said_to_run(client: Any, tmp_path: Path) -> None:
    """To wait for it is no fault; one that waits itself is named alone."""
    wait_for_it, let_go = gate(tmp_path)
    first = client.submit(wait_for_it)
    until(first.running, "it runs")
    urgent = client.options(priority="high").submit(abs, -3)
    child = client.submit(max, [first, urgent], default=0)
    with pytest.raises(
        ResultTimeout, match=rf"parents: {first.task_id} \(running\), {urgent.task_id} \(high\)$"
    ):
        child.result(1.5)
    let_go()
    assert urgent.result(20) == 3

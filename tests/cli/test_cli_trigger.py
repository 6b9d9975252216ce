"""``redistq trigger``: a task from a shell, its result, and exit codes that scripts can read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redistq import TaskProducer, TaskWorker
from redistq.cli import main

Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(url: str, capsys: pytest.CaptureFixture[str]) -> Said:
    """Run the command; its exit code and what it printed."""

    def run(*args: str) -> tuple[int, str, str]:
        code = main(["trigger", "--url", url, *args])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def worker(url: str) -> Iterator[None]:
    """A worker of the queue ``tasks``."""

    def add(a: int, b: int = 1) -> int:
        return a + b

    def fail(payload: Any) -> None:
        raise ValueError(f"no {payload}")

    handlers = {"double": lambda n: 2 * n, "add": add, "fail": fail}
    with TaskWorker(url=url, task_handlers=handlers, thread_count=1):
        yield


def test_it_prints_the_id_and_goes(said: Said, url: str) -> None:
    """Without --wait: the id, and the options arrive."""
    code, out, _ = said("resize", '{"path": "a"}', "--delay", "60", "--queue", "pictures")
    assert code == 0
    with TaskProducer(url=url, stream="pictures") as producer:
        assert producer.get_task(out.strip()).state == "delayed"
    code, out, _ = said("resize", "--task-id", "mine", "--unique", "k", "--expires", "5")
    assert (code, out) == (0, "mine\n")
    code, out, _ = said("resize", "--unique", "k", "--json")
    assert json.loads(out) == {"task_id": "mine", "state": "joined"}


def test_it_waits_for_the_result(said: Said, worker: None) -> None:
    """With --wait the result as JSON, whatever the shape of the task."""
    assert said("double", "[1]", "--wait")[:2] == (0, "[1, 1]\n")
    assert said("double", '"ab"', "--wait")[:2] == (0, '"abab"\n')
    assert said("add", "--args", "[1]", "--kwargs", '{"b": 4}', "--wait")[:2] == (0, "5\n")
    assert said("add", "--args", "[1]", "--wait")[:2] == (0, "2\n")
    code, out, _ = said("double", "2", "--wait", "--json")
    assert (code, json.loads(out)["result"]) == (0, 4)


def test_the_payload_may_come_from_a_pipe(
    said: Said, worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``-``."""
    monkeypatch.setattr("sys.stdin", io.StringIO("[1, 2]"))
    assert said("double", "-", "--wait")[:2] == (0, "[1, 2, 1, 2]\n")


def test_a_failure_has_a_code_of_its_own(said: Said, worker: None) -> None:
    """3, and the error on standard error; as JSON in the object."""
    code, out, err = said("fail", "7", "--retries", "0", "--wait")
    assert (code, out) == (3, "")
    assert "ValueError: no 7" in err
    code, out, _ = said("fail", "7", "--retries", "0", "--wait", "--json")
    assert (code, json.loads(out)["state"]) == (3, "failed")


def test_a_wait_ends(said: Said) -> None:
    """4 when the time is over; the task goes on."""
    code, out, err = said("nobody", "--wait", "--timeout", "0.05")
    assert (code, out) == (4, "")
    assert "was still" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["a", "{1}"], "the payload is no JSON"),
        (["a", "text"], "text stands in quotes of its own"),
        (["a", "1", "--args", "[1]"], "not both"),
        (["a", "--args", "1"], "--args is a JSON list"),
        (["a", "--kwargs", "[]"], "--kwargs a JSON object"),
        (["a", "--delay", "-5"], "delay"),
        (["two\nlines"], "one line"),
    ],
)
def test_slips_are_said(said: Said, args: list[str], words: str) -> None:
    """2, in words, before anything is added."""
    code, out, err = said(*args)
    assert (code, out) == (2, "")
    assert words in err


def test_a_server_that_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    """1."""
    assert main(["trigger", "a", "--url", "redis://127.0.0.1:1"]) == 1
    assert "no answer" in capsys.readouterr().err

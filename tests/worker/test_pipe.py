"""What is said between a worker's processes: orders down, reports of the start up."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from redistq.worker.pipe import Child, Parent, Report


class Line:
    """A starter that has said all its lines, and notes what it is told."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)
        self.told: list[dict[str, Any]] = []
        self.silent = False

    def order(self) -> str | None:
        return self.lines.pop(0) if self.lines else None

    def report(self, report: dict[str, Any], pressing: bool = True) -> None:
        self.told.append(report)

    def end_reports(self) -> None:
        self.silent = True


def parent(line: Line) -> Parent:
    return Parent(line)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lines", "heard"),
    [
        (("stop 2.5", "stop 1"), [2.5, "gone"]),
        (("something newer 3", "stop 0"), [0.0, "gone"]),
        (("something newer 3",), ["gone"]),
        ((), ["gone"]),
    ],
)
def test_a_process_hears_once_that_it_is_to_stop(lines: tuple[str, ...], heard: list[Any]) -> None:
    """And that its starter has gone, also while it stops; what it does not know is passed over."""
    said: list[Any] = []
    done = threading.Event()

    def note(what: Any) -> None:
        said.append(what)
        if what == "gone":
            done.set()

    parent(Line(*lines)).listen(note, lambda: note("gone"))
    assert done.wait(5)
    assert said == heard


def test_a_process_hears_which_tasks_are_to_end_also_while_it_stops() -> None:
    """The queue's place and the entry of each, in order."""
    said: list[Any] = []
    done = threading.Event()
    lines = ("cancel 0 1-1", "stop 3", "cancel 2 5-0")

    def cancel(place: int, entry: str) -> None:
        said.append((place, entry))

    parent(Line(*lines)).listen(said.append, done.set, cancel)
    assert done.wait(5)
    assert said == [(0, "1-1"), 3.0, (2, "5-0")]


def test_what_a_process_says_arrives_as_it_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends have the same form of reports; after "ready" there is no more."""
    line = Line()
    end = parent(line)
    end.report_failure("no module")
    end.report_unavailable()
    assert not line.silent
    end.report_ready({"host": "here"})
    assert line.silent
    child = Child.__new__(Child)  # no process: only its reading of what it is told
    monkeypatch.setattr(child, "report", lambda timeout: line.told.pop(0) if line.told else None)
    assert [child.hear() for _ in range(4)] == [
        Report(failure="no module"),
        Report(unavailable=True),
        Report(ready=True, details={"host": "here"}),
        None,
    ]

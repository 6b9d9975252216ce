"""What tasks print, as the worker's own output is given it."""

from __future__ import annotations

import io
import sys

import pytest

from redistq.functions.output import MAX_LINE, TaskOutput, _Tee, captured


class Written(io.StringIO):
    """A stream that keeps each text it is given apart."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def write(self, text: str) -> int:
        self.texts.append(text)
        return len(text)


def written_by(monkeypatch: pytest.MonkeyPatch) -> Written:
    """What a worker's standard output is given from now on."""
    real = Written()
    monkeypatch.setattr(sys, "stdout", _Tee("out", real))
    return real


def test_lines_are_passed_on_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A print of several values is one text, so lines of several workers do not mix."""
    written = written_by(monkeypatch)
    with captured(TaskOutput()):
        print("one", 2, 3.0)
        sys.stdout.write("50%\r100%\rmore")
        assert written.texts == ["one 2 3.0\n", "50%\r100%\r"]


def test_the_rest_is_passed_on_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is flushed, when it has grown long, and when the task ends."""
    written = written_by(monkeypatch)
    with captured(TaskOutput()):
        print("working", end="", flush=True)
        assert written.texts == ["working"]
        print("." * (MAX_LINE + 1), end="")
        assert len(written.texts) == 2
        print("done", end="")
    assert written.texts[2:] == ["done"]


def test_what_is_for_the_reader_alone_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it, at its end neither."""
    written = written_by(monkeypatch)
    with captured(TaskOutput(is_alone=True)):
        print("whole")
        print("part", end="", flush=True)
    assert written.texts == []

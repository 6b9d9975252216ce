"""Loops that must not end, and their pauses."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from redistq import ServerUnavailable
from redistq.logger import logger
from redistq.system.loops import Backoff, run_forever


class Stopping(threading.Event):
    """Notes the pauses instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        return self.is_set()


def run(steps: list[BaseException | None], **options: Any) -> Stopping:
    """Run a loop whose steps raise these errors or return, and that ends after the last."""
    stopping = Stopping()
    left = list(steps)

    def step() -> None:
        error = left.pop(0)
        if not left:
            stopping.set()
        if error is not None:
            raise error

    options.setdefault("backoff", Backoff(1.0, 5.0))
    run_forever(step, stopping, name="it", log=logger("redistq.test"), **options)
    return stopping


def test_pauses_double_until_a_step_returns(caplog: pytest.LogCaptureFixture) -> None:
    """Outages and errors of ours cost the same pauses; what works makes the next the first."""
    away = ServerUnavailable("away")
    stopping = run([away, ValueError(), away, away, None, away, None])
    assert stopping.pauses == [1.0, 2.0, 4.0, 5.0, 1.0]
    lines = [record for record in caplog.records if record.name == "redistq.test"]
    assert [(line.levelname, line.getMessage()) for line in lines[:2]] == [
        ("WARNING", "it waits for the server: away"),
        ("ERROR", "it goes on after an error"),
    ]
    assert [bool(line.exc_info) for line in lines[:2]] == [False, True]


def test_a_connection_that_was_cut_to_end_the_loop_is_no_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is logged and nothing is waited for once the loop is to end."""
    caplog.set_level(logging.DEBUG)
    stopping = run([None, OSError("cut")])
    assert stopping.pauses == []
    assert not [record for record in caplog.records if record.name == "redistq.test"]


def test_without_outages_every_error_is_logged_in_full(caplog: pytest.LogCaptureFixture) -> None:
    """A loop that handles outages by itself hears of what slipped through."""
    run([ServerUnavailable("away"), None], outages=())
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_what_ends_a_program_ends_the_loop() -> None:
    """KeyboardInterrupt and SystemExit are the program's own."""
    with pytest.raises(KeyboardInterrupt):
        run([KeyboardInterrupt()])

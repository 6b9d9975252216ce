"""When a supervisor starts a worker process again, and when it gives up: decisions alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from redistq.worker.heartbeat import ManagedProcess
from redistq.worker.restarts import KILLERS_PAUSE_S, QUICK_DEATH_S, START_TRIES, Restarts
from redistq.worker.scoreboard import Scoreboard

Ended = Callable[..., ManagedProcess]


@pytest.fixture
def ended() -> Iterator[Ended]:
    """Makes processes that have ended."""
    scoreboards: list[Scoreboard] = []

    def make(
        *, lived: float = 0.0, settled: int = 0, start: int = 1, ready: bool = True
    ) -> ManagedProcess:
        scoreboard = Scoreboard.create(1)
        scoreboard.settled = settled
        scoreboards.append(scoreboard)
        return ManagedProcess(
            "gone", scoreboard, start=start, ready=ready, started_at=time.monotonic() - lived
        )

    yield make
    for scoreboard in scoreboards:
        scoreboard.unmap()


def pause_after(
    restarts: Restarts, member: ManagedProcess, *, killed: bool = False, others: int = 0
) -> float:
    """Seconds until another process is started in place of one."""
    restarts.count(member)
    restarts.after(member, killed_by_task=killed, settled_by_others=others)
    return max(0.0, restarts.at - time.monotonic())


def test_processes_that_die_quickly_are_started_after_pauses_that_double(ended: Ended) -> None:
    """Nothing is settled and nothing was running: the machine, or the modules, are at fault."""
    restarts = Restarts()
    pauses = [pause_after(restarts, ended()) for _ in range(10)]
    assert pauses[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8], abs=0.05)
    assert pauses[-1] == pytest.approx(30, abs=0.05)


def test_while_work_goes_on_there_is_no_pause(ended: Ended) -> None:
    """What the dead or the living have settled, or a life of some length, starts another at once
    and the pauses from the first again."""
    restarts = Restarts()
    for healthy in (
        {"settled": 1},
        {"lived": QUICK_DEATH_S + 1},
    ):
        assert pause_after(restarts, ended()) == pytest.approx(0.1, abs=0.05)
        assert pause_after(restarts, ended()) == pytest.approx(0.2, abs=0.05)
        assert pause_after(restarts, ended(**healthy)) == 0
    assert pause_after(restarts, ended(), others=5) == 0


def test_tasks_that_kill_their_process_cost_a_short_pause(ended: Ended) -> None:
    """Each of them can do so only a few times, so the pause stays short."""
    restarts = Restarts()
    pauses = [pause_after(restarts, ended(), killed=True) for _ in range(8)]
    assert max(pauses) <= KILLERS_PAUSE_S


def test_it_gives_up_at_once_where_there_is_a_reason(ended: Ended) -> None:
    """Modules that cannot be imported will not be imported next time."""
    member = ended(ready=False)
    member.failure = "there is no module 'jobs' here"
    restarts = Restarts()
    assert restarts.give_up(member, "exited with code 1")
    assert restarts.failure == "there is no module 'jobs' here"


def test_it_gives_up_after_some_starts_without_a_word(ended: Ended) -> None:
    """Several processes of one start count as one; a server that is unavailable does not count."""
    restarts = Restarts()
    waits = ended(ready=False)
    waits.unavailable = True
    said = []
    for _ in range(START_TRIES):
        start = restarts.begin()
        assert not restarts.give_up(waits, "exited with code 1")
        said += [
            restarts.give_up(ended(ready=False, start=start), "was killed by SIGKILL")
            for _ in range(2)
        ]
    assert said == [False] * 4 + [True] * 2
    assert "the last one was killed by SIGKILL" in restarts.failure


def test_of_those_started_first_each_one_counts(ended: Ended) -> None:
    """What comes of two processes does not depend on which of them is faster."""
    restarts = Restarts()
    restarts.worked = True
    member = ended(ready=False, start=restarts.begin())
    member.failure = "the port is taken"
    assert restarts.give_up(member, "exited with code 1")
    assert restarts.failure == "the port is taken"


def test_once_a_process_worked_it_never_gives_up(ended: Ended) -> None:
    """Then what kills the next one may pass."""
    restarts = Restarts()
    restarts.worked = True
    member = ended(ready=False, start=2)
    member.failure = "no memory"
    assert not any(restarts.give_up(member, "was killed") for _ in range(START_TRIES + 1))
    assert restarts.failure == ""

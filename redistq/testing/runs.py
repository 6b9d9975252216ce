"""What a drain ran: one Run for each attempt, in order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

BAD = ("failed", "unhandled", "corrupt", "lost")
"""States of a run that ``check`` objects to."""


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt of a task.

    ``state`` is how it ended: ``succeeded``, ``failed``, ``cancelled``, ``expired``, ``continued``
    (it returned a flow, as whose last task it ends), ``retried`` and ``snoozed`` (it runs again),
    ``sleep`` and ``event`` (it waits in a step), ``unhandled`` (there is no handler of its name),
    ``corrupt``, ``lost`` (its lease was), ``crashed`` (its worker died, at a crash point).
    """

    id: str
    name: str
    attempt: int
    state: str
    payload: Any
    result: Any = None
    """What it returned, where it succeeded."""
    error: str = ""
    """What it raised, with the traceback, where it failed or is to be retried."""
    seconds: float = 0.0
    """How long its handler took."""

    def __str__(self) -> str:
        return f"{self.name} ({self.id}, attempt {self.attempt}): {self.state}"


class Runs(list[Run]):
    """The attempts that a drain ran, in order."""

    @property
    def ids(self) -> list[str]:
        """The tasks' ids."""
        return [run.id for run in self]

    @property
    def names(self) -> list[str]:
        """The tasks' names."""
        return [run.name for run in self]

    @property
    def states(self) -> list[str]:
        """How each ended."""
        return [run.state for run in self]

    @property
    def results(self) -> list[Any]:
        """What those returned that succeeded."""
        return [run.result for run in self if run.state == "succeeded"]

    @property
    def failed(self) -> Runs:
        """Those that failed for good, or that no handler could run."""
        return Runs(run for run in self if run.state in BAD)

    def of(self, name: str) -> Runs:
        """Those of tasks of that name."""
        return Runs(run for run in self if run.name == name)

    def check(self) -> Runs:
        """Return these; raises DrainFailed when one of them failed for good."""
        if failed := self.failed:
            raise DrainFailed(failed)
        return self

    def __add__(self, other: Iterable[Run]) -> Runs:  # type: ignore[override]
        return Runs([*self, *other])

    def __repr__(self) -> str:
        return f"Runs({', '.join(map(str, self)) or 'none'})"


class DrainFailed(AssertionError):
    """Tasks failed that were to succeed; ``runs`` has them."""

    def __init__(self, runs: Runs) -> None:
        said = "\n".join(f"{run}\n{_indented(run.error)}" for run in runs)
        super().__init__(f"{len(runs)} of the tasks that ran failed:\n{said}")
        self.runs = runs


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines())

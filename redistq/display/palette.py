"""How a state looks, wherever it is shown: its glyph, its word, its colour and its hatch.

Used by the dashboard and the plots. Every colour has a contrast of at least 3:1 on white and on
near-black (#111111), and none is the only sign of a state: a word, a glyph or a hatch says it too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Look:
    """One state's looks; ``hatch`` is matplotlib's, '' for none."""

    glyph: str
    word: str
    color: str
    hatch: str = ""


QUEUED = Look("…", "waiting", "#6B7280")
RUNNING = Look("▶", "running", "#009E73")
DELAYED = Look("◷", "delayed", "#7A6A9A")
SUCCEEDED = Look("✔", "succeeded", "#0072B2")
FAILED = Look("✖", "failed", "#D1430A", "///")
RETRIED = Look("↻", "retried", "#8B5CF6", "..")
SNOOZED = Look("☾", "snoozed", "#6B7280", "..")
RECOVERED = Look("⚑", "recovered", "#A16207", "xx")
CANCELLED = Look("⊘", "cancelled", "#8A6D3B", "\\\\")
WARNING = "#A16207"

LOOKS = {
    "queued": QUEUED,
    "delayed": DELAYED,
    "running": RUNNING,
    "succeeded": SUCCEEDED,
    "failed": FAILED,
    "retried": RETRIED,
    "snoozed": SNOOZED,
    "recovered": RECOVERED,
    "cancelled": CANCELLED,
}


def look(state: str) -> Look:
    """A state's looks; one that is not known gets neutral ones and its own word."""
    return LOOKS.get(state) or Look("•", state, QUEUED.color)

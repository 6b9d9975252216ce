"""How a batch stands, in words, colours and one line of HTML, from the counts of its tasks.

Used by the dashboards, the terminal's screen, and the bars and reprs of batches. Pure functions.
``counts`` has total and how many tasks are succeeded, failed, cancelled and expired; retried may be
there.
"""

from __future__ import annotations

from collections.abc import Mapping

from .html import MUTED, Html, bar, line, mark, tag
from .text import (
    CANCELLED,
    ENDED_WITH_FAILURES,
    EXPIRED,
    FAILED,
    RUNNING,
    SUCCEEDED,
    clean,
    duration,
    per_second,
)

NEXT = ".failures() says why, .retry_failed() sends them again"
"""What to do with a batch some of whose tasks failed."""
_ENDS = (SUCCEEDED, FAILED, CANCELLED, EXPIRED)
_LATELY_MS = 3_000
_TOLD = ("failed", "cancelled", "expired", "retried")


def ended_of(counts: Mapping[str, int]) -> int:
    """Return how many of its tasks have ended."""
    return sum(counts.get(face.word, 0) for face in _ENDS)


def far_said(counts: Mapping[str, int]) -> str:
    """Return how far it is: 485 of 1,000 (48%)."""
    ended = ended_of(counts)
    return f"{ended:,} of {counts['total']:,} ({ended / max(counts['total'], 1):.0%})"


def parts_of(counts: Mapping[str, int]) -> list[tuple[float, str]]:
    """Return the parts of its bar, from 0 to 1, with their colours: what succeeded, failed, and
    was cancelled or expired; the rest has not ended."""
    total = max(counts["total"], 1)
    return [(counts.get(face.word, 0) / total, face.color) for face in _ENDS]


def face_of(counts: Mapping[str, int]) -> tuple[str, str]:
    """Return in a few words how it stands, and the colour of that: what ended with failures is no
    success, and where nothing succeeded it is a failure."""
    if ended_of(counts) < counts["total"]:
        return f"{RUNNING.glyph} running", RUNNING.color
    if counts.get("failed"):
        if counts.get("succeeded"):
            return ENDED_WITH_FAILURES
        lost = "all failed" if counts["failed"] == counts["total"] else "nothing succeeded"
        return f"{FAILED.glyph} {lost}", FAILED.color
    for face in (CANCELLED, EXPIRED):
        if counts.get(face.word):
            return f"{face.glyph} ended, {counts[face.word]:,} {face.word}", face.color
    return f"{SUCCEEDED.glyph} ended", SUCCEEDED.color


def more_said(counts: Mapping[str, int], rate: float, took_ms: float) -> str:
    """Return its failures, and while it runs its rate (tasks a second) and the time that is left;
    and for how long it runs, or how long it took."""
    more = [f"{counts[state]:,} {state}" for state in _TOLD if counts.get(state)]
    waiting = counts["total"] - ended_of(counts)
    if not counts["total"]:
        return ""  # nothing has ended, and nothing took any time
    if not waiting:
        return " · ".join([*more, f"in {duration(took_ms)}"])
    quiet = "nothing ended lately" if ended_of(counts) else "nothing ended yet"
    left = [quiet] if took_ms > _LATELY_MS else []
    if rate > 0:
        left = [per_second(rate), f"{duration(waiting / rate * 1000)} left"]
    return " · ".join([*more, *left, f"for {duration(took_ms)}"])


def line_of(name: str, counts: Mapping[str, int], more: str, aside: str = "") -> Html:
    """Return a batch in one line of HTML: its name, which may be a link, a bar in three colours,
    and how it stands."""
    return line(
        tag(
            "span",
            tag("strong", name if isinstance(name, Html) else clean(name, 40)),
            tag("span", aside, style=MUTED),
            style="flex:0 1 190px;min-width:120px;overflow-wrap:anywhere",
        ),
        bar(parts_of(counts), far_said(counts)),
        mark(*face_of(counts)),
        tag("span", more, style=MUTED),
    )

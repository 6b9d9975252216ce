"""What people see of names, times and states: text to read, glyphs and colours. Pure functions.

Used by tables, pages, charts and the terminal. ``clean`` and the functions below it make text that
is cut to length and hides nothing. ``LOOKS`` has the glyph, the word, the colour and the hatch of
each state. Every colour has a contrast of at least 3:1 on white and on near-black (#111111), and
none is the only sign of a state: a word, a glyph or a hatch says it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

NAME_CHARS = 60
LINE_CHARS = 160

HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
"""Characters that hide or turn other text."""


def clean(text: str, limit: int = NAME_CHARS) -> str:
    """Return text to show: cut, and characters that hide or turn other text are made visible."""
    text = HIDDEN.sub("\ufffd", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


CALL_PREFIX = "redistq.call:"
"""How the tasks are named that a Client makes of function calls."""


def title(name: str) -> str:
    """Return a task's name to show; that of a function call reads as one."""
    if name.startswith(CALL_PREFIX):
        return clean(name[len(CALL_PREFIX) :], NAME_CHARS - 2) + "()"
    return clean(name) or "(no name)"


def duration(ms: float | None) -> str:
    """Return a time span to read: 31 ms, 1.2 s, 45 s, 3 min 5 s, 2 h 10 min; '–' for None."""
    if ms is None:
        return "–"
    ms = max(0.0, ms)
    if ms < 999.5:
        return f"{ms:.0f} ms"
    seconds = ms / 1000
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def clock(ms: float) -> str:
    """Return the time of day, UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M:%S")


def iso(ms: float) -> str:
    """Return a time as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(round(ms) / 1000, UTC).isoformat(timespec="milliseconds")


def number(value: float) -> str:
    """Return a number to read: 1,234 or 0.25."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def gauge(fraction: float, width: int) -> str:
    """Return a bar of so many characters that shows a part, from 0 to 1."""
    eighths = round(max(0.0, min(fraction, 1.0)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width, "░")


def plural(count: int, word: str) -> str:
    """Return a count with its noun: '1 task', '2,000 tasks'."""
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def per_second(rate: float) -> str:
    """Return a rate to read."""
    return f"{rate:,.0f}/s" if rate >= 9.95 or rate == 0 else f"{rate:.1f}/s"


def one_line(text: str) -> str:
    """Return text with its line breaks and repeated spaces taken out."""
    return " ".join(text.split())


# -- states ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """One state's looks; ``hatch`` is matplotlib's, '' for none."""

    glyph: str
    word: str
    color: str
    hatch: str = ""


WAITING = Look("◌", "waiting", "#B45F9A")
QUEUED = Look("…", "queued", "#6B7280")
RUNNING = Look("▶", "running", "#009E73")
DELAYED = Look("◷", "delayed", "#7A6A9A")
SUCCEEDED = Look("✔", "succeeded", "#0072B2")
FAILED = Look("✖", "failed", "#D1430A", "///")
RETRIED = Look("↻", "retried", "#8B5CF6", "..")
SNOOZED = Look("☾", "snoozed", "#6B7280", "..")
RECOVERED = Look("⚑", "recovered", "#A16207", "xx")
CANCELLED = Look("⊘", "cancelled", "#8A6D3B", "\\\\")
EXPIRED = Look("⊝", "expired", "#8A6D3B", "++")
WARNING = "#A16207"
ENDED_WITH_FAILURES = ("⚠ ended with failures", WARNING)
"""A batch some of whose tasks failed, and its colour."""
PALETTE = ("#0072B2", "#009E73", "#B45F9A", "#A16207", "#7A6A9A", "#0E8A9A", "#6B7280", "#8B5CF6")
"""Colours of what has no state, as functions; none is that of a failure."""


def colors_of(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each function, by name: the same ones while no other name comes."""
    return {name: PALETTE[at % len(PALETTE)] for at, name in enumerate(sorted(set(names)))}


LOOKS = {
    "waiting": WAITING,
    "queued": QUEUED,
    "delayed": DELAYED,
    "running": RUNNING,
    "succeeded": SUCCEEDED,
    "failed": FAILED,
    "retried": RETRIED,
    "snoozed": SNOOZED,
    "recovered": RECOVERED,
    "cancelled": CANCELLED,
    "expired": EXPIRED,
}


def look(state: str) -> Look:
    """Return a state's look; an unknown state gets a neutral one with its own word."""
    return LOOKS.get(state) or Look("•", state, QUEUED.color)

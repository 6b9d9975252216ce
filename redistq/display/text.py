"""Text for people: names and times to read, cut to length, with nothing hidden in it.

Used by every surface: tables, pages, pictures and the terminal. Pure functions.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

NAME_CHARS = 60
LINE_CHARS = 160

HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
"""Characters that hide or turn other text."""


def clean(text: str, limit: int = NAME_CHARS) -> str:
    """Text to show: characters that hide or turn other text are made visible, and it is cut."""
    text = HIDDEN.sub("\ufffd", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def duration(ms: float | None) -> str:
    """A time span to read: 31 ms, 1.2 s, 45 s, 3 min 5 s, 2 h 10 min; '–' for None."""
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
    """The time of day, UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M:%S")


def plural(count: int, word: str) -> str:
    """'1 task', '2,000 tasks'."""
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def per_second(rate: float) -> str:
    """A rate to read."""
    return f"{rate:,.0f}/s" if rate >= 9.95 or rate == 0 else f"{rate:.1f}/s"


def one_line(text: str) -> str:
    """Text with its line breaks taken out."""
    return " ".join(text.split())

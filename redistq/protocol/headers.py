"""Headers: text by name that travels with a task in its options; checked here, and read back.

Used by options.py. Producers and what stands around them write headers, handlers read them; no
script looks at them, and they stay with the task as long as it lives, its dead letter too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigurationError
from .checks import shown
from .codec import dumps

MAX_HEADERS_BYTES = 8 * 1024
"""Most bytes of all headers of a task, as they stand in its entry."""
LONGEST_HEADER = 200
"""Longest name of a header, in characters."""
VARIABLE = "var:"
"""With this begins the name of a header that holds a context variable, as JSON."""


def checked_headers(what: str, value: Any) -> dict[str, str]:
    """Return headers that a task may have; raises ConfigurationError that names the one that is
    wrong."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"{what} are text by name, such as {{'tenant': 'a'}}, not {shown(value)}"
        )
    headers = dict(value)
    for name, text in headers.items():
        if (
            not isinstance(name, str)
            or not name.isprintable()
            or not 0 < len(name) <= LONGEST_HEADER
        ):
            raise ConfigurationError(
                f"the name of a header is one line of 1 to {LONGEST_HEADER} characters, not "
                f"{shown(name)}"
            )
        if not isinstance(text, str):
            raise ConfigurationError(
                f"the header {name!r} is text, not {shown(text)}; write it as text, by json.dumps, "
                "or let it travel as a context variable: redistq.travels"
            )
    size = len(dumps(headers))
    if size > MAX_HEADERS_BYTES:
        raise ConfigurationError(
            f"{what} take {size:,} bytes, and {MAX_HEADERS_BYTES:,} are allowed: they travel with "
            "every attempt; put what is large into the payload"
        )
    return headers


def headers_in(found: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the headers among an entry's options, of whatever origin: those that are text. Tasks
    of the last release have what traces them under a name of its own."""
    both = (found.get(name) for name in ("trace", "headers"))
    pairs = [pair for part in both if isinstance(part, dict) for pair in part.items()]
    return {name: value for name, value in pairs if isinstance(value, str)} or None


def headers_of(opts: bytes) -> dict[str, str]:
    """Return the headers that stand in an entry, also where its other options cannot be read."""
    if b'"headers"' not in opts and b'"trace"' not in opts:
        return {}
    try:
        return headers_in(json.loads(opts)) or {}
    except Exception:  # anyone may have written them
        return {}

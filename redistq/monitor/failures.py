"""Dead letters by error and task. Never talks to a server."""

from __future__ import annotations

from collections.abc import Iterable

from .rows import DeadLetter, FailureGroup

Group = tuple[FailureGroup, tuple[DeadLetter, ...]]


def groups_of(letters: Iterable[DeadLetter]) -> list[Group]:
    """Return dead letters, given newest first, by error and task, the most frequent first; each
    group with its letters, newest first."""
    groups: dict[tuple[str, str], list[DeadLetter]] = {}
    for letter in letters:
        groups.setdefault((letter.error_type, letter.name), []).append(letter)
    found = [
        (
            FailureGroup(
                error_type=error_type,
                name=name,
                count=len(own),
                first_ms=own[-1].died_ms,
                last_ms=own[0].died_ms,
                example_id=own[0].id,
                error=own[0].error,
            ),
            tuple(own),
        )
        for (error_type, name), own in groups.items()
    ]
    return sorted(found, key=lambda g: (-g[0].count, -g[0].last_ms, g[0].error_type, g[0].name))

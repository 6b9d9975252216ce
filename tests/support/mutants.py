"""Bugs that are put into the scripts on purpose, for tests of the tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from redistq.protocol import scripts
from support.servers import Server


class _World(Protocol):
    def close(self) -> None: ...


W = TypeVar("W", bound=_World)
_FILE = Path(__file__).with_name("caught.json")
_CAUGHT: dict[str, dict[str, str]] = json.loads(_FILE.read_text())
_NOTE = "REDISTQ_NOTE_CAUGHT" in os.environ
"""All scenes are tried in their order, and ``caught.json`` is written anew: for one process."""


@dataclass(frozen=True)
class Mutant:
    """A bug: in these scripts (all that have the text when empty) `old` becomes `new`."""

    name: str
    old: str
    new: str
    verbs: tuple[str, ...] = ()


def mutated(mutant: Mutant) -> dict[str, str]:
    """The texts of all scripts that a mutant changes; fails when it changes none."""
    changed = {}
    for verb in mutant.verbs or scripts.VERBS:
        text = scripts.load(verb).text
        if mutant.old in text:
            changed[verb] = text.replace(mutant.old, mutant.new)
        else:
            assert not mutant.verbs, f"{verb} has no {mutant.old!r} any more: renew the mutant"
    assert changed, f"no script has {mutant.old!r} any more: renew the mutant"
    return changed


def bounded(steps: int, texts: Mapping[str, str] | None = None) -> dict[str, str]:
    """The scripts (those of ``texts`` in place of their own), but from a call so few steps follow,
    and timers do the rest."""
    found = dict(texts or {})
    for verb in scripts.VERBS:
        text = found.get(verb) or scripts.load(verb).text
        less = text.replace("local steps = 200", f"local steps = {steps}")
        less = less.replace("steps = steps + 5 * done", "").replace("n > 200", "n > 1")
        if less != text:
            found[verb] = less
    assert len(found) > 10, "the bounds have another form now"
    return found


def must_be_caught(
    suite: str, mutant: Mutant, caught_by: Callable[[dict[str, str], str], str]
) -> None:
    """A mutant is noticed; ``caught_by`` takes the texts and a scene to try before the others.

    That is the one which caught it last time, as ``caught.json`` has it. All others are tried after
    it: a line that is wrong or missing costs time, no more.
    """
    likely = "" if _NOTE else _CAUGHT.get(suite, {}).get(mutant.name, "")
    found = caught_by(mutated(mutant), likely)
    assert found != "", "this bug goes unnoticed"
    if _NOTE:
        _CAUGHT.setdefault(suite, {})[mutant.name] = found.partition(":")[0]
        _FILE.write_text(json.dumps(_CAUGHT, indent=4, ensure_ascii=False) + "\n")


def first_failure(
    server: Server,
    make: Callable[[], W],
    scenes: Iterable[tuple[str, Callable[[W], None]]],
    likely: str = "",
) -> str:
    """The first scene, each in an empty world of its own and the likely one before the others, that
    something is wrong for; empty when all pass."""
    with server.client() as admin:
        for name, scene in sorted(scenes, key=lambda one: one[0] != likely):
            admin.flushall()
            world = make()
            try:
                scene(world)
            except Exception as error:
                return f"{name}: {type(error).__name__}: {error}"
            finally:
                world.close()
    return ""

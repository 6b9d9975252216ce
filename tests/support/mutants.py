"""Bugs that are put into the scripts on purpose, for tests of the tests."""

from __future__ import annotations

from dataclasses import dataclass

from redistq.protocol import scripts


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

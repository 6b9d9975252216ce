"""Schedules that are declared in code: ``@task(cron="0 6 * * mon")``. Never talks to a server."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError
from .checks import shown
from .codec import dumps
from .options import DeclaredKeywords
from .schedules import MISSED, OVERLAP
from .timing import ZONE, Timing

OPTIONS = frozenset(DeclaredKeywords.__annotations__)


@dataclass(frozen=True, slots=True)
class Declared:
    """When a decorated function is to run by itself, and with which payload."""

    timing: Timing
    payload: Any = None
    missed: str = "once"
    overlap: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Declared | None:
        """Return what ``@task`` is given of that; None for nothing. Raises ConfigurationError."""
        given = {name: value for name, value in given.items() if value is not None}
        if "cron" not in given and "every" not in given:
            if given:
                raise ConfigurationError(
                    f"@task takes {sorted(given)[0]} with cron= or every=, which make a schedule"
                )
            return None
        timing = Timing.of(given.get("cron"), given.get("every"), given.get("tz", ZONE))
        for what, known in (("missed", MISSED), ("overlap", OVERLAP)):
            if what in given and given[what] not in known:
                raise ConfigurationError(
                    f"{what} is one of {', '.join(known)}, not {shown(given[what])}"
                )
        return cls(timing, given.get("payload"), given.get("missed", "once"), given.get("overlap"))

    def facts(self) -> list[Any]:
        """Return all that it says, for JSON."""
        return [self.timing.written(), self.payload, self.missed, self.overlap]


def deploy_of(declared: Mapping[str, Declared]) -> str:
    """Return what names these declarations where nobody has named their deploy: other ones have
    another name."""
    facts = [[name, declared[name].facts()] for name in sorted(declared)]
    return hashlib.blake2b(dumps(facts), digest_size=8).hexdigest()

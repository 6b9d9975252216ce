"""Lifespans: what a worker process has from its start to its end, as ``@lifespan`` declares it.

A lifespan is a function that yields once, or one that returns a context manager; either may be
async. What enters and leaves it is the worker's (worker/provided.py); nothing here runs one.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError
from ..protocol.options import shown
from .depends import name_of


@dataclass(frozen=True, slots=True, eq=False)
class Lifespan:
    """A lifespan that was declared: what returns its context manager, and how that is called."""

    function: Callable[..., Any]
    """As it was declared."""
    name: str
    is_async: bool
    """Whether it is to be called in the event loop; what it returns says the rest."""
    takes_state: bool
    """Whether it is given what those before it yielded."""

    @classmethod
    def of(cls, function: Any) -> Lifespan:
        """Return the lifespan that a function is; raises ConfigurationError for what is none."""
        if not callable(function):
            raise ConfigurationError(
                f"a lifespan is a function that yields once, not {shown(function)}"
            )
        name = name_of(function)
        inner = inspect.unwrap(function)
        if inspect.iscoroutinefunction(inner):
            raise ConfigurationError(
                f"the lifespan {name} returns: let it yield once, what comes before is its start "
                "and what comes behind its end"
            )
        in_loop = inspect.isasyncgenfunction(inner) or (
            isinstance(inner, type)
            and hasattr(inner, "__aenter__")
            and not hasattr(inner, "__enter__")
        )
        return cls(function, name, in_loop, _takes_state(name, function))

    def opened(self, state: Mapping[str, Any]) -> Any:
        """Call it; return the context manager that is to be entered."""
        opens = self.function
        if inspect.isasyncgenfunction(opens):
            opens = contextlib.asynccontextmanager(opens)
        elif inspect.isgeneratorfunction(opens):
            opens = contextlib.contextmanager(opens)
        return opens(state) if self.takes_state else opens()

    def is_again(self, other: Lifespan) -> bool:
        """Return whether it is ``other`` defined again: a cell run twice, a module reloaded."""
        return self.function is other.function or ("<" not in self.name and self.name == other.name)


def _takes_state(name: str, function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False  # some built-ins have no signature
    required = [
        p
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(required) > 1 or any(p.kind is p.KEYWORD_ONLY for p in required):
        raise ConfigurationError(
            f"the lifespan {name} takes nothing, or one argument: what the lifespans before it "
            f"have yielded; not {', '.join(p.name for p in required)}"
        )
    return bool(required)

"""The pickle of a function that is submitted again and again, made once while nothing can differ.

Used by the client: half the cost of a submit was pickling the same function anew. A pickle holds
what the function refers to as well, so it is used again only for functions of a notebook or script
that refer to little: modules and plain values. All of these are compared by identity at each use.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

_PLAIN = (int, float, str, bytes, bool, type(None), complex)
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Known:
    """A pickled function and what it was pickled from."""

    function: FunctionType
    code: CodeType
    names: tuple[str, ...]
    """Names in its code, and in that of functions inside it."""
    state: tuple[Any, ...]
    pickled: bytes
    modules: frozenset[str]
    """Modules that it refers to."""
    loaded: int
    """How many modules there were: submodules travel with the function that uses them."""


class PickledFunctions:
    """Remembers the function that was pickled last. Safe to use from several threads."""

    def __init__(self) -> None:
        self._last: Known | None = None

    def get(self, function: Callable[..., Any]) -> Known | None:
        """What is known of a function when all that its pickle holds is still the same."""
        last = self._last
        if last is None or last.function is not function or function.__code__ is not last.code:
            return None
        if last.loaded != len(sys.modules):
            return None
        state = _state(last.function, last.names)
        if state is None or len(state) != len(last.state):
            return None
        return last if all(a is b for a, b in zip(state, last.state, strict=True)) else None

    def keep(self, function: Callable[..., Any], pickled: bytes, modules: Iterable[str]) -> None:
        """Remember a pickle, unless it holds what can change unseen."""
        if type(function) is not FunctionType or function.__module__ != "__main__":
            return
        names = tuple(sorted(_names(function.__code__)))
        state = _state(function, names)
        if state is not None:
            self._last = Known(
                function=function,
                code=function.__code__,
                names=names,
                state=state,
                pickled=pickled,
                modules=frozenset(modules),
                loaded=len(sys.modules),
            )


def _names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _state(function: FunctionType, names: tuple[str, ...]) -> tuple[Any, ...] | None:
    """All that a pickle of the function depends on beside its code; None where that is too much,
    or may change without being another object."""
    if function.__dict__ or function.__kwdefaults__ or getattr(function, "__type_params__", None):
        return None
    scope, annotations = function.__globals__, function.__annotations__
    values: list[Any] = [*(function.__defaults__ or ())]
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:
            return None  # a name that has no value yet
    # What is an attribute's name alone may be a global's too; then it is looked at in vain.
    values += [scope.get(name, _MISSING) for name in names]
    for value in values:
        if type(value) in _PLAIN or value is _MISSING or value is function:
            continue
        if type(value) is ModuleType and sys.modules.get(value.__name__) is value:
            continue
        return None
    values += annotations.keys()
    values += annotations.values()
    values += (function.__name__, function.__qualname__, function.__doc__, function.__module__)
    values.append(linecache.cache.get(function.__code__.co_filename))  # its source, for tracebacks
    return tuple(values)

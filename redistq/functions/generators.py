"""Random generators that a function takes along: every worker would draw the same numbers.

Used by clients. A function that uses a generator made outside of it travels with a copy, in the
state of this moment; each worker process begins with that, and results repeat. It is said once.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

from .local_modules import outside
from .pickling import is_generator

_told: set[tuple[str, str]] = set()
_DEPTH = 4


def warn_of_generators(function: Any, held: list[Any]) -> None:
    """Warn of the generators that a pickle of ``function`` holds, by the names it has for them."""
    named = function
    while isinstance(named, functools.partial):
        named = named.func
    label = getattr(named, "__qualname__", type(named).__name__)
    wanted = {id(generator) for generator in held}
    for name, generator in _named(function, "", _DEPTH, set()):
        if id(generator) in wanted:
            wanted.discard(id(generator))
            _warn(label, name, generator)
    for generator in held:
        if id(generator) in wanted:
            _warn(label, "", generator)


def _warn(label: str, name: str, generator: Any) -> None:
    if (label, name) in _told:
        return
    _told.add((label, name))
    kind = type(generator)
    what = f"the random generator {name!r}" if name else "a random generator"
    seed = "random.Random(f'{seed}-{item}')"
    if kind.__module__.startswith("numpy"):
        seed = "np.random.default_rng([seed, item])"
    elif kind.__module__.startswith("torch"):
        seed = "torch.Generator().manual_seed(seed + item)"
    warnings.warn(
        f"{label} uses {what} ({kind.__module__.partition('.')[0]} {kind.__qualname__}), and every "
        "worker gets a copy in the same state: their numbers repeat. Make one in the function, "
        f"seeded by the item: {seed}",
        stacklevel=outside(),
    )


def _named(value: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The generators that a function or an object reaches, with the names on the way."""
    if is_generator(value):
        yield path, value
        return
    if depth == 0 or id(value) in seen:
        return
    seen.add(id(value))
    for name, part in _parts(value):
        inner = name if not path or not name.startswith((".", "[")) else path + name
        yield from _named(part, inner, depth - 1, seen)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, functools.partial):
        yield "", value.func
        yield from ((f"argument {i}", part) for i, part in enumerate(value.args, 1))
        yield from value.keywords.items()
    elif hasattr(value, "__func__"):
        yield "self", value.__self__
        yield "", value.__func__
    elif (code := getattr(value, "__code__", None)) is not None:
        for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=False):
            try:
                yield name, cell.cell_contents
            except ValueError:
                continue  # not assigned yet
        names = code.co_varnames[: code.co_argcount]
        defaults = value.__defaults__ or ()
        yield from zip(names[len(names) - len(defaults) :], defaults, strict=False)
        yield from (value.__kwdefaults__ or {}).items()
        scope = value.__globals__
        todo = [code]
        for one in todo:
            yield from ((name, scope[name]) for name in one.co_names if name in scope)
            todo.extend(c for c in one.co_consts if hasattr(c, "co_names"))
    elif isinstance(value, dict):
        yield from ((f"[{key!r:.40}]", part) for key, part in list(value.items())[:100])
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{i}]", part) for i, part in enumerate(list(value)[:100]))
    elif isinstance(value, type):
        if value.__module__ == "__main__":
            yield from ((f".{name}", part) for name, part in list(vars(value).items()))
    elif hasattr(value, "__dict__") and not hasattr(value, "__path__"):
        yield from ((f".{name}", part) for name, part in list(vars(value).items())[:100])
        yield "", type(value)
    if callable(inner := getattr(value, "__wrapped__", None)):
        yield "", inner

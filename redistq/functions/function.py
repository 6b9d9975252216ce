"""A function on its way to a worker: packed with what it needs there, and loaded again.

Clients remember the pickles of functions that they sent last (``PickledFunctions``), and warn of
random generators that a function takes along (``warn_of_generators``). ``pickled_function`` and
``load_function`` are the two ends of the way. Nothing here talks to a server.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ..errors import ModuleMissing, WrongPython
from ..protocol.pieces import Memory
from .blobs import Fetch, Parted, load_parted, load_whole
from .dependencies import outside
from .pickling import PYTHON, dump, is_generator, is_importable, load

_PLAIN = (int, float, str, bytes, bool, type(None), complex)
_MISSING = object()
_KEPT = 64
"""Pickled functions that are remembered."""
_KEPT_BYTES = 64 * 1024
"""A larger pickle is remembered alone."""
_DEPTH = 4
"""How far random generators are looked for in what a function refers to."""
_warned: set[tuple[str, str]] = set()
"""The functions and generators that were warned of: once each."""

# -- packed and loaded -----------------------------------------------------------------------------


def pickled_function(function: Callable[..., Any], pickled: bytes, modules: str = "") -> bytes:
    """Return a pickled function with what a worker needs beside it: the name of the bundle of its
    local modules and, for readable tracebacks, the source lines of its cell."""
    return dump((PYTHON, _cell_sources(function), pickled, modules))


def _cell_sources(function: Any, limit: int = 5) -> dict[str, list[str]]:
    """Return source lines that exist in this process only, by the file name in tracebacks."""
    sources: dict[str, list[str]] = {}
    todo = [function]
    seen = set()
    while todo and len(sources) < limit:
        item = inspect.unwrap(todo.pop()) if callable(todo[-1]) else todo.pop()
        code = getattr(item, "__code__", None)
        if code is None or code in seen:
            continue
        seen.add(code)
        # Notebooks register their cells without a time of change: such lines are in no file.
        name = code.co_filename
        entry: Any = linecache.cache.get(name)
        cell = entry and len(entry) == 4 and entry[1] is None and len(entry[2]) < 5_000
        if cell and name not in sources:
            sources[name] = entry[2]
        scope = getattr(item, "__globals__", {})
        todo.extend(scope[n] for n in code.co_names if inspect.isfunction(scope.get(n)))
    return sources


def load_function(data: Memory, use: Callable[[str], None] | None = None) -> Callable[..., Any]:
    """Return the function; ``use`` is called first with the bundle of local modules it needs.

    Raises WrongPython or ModuleMissing, which say what to do.
    """
    python, sources, pickled, *modules = load(data)
    if python != PYTHON:
        raise WrongPython(
            f"the function was sent by Python {python[0]}.{python[1]} and this worker runs "
            f"{PYTHON[0]}.{PYTHON[1]}; use the same minor version on both sides"
        )
    for name, lines in sources.items():
        linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
    if use is not None and any(modules):
        use(modules[0])
    function: Callable[..., Any] = load_here(pickled, "the function")
    return function


def load_here(data: Memory | Parted, what: str, fetch: Fetch | None = None) -> Any:
    """Return an object, with the parts that were left out of its pickle where ``fetch`` is given.

    Raises ModuleMissing where this process lacks what it is made of.
    """
    try:
        if isinstance(data, Parted):
            assert fetch is not None
            return load_parted(data, fetch)
        return load(data) if fetch is None else load_whole(data, fetch)
    except ModuleNotFoundError as error:
        raise ModuleMissing(
            f"the worker on {socket.gethostname()} has no module {error.name!r}, which {what} "
            "needs; install it there, or start the worker from the folder that holds it"
        ) from error
    except AttributeError as error:
        raise ModuleMissing(
            f"the worker on {socket.gethostname()} has another version of a module that {what} "
            f"needs ({error}); install the same one there, and restart the worker"
        ) from error


# -- functions that were sent last -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A pickled function and what it was pickled from."""

    function: FunctionType
    code: CodeType
    names: tuple[str, ...]
    """Names in its code, and in that of functions inside it."""
    state: tuple[Any, ...] | None
    """What else its pickle depends on; None where that is its name in a module."""
    pickled: bytes
    modules: frozenset[str]
    """Modules that it refers to."""
    loaded: int
    """How many modules there were: submodules travel with the function that uses them."""


class PickledFunctions:
    """Remembers functions that were pickled last; safe to use from several threads.

    Half the cost of a submit was pickling the same function anew. A pickle holds what the function
    refers to as well, so it is used again only for functions of a notebook or script that refer to
    little, modules and plain values, which are compared by identity at each use; and for those of
    other modules, which travel by their names, while these mean the same.
    """

    def __init__(self) -> None:
        self._known: dict[int, Known] = {}

    def get(self, function: Callable[..., Any]) -> Known | None:
        """Return what is known of a function while all that its pickle holds is the same."""
        known = self._known.get(id(function))
        if known is None or known.function is not function:
            return None
        if known.state is None:
            return known if is_importable(function) else None
        if function.__code__ is not known.code or known.loaded != len(sys.modules):
            return None
        state = _state(known.function, known.names)
        if state is None or len(state) != len(known.state):
            return None
        return known if all(a is b for a, b in zip(state, known.state, strict=True)) else None

    def keep(self, function: Callable[..., Any], pickled: bytes, modules: Iterable[str]) -> None:
        """Remember a pickle, unless it holds what can change unseen."""
        if type(function) is not FunctionType:
            return
        names: tuple[str, ...] = ()
        state = None
        if function.__module__ == "__main__":
            names = tuple(sorted(_names(function.__code__)))
            state = _state(function, names)
        if state is None and not is_importable(function):
            return
        if len(self._known) >= _KEPT or len(pickled) > _KEPT_BYTES:
            self._known = {}
        self._known[id(function)] = Known(
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
    """Return all that a pickle of the function depends on beside its code; None where that is too
    much, or may change without being another object."""
    if function.__dict__ or function.__kwdefaults__ or getattr(function, "__type_params__", None):
        return None
    scope = function.__globals__
    annotations = function.__annotations__
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


# -- random generators -----------------------------------------------------------------------------


def warn_of_generators(function: Any, held: list[Any]) -> None:
    """Warn, once, of the generators that a pickle of ``function`` holds, by its names for them.

    Such a function travels with a copy in the state of this moment, with which each worker process
    begins: every worker draws the same numbers.
    """
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
    if (label, name) in _warned:
        return
    _warned.add((label, name))
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
    """Yield the generators that a function or an object reaches, with the names on the way."""
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

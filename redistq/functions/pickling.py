"""Python objects as bytes, by value where a worker could not import them, and as objects again.

Used by clients and by the worker's handler for function calls. It never talks to a server. What it
loads was let through by a Signer (signing.py) before.
"""

from __future__ import annotations

import functools
import importlib
import io
import pickle
import random
import sys
from types import CodeType, FunctionType, ModuleType
from typing import Any, ClassVar

from ..errors import PayloadError
from .local_modules import IMPORTS, imported_names
from .reducers import Reducers, Sendable

_PLAIN = (int, float, str, bytes, bool, type(None), complex)


class Seen:
    """What a pickle refers to: ``modules`` that it needs where it is read, or that its functions
    import, and random ``generators`` that it holds by value."""

    __slots__ = ("generators", "modules")

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.generators: list[Any] = []


def dump(value: Any, seen: Seen | None = None) -> bytes:
    """Any object as a pickle of protocol 5; what ``__main__`` defines travels by value.

    ``seen`` is told what it refers to. Raises PayloadError naming the part that cannot be pickled.
    """
    try:
        if _is_plain(value):
            return pickle.dumps(value, 5)
        return by_value(value, seen)
    except Exception as error:
        raise PayloadError(what_cannot(value, error)) from error


def by_value(value: Any, seen: Seen | None = None) -> bytes:
    """Any object as cloudpickle writes it; raises whatever its parts raise."""
    file = io.BytesIO()
    own = pickler()(file, 5)
    own.seen = seen
    own.dump(value)
    return file.getvalue()


@functools.cache
def pickler() -> Any:
    """cloudpickle's pickler, which leaves functions the name of the file they stand in.

    From 3.1.3 on cloudpickle writes ``<dynamic-code>`` instead, and a traceback from a worker would
    show neither the file nor the line's text.
    """
    import cloudpickle

    reduce = cloudpickle.Pickler.dispatch_table[CodeType]
    decide = cloudpickle.Pickler.reducer_override

    def with_file(code: CodeType) -> Any:
        make, values, *rest = reduce(code)
        named = (code.co_filename if value == "<dynamic-code>" else value for value in values)
        return (make, tuple(named), *rest)

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar[Any] = Reducers(
            {CodeType: with_file}, cloudpickle.Pickler.dispatch_table
        )
        seen: Seen | None = None

        def reducer_override(self, obj: Any) -> Any:
            kind, seen = type(obj), self.seen
            if kind is FunctionType or kind is type:
                how = decide(self, obj)
                if seen is not None and how is NotImplemented:
                    seen.modules.add(obj.__module__)  # by its name, so it is imported there
                return how
            if kind is CodeType:
                if seen is not None and IMPORTS in obj.co_code:
                    seen.modules.update(imported_names(obj))
                return NotImplemented
            if kind is ModuleType:
                if seen is not None:
                    seen.modules.add(obj.__name__)
                return NotImplemented
            if issubclass(kind, random.Random) or kind.__module__ in _RANDOM_MODULES:
                if (where := _global_generator(obj)) is not None:
                    return where
                if seen is not None and is_generator(obj):
                    seen.generators.append(obj)
            how = decide(self, obj)
            if seen is not None and how is NotImplemented and issubclass(kind, type):
                seen.modules.add(obj.__module__)  # a class of another metaclass
            return how

    return Pickler


_RANDOM_MODULES = frozenset({"numpy.random._generator", "numpy.random.mtrand", "torch", "torch._C"})


def is_generator(value: Any) -> bool:
    """Whether a value is a generator of random numbers, whose copies repeat each other."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(value).__mro__}
    return not names.isdisjoint(
        {
            "random.Random",
            "numpy.random._generator.Generator",
            "numpy.random.mtrand.RandomState",
            "torch._C.Generator",
            "torch.Generator",
        }
    ) and not isinstance(value, random.SystemRandom)


def _global_generator(value: Any) -> Any:
    """How to refer to the generator behind ``random.random`` or ``numpy.random.rand``: each
    process has one of its own, seeded anew, and a copy of ours would repeat itself in all."""
    if value is getattr(random, "_inst", None):
        return (_attribute_of, ("random", "_inst"))
    mtrand = sys.modules.get("numpy.random.mtrand")
    if mtrand is not None and value is getattr(mtrand, "_rand", None):
        return (_attribute_of, ("numpy.random.mtrand", "_rand"))
    return None


def _attribute_of(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def error_by_value(error: BaseException, limit: int) -> bytes:
    """An exception in at most about ``limit`` bytes, with its own type; parts that cannot be sent,
    or are large, as text. Raises whatever its type raises when that cannot be sent."""
    try:
        whole = by_value(error)
        if len(whole) <= limit:
            return whole
    except Exception:
        pass  # an open connection or a lock, kept as an attribute

    def is_small(value: Any) -> bool:
        try:
            return len(by_value(value)) <= limit // 8
        except Exception:
            return False

    return by_value(Sendable(error, is_small))


def load(data: bytes) -> Any:
    """The object again. Only for data that ``Signer.unpack`` let through."""
    return pickle.loads(data)


def _is_plain(value: Any, depth: int = 2) -> bool:
    """Whether the standard pickler can be used: nothing in it can refer to ``__main__``."""
    if type(value) in _PLAIN:  # not subclasses, which a notebook's cell may have defined
        return True
    if depth and type(value) in (tuple, list) and len(value) <= 64:
        return all(_is_plain(item, depth - 1) for item in value)
    if depth and type(value) is dict and len(value) <= 64:
        return all(_is_plain(k, 0) and _is_plain(v, depth - 1) for k, v in value.items())
    if type(value).__module__ == "numpy" and type(value).__name__ == "ndarray":
        return not value.dtype.hasobject
    return False


def what_cannot(value: Any, error: BaseException | None, name: str = "") -> str:
    """Names the innermost object that cannot be pickled and the way to it."""
    path = _culprit(value, name, 6)
    where = f" at {path[0]}: {path[1]}" if path else ""
    return (
        f"the function or its arguments cannot be sent to a worker{where} ({error}); open files, "
        "connections and locks inside the function instead of passing them"
    )


def can_be_sent(value: Any) -> bool:
    """Whether a value can be pickled; found out by trying."""
    try:
        by_value(value)
    except Exception:
        return False
    return True


def _culprit(value: Any, path: str, depth: int) -> tuple[str, str] | None:
    if depth == 0 or can_be_sent(value):
        return None
    parts: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        parts = [(f"[{key!r:.40}]", item) for key, item in list(value.items())[:100]]
    elif isinstance(value, tuple | list | set):
        parts = [(f"[{i}]", item) for i, item in enumerate(list(value)[:100])]
    elif hasattr(value, "__code__"):
        code, cells = value.__code__, value.__closure__ or ()
        names = zip(code.co_freevars, cells, strict=False)
        parts = [(f" closure {name!r}", cell.cell_contents) for name, cell in names]
        scope = value.__globals__
        parts += [(f" global {name!r}", scope[name]) for name in code.co_names if name in scope]
    elif hasattr(value, "__dict__"):
        parts = [(f".{name}", item) for name, item in vars(value).items()]
    label = path or f"{getattr(value, '__qualname__', type(value).__name__)}"
    for name, part in parts:
        if found := _culprit(part, label + name, depth - 1):
            return found
    return label, f"{type(value).__module__}.{type(value).__qualname__}"


PYTHON = (sys.version_info.major, sys.version_info.minor)

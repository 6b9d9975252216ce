"""Python objects as bytes, by value where a worker could not import them, and as objects again.

Used by clients and by the worker's handler for function calls. It never talks to a server. What it
loads was let through by a Signer (signing.py) before. ``Reducers`` writes what pickle cannot write,
or writes so that it cannot be read again: caches without what is in them, exceptions without a call
of their constructor, proxies of a Manager with its key. What such pickles need where they are read
(``rebuilt_...``) stands here too: both sides have one version of it.
"""

from __future__ import annotations

import copyreg
import functools
import importlib
import io
import pickle
import random
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType, MappingProxyType, ModuleType
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from ..errors import PayloadError
from ..protocol.pieces import Memory
from .dependencies import IMPORTS, imported_names
from .references import Referable, Reference

MSGSPEC_CACHE = "__msgspec_cache__"
"""What msgspec leaves on classes that it knows."""
PYTHON = (sys.version_info.major, sys.version_info.minor)
PLAIN = frozenset({int, float, str, bytes, bool, type(None), complex, Reference})
"""Types of values that hold no others."""
_RANDOM_MODULES = frozenset({"numpy.random._generator", "numpy.random.mtrand", "torch", "torch._C"})

Reducer = Callable[[Any], Any]
Parents = dict[Reference, Referable]
"""Tasks whose results stand in a pickle, and the futures or batches that stood for them."""


class Seen:
    """What a pickle refers to: ``modules`` that it needs where it is read, or that its functions
    import, random ``generators`` that it holds by value, ``parents``, tasks whose results
    stand in it (None: it may hold no future), and values ``scattered`` before."""

    __slots__ = ("generators", "modules", "parents", "scattered")

    def __init__(self, parents: Parents | None = None) -> None:
        self.modules: set[str] = set()
        self.generators: list[Any] = []
        self.parents = parents
        self.scattered: list[Any] = []


def dump(value: Any, seen: Seen | None = None) -> bytes:
    """Return any object as a pickle of protocol 5; what ``__main__`` defines travels by value.

    What it refers to is added to ``seen``. Raises PayloadError naming the part that cannot be
    pickled.
    """
    try:
        if is_plain(value):
            return pickle.dumps(value, 5)
        return by_value(value, seen)
    except FutureMisplaced:
        raise
    except Exception as error:  # whatever the value's parts raise
        raise PayloadError(what_cannot(value, error)) from error


def by_value(value: Any, seen: Seen | None = None) -> bytes:
    """Return any object as cloudpickle writes it; raises whatever its parts raise."""
    file = io.BytesIO()
    own = pickler()(file, 5)
    own.seen = seen
    own.dump(value)
    return file.getvalue()


@functools.cache
def pickler() -> Any:
    """Return cloudpickle's pickler, which leaves functions the name of the file they stand in.

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
            kind = type(obj)
            seen = self.seen
            if isinstance(obj, type) and MSGSPEC_CACHE in vars(obj):
                delattr(obj, MSGSPEC_CACHE)  # it cannot be pickled, and is made anew when needed
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
            if issubclass(kind, Referable):
                return _by_reference(obj, seen)
            if issubclass(kind, random.Random) or kind.__module__ in _RANDOM_MODULES:
                if (where := global_generator(obj)) is not None:
                    return where
                if seen is not None and is_generator(obj):
                    seen.generators.append(obj)
            how = decide(self, obj)
            if seen is not None and how is NotImplemented and issubclass(kind, type):
                seen.modules.add(obj.__module__)  # a class of another metaclass
            return how

    return Pickler


class FutureMisplaced(PayloadError):
    """A future stands where no result can be put in."""


def _by_reference(value: Referable, seen: Seen | None) -> Any:
    """Return how a future or a batch is pickled: as what stands for its result."""
    if seen is not None and seen.parents is None:
        raise FutureMisplaced(
            f"{value!r} stands in a function, or in what one returns: give it as an argument, and "
            "the function gets its result"
        )
    reference = value.reference()
    if reference is None:
        return value.written(seen)
    if seen is not None and seen.parents is not None:
        seen.parents[reference] = value
    return reference.__reduce__()


def is_generator(value: Any) -> bool:
    """Return whether a value is a generator of random numbers, whose copies repeat each other."""
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


def global_generator(value: Any) -> Any:
    """Return how to refer to the generator behind ``random.random`` or ``numpy.random.rand``; None
    for any other value.

    Each process has one of its own, seeded anew, and a copy of ours would repeat itself in all.
    """
    if value is getattr(random, "_inst", None):
        return (_attribute_of, ("random", "_inst"))
    mtrand = sys.modules.get("numpy.random.mtrand")
    if mtrand is not None and value is getattr(mtrand, "_rand", None):
        return (_attribute_of, ("numpy.random.mtrand", "_rand"))
    return None


def _attribute_of(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def error_by_value(error: BaseException, limit: int) -> bytes:
    """Return an exception in at most about ``limit`` bytes, with its own type; parts that cannot be
    sent, or are large, as text. Raises whatever its type raises when that cannot be sent."""
    try:
        whole = by_value(error)
        if len(whole) <= limit:
            return whole
    except Exception:  # such as an open connection or a lock, kept as an attribute
        pass

    def is_small(value: Any) -> bool:
        try:
            return len(by_value(value)) <= limit // 8
        except Exception:  # whatever the value's parts raise
            return False

    return by_value(Sendable(error, is_small))


def load(data: Memory) -> Any:
    """Return the object. Only for data that ``Signer.unpack`` let through."""
    return pickle.loads(data)


def is_plain(value: Any, depth: int = 2) -> bool:
    """Return whether the standard pickler can be used: nothing in it can refer to ``__main__``."""
    if type(value) in PLAIN:  # not subclasses: a cell may define one
        return True
    if depth and type(value) in (tuple, list) and len(value) <= 64:
        for item in value:
            if type(item) not in PLAIN and not is_plain(item, depth - 1):
                return False
        return True
    if depth and type(value) is dict and len(value) <= 64:
        return all(is_plain(k, 0) and is_plain(v, depth - 1) for k, v in value.items())
    if type(value).__module__ == "numpy" and type(value).__name__ == "ndarray":
        return not value.dtype.hasobject
    return False


def what_cannot(value: Any, error: BaseException | None, name: str = "") -> str:
    """Return a message that names the innermost object that cannot be pickled, and its place."""
    return (
        f"the function or its arguments cannot be sent to a worker{_where(value, name)} ({error}); "
        "open files, connections and locks inside the function instead of passing them"
    )


def what_cannot_return(value: Any, error: BaseException) -> str:
    """Return the same of what a function returned."""
    return (
        f"the function returned what cannot be sent back{_where(value, 'result')} ({error}); "
        "return what it holds or makes, not open files, connections and locks"
    )


def _where(value: Any, name: str) -> str:
    path = _culprit(value, name, 6)
    return f" at {path[0]}: {path[1]}" if path else ""


def can_be_sent(value: Any) -> bool:
    """Return whether a value can be pickled; found out by trying."""
    try:
        by_value(value)
    except Exception:  # whatever the value's parts raise
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
        code = value.__code__
        names = zip(code.co_freevars, value.__closure__ or (), strict=False)
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


# -- what pickle cannot write, or writes so that it cannot be read again ---------------------------


class Reducers(ChainMap[type, Reducer]):
    """A dispatch table for picklers: the ones given, and this module's for whole kinds of types."""

    def __missing__(self, kind: type) -> Reducer:
        if issubclass(kind, BaseException):
            return _reduce_error if _has_own_constructor(kind) else _as_ever
        if kind in _REDUCERS:
            return _REDUCERS[kind]
        managers = sys.modules.get("multiprocessing.managers")
        if managers is not None and issubclass(kind, managers.BaseProxy):
            return _reduce_proxy
        raise KeyError(kind)


def _as_ever(value: Any) -> Any:
    return value.__reduce_ex__(5)


# -- exceptions --------------------------------------------------------------------------------


def _has_own_constructor(kind: type) -> bool:
    """Whether an exception is made in a way of its own, and not written in one.

    Pickle would call its constructor with ``args``, which are what its text is made of and need
    not be what the constructor takes.
    """
    own = _own_names(kind)
    written = own & {"__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"}
    return bool(own & {"__init__", "__new__"}) and not written


def _own_names(kind: type) -> set[str]:
    builtin = _builtin_base(kind).__mro__
    return {name for base in kind.__mro__ if base not in builtin for name in vars(base)}


def _builtin_base(kind: type) -> type[BaseException]:
    """The first of an exception's types that is the interpreter's own."""
    return next(base for base in kind.__mro__ if base.__module__ == "builtins")


def _reduce_error(error: BaseException) -> Any:
    return rebuilt_error, error_parts(error)


def error_parts(error: BaseException) -> tuple[type, tuple[Any, ...], dict[str, Any]]:
    """What ``rebuilt_error`` makes an exception of: its type, its args, and its attributes."""
    kind = type(error)
    reduced: Any = _builtin_base(kind).__reduce__(error)
    args = reduced[1]
    state = dict(reduced[2]) if len(reduced) > 2 else {}
    if isinstance(error, BaseExceptionGroup):  # its args are what its own constructor took
        args = (error.message, list(error.exceptions))
    slot_names: Any = vars(copyreg)["_slotnames"]  # what pickle asks for them
    for slot in slot_names(kind):
        if hasattr(error, slot):
            state[slot] = getattr(error, slot)
    return kind, args, state


def rebuilt_error(
    kind: type[BaseException], args: tuple[Any, ...], state: Mapping[str, Any]
) -> BaseException:
    """An exception as it was, without a call of its own constructor."""
    base = _builtin_base(kind)
    error = base.__new__(kind, *args)
    try:
        base.__init__(error, *args)
    except TypeError:  # args that somebody changed
        error.args = args
    for name, value in state.items():
        object.__setattr__(error, name, value)  # it may be frozen
    return error


class Sendable:
    """Stands for an exception of which some parts cannot be sent: they arrive as text."""

    def __init__(self, error: BaseException, can_be_sent: Callable[[Any], bool]) -> None:
        self._error = error
        self._can_be_sent = can_be_sent

    def __reduce__(self) -> Any:
        kind, args, state = error_parts(self._error)
        return rebuilt_error, (
            kind,
            tuple(self._part(value) for value in args),
            {name: self._part(value) for name, value in state.items()},
        )

    def _part(self, value: Any) -> Any:
        if self._can_be_sent(value):
            return value
        if issubclass(type(value), BaseException):
            return Sendable(value, self._can_be_sent)
        if type(value) in (list, tuple):  # the members of a group
            return type(value)(self._part(item) for item in value)
        try:
            return repr(value)[:300]
        except Exception:  # the value's own __repr__
            return f"<{type(value).__name__}>"


# -- functions -------------------------------------------------------------------------------------


def _reduce_cache(cache: Any) -> Any:
    if is_importable(cache):
        return cache.__reduce__()
    options = cache.cache_parameters()
    state = {name: value for name, value in vars(cache).items() if name != "__wrapped__"}
    return rebuilt_cache, (cache.__wrapped__, options["maxsize"], options["typed"]), state


def rebuilt_cache(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    """A function with an empty ``lru_cache`` around it."""
    return functools.lru_cache(maxsize, typed)(function)


def _reduce_property(value: Any) -> Any:
    # Until Python 3.12 it holds a lock; what it made is in the objects.
    return rebuilt_property, (value.func, value.attrname, value.__doc__)


def rebuilt_property(function: Callable[[Any], Any], name: str | None, doc: str | None) -> Any:
    """A ``cached_property`` under the name that its class gave it."""
    made: functools.cached_property[Any] = functools.cached_property(function)
    made.__doc__ = doc
    if name is not None:
        made.__set_name__(object, name)
    return made


def is_importable(value: Any) -> bool:
    """Return whether a module that workers can import holds it under its own name."""
    name = getattr(value, "__module__", None) or "__main__"
    for module in ("__main__", *_sent_by_value()()):
        if name == module or name.startswith(f"{module}."):
            return False
    found: Any = sys.modules.get(name)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


@functools.cache
def _sent_by_value() -> Callable[[], set[str]]:
    """Return what tells which modules' contents travel by value."""
    import cloudpickle

    tell: Callable[[], set[str]] = cloudpickle.list_registry_pickle_by_value
    return tell


def _reduce_weak(value: WeakKeyDictionary[Any, Any]) -> Any:
    return rebuilt_weak, (dict(value),)


def rebuilt_weak(items: dict[Any, Any]) -> WeakKeyDictionary[Any, Any]:
    """A dictionary with weak keys, such as ``singledispatch`` keeps."""
    return WeakKeyDictionary(items)


def _reduce_view(value: MappingProxyType[Any, Any]) -> Any:
    return MappingProxyType, (dict(value),)


# -- proxies of a multiprocessing Manager ----------------------------------------------------------


def _reduce_proxy(proxy: Any) -> Any:
    rebuild, args = proxy.__reduce__()
    return rebuilt_proxy, (rebuild, args, bytes(proxy._authkey or b""))


def rebuilt_proxy(rebuild: Callable[..., Any], args: tuple[Any, ...], key: bytes) -> Any:
    """A proxy that knows its Manager's key, which this process was not born with."""
    from multiprocessing import process

    *where, options = args
    if key:
        options = {**options, "authkey": vars(process)["AuthenticationString"](key)}
    return rebuild(*where, options)


_REDUCERS: dict[type, Reducer] = {
    functools._lru_cache_wrapper: _reduce_cache,
    functools.cached_property: _reduce_property,
    WeakKeyDictionary: _reduce_weak,
    MappingProxyType: _reduce_view,
}

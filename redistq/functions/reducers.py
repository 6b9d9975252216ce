"""How objects are written that pickle cannot write, or writes so that they cannot be read again.

Used by pickling alone; what its pickles need where they are read stands here too. Caches go without
what is in them, exceptions without a call of their constructor, proxies of a Manager with its key.
"""

from __future__ import annotations

import copyreg
import functools
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

Reducer = Callable[[Any], Any]


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


# -- exceptions ------------------------------------------------------------------------------------


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
    args, state = reduced[1], dict(reduced[2]) if len(reduced) > 2 else {}
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
        self._error, self._can_be_sent = error, can_be_sent

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
        except Exception:
            return f"<{type(value).__name__}>"


# -- functions -------------------------------------------------------------------------------------


def _reduce_cache(cache: Any) -> Any:
    if _is_importable(cache):
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


def _is_importable(value: Any) -> bool:
    """Whether a module that workers can import holds it under its own name."""
    import cloudpickle

    name = getattr(value, "__module__", None) or "__main__"
    by_value = {"__main__", *cloudpickle.list_registry_pickle_by_value()}
    if any(name == module or name.startswith(f"{module}.") for module in by_value):
        return False
    found: Any = sys.modules.get(name)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


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

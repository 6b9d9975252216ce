"""Values made of JSON again, by what parameters and results are annotated with.

``converter`` returns what does it for an annotation, ``Arguments`` for those of a handler. Plain
types are looked at here; for all others msgspec does the work, and is imported at first use.
What an annotation says that is no type of data (a protocol, a class of one's own) is passed over.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import functools
import inspect
import types
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union

from ..errors import ArgumentError
from .call_shape import CallShape
from .handler import Handler
from .plain import is_model, is_numpy_scalar, is_text_alone, to_plain

Converter = Callable[[Any], Any]
"""Makes a value of JSON again; raises ValueError, TypeError or msgspec's ValidationError."""
_SCALARS = (str, int, float, bool)
_RICH = (
    *(datetime.date, datetime.time, datetime.timedelta, uuid.UUID, decimal.Decimal, enum.Enum),
    *(bytes, bytearray, memoryview, set, frozenset, tuple),
)
_CONTAINERS = (
    *(list, dict, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Mapping),
    *(collections.abc.Collection, collections.abc.Set, collections.abc.MutableSequence),
    *(collections.abc.MutableMapping, collections.abc.MutableSet, collections.abc.Iterable),
)
_STREAMS = (
    *(collections.abc.Iterator, collections.abc.Generator, collections.abc.Iterable),
    *(collections.abc.AsyncIterator, collections.abc.AsyncGenerator, collections.abc.AsyncIterable),
)
_UNIONS = (Union, types.UnionType)


class _NoDataError(Exception):
    """An annotation is no type of data."""


def is_rich(annotation: Any) -> bool:
    """Return whether an annotation has a part that JSON does not hold by itself."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return False
    if origin is not None:
        return is_rich(origin) or any(is_rich(part) for part in typing.get_args(annotation))
    if not isinstance(annotation, type):
        return False
    if typing.is_typeddict(annotation):
        return any(is_rich(kind) for kind in _hints(annotation).values())
    return issubclass(annotation, _RICH) or _is_custom(annotation) or _has_fields(annotation)


def _hints(kind: Any) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception:  # a name that is not known yet
        return {}


def _is_custom(kind: type) -> bool:
    return is_model(kind) or is_text_alone(kind) or is_numpy_scalar(kind)


def _has_fields(kind: Any) -> bool:
    return (
        dataclasses.is_dataclass(kind)
        or hasattr(kind, "__struct_fields__")
        or hasattr(kind, "__attrs_attrs__")
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )


# -- converters ------------------------------------------------------------------------------------


def converter(annotation: Any) -> Converter | None:
    """Return what makes a value of this kind of JSON; None where it is taken as it comes. Raises
    TypeError for a type of data that msgspec does not support."""
    if annotation in _SCALARS:
        return functools.partial(_scalar, annotation)
    if _takes_all(annotation):
        return None
    import msgspec

    try:
        kind = _supported(annotation)
    except _NoDataError:
        return None
    return functools.partial(msgspec.convert, type=kind, str_keys=True, dec_hook=_made_of)


def _takes_all(annotation: Any) -> bool:
    return annotation in (inspect.Parameter.empty, Any, object) or isinstance(
        annotation, str | typing.TypeVar
    )


def _scalar(kind: type, value: Any) -> Any:
    given = type(value)
    if given is kind:
        return value
    if kind is float and given is int:
        return float(value)
    if isinstance(value, kind):  # a bool for an int, as in Python
        return value
    raise TypeError(f"Expected `{kind.__name__}`, got `{_shown(value)}`")


def _shown(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _supported(annotation: Any) -> Any:
    """Return an annotation in a form that msgspec takes; raises _NoData for what is no data."""
    origin = typing.get_origin(annotation)
    if origin is Literal or annotation is None or annotation in (type(None), Any, object):
        return annotation
    if isinstance(annotation, typing.TypeVar):
        return Any
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = _supported(arguments[0])
        return annotation if inner is arguments[0] else inner
    if origin in _UNIONS:
        return _union(tuple(_supported(arm) for arm in arguments))
    if origin is not None:
        return _container(annotation, origin, arguments)
    if not isinstance(annotation, type) or getattr(annotation, "_is_protocol", False):
        raise _NoDataError
    known = annotation in _CONTAINERS or issubclass(annotation, (*_SCALARS, *_RICH))
    if known or _is_custom(annotation) or _has_fields(annotation):
        _check(annotation)
        return annotation
    if typing.is_typeddict(annotation):
        return annotation
    raise _NoDataError


def _container(annotation: Any, origin: Any, arguments: tuple[Any, ...]) -> Any:
    if origin not in _CONTAINERS and not (isinstance(origin, type) and _has_fields(origin)):
        raise _NoDataError
    inner = tuple(part if part is ... else _supported(part) for part in arguments)
    if all(new is old for new, old in zip(inner, arguments, strict=True)):
        _check(annotation)
        return annotation
    return origin[inner if len(inner) > 1 else inner[0]]


def _union(arms: tuple[Any, ...]) -> Any:
    whole: Any = Union.__getitem__(arms)
    try:
        _check(whole)
    except TypeError:
        # Each in its order: msgspec tells arms apart by the kind of JSON alone.
        return _Any("Either", (_Either,), {"arms": tuple(map(converter, arms))})
    return whole


class _Any(type):
    """The type of _Either: msgspec asks whether what was made is one."""

    def __instancecheck__(cls, _: object) -> bool:
        return True


class _Either(metaclass=_Any):
    """One of several kinds, tried in their order."""

    arms: tuple[Converter | None, ...] = ()


def _check(kind: Any) -> None:
    """Raise TypeError where msgspec has no way to such values."""
    import msgspec

    msgspec.json.Decoder(kind, dec_hook=_made_of)


def _made_of(kind: Any, value: Any) -> Any:
    """Return a value of a kind that msgspec does not know; raises ValueError."""
    if issubclass(kind, _Either):
        return _first_of(kind.arms, value)
    if isinstance(value, kind):
        return value
    if is_model(kind):
        return kind.model_validate(value)
    if is_text_alone(kind) and isinstance(value, str):
        return kind(value)
    if is_numpy_scalar(kind) and isinstance(value, int | float):
        return kind(value)
    raise ValueError(f"Expected `{getattr(kind, '__qualname__', kind)}`, got `{_shown(value)}`")


def _first_of(arms: Sequence[Converter | None], value: Any) -> Any:
    said: list[str] = []
    for make in arms:
        try:
            return value if make is None else make(value)
        except Exception as error:  # of validators, too
            said.append(str(error))
    raise ValueError("; ".join(said))


# -- the arguments of a handler --------------------------------------------------------------------


class ArgumentTypes:
    """What the arguments of one handler are: they are checked at the call, and converted before the
    handler runs."""

    __slots__ = ("_by_name", "_keywords", "_more", "_positional", "_task", "is_needed", "results")

    def __init__(self, task: str, shape: CallShape) -> None:
        self._task = task
        self._by_name: dict[str, Converter] = {}
        self._positional: list[tuple[str, Converter | None]] = []
        self._more: tuple[str, Converter | None] = ("", None)
        self._keywords: tuple[str, Converter | None] = ("", None)
        for parameter in shape.arguments:
            name = parameter.name
            make = self._of(parameter, shape.annotations.get(name, parameter.annotation), shape)
            if parameter.kind is parameter.VAR_POSITIONAL:
                self._more = (name, make)
            elif parameter.kind is parameter.VAR_KEYWORD:
                self._keywords = (name, make)
            else:
                if make is not None:
                    self._by_name[name] = make
                if parameter.kind is not parameter.KEYWORD_ONLY:
                    self._positional.append((name, make))
        self.results: dict[bool, Converter | None] = {}
        """What makes results, and items, of JSON again; found at first use."""
        makers = (self._more[1], self._keywords[1])
        self.is_needed = bool(self._by_name) or any(make is not None for make in makers)
        """Whether there is anything to convert."""

    def _of(self, parameter: inspect.Parameter, annotation: Any, shape: CallShape) -> Any:
        if not shape.is_call and not is_rich(annotation):
            return None  # a payload of plain JSON is given as it comes
        if parameter.default is None and annotation is not parameter.empty:
            if isinstance(annotation, str):
                return None
            annotation = Union[annotation, None]  # noqa: UP007 - whatever it is
        try:
            return converter(annotation)
        except TypeError as error:
            return functools.partial(_unsupported, f"its type is not supported: {error}")

    def convert(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Convert the arguments, in place; raises ArgumentError."""
        positional = self._positional
        for at, value in enumerate(args):
            name, make = positional[at] if at < len(positional) else self._more
            if make is not None:
                args[at] = self._made(name, make, value)
        for name, value in kwargs.items():
            make = self._by_name.get(name)
            if make is None and self._keywords[1] is not None and not self._is_own(name):
                make = self._keywords[1]
            if make is not None:
                kwargs[name] = self._made(name, make, value)

    def _is_own(self, name: str) -> bool:
        return any(name == known for known, _ in self._positional)

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise ArgumentError where an argument of a call is not what it is annotated as."""
        if self.is_needed:
            self.convert(list(args), dict(kwargs))

    def _made(self, name: str, make: Converter, value: Any) -> Any:
        try:
            return make(value)
        except Exception as error:  # of validators, too
            first: Exception = error
        try:  # at the call it may be what is not JSON yet
            return make(to_plain(value))
        except Exception:  # what was wrong with it as it is says more
            words = str(first).replace("`$", f"`{name}").strip()
        raise ArgumentError(
            f"argument {name} of task {self._task!r} is not what it is annotated as: {words}; pass "
            "that, or annotate it as what it is given"
        ) from None


def types_of(handler: Handler) -> ArgumentTypes:
    """Return what the arguments of a handler are, found out once."""
    shape = handler.shape
    assert shape is not None
    found = shape.types
    if found is None:
        found = shape.types = ArgumentTypes(handler.name, shape)
    return found


def _unsupported(words: str, _: Any) -> Any:
    raise TypeError(words)


def result_writer(shape: CallShape | None) -> Converter | None:
    """Return what makes JSON of a handler's result that is none; None for a handler that does not
    say that it returns such."""
    annotation = Any if shape is None else shape.annotations.get("return", Any)
    return to_plain if isinstance(annotation, str) or is_rich(annotation) else None


def result_converter(handler: Handler, *, streams: bool = False) -> Converter | None:
    """Return what makes a handler's result, or with ``streams`` one of its items, of JSON again;
    None where it is taken as it comes."""
    if handler.shape is None:
        return None
    results = types_of(handler).results
    if streams not in results:
        results[streams] = _result_converter(handler.shape, streams)
    return results[streams]


def _result_converter(shape: CallShape, streams: bool) -> Converter | None:
    annotation = shape.annotations.get("return", Any)
    if streams:
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        annotation = arguments[0] if origin in _STREAMS and arguments else Any
    if not is_rich(annotation):
        return None
    try:
        return converter(annotation)
    except TypeError:  # a type that has no way back
        return None

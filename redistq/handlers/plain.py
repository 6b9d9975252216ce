"""Values as what JSON can hold: dataclasses, models, times, paths and the like, written plainly.

Used where a task is added by its function, and where a handler's result is written. msgspec does
the work and is imported at first use.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import PurePath
from typing import Any

from ..errors import ArgumentError

AS_TEXT = (PurePath, Fraction)
"""What is written as its text, and made of it again."""
AS_TEXT_OF = ("ipaddress", "zoneinfo")
"""Modules whose types are written as their text."""
HINT = (
    "pass plain values, dataclasses, models, times, UUIDs, Decimals, bytes, enums or paths; store "
    "large objects, such as arrays and DataFrames, and pass a path or key, or send the call by a "
    "Client, which pickles its arguments"
)
_MOST_PARTS = 100_000


def to_plain(value: Any) -> Any:
    """Return a value as what JSON can hold; raises NotImplementedError, TypeError or ValueError for
    what has no such form."""
    import msgspec

    return msgspec.to_builtins(value, str_keys=True, enc_hook=_plain_of)


def plain_arguments(task: str, payload: Any, parameter: str = "") -> Any:
    """Return the payload of a task as what JSON can hold; raises ArgumentError that names the
    argument, and where in it something has no such form. ``parameter`` takes a payload as it is.
    """
    try:
        return to_plain(payload)
    except Exception as error:  # of the argument's own methods, too
        path, culprit = _culprit(payload, parameter)
        raise ArgumentError(
            f"argument {path} of task {task!r} is a {_kind(culprit)}, which cannot be written as "
            f"JSON; {HINT}"
        ) from (None if isinstance(error, NotImplementedError) else error)


def is_model(kind: Any) -> bool:
    """Return whether a type is a pydantic model."""
    return (
        isinstance(kind, type)
        and hasattr(kind, "__pydantic_validator__")
        and hasattr(kind, "model_validate")
    )


def is_numpy_scalar(kind: Any) -> bool:
    """Return whether a type is one of numpy's scalars."""
    return isinstance(kind, type) and any(
        base.__module__ == "numpy" and base.__name__ == "generic" for base in kind.__mro__
    )


def is_text_alone(kind: Any) -> bool:
    """Return whether a type is written as its text, and made of it again."""
    return isinstance(kind, type) and (issubclass(kind, AS_TEXT) or kind.__module__ in AS_TEXT_OF)


def _plain_of(value: Any) -> Any:
    kind = type(value)
    if is_model(kind):
        return value.model_dump(mode="json")
    if is_text_alone(kind):
        return str(value)
    if is_numpy_scalar(kind):
        return value.item()
    for base in (bool, int, float, str):  # subclasses
        if isinstance(value, base):
            return base(value)
    if isinstance(value, datetime.datetime):  # subclasses, as pandas has one
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError(kind)


# -- what was wrong --------------------------------------------------------------------------------


def _culprit(payload: Any, parameter: str) -> tuple[str, Any]:
    """Return the path and the value of the innermost part that has no plain form."""
    if parameter:
        roots: list[tuple[str, Any]] = [(parameter, payload)]
    else:
        named = getattr(payload, "named", None)
        roots = list((named if named is not None else payload).items())
    for path, value in roots:
        if not _is_sound(value):
            return _innermost(path, value)
    return roots[0] if roots else ("", payload)


def _innermost(path: str, value: Any) -> tuple[str, Any]:
    for _ in range(100):  # it may hold itself
        for name, part in _parts(value):
            if not _is_sound(part):
                path, value = path + name, part
                break
        else:
            break
    return path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield f"[{key!r:.40}]", part
    elif isinstance(value, list | tuple | set | frozenset):
        for at, part in enumerate(value):
            if at >= _MOST_PARTS:
                return
            yield f"[{at}]", part
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for one in dataclasses.fields(value):
            yield f".{one.name}", getattr(value, one.name, None)
    else:
        for name in getattr(type(value), "__struct_fields__", ()):
            yield f".{name}", getattr(value, name, None)


def _is_sound(value: Any) -> bool:
    try:
        to_plain(value)
    except Exception:  # whatever its methods raise
        return False
    return True


def _kind(value: Any) -> str:
    kind = type(value)
    module = getattr(kind, "__module__", "builtins")
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"

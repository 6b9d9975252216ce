"""What a handler's signature says: which parameters its caller gives, and which are supplied.

``parameters_of`` reads them, of what a decorator wraps where that passes on whatever it gets, and
``annotations_of`` resolves what they are annotated with.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

from ..context import BatchContext, TaskContext

CONTEXT_NAMES = ("context", "ctx")
"""Parameters that are given the task's context, unless they are annotated as data."""
INJECTED = "__redistq_injected__"
"""An attribute of what stands as a default, or in Annotated, for a parameter that the worker
supplies."""
EMPTY = inspect.Parameter.empty
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_DATA = (str, bytes, int, float, bool, list, dict, tuple, set, frozenset)
_MOST_WRAPPED = 20


def holds_for_any(is_one: Callable[[Any], bool], function: Any) -> bool:
    """Return whether this holds for a function, what it wraps, or the call of an object."""
    try:
        inner = inspect.unwrap(function)
    except ValueError:  # it wraps itself
        inner = function
    call = getattr(function, "__call__", None)  # noqa: B004 - an object that is called
    return is_one(function) or is_one(inner) or is_one(call)


def is_positional(parameter: inspect.Parameter) -> bool:
    """Return whether an argument without a name may be meant for it."""
    return parameter.kind in _POSITIONAL


def is_variable(parameter: inspect.Parameter) -> bool:
    """Return whether it stands for any number of arguments."""
    return parameter.kind in _VARIABLE


def parameters_of(function: Any) -> tuple[Any, list[inspect.Parameter]] | None:
    """Return whose parameters the caller of a function gives, and these; None where there is no
    signature, as of some built-ins.

    Asked of what is called, not of what it wraps: a decorator may give its function arguments that
    no task brings. One that passes on whatever it gets (``*args, **kwargs``) is asked for what it
    wraps.
    """
    for _ in range(_MOST_WRAPPED):
        found = _own_parameters(function)
        wrapped = getattr(function, "__wrapped__", None)
        passes_all = found is not None and tuple(p.kind for p in found) == _VARIABLE
        if not (passes_all and callable(wrapped)) or _own_parameters(wrapped) is None:
            return None if found is None else (function, found)
        function = wrapped
    return None


def _own_parameters(function: Any) -> list[inspect.Parameter] | None:
    if inspect.isbuiltin(function):
        return None  # called with the payload, whatever else it could take
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None
    found = list(signature.parameters.values())
    if isinstance(function, functools.partial):  # what it gives by name is no caller's
        found = [p for p in found if p.name not in function.keywords]
    return found


def annotations_of(function: Any) -> dict[str, Any]:
    """Return what the parameters and the result of a function (``return``) are annotated with,
    names in quotes resolved; those that cannot be are left as they stand."""
    while isinstance(function, functools.partial):
        function = function.func
    found = getattr(function, "__annotations__", None)
    if not isinstance(found, dict) and not isinstance(function, type):
        function = getattr(function, "__call__", None)  # noqa: B004 - an object that is called
        found = getattr(function, "__annotations__", None)
    if not found:
        return {}
    return {name: _resolved(kind, function) for name, kind in found.items()}


def _resolved(annotation: Any, function: Any) -> Any:
    if not isinstance(annotation, str):
        return annotation
    inner = inspect.unwrap(getattr(function, "__func__", function))
    module = sys.modules.get(getattr(inner, "__module__", None) or "")
    known = getattr(inner, "__globals__", None) or vars(module or types)
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, known, _closed_over(inner), include_extras=True)["it"]
    except Exception:  # a name that only type checkers know, or that comes later
        return annotation


def _closed_over(function: Any) -> dict[str, Any]:
    """Return the local names around a function that it uses."""
    code = getattr(function, "__code__", None)
    found: dict[str, Any] = {}
    for name, cell in zip(
        getattr(code, "co_freevars", ()), getattr(function, "__closure__", None) or (), strict=False
    ):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not set yet
            continue
    return found


def is_context(parameter: inspect.Parameter, annotation: Any) -> bool:
    """Return whether a parameter is given the task's context."""
    if is_variable(parameter):
        return False
    kinds = typing.get_args(annotation) or (annotation,)
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, TaskContext | BatchContext):
            return True
    known = ("TaskContext", "BatchContext")
    if isinstance(annotation, str) and any(name in annotation for name in known):
        return True
    if parameter.name not in CONTEXT_NAMES:
        return False
    return (typing.get_origin(annotation) or annotation) not in _DATA


def injected_by(parameter: inspect.Parameter, annotation: Any) -> Any:
    """Return what supplies a parameter: its default, or a part of its Annotated; None for one that
    the caller gives."""
    if hasattr(type(parameter.default), INJECTED):
        return parameter.default
    for part in getattr(annotation, "__metadata__", ()):
        if hasattr(type(part), INJECTED):
            return part
    return None

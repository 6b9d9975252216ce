"""How a handler's function is called: what its signature says of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..context import TaskContext
from ..errors import ConfigurationError


def holds_for_any(is_one: Callable[[Any], bool], function: Any) -> bool:
    """Return whether this holds for a function, what it wraps, or the call of an object."""
    try:
        inner = inspect.unwrap(function)
    except ValueError:  # it wraps itself
        inner = function
    call = getattr(function, "__call__", None)  # noqa: B004 - an object that is called
    return is_one(function) or is_one(inner) or is_one(call)


def wants_context(name: str, function: Callable[..., Any]) -> bool:
    """Return whether a handler takes a second argument; one that cannot take the payload is
    refused.

    Asked of what is called, not of what it wraps: a decorator may give its function arguments
    that no task brings. One that passes on whatever it gets (``*args``) is asked for what it
    wraps, and gets the context where that says ``context`` or TaskContext.
    """
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return False  # some built-ins have no signature: they get the payload alone
    parameters = list(signature.parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variable = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    required = [p for p in positional if p.default is p.empty]
    named = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if len(required) > 2 or named or (not positional and not variable):
        raise ConfigurationError(
            f"the handler of task {name!r} is called with (payload) or (payload, context), "
            f"which its signature {signature} does not allow"
        )
    if len(required) == 2:
        return True
    if len(positional) > 1:
        return _is_context(positional[1])
    return variable and _passed_on_context(function)


def _is_context(parameter: inspect.Parameter) -> bool:
    kind = parameter.annotation
    return (
        parameter.name == "context"
        or kind is TaskContext
        or (isinstance(kind, str) and "TaskContext" in kind)
    )


def _passed_on_context(function: Any, depth: int = 20) -> bool:
    """Return whether a context that a wrapper passes on is wanted by what it wraps."""
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is None or not callable(wrapped) or not depth:
        return False
    try:
        parameters = list(inspect.signature(wrapped, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) > 1:
        return _is_context(positional[1]) or positional[1].name == "ctx"
    passes = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return passes and _passed_on_context(wrapped, depth - 1)

"""CallShape: how a handler is called: with one payload, or with arguments.

A handler with one parameter beside the context is given its task's payload. One with more, with
parameters by name alone, or with none is given arguments: its payload is written
``{"args": [...], "kwargs": {...}}``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .batching import element_of
from .plain import plain_arguments
from .signature import (
    EMPTY,
    annotations_of,
    injected_by,
    is_context,
    is_positional,
    is_variable,
    parameters_of,
)

if TYPE_CHECKING:
    from .conversion import ArgumentTypes

CONTEXT: Any = object()
"""Stands for the task's context among what is supplied."""
_KEYS = frozenset({"args", "kwargs"})
_MARKS: Mapping[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}


@dataclass(frozen=True, slots=True)
class Supplied:
    """A parameter that the worker gives: the context, or what is injected."""

    name: str
    position: int | None
    """Where it stands among those without a name; None: it is given by name."""
    source: Any
    default: Any = EMPTY
    positional_only: bool = False


class Call(dict[str, Any]):
    """The payload of a call, bound to the signature: what its arguments are, by name."""

    __slots__ = ("named", "task")
    named: Mapping[str, Any]
    task: str

    def __redistq_plain__(self) -> Any:
        """Return it as what JSON can hold; raises ArgumentError."""
        return plain_arguments(self.task, self)


class CallShape:
    """How a handler's function is called; read once from its signature.

    ``plain``: with the payload alone, or the payload and then the context, as it is.
    """

    __slots__ = (
        *("annotations", "arguments", "function", "is_call", "plain", "supplied", "_stub"),
        *("of_items", "passes_on", "types"),
    )

    def __init__(self, function: Callable[..., Any], of_items: bool = False) -> None:
        """``of_items``: the function takes a list of payloads, and what it is annotated with is
        read as that of one of them."""
        self.function = function
        self.of_items = of_items
        self.annotations: Mapping[str, Any] = {}
        self.arguments: tuple[inspect.Parameter, ...] = ()
        """The parameters that the caller gives."""
        self.supplied: tuple[Supplied, ...] = ()
        """The others, in their order."""
        self.is_call = False
        """Whether it takes arguments, not one payload."""
        self.plain = True
        self.passes_on = False
        """Whether the signature is that of what it wraps."""
        self.types: ArgumentTypes | None = None
        """What its arguments are: see conversion.types_of."""
        self._stub: Callable[..., dict[str, Any]] | None = None
        found = parameters_of(function)
        if found is None:
            return
        inner, parameters = found
        self.passes_on = inner is not function
        self.annotations = annotations_of(inner)
        self._divide(parameters)
        if self.supplied and self.supplied[0].source is CONTEXT and len(parameters) == 1:
            self.is_call = True
        self.is_call = self.is_call or not _takes_payload(self.arguments)
        self.plain = not self.is_call and self._is_plain()
        if self.plain and not self.supplied and not self.passes_on:
            self._look_through(function)
        if of_items:
            self._read_as_items()

    def _read_as_items(self) -> None:
        parts: dict[str, Any] = {given.name: given.annotation for given in self.arguments}
        parts.update(self.annotations)
        self.annotations = {name: element_of(kind) for name, kind in parts.items()}

    def _divide(self, parameters: Sequence[inspect.Parameter]) -> None:
        arguments: list[inspect.Parameter] = []
        supplied: list[Supplied] = []
        for position, parameter in enumerate(parameters):
            annotation = self.annotations.get(parameter.name, parameter.annotation)
            source = injected_by(parameter, annotation)
            if source is None and is_context(parameter, annotation):
                source = CONTEXT
            if source is None or is_variable(parameter):
                arguments.append(parameter)
                continue
            supplied.append(
                Supplied(
                    parameter.name,
                    position if is_positional(parameter) else None,
                    source,
                    parameter.default,
                    parameter.kind is parameter.POSITIONAL_ONLY,
                )
            )
        self.arguments = tuple(arguments)
        self.supplied = tuple(supplied)

    def _is_plain(self) -> bool:
        if not self.supplied:
            return True
        only = self.supplied[0]
        return len(self.supplied) == 1 and only.source is CONTEXT and only.position == 1

    def _look_through(self, function: Any) -> None:
        """Find the context of what a wrapper wraps that passes on positional arguments."""
        wrapped = getattr(function, "__wrapped__", None)
        named = [p for p in self.arguments if is_positional(p)]
        passes = any(p.kind is p.VAR_POSITIONAL for p in self.arguments)
        if not callable(wrapped) or len(named) > 1 or not passes:
            return
        found = parameters_of(wrapped)
        if found is None:
            return
        positional = [p for p in found[1] if is_positional(p)]
        if len(positional) > 1:
            second = positional[1]
            if is_context(second, annotations_of(found[0]).get(second.name, second.annotation)):
                self.supplied = (Supplied(second.name, 1, CONTEXT),)
        elif getattr(wrapped, "__wrapped__", None) is not None:
            self.supplied = CallShape(wrapped).supplied

    def __reduce__(self) -> Any:
        return CallShape, (self.function, self.of_items)

    @property
    def wants_context(self) -> bool:
        """Whether a parameter is given the context."""
        return any(one.source is CONTEXT for one in self.supplied)

    @property
    def injected(self) -> dict[str, Any]:
        """What supplies the other parameters that no caller gives, by their names."""
        return {one.name: one.source for one in self.supplied if one.source is not CONTEXT}

    @property
    def payload_name(self) -> str:
        """The name of the parameter that takes the payload; '' where there is none."""
        first = self.arguments[0] if self.arguments else None
        return first.name if first is not None and is_positional(first) else ""

    # -- binding ---------------------------------------------------------------------------------

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by their names, with defaults; raises TypeError as Python does."""
        stub = self._stub
        if stub is None:
            stub = self._stub = _stub_of(self.function, self.arguments)
        return stub(*args, **kwargs)

    def payload(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the payload of a call with these arguments; raises TypeError as Python does."""
        if self.is_call:
            named = self.bind(args, kwargs)
            call = Call(args=args, kwargs=kwargs)
            call.named = named
            return call
        if len(args) == 1 and not kwargs:
            return args[0]
        name = self.payload_name
        if not name:
            return _only_payload(args, kwargs, self.function)
        extra = [p for p in self.arguments if p.name == name]
        return _stub_of(self.function, extra)(*args, **kwargs)[name]

    def with_room(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any] | None:
        """Return the payload of a call whose last argument is still to come; None where there is
        no room for one. A payload is to come where nothing is given, and no context is there by
        which results are read."""
        if not self.is_call:
            empty = not (args or kwargs or self.wants_context)
            return (None,) if empty and self.payload_name else None
        try:
            named = self.bind((*args, None), kwargs)
        except TypeError:
            return None
        call = Call(args=args, kwargs=kwargs)
        call.named = named
        return (call,)

    def call_of(self, payload: Any) -> Call | None:
        """Return a payload as the call that it is, bound; None for what is no call; nothing
        is a call without arguments. Raises TypeError where its arguments do not fit."""
        if type(payload) is Call:
            return payload
        if payload is None:
            payload = {}
        elif not is_call_payload(payload):
            return None
        call = Call(args=payload.get("args", ()), kwargs=payload.get("kwargs", {}))
        call.named = self.bind(call["args"], call["kwargs"])
        return call


def is_call_payload(payload: Any) -> bool:
    """Return whether a payload is written as arguments: {"args": [...], "kwargs": {...}}, of which
    one may be left out."""
    if not isinstance(payload, dict) or not payload or not _KEYS.issuperset(payload):
        return False
    return isinstance(payload.get("args", ()), list | tuple) and isinstance(
        payload.get("kwargs", {}), Mapping
    )


def _takes_payload(arguments: Sequence[inspect.Parameter]) -> bool:
    fixed = [p for p in arguments if not is_variable(p)]
    if len(fixed) == 1:
        return is_positional(fixed[0])
    return not fixed and any(p.kind is p.VAR_POSITIONAL for p in arguments)


def _only_payload(args: tuple[Any, ...], kwargs: Mapping[str, Any], function: Any) -> Any:
    name = getattr(function, "__qualname__", "the task")
    if kwargs or len(args) != 1:
        given = len(args) + len(kwargs)
        raise TypeError(f"{name}() takes one payload, and {given} arguments were given")
    return args[0]


def _stub_of(
    function: Any, parameters: Sequence[inspect.Parameter]
) -> Callable[..., dict[str, Any]]:
    """Return a function with these parameters that returns its arguments by name: what is wrong
    with a call is said in Python's own words, and in a tenth of the time of Signature.bind."""
    known: dict[str, Any] = {}
    parts: list[str] = []
    by_name_alone = False
    before: Any = None
    for at, parameter in enumerate(parameters):
        if before is parameter.POSITIONAL_ONLY and parameter.kind is not before:
            parts.append("/")
        before = parameter.kind
        if parameter.kind is parameter.VAR_POSITIONAL:
            by_name_alone = True
        elif parameter.kind is parameter.KEYWORD_ONLY and not by_name_alone:
            by_name_alone = True
            parts.append("*")
        mark = _MARKS.get(parameter.kind, "")
        default = ""
        if parameter.default is not EMPTY:
            known[f"default_{at}"] = parameter.default
            default = f"=default_{at}"
        parts.append(f"{mark}{parameter.name}{default}")
    if before is inspect.Parameter.POSITIONAL_ONLY:
        parts.append("/")
    found = ", ".join(f"{p.name!r}: {p.name}" for p in parameters)
    exec(f"def stub({', '.join(parts)}): return {{{found}}}", known)
    stub: Any = known["stub"]
    stub.__qualname__ = getattr(function, "__qualname__", None) or type(function).__qualname__
    return stub  # type: ignore[no-any-return]

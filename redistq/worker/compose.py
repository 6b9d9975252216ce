"""What a worker calls for a handler: its function in layers, put together once, not for each task.

From the inside out: the handler's function; its arguments, out of the payload; the parameters that
are injected; what streams its items; the middleware around all of it. A handler that needs none of
these is called exactly as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError
from ..handlers import Handler
from ..handlers.call_shape import CONTEXT, CallShape, is_call_payload
from ..handlers.conversion import result_writer, types_of
from ..handlers.signature import EMPTY, is_positional
from ..logger import logger

if TYPE_CHECKING:
    from .injection import Calling
    from .provided import Provided

log = logger("redistq.worker")

_NOTHING_INJECTED: Mapping[str, Any] = {}


def composed(handler: Handler, provided: Provided | None = None) -> tuple[Callable[..., Any], bool]:
    """Return what is called for a handler, with the payload or with the payload and the context,
    and whether it wants the context. ``provided`` are what the worker process has beside tasks."""
    function = handler.function
    wants_context = handler.wants_context
    shape = handler.shape
    is_as_it_comes = (
        shape is None or handler.batching is not None or not types_of(handler).is_needed
    )
    if shape is not None and not (shape.plain and is_as_it_comes):
        calling = Arguments(handler, shape)
        if needs := shape.injected:
            from .injection import with_injected
            from .provided import Provided

            function = with_injected(
                calling,
                handler.name,
                needs,
                provided or Provided.alone(),
                is_async=handler.is_async,
                streams=handler.streams,
            )
            wants_context = True
        else:
            function = _without_injection(calling, wants_context)
    if handler.streams:
        from ..functions.yielding import streaming

        function = streaming(
            function,
            wants_context=wants_context,
            is_async=handler.is_async,
            plain=result_writer(shape),
        )
        wants_context = True
    # Middleware: what runs around an attempt takes (payload, context) and calls ``function``.
    return function, wants_context


def _without_injection(calling: Calling, wants_context: bool) -> Callable[..., Any]:
    if wants_context:
        return lambda payload, context: calling(payload, context, _NOTHING_INJECTED)
    return lambda payload: calling(payload, None, _NOTHING_INJECTED)


def with_results(
    function: Callable[..., Any], wants_context: bool, what: str, is_async: bool
) -> Callable[..., Any]:
    """Return a composed function that is given the results of the tasks it runs after: "result" or
    "results", as the last of its arguments, or as its payload."""

    def call(payload: Any, context: Any, results: list[Any]) -> Any:
        value = results if what == "results" or len(results) != 1 else results[0]
        if is_call_payload(payload):
            payload = {**payload, "args": [*payload.get("args", ()), value]}
        else:
            payload = value
        return function(payload, context) if wants_context else function(payload)

    def run(payload: Any, context: Any) -> Any:
        return call(payload, context, context.results())

    async def run_async(payload: Any, context: Any) -> Any:
        import asyncio

        return await call(payload, context, await asyncio.to_thread(context.results))

    return run_async if is_async else run


class Arguments:
    """Calls a handler's function with the arguments that a payload holds; is a ``Calling``.

    Raises ArgumentError, which ends the task as failed, for those that do not fit.
    """

    __slots__ = ("_converts", "_function", "_name", "_shape", "_takes_one", "_types", "_warned")

    def __init__(self, handler: Handler, shape: CallShape) -> None:
        self._function = handler.function
        self._name = handler.name
        self._shape = shape
        self._warned = False
        self._takes_one = shape.passes_on
        self._types = types_of(handler)
        self._converts = self._types.is_needed and handler.batching is None

    def __call__(self, payload: Any, context: Any, injected: Mapping[str, Any]) -> Any:
        """Call it; what it returns is returned as it is, a coroutine too."""
        args, kwargs = self._read(payload)
        if self._converts:
            self._types.convert(args, kwargs)
        shape = self._shape
        if shape.supplied:
            self._supply(args, kwargs, context, injected)
        return self._function(*args, **kwargs)

    def _read(self, payload: Any) -> tuple[list[Any], dict[str, Any]]:
        shape = self._shape
        if not shape.is_call:
            return [payload], {}
        if is_call_payload(payload):
            args, kwargs = list(payload.get("args", ())), dict(payload.get("kwargs", {}))
        elif payload is None:
            args, kwargs = [], {}
        else:
            args, kwargs = [payload], {}
            self._warn(payload)
            if self._takes_one:
                return args, kwargs
        try:
            shape.bind(args, kwargs)
        except TypeError as error:
            raise ArgumentError(
                f"the arguments of task {self._name!r} do not fit: {error}"
            ) from None
        return args, kwargs

    def _warn(self, payload: Any) -> None:
        """Say, once, that a payload came where arguments are expected."""
        if self._warned:
            return
        self._warned = True
        log.warning(
            "task %s takes arguments and was sent a payload that holds none, %.80r, which is taken "
            "for its first: add it with %s.delay(...), or with the payload "
            '{"args": [...], "kwargs": {...}}',
            self._name,
            payload,
            getattr(self._function, "__name__", "the function"),
        )

    def _supply(
        self, args: list[Any], kwargs: dict[str, Any], context: Any, injected: Mapping[str, Any]
    ) -> None:
        """Put what the worker gives among the arguments, where each parameter stands."""
        for one in self._shape.supplied:
            value = context if one.source is CONTEXT else injected[one.name]
            position = one.position
            if position is not None and len(args) < position and one.positional_only:
                args.extend(self._defaults(len(args), position))
            if position is not None and len(args) >= position:
                args.insert(position, value)
            else:
                kwargs[one.name] = value

    def _defaults(self, start: int, end: int) -> list[Any]:
        """Return the defaults of positional parameters that were not given."""
        supplied = {one.position for one in self._shape.supplied}
        places = [p for p in range(end) if p not in supplied]
        positional = [p for p in self._shape.arguments if is_positional(p)]
        by_place = dict(zip(places, positional, strict=False))
        found = [by_place[at].default for at in range(start, end) if at in by_place]
        return [value for value in found if value is not EMPTY]


def item_converter(handler: Handler) -> Callable[[Any], Any] | None:
    """Return what makes an item of one payload of a batch handler, by what it is annotated as;
    None where it is given as it comes. Raises ArgumentError for a payload that is none."""
    if handler.batching is None or handler.shape is None:
        return None
    types = types_of(handler)
    if not types.is_needed:
        return None

    def convert(payload: Any) -> Any:
        args = [payload]
        types.convert(args, {})
        return args[0]

    return convert

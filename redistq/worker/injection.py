"""Injection: a handler's function is called with what the factories of its ``Depends`` make.

Made once for a handler, by ``with_injected``. What is made for a task is made where its handler
runs, in its thread or in its coroutine, and left there when it ends: by its error, which the
factory sees at its ``yield`` and cannot swallow, or without one. A factory that is async and is
asked for in a thread runs in the worker's event loop meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from functools import partial
from typing import Any

from ..context import TaskContext
from ..handlers.depends import Dependency, Recipe, check_dependencies
from .keeper import Keeper, result_of
from .process_scope import ProcessScope, noted, result_in_loop
from .provided import Loop, Provided

Function = Callable[..., Any]
Calling = Callable[[Any, Any, Mapping[str, Any]], Any]
"""Calls a handler's function, given the payload, the context, and what is injected by name."""
Needs = Mapping[str, Dependency]


class _Scope:
    """What one attempt is given, and what is to be left at its end."""

    __slots__ = ("_context", "_loop", "_made", "_open", "_process")

    def __init__(self, provided: Provided, context: TaskContext) -> None:
        self._process: ProcessScope = provided.process
        self._loop: Loop = provided.loop
        self._context = context
        self._made: dict[Any, Any] = {}
        self._open: list[tuple[str, Callable[[BaseException | None], Any]]] = []

    def _arguments(self, recipe: Recipe, given: dict[str, Any]) -> dict[str, Any]:
        if recipe.context:
            given[recipe.context] = self._context
        return given


class _ThreadScope(_Scope):
    """Of an attempt in a thread."""

    __slots__ = ()

    def given(self, needs: Needs) -> dict[str, Any]:
        """Return what the factories of these make."""
        return {name: self._get(dependency) for name, dependency in needs.items()}

    def _get(self, dependency: Dependency) -> Any:
        if dependency.scope == "process":
            return result_of(self._process.asked(dependency.factory))
        recipe = self._process.recipe(dependency.factory)
        if recipe.key in self._made:
            return self._made[recipe.key]
        given = self._arguments(recipe, self.given(dict(recipe.needs)))
        try:
            value = self._make(recipe, given)
        except BaseException as error:  # the user's; passed on
            noted(error, recipe.name)
            raise
        self._made[recipe.key] = value
        return value

    def _make(self, recipe: Recipe, given: dict[str, Any]) -> Any:
        if recipe.is_async:
            if recipe.opens is None:
                return result_in_loop(self._loop(), recipe.opened(given))
            keeper = Keeper(self._loop(), partial(recipe.opened, given))
            try:
                value = result_of(keeper.entered)
            except BaseException:  # it may be asked to end meanwhile
                keeper.cancel()
                raise
            self._open.append((recipe.name, keeper.leave))
            return value
        made = recipe.opened(given)
        if recipe.opens is None:
            return made
        value = made.__enter__()
        self._open.append((recipe.name, partial(_exit, made)))
        return value

    def leave(self, error: BaseException | None) -> None:
        """Leave what was made, the last first; raises the error with which it ends, if any."""
        while self._open:
            name, leave = self._open.pop()
            try:
                leave(error)
            except BaseException as raised:  # the user's; passed on
                if raised is not error:
                    error = raised
                    noted(error, name, "raised at the end of")
        if error is not None:
            raise error

    def __enter__(self) -> _ThreadScope:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.leave(error)


class _LoopScope(_Scope):
    """Of an attempt in the event loop."""

    __slots__ = ()

    async def given(self, needs: Needs) -> dict[str, Any]:
        """Return what the factories of these make."""
        return {name: await self._get(dependency) for name, dependency in needs.items()}

    async def _get(self, dependency: Dependency) -> Any:
        if dependency.scope == "process":
            future = self._process.asked(dependency.factory)
            return future.result() if future.done() else await asyncio.wrap_future(future)
        recipe = self._process.recipe(dependency.factory)
        if recipe.key in self._made:
            return self._made[recipe.key]
        given = self._arguments(recipe, await self.given(dict(recipe.needs)))
        try:
            value = await self._make(recipe, given)
        except BaseException as error:  # the user's; passed on
            noted(error, recipe.name)
            raise
        self._made[recipe.key] = value
        return value

    async def _make(self, recipe: Recipe, given: dict[str, Any]) -> Any:
        made = recipe.opened(given)
        if recipe.opens is None:
            return await made if recipe.is_async else made
        if recipe.is_async:
            value = await made.__aenter__()
            self._open.append((recipe.name, partial(_aexit, made)))
        else:
            value = made.__enter__()
            self._open.append((recipe.name, partial(_exit, made)))
        return value

    async def leave(self, error: BaseException | None) -> None:
        """As in a thread."""
        while self._open:
            name, leave = self._open.pop()
            try:
                waited = leave(error)
                if waited is not None:
                    await waited
            except BaseException as raised:  # the user's; passed on
                if raised is not error:
                    error = raised
                    noted(error, name, "raised at the end of")
        if error is not None:
            raise error

    async def __aenter__(self) -> _LoopScope:
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        await self.leave(error)


def _exit(manager: Any, error: BaseException | None) -> None:
    manager.__exit__(None if error is None else type(error), error, error and error.__traceback__)


async def _aexit(manager: Any, error: BaseException | None) -> None:
    kind = None if error is None else type(error)
    await manager.__aexit__(kind, error, error and error.__traceback__)


def with_injected(
    calling: Calling,
    name: str,
    needs: Needs,
    provided: Provided,
    *,
    is_async: bool,
    streams: bool,
) -> Function:
    """Return a function of the payload and the context of task ``name``, which calls ``calling``
    with both and what ``needs`` name.

    Raises ConfigurationError where factories cannot give that.
    """
    check_dependencies(f"task {name!r}", needs.values(), provided.overrides)
    make: Callable[[Calling, Needs, Provided], Function]
    if streams:
        make = _streaming_in_loop if is_async else _streaming
    else:
        make = _in_loop if is_async else _in_thread
    return make(calling, needs, provided)


def _in_thread(calling: Calling, needs: Needs, provided: Provided) -> Function:
    def run(payload: Any, context: TaskContext) -> Any:
        with _ThreadScope(provided, context) as scope:
            return calling(payload, context, scope.given(needs))

    return run


def _in_loop(calling: Calling, needs: Needs, provided: Provided) -> Function:
    async def run(payload: Any, context: TaskContext) -> Any:
        async with _LoopScope(provided, context) as scope:
            return await calling(payload, context, await scope.given(needs))

    return run


def _streaming(calling: Calling, needs: Needs, provided: Provided) -> Function:
    def run(payload: Any, context: TaskContext) -> Generator[Any, Any, Any]:
        with _ThreadScope(provided, context) as scope:
            return (yield from calling(payload, context, scope.given(needs)))

    return run


def _streaming_in_loop(calling: Calling, needs: Needs, provided: Provided) -> Function:
    async def run(payload: Any, context: TaskContext) -> AsyncGenerator[Any, Any]:
        async with _LoopScope(provided, context) as scope:
            source = calling(payload, context, await scope.given(needs))
            fault: BaseException | None = None
            while True:
                try:
                    item = await (source.__anext__() if fault is None else source.athrow(fault))
                except StopAsyncIteration:
                    break
                fault = None
                try:
                    yield item
                except GeneratorExit:
                    await source.aclose()
                    raise
                except BaseException as error:  # what is to be raised in it, and it may catch
                    fault = error

    return run

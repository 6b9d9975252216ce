"""ProcessScope: what factories of dependencies make once for a worker process.

Each is made in a thread of its own when it is first asked for: however many tasks ask at once, and
whatever becomes of the one that asked first, there is one call of its factory. All who ask wait
for it. A call that fails fails those who wait, and the next who asks has it made again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import RedistqError
from ..handlers.depends import Factory, Overrides, Recipe, key_of, recipe_of
from .keeper import Keeper, result_of

if TYPE_CHECKING:
    from .provided import Loop


def noted(error: BaseException, name: str, when: str = "raised by") -> None:
    """Add a note to an error of the factory that raised it."""
    with contextlib.suppress(Exception):  # an error with attributes of its own
        error.add_note(f"{when} the dependency {name}")


async def _awaited(made: Any) -> Any:
    return await made


class ProcessScope:
    """What one process has made; ``opened`` gets what is to be left at its end."""

    def __init__(
        self,
        overrides: Overrides,
        loop: Loop,
        opened: list[tuple[str, Callable[[], None]]],
    ) -> None:
        self._overrides = overrides
        self._loop = loop
        self._opened = opened
        self._lock = threading.Lock()
        self._made: dict[Any, Future[Any]] = {}
        self._recipes: dict[Any, Recipe] = {}
        self._closed = False

    def close(self) -> None:
        """Make nothing any more."""
        self._closed = True

    def recipe(self, factory: Factory) -> Recipe:
        """Return how what stands in for a factory now is called."""
        standing = self._overrides.of(factory)
        key = key_of(standing)
        found = self._recipes.get(key)
        if found is None:
            found = self._recipes[key] = recipe_of(standing)
        return found

    def asked(self, factory: Factory) -> Future[Any]:
        """Return what a factory makes, or will have made; any thread may call it."""
        recipe = self.recipe(factory)
        future = self._made.get(recipe.key)
        if future is not None:
            return future
        with self._lock:
            future = self._made.get(recipe.key)
            if future is not None:
                return future
            if self._closed:
                raise RedistqError(f"the worker has ended, and makes no {recipe.name} any more")
            future = self._made[recipe.key] = Future()
        threading.Thread(
            target=Context().run,
            args=(self._make, recipe, future),
            name="redistq-depends",
            daemon=True,
        ).start()
        return future

    def _make(self, recipe: Recipe, future: Future[Any]) -> None:
        try:
            given = {name: result_of(self.asked(inner.factory)) for name, inner in recipe.needs}
            value = self._noted_call(recipe, given)
        except BaseException as error:  # the user's, and whatever it is
            with self._lock:
                del self._made[recipe.key]
            future.set_exception(error)
        else:
            future.set_result(value)

    def _noted_call(self, recipe: Recipe, given: dict[str, Any]) -> Any:
        try:
            return self._call(recipe, given)
        except (StopIteration, StopAsyncIteration) as error:  # no future can carry these
            fault = RuntimeError(repr(error))
            noted(fault, recipe.name)
            raise fault from error
        except BaseException as error:  # the user's, and whatever it is
            noted(error, recipe.name)
            raise

    def _call(self, recipe: Recipe, given: dict[str, Any]) -> Any:
        if recipe.is_async and recipe.opens is not None:
            keeper = Keeper(self._loop(), partial(recipe.opened, given))
            value = result_of(keeper.entered)
            self._opened.append((recipe.name, keeper.leave))
            return value
        made = recipe.opened(given)
        if recipe.opens is not None:
            value = made.__enter__()
            self._opened.append((recipe.name, partial(made.__exit__, None, None, None)))
            return value
        if recipe.is_async:
            return result_in_loop(self._loop(), made)
        return made


def result_in_loop(loop: Any, made: Any) -> Any:
    """Wait in a thread for what is awaited in a loop, and return it; a thread that is asked to end
    meanwhile ends it too."""
    import asyncio

    future = asyncio.run_coroutine_threadsafe(_awaited(made), loop)
    try:
        return result_of(future)
    except BaseException:  # whatever it is; passed on
        future.cancel()
        raise

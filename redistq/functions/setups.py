"""Setups: what a client's calls share in a worker process, made once: ``client.options(setup=f)``.

``setup_value`` is for functions that clients send; ``Setups`` is the worker's, beside its handler
for function calls. Each value is made in a thread of its own, so that whatever becomes of the call
that asked first, there is one call of its setup, for which all who ask wait.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import AbstractContextManager
from contextvars import Context, ContextVar
from types import FunctionType
from typing import Any

from ..errors import RedistqError

MOST_KEPT = 4
"""Values that a worker process keeps; the one that was used longest ago goes first."""
LOOK_S = 0.2
"""How often a call that waits for its setup runs a step, to be ended by its time limit."""

Setup = Callable[[], Any]
_given: ContextVar[tuple[Any] | None] = ContextVar("redistq-setup", default=None)


def setup_value() -> Any:
    """Return what the setup of this call has made: ``client.options(setup=load_model)``.

    It is made once in each worker process, and shared by all calls with that setup: those of
    other threads too, so it is not to be changed by one of them. Works in the thread of the call,
    and in coroutines that it starts. Raises RedistqError elsewhere.
    """
    given = _given.get()
    if given is None:
        raise RedistqError(
            "no setup was given to what runs here: send it with client.options(setup=load_model), "
            "and hand its value on to threads of your own"
        )
    return given[0]


class Setups:
    """The last values that setups have made in this process; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: OrderedDict[str, tuple[Future[Any], str]] = OrderedDict()

    def give(
        self,
        key: str,
        load: Callable[[], Setup],
        around: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """Let ``setup_value`` return, from here on in this context, what the setup of that key
        makes, or has made.

        ``load`` returns the setup; what it does runs in ``around``. Raises what it raises; the next
        call with it tries again.
        """
        with self._lock:
            found = self._made.get(key)
            if found is not None:
                self._made.move_to_end(key)
        future = self._begun(key, load(), around) if found is None else found[0]
        while not future.done():
            wait_for([future], LOOK_S)
        _given.set((future.result(),))

    def _begun(
        self, key: str, setup: Setup, around: Callable[[], AbstractContextManager[Any]]
    ) -> Future[Any]:
        name = _name_of(setup)
        with self._lock:
            found = self._made.get(key)
            if found is not None:
                return found[0]
            future: Future[Any] = Future()
            gone = [one for one, (_, known) in self._made.items() if name and known == name]
            for one in gone:  # an earlier version of it
                del self._made[one]
            self._made[key] = future, name
            while len(self._made) > MOST_KEPT:
                gone.append(self._made.popitem(last=False)[0])
        threading.Thread(
            target=Context().run,
            args=(self._make, key, setup, future, around, bool(gone)),
            name="redistq-setup",
            daemon=True,
        ).start()
        return future

    def _make(
        self,
        key: str,
        setup: Setup,
        future: Future[Any],
        around: Callable[[], AbstractContextManager[Any]],
        has_dropped: bool,
    ) -> None:
        if has_dropped:
            gc.collect()  # models are full of circles, and two may not fit
        try:
            with around():
                value = setup()
                if inspect.iscoroutine(value):
                    value = asyncio.run(value)
        except BaseException as error:  # the user's, and whatever it is
            with self._lock:
                if (found := self._made.get(key)) is not None and found[0] is future:
                    del self._made[key]
            note = f"raised by the setup {getattr(setup, '__qualname__', setup)}"
            try:
                error.add_note(note)
            except Exception:  # an error with attributes of its own
                pass
            future.set_exception(error)
        else:
            future.set_result(value)


def _name_of(setup: Any) -> str:
    """Return what a setup has in common with earlier versions of itself; '' for one that may be of
    many, such as what a function returns."""
    if type(setup) is not FunctionType or "<" in setup.__qualname__:
        return ""
    return f"{setup.__module__}.{setup.__qualname__}"

"""Context variables that travel with tasks, from who adds them to their handlers and on."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextvars import ContextVar
from typing import Any, Final

from ..context import TaskContext
from ..errors import ConfigurationError
from ..logger import logger
from ..protocol.codec import dumps
from ..protocol.headers import VARIABLE
from . import ambient
from .base import Middleware, NewTask

log = logger("redistq.middleware")
_UNSET: Final = object()


def travels(*variables: ContextVar[Any]) -> None:
    """Let context variables travel: what is set where a task is added is set in its handler, too,
    and in the handlers of the tasks that it adds or spawns.

    Values are JSON. Call it where both programs do, beside the variables: a worker that does not
    know a variable leaves it alone. A variable that is not set does not travel, nor does a default;
    of two variables with one name the later travels. Raises ConfigurationError for anything else.
    """
    for variable in variables:
        if not isinstance(variable, ContextVar):
            raise ConfigurationError(f"travels takes context variables, not {variable!r:.100}")
        _travelling.variables[VARIABLE + variable.name] = variable  # a module may be loaded anew
    if variables:
        ambient.use(_travelling, first=True)


class _Travelling(Middleware):
    """Writes the variables into headers, and sets them from there."""

    def __init__(self) -> None:
        self.variables: dict[str, ContextVar[Any]] = {}
        self._complained: set[str] = set()

    def enqueue(self, task: NewTask, next: Any) -> str:
        for header, variable in self.variables.items():
            value = variable.get(_UNSET)
            if value is not _UNSET:
                task.headers.setdefault(header, _text(variable, value))
        return str(next(task))

    def run(self, context: TaskContext, payload: Any) -> Generator[Any, Any, Any]:
        headers = context.headers
        if headers:
            for header, variable in self.variables.items():
                if header in headers:
                    self._set(variable, header, headers[header])
        yield

    def _set(self, variable: ContextVar[Any], header: str, text: str) -> None:
        try:
            variable.set(json.loads(text))
        except (ValueError, RecursionError) as error:
            if header not in self._complained:  # anyone may have written it
                self._complained.add(header)
                log.warning("the header %s is no JSON, its variable is not set: %s", header, error)


def _text(variable: ContextVar[Any], value: Any) -> str:
    try:
        return dumps(value).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"the context variable {variable.name!r} cannot travel: {error}; give it plain "
            "values (dict, list, str, numbers, bool, None)"
        ) from error


_travelling = _Travelling()

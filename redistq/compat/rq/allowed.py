"""Which functions a worker runs: by their import path, of the modules that it was told to allow.

A path is whatever the writer of a job chose. So nothing outside the allowed modules is imported,
and what was found there must have been defined there: ``myapp.jobs.os.system`` is not.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from ...errors import ConfigurationError
from .said import NotAllowed

NAME = "redistq.rq"
"""The name of all jobs; what stands behind its colon is the path of a job's function."""


class Allowed:
    """Modules whose functions may run, and the functions found in them."""

    def __init__(self, modules: Iterable[str]) -> None:
        given = [modules] if isinstance(modules, str) else list(modules)
        self.modules = tuple(module.rstrip(".") for module in given)
        if not self.modules or not all(module and module[0] != "." for module in self.modules):
            raise ConfigurationError(
                "say whose functions this worker may run, by the modules that define them: "
                "allow=['myapp.jobs']; whoever can write to the server chooses which"
            )
        self.function = lru_cache(maxsize=1024)(self._function)

    def _holds(self, name: str | None) -> bool:
        return name is not None and any(
            name == module or name.startswith(module + ".") for module in self.modules
        )

    def _function(self, path: str) -> Callable[..., Any]:
        """Return the function of that path; raises NotAllowed and ImportError."""
        parts = path.split(".")
        if not self._holds(path) or not all(
            part.isidentifier() and not part.startswith("__") for part in parts
        ):
            raise NotAllowed(
                f"this worker may not run {path!r}: it runs functions of "
                f"{', '.join(self.modules)}; start it with allow=[...] for others"
            )
        found: Any = None
        for at in range(len(parts) - 1, 0, -1):
            module = ".".join(parts[:at])
            if not self._holds(module):
                break
            try:
                found = importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{module}.".startswith(error.name + "."):
                    raise
                continue
            for part in parts[at:]:
                found = getattr(found, part, None)
            break
        function = inspect.unwrap(found) if callable(found) else None
        if function is None or not self._holds(getattr(function, "__module__", None)):
            raise NotAllowed(
                f"there is no function {path!r} defined in {', '.join(self.modules)}: add jobs by "
                "functions of modules that both sides import"
            )
        return found  # type: ignore[no-any-return]


def path_of(function: Any) -> str:
    """Return the import path of a job's function; raises ConfigurationError for one without."""
    if isinstance(function, str):
        return function.replace(":", ".")
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", "")
    if not module or not name or "<" in name or inspect.ismethod(function):
        raise ConfigurationError(
            f"{function!r:.80} has no import path: define it at the top of a module, or send it "
            "with redistq.Client, which takes any function"
        )
    if module == "__main__":
        raise ConfigurationError(
            f"{name} stands in the program that is run, which workers do not import: move it to a "
            "module"
        )
    return f"{module}.{name}"

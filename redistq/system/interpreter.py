"""The Python that runs our processes, what they inherit of this one, and what it has installed.

Used by whatever starts a process of ours (workers, supervisors, the embedded server), and by
whatever needs an optional package, which is imported when it is first needed.

What processes inherit is flags, import path and environment (see cores.py).
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import ConfigurationError

ENV_PYTHON = "REDISTQ_PYTHON"
_PYTHON_NAME = re.compile(r"(python|pypy|graalpy)[\w.+-]*$", re.IGNORECASE)


def interpreter() -> str:
    """Return the Python that runs our processes: REDISTQ_PYTHON, else this program's own.

    A program that embeds Python, or was frozen, names itself in ``sys.executable``; started as a
    helper it would do its own work again. Raises ConfigurationError, which names an interpreter
    that would do.
    """
    if named := os.environ.get(ENV_PYTHON):
        if _is_program(named):
            return named
        raise ConfigurationError(f"{ENV_PYTHON} is {named!r}, which is no program that can be run")
    own = sys.executable
    if own and not getattr(sys, "frozen", False) and _is_python(own):
        return own
    found = next(filter(_is_python, _candidates()), None)
    raise ConfigurationError(
        f"sys.executable is {own!r}, which is no Python interpreter, and redistq's own processes "
        f"need one: set {ENV_PYTHON} to one of this version that can import redistq"
        + (f", such as {ENV_PYTHON}={found}" if found else "")
    )


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _is_python(path: str) -> bool:
    names = (os.path.basename(path), os.path.basename(os.path.realpath(path)))
    return any(map(_PYTHON_NAME.match, names)) and _is_program(path)


def _candidates() -> Iterator[str]:
    yield getattr(sys, "_base_executable", None) or ""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for prefix in (sys.exec_prefix, sys.base_exec_prefix, os.path.dirname(os.__file__) + "/../.."):
        for name in (version, "python3"):
            yield os.path.normpath(os.path.join(prefix, "bin", name))


def interpreter_flags() -> list[str]:
    """Return the options that this interpreter was started with: -O, -W, -X, -E, -s, -u and so on.

    What the environment says (PYTHONWARNINGS and the like) is inherited anyway.
    """
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    passed = {word.partition("=")[0] for word in flags}
    for name, value in sys._xoptions.items():
        if name not in passed:
            flags += ["-X", name if value is True else f"{name}={value}"]
    if getattr(sys.__stdout__, "write_through", False):
        flags.append("-u")
    return flags


def import_path() -> list[str]:
    """Return where this program looks for modules, for a process with any current folder."""
    found = []
    for entry in sys.path:
        if not isinstance(entry, str):
            continue  # the import system passes over it as well
        if not entry or os.path.exists(entry):
            try:
                entry = os.path.abspath(entry)
            except OSError:
                continue  # the current folder was deleted
        found.append(entry)
    return found


def use_import_path(path: Sequence[str]) -> None:
    """Look for modules where the program that started us does, and in its order.

    To be called when our own modules are loaded: a ``queue.py`` beside the handlers is theirs.
    """
    sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]


def require(module: str, extra: str, purpose: str) -> Any:
    """Return an optional module; raises ImportError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{package} is needed for {purpose}: pip install redistq[{extra}]", name=package
        ) from error

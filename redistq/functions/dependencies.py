"""What code depends on: the globals and attributes it reads, and the modules and versions behind.

Used by fingerprints. It reads code objects and files, and runs none of the user's code.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import types
from typing import Any


@functools.lru_cache(4096)
def global_names(code: types.CodeType) -> frozenset[str]:
    """The globals that code reads, nested functions included; not the attributes it names."""
    import dis

    names = {
        step.argval
        for step in dis.get_instructions(code)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= global_names(constant)
    return frozenset(names)


def submodules(package: Any, code: types.CodeType) -> list[str]:
    """The loaded modules of a package that code may reach by its attributes."""
    start, names = f"{package.__name__}.", attribute_names(code)
    inner = [name for name in list(sys.modules) if name.startswith(start)]
    return sorted(n for n in inner if names.issuperset(n[len(start) :].split(".")))


def attribute_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= attribute_names(constant)
    return names


def content_of(name: str) -> str:
    """What names a module that was not installed and has no source, such as a compiled one."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    origin = getattr(spec, "origin", None) or ""
    try:
        found = os.stat(origin)
    except (OSError, ValueError):
        return ""
    return _content_of_file(origin, found.st_mtime_ns, found.st_size)


@functools.lru_cache(256)
def _content_of_file(path: str, *_: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


@functools.lru_cache(4096)
def version_of(package: str) -> str:
    """The version of an installed package, loaded or not; of the standard library Python's own."""
    if package in sys.stdlib_module_names or package in sys.builtin_module_names:
        return "python"  # whose version is in every fingerprint
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        pass
    owners = metadata.packages_distributions().get(package, ())
    return " ".join(f"{name} {metadata.version(name)}" for name in sorted(set(owners)))


def is_global_generator(value: Any) -> bool:
    """Whether a value is the generator behind ``random.random`` or ``numpy.random.rand``, of which
    each process has its own."""
    mtrand = sys.modules.get("numpy.random.mtrand")
    module = sys.modules.get("random")
    return (module is not None and value is getattr(module, "_inst", None)) or (
        mtrand is not None and value is getattr(mtrand, "_rand", None)
    )

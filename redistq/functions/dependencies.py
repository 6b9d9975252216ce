"""What code depends on: the globals, attributes and modules it names, and what those modules are.

Used by pickles, fingerprints and the bundles of local modules. It reads code objects and files, and
runs none of the user's code.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import opcode
import os
import sys
import types
from typing import Any

IMPORTS = opcode.opmap["IMPORT_NAME"]
"""In the bytecode of what imports something; elsewhere now and then as well."""

# -- what code names -------------------------------------------------------------------------------


@functools.lru_cache(4096)
def global_names(code: types.CodeType) -> frozenset[str]:
    """Return the globals that code reads, nested functions included; no names of attributes."""
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


@functools.lru_cache(1024)
def imported_names(code: types.CodeType) -> frozenset[str]:
    """Return the modules that a function imports when it runs, nested functions included."""
    names: set[str] = set()
    if IMPORTS in code.co_code:
        import dis

        level: Any = 0
        wanted: Any = None
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
                level = wanted if isinstance(wanted, int) else 0
                wanted = step.argval
            elif step.opname == "IMPORT_NAME" and not level:
                names.update(prefixes(step.argval))
                if isinstance(wanted, tuple):
                    names.update(f"{step.argval}.{part}" for part in wanted if part != "*")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= imported_names(constant)
    return frozenset(names)


def parents(name: str) -> list[str]:
    """Return the names of the packages that a module is in, from the outermost."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def prefixes(name: str) -> list[str]:
    """Return the names of a module's packages, and its own."""
    return [*parents(name), name]


def submodules(package: Any, code: types.CodeType) -> list[str]:
    """Return the loaded modules of a package that code may reach by its attributes."""
    start = f"{package.__name__}."
    names = attribute_names(code)
    inner = [name for name in list(sys.modules) if name.startswith(start)]
    return sorted(n for n in inner if names.issuperset(n[len(start) :].split(".")))


def attribute_names(code: types.CodeType) -> set[str]:
    """Return the attributes, and globals, that code names, nested functions included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= attribute_names(constant)
    return names


# -- what modules are ------------------------------------------------------------------------------


def content_of(name: str) -> str:
    """Return what names the state of a module without a version or a source, as a compiled one."""
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
    """Return the version of an installed package; "python" for the standard library."""
    if package in sys.stdlib_module_names or package in sys.builtin_module_names:
        return "python"  # whose version is in every fingerprint
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        pass
    owners = metadata.packages_distributions().get(package, ())
    return " ".join(f"{name} {metadata.version(name)}" for name in sorted(set(owners)))


def runs(module: Any, name: str, source: bytes, path: str) -> bool:
    """Return whether the functions of a loaded module are those of that source."""
    if type(getattr(module.__spec__, "loader", None)) is not importlib.machinery.SourceFileLoader:
        return True  # somebody else compiles it, in a way of its own
    try:
        compiled = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    codes: dict[str, list[types.CodeType]] = {}
    todo = [compiled]
    while todo:
        code = todo.pop()
        codes.setdefault(code.co_qualname, []).append(code)
        todo.extend(c for c in code.co_consts if isinstance(c, types.CodeType))
    live = list(vars(module).items())
    for cls in [c for _, c in live if _is_of(c, type, name)]:
        live += [(f"{cls.__qualname__}.{name}", member) for name, member in vars(cls).items()]
    for place, value in live:
        value = getattr(value, "__func__", value)
        if not _is_of(value, types.FunctionType, name):
            continue
        code = value.__code__
        if code.co_filename != path:
            continue
        # By the place it has, too: what replaces a method's code may have compiled it elsewhere.
        names = (place, value.__qualname__, code.co_qualname)
        if not any(_same_code(code, other) for name in names for other in codes.get(name, ())):
            return False
    return True


def _is_of(value: Any, kind: type, module: str) -> bool:
    return isinstance(value, kind) and getattr(value, "__module__", None) == module


def _same_code(one: types.CodeType, other: types.CodeType) -> bool:
    if (one.co_code, one.co_names, one.co_varnames) != (
        other.co_code,
        other.co_names,
        other.co_varnames,
    ) or len(one.co_consts) != len(other.co_consts):
        return False
    for a, b in zip(one.co_consts, other.co_consts, strict=True):
        if isinstance(a, types.CodeType):
            if not isinstance(b, types.CodeType) or not _same_code(a, b):
                return False
        elif a != b or type(a) is not type(b):
            return False
    return True


# -- whose code it is ------------------------------------------------------------------------------


def outside() -> int:
    """Return the stack level of the caller's own line, for a warning given here."""
    depth = 1
    frame = sys._getframe(1)
    own = os.path.dirname(os.path.dirname(__file__))
    while frame.f_back is not None and frame.f_code.co_filename.startswith(own):
        depth += 1
        frame = frame.f_back
    return depth

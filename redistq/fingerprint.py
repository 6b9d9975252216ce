"""The fingerprint of a call: the same for the same code and arguments, in any kernel, on any day.

Used for cached calls. It looks at what a function does (bytecode, constants, names, defaults,
closure, the functions and values it refers to), not at where it is written: moving a cell, or
restarting the kernel, changes nothing. Where in doubt it differs, which costs a run and no harm.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Callable
from typing import Any

from .pickling import PYTHON, dump


def fingerprint(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """160 bits as hexadecimal text; raises PayloadError for arguments that cannot be pickled."""
    digest = hashlib.blake2b(digest_size=20)
    digest.update(repr(PYTHON).encode())
    _function(digest, fn, set())
    digest.update(b"\0args\0")
    digest.update(dump(args))
    digest.update(dump(sorted(kwargs.items())))
    return digest.hexdigest()


def _function(digest: Any, fn: Any, seen: set[int]) -> None:
    if id(fn) in seen:
        return
    seen.add(id(fn))
    if isinstance(fn, functools.partial):
        digest.update(b"partial")
        _function(digest, fn.func, seen)
        _value(digest, (fn.args, sorted(fn.keywords.items())), seen)
        return
    if inspect.ismethod(fn):
        _value(digest, fn.__self__, seen)
        fn = fn.__func__
    code = getattr(fn, "__code__", None)
    if code is None:
        digest.update(f"{getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', fn)}".encode())
        return
    _code(digest, code)
    _value(digest, (fn.__defaults__, fn.__kwdefaults__), seen)
    for cell in fn.__closure__ or ():
        try:
            _value(digest, cell.cell_contents, seen)
        except ValueError:
            digest.update(b"empty cell")
    for name in sorted(_names(code)):
        if name in fn.__globals__:
            digest.update(name.encode())
            _value(digest, fn.__globals__[name], seen)


def _code(digest: Any, code: types.CodeType) -> None:
    digest.update(code.co_code)
    digest.update(repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _code(digest, constant)
        else:
            digest.update(repr(constant).encode())


def _names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _value(digest: Any, value: Any, seen: set[int]) -> None:
    if isinstance(value, types.ModuleType):
        version = getattr(value, "__version__", "")
        digest.update(f"module {value.__name__} {version}".encode())
    elif (
        inspect.isfunction(value) or inspect.ismethod(value) or isinstance(value, functools.partial)
    ):
        imported = getattr(value, "__module__", None) not in ("__main__", None)
        if imported and inspect.isfunction(value):
            module = inspect.getmodule(value)
            version = getattr(module, "__version__", "")
            digest.update(f"{value.__module__}.{value.__qualname__} {version}".encode())
        _function(digest, value, seen)
    elif inspect.isclass(value):
        digest.update(f"class {value.__module__}.{value.__qualname__}".encode())
        if value.__module__ == "__main__":
            for name, member in sorted(vars(value).items()):
                if inspect.isfunction(member):
                    digest.update(name.encode())
                    _function(digest, member, seen)
    else:
        try:
            digest.update(dump(value))
        except Exception:
            # A client, a lock, an open file: its type must do, its content is not the function's.
            digest.update(f"object {type(value).__qualname__}".encode())

"""The fingerprint of a call: the same for the same code and arguments, in any kernel, on any day.

Used for cached calls and for batches that are found again by name. It looks at what a call does and
at all that it depends on, not at where that is written: moving a cell, or restarting the kernel,
changes nothing; changing anything that a worker would do differently does. What it sees:

- of functions and classes of the notebook: bytecode, constants, defaults, closures, the globals
  they read, bases, attributes, properties, decorators, however deep;
- of local modules (see local_modules.py): their source and that of all that they import;
- of installed packages, and the standard library: name and version;
- of values: their content, by type; sets without an order, dicts in theirs.

No address, file name or line number, and nothing that another hash seed would change. Where in
doubt it differs, which costs a run and no harm. What it cannot see into is refused, by name.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import hashlib
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import PayloadError
from ..handlers.typed_task import ADDED, MARK
from .dependencies import content_of, global_names, imported_names, submodules, version_of
from .local_modules import digest_of, is_local
from .pickling import MSGSPEC_CACHE, PYTHON, global_generator
from .references import Referable

VERSION = b"2"
_PYTHON = repr(PYTHON).encode()
_SHORT = 512
"""Bytes that are copied in less time than a hash takes two of."""
_ATOMS = frozenset({int, float, str, bytes, bool, type(None), complex})
_NOT_OF_A_CLASS = frozenset(
    {"__dict__", "__weakref__", "__module__", "__doc__", "_abc_impl", "__abstractmethods__"}
    | {"__firstlineno__", "__static_attributes__", "__annotations_cache__", "__annotate_func__"}
    | {"__annotate__", "__classdictcell__", "__qualname__", MSGSPEC_CACHE}
    # What pydantic makes of fields, decorators and configuration; it names classes by address.
    | {"__pydantic_core_schema__", "__pydantic_validator__", "__pydantic_serializer__"}
)
_NOT_OF_AN_ENUM = frozenset(
    {"_member_names_", "_member_map_", "_member_type_", "_value2member_map_", "_value_repr_"}
    | {"_unhashable_values_", "_unhashable_values_map_", "_hashable_values_", "_use_args_"}
    | {"_new_member_", "__new_member__", "__new__", "_generate_next_value_", "_sort_order_"}
    | {"_boundary_", "_flag_mask_", "_singles_mask_", "_all_bits_", "_inverted_"}
)


def fingerprint(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], code: bytes = b""
) -> str:
    """160 bits as hexadecimal text; ``code`` is what ``code_of`` returned for the function, where
    that is known. Raises PayloadError naming what cannot be looked into."""
    seen = _Seen()
    parts = (
        code or seen.within("the function", fn),
        *(seen.within(f"argument {i}", value) for i, value in enumerate(args, 1)),
        b"keywords",
        *(
            part
            for name, value in sorted(kwargs.items())
            for part in (name.encode("utf-8", "surrogatepass"), seen.within(name, value))
        ),
    )
    return _hash(VERSION, _PYTHON, *parts).hex()


def code_of(fn: Callable[..., Any]) -> bytes:
    """The part of a function in the fingerprints of its calls, for those that are made at once."""
    return _Seen().within("the function", fn)


def fingerprint_of(value: Any, what: str) -> bytes:
    """The same of one value or function, as 20 bytes; ``what`` names it in an error."""
    return _hash(VERSION, _PYTHON, _Seen().within(what, value))


def _hash(*parts: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        size = len(part)
        if size < _SHORT:
            digest.update(size.to_bytes(8, "little") + part)
        else:
            digest.update(size.to_bytes(8, "little"))
            digest.update(part)
    return digest.digest()


class _Seen:
    """One look at a call: what was seen already, and the way to what is being looked at."""

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}
        self._kept: list[Any] = []  # or an address could come to mean another object
        self._under_way: dict[int, int] = {}
        self._path: list[str] = []

    def within(self, name: str, value: Any) -> bytes:
        """The digest of a part, with its name for errors."""
        self._path.append(name)
        try:
            found = self.of(value)
        except RecursionError as error:
            raise self._refused(value, "it is nested too deeply") from error
        self._path.pop()
        return found

    def of(self, value: Any) -> bytes:
        """The digest of any object."""
        kind = type(value)
        if kind in _ATOMS:
            return _hash(kind.__name__.encode(), _text(value))
        if isinstance(value, Referable):
            return _hash(b"result of", value.identity().encode())
        at = id(value)
        if (known := self._known.get(at)) is not None:
            return known
        if (depth := self._under_way.get(at)) is not None:
            # Inside itself: by how far up it is, for that is the same in every process.
            return _hash(b"again", str(len(self._under_way) - depth).encode())
        self._under_way[at] = len(self._under_way)
        try:
            found = self._look(value, kind)
        finally:
            del self._under_way[at]
        self._known[at] = found
        self._kept.append(value)
        return found

    def _look(self, value: Any, kind: type) -> bytes:
        look = _LOOKS.get(kind)
        if look is not None:
            return look(self, value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if isinstance(value, enum.Enum):
            return _hash(b"member", self.of(kind), value.name.encode(), self.of(value.value))
        if kind.__module__ == "numpy" and kind.__name__ == "ndarray" and not value.dtype.hasobject:
            return self._array(value)
        if hasattr(value, "untyped_storage") and kind.__module__.startswith("torch"):
            whole = value.detach().cpu().contiguous()
            raw = bytes(whole.untyped_storage())[: whole.numel() * whole.element_size()]
            return _hash(b"tensor", str(whole.dtype).encode(), self.of(tuple(whole.shape)), raw)
        if isinstance(value, set | frozenset):
            content = sorted(self.of(part) for part in value)
            return _hash(b"set", self.of(kind), *content, self._by_name(vars(value)))
        if kind.__module__ == "pydantic._internal._decorators" and hasattr(value, "cls_ref"):
            # Its class stands there by address; func is bound to it.
            own = (value.cls_var_name, value.func, value.shim, value.info)
            return _hash(b"decorator", self.of(own))
        if kind is functools.cached_property:
            return _hash(b"property", self.of(value.func))
        if kind is functools._lru_cache_wrapper:
            parameters = sorted(value.cache_parameters().items())
            return _hash(b"cached", self.of(value.__wrapped__), self.of(parameters))
        return self._object(value, kind)

    # -- plain values ----------------------------------------------------------------------------

    def _sequence(self, value: Any) -> bytes:
        label = type(value).__name__.encode()
        if set(map(type, value)) <= _ATOMS:
            return _hash(label, *_texts(value))
        parts = (self.within(f"[{i}]", part) for i, part in enumerate(value))
        return _hash(label, *parts)

    def _dict(self, value: Any) -> bytes:
        # In its order, which code can see.
        return _hash(
            b"dict",
            *(
                part
                for key, item in value.items()
                for part in (self.of(key), self.within(f"[{key!r:.40}]", item))
            ),
        )

    def _set(self, value: Any) -> bytes:
        return _hash(type(value).__name__.encode(), *sorted(self.of(part) for part in value))

    def _bytes(self, value: Any) -> bytes:
        return _hash(type(value).__name__.encode(), bytes(value))

    def _view(self, value: Any) -> bytes:
        return _hash(type(value).__name__.encode(), *(self.of(part) for part in value))

    def _array(self, value: Any) -> bytes:
        import numpy

        whole = numpy.ascontiguousarray(value)
        kind = repr(value.dtype.descr if value.dtype.fields else value.dtype.str)
        about = repr((value.shape, kind, value.flags.f_contiguous)).encode()
        return _hash(b"array", about, whole.reshape(-1).view(numpy.uint8).data)

    # -- code ------------------------------------------------------------------------------------

    def _code(self, code: types.CodeType) -> bytes:
        constants = []
        for constant in code.co_consts:
            constants.append(self.of(constant))
        layout = (
            code.co_flags,
            code.co_argcount,
            code.co_posonlyargcount,
            code.co_kwonlyargcount,
            code.co_names,
            code.co_varnames,
            code.co_freevars,
            code.co_cellvars,
        )
        return _hash(
            b"code",
            code.co_code,
            code.co_exceptiontable,
            repr(layout).encode(),
            *constants,
        )

    def _function(self, function: Any) -> bytes:
        if hasattr(function, "registry") and hasattr(function, "dispatch"):
            return self._single_dispatch(function)
        where = self._where(function)
        if where is not None:
            return where
        code = function.__code__
        parts = [self._code(code)]
        named = (("defaults", function.__defaults__), ("defaults", function.__kwdefaults__))
        parts += [self.within(name, value) for name, value in named]
        cells = zip(code.co_freevars, function.__closure__ or (), strict=False)
        for name, cell in sorted(cells, key=lambda pair: pair[0]):
            parts += [name.encode(), self.within(f"closure {name!r}", cell)]
        ours = ADDED if MARK in vars(function) else ()
        attributes = {
            name: value
            for name, value in vars(function).items()
            if name != "__wrapped__" and name not in ours
        }
        parts.append(self._by_name(attributes))
        if "__wrapped__" in vars(function):
            parts.append(self.of(function.__wrapped__))
        parts += self._globals(function, code)
        parts += [self._imported(name) for name in sorted(imported_names(code))]
        return _hash(b"function", *parts)

    def _globals(self, function: Any, code: types.CodeType) -> list[bytes]:
        module = function.__globals__.get("__name__", "")
        loaded = sys.modules.get(module)
        if loaded is not None and vars(loaded) is function.__globals__ and module != "__main__":
            # What a module of a file holds is what its source makes of it, there as here.
            return [self._imported(module)]
        parts: list[bytes] = []
        scope = function.__globals__
        for name in sorted(global_names(code)):
            if name in scope:
                value = scope[name]
                parts += [name.encode(), self.within(f"global {name!r}", value)]
                if isinstance(value, types.ModuleType) and hasattr(value, "__path__"):
                    parts += [self._imported(inner) for inner in submodules(value, code)]
        return parts

    def _single_dispatch(self, function: Any) -> bytes:
        chosen = sorted(_hash(self.of(t), self.of(f)) for t, f in function.registry.items())
        return _hash(b"dispatch", *chosen)

    def _where(self, value: Any) -> bytes | None:
        """The digest of what an import finds; None for what has to be looked into."""
        module = getattr(value, "__module__", None)
        name = getattr(value, "__qualname__", "")
        if not isinstance(module, str) or module in ("__main__", "__mp_main__"):
            return None
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is not value:
            return None
        return _hash(b"imported", self._imported(module), name.encode())

    def _imported(self, name: str) -> bytes:
        """A module by its state: of a local one the source, of an installed one the version."""
        if is_local(name):
            return _hash(b"local", name.encode(), digest_of(name).encode())
        if name == "__main__":
            return b"main"
        version = version_of(name.partition(".")[0]) or content_of(name)
        return _hash(b"module", name.encode(), version.encode())

    def _module(self, module: Any) -> bytes:
        spec = getattr(module, "__spec__", None)
        if spec is None and not is_local(module.__name__) and module.__name__ not in sys.modules:
            return _hash(b"made", module.__name__.encode(), self._by_name(vars(module)))
        return self._imported(module.__name__)

    def _class(self, cls: Any) -> bytes:
        where = self._where(cls)
        if where is not None:
            return where
        name = cls.__name__.encode()
        if issubclass(cls, enum.Enum):
            ways = [
                self.within(f".{n}", m)
                for n, m in sorted(vars(cls).items())
                if n not in _NOT_OF_A_CLASS and n not in cls.__members__ and not _is_slot(m)
                if n not in _NOT_OF_AN_ENUM and not isinstance(m, types.BuiltinFunctionType)
            ]
            values = [
                self.within(f".{n}", (n, m._value_, _state_of_member(m)))
                for n, m in cls.__members__.items()
            ]
            return _hash(b"enum", name, *map(self.of, cls.__bases__), *values, b"", *ways)
        parts = [self.of(base) for base in cls.__bases__]
        if type(cls) is not type:
            parts.append(self.of(type(cls)))
        for key, member in sorted(vars(cls).items()):
            if key in _NOT_OF_A_CLASS:
                continue
            if _is_slot(member):
                parts.append(_hash(b"slot", key.encode()))
            else:
                parts += [key.encode(), self.within(f".{key}", member)]
        return _hash(b"class", name, *parts)

    def _wrapper(self, value: Any) -> bytes:
        return _hash(type(value).__name__.encode(), self.of(value.__func__))

    def _property(self, value: Any) -> bytes:
        return _hash(b"property", *(self.of(f) for f in (value.fget, value.fset, value.fdel)))

    def _method(self, value: Any) -> bytes:
        return _hash(b"method", self.within("self", value.__self__), self.of(value.__func__))

    def _built_in(self, value: Any) -> bytes:
        """A function in C: by where it is, or by the object whose method it is."""
        owner = getattr(value, "__self__", None)
        name = value.__name__.encode()
        if owner is None or isinstance(owner, types.ModuleType):
            module = value.__module__ or getattr(owner, "__name__", "")
            return _hash(b"builtin", self._imported(module) if module else b"", name)
        if global_generator(owner) is not None:
            return _hash(b"random", name)
        return _hash(b"bound", self.within("self", owner), name)

    def _descriptor(self, value: Any) -> bytes:
        return _hash(b"descriptor", self.of(value.__objclass__), value.__name__.encode())

    def _partial(self, value: Any) -> bytes:
        parts = (value.func, value.args, sorted(value.keywords.items()), vars(value))
        return _hash(type(value).__name__.encode(), *(self.of(part) for part in parts))

    def _cell(self, cell: Any) -> bytes:
        try:
            return self.of(cell.cell_contents)
        except ValueError:
            return b"empty"

    # -- all other objects -----------------------------------------------------------------------

    def _object(self, value: Any, kind: type) -> bytes:
        """By what a pickle would hold of it."""
        reduce = copyreg.dispatch_table.get(kind)
        try:
            made = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        except Exception as error:  # any object's own __reduce_ex__
            raise self._refused(value, str(error) or type(error).__name__) from error
        if isinstance(made, str):  # the name of a global of its module
            module = getattr(value, "__module__", None) or kind.__module__
            return _hash(b"global", self._imported(module), made.encode())
        whole: tuple[Any, ...] = (*made, None, None, None, None, None)
        make, args, state, items, pairs = whole[:5]
        parts = [self.of(make), self.of(tuple(args or ()))]
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state, slots = state
            parts.append(self._by_name(slots))
        if isinstance(state, dict):
            parts.append(self._by_name(state))
        else:
            parts.append(self.of(state))
        parts.append(_hash(*(self.of(item) for item in items or ())))
        parts.append(_hash(*(self.of(part) for pair in pairs or () for part in pair)))
        return _hash(b"object", *parts)

    def _by_name(self, values: Any) -> bytes:
        """Attributes, in whatever order they were set."""
        if not all(type(name) is str for name in values):
            return self.of(dict(values))
        parts: list[bytes] = []
        for name in sorted(values):
            parts += [name.encode("utf-8", "surrogatepass"), self.within(f".{name}", values[name])]
        return _hash(b"attributes", *parts)

    def _refused(self, value: Any, why: str) -> PayloadError:
        kind = type(value)
        path = ", ".join(self._path[:1]) + "".join(
            name if name.startswith((".", "[")) else f" {name}" for name in self._path[1:12]
        )
        return PayloadError(
            f"{path} is a {kind.__module__}.{kind.__qualname__}, of whose content no fingerprint "
            f"can be made ({why}), so that a change of it would go unseen: make it inside the "
            "function, or pass what it is made of; or send the call without cache= and name="
        )


def _text(value: Any) -> bytes:
    if type(value) is int:
        return hex(value).encode()  # decimal text of a very long one is refused by Python
    if type(value) is bytes:
        return bytes(value)
    return repr(value).encode("utf-8", "surrogatepass")


def _texts(values: Iterable[Any]) -> list[bytes]:
    values = list(values)
    try:
        return [repr(values).encode("utf-8", "surrogatepass")]
    except ValueError:
        return [part for value in values for part in (type(value).__name__.encode(), _text(value))]


def _is_slot(member: Any) -> bool:
    return isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType)


def _state_of_member(member: Any) -> dict[str, Any]:
    own = ("_name_", "_value_", "__objclass__", "_sort_order_", "_hashable_values_")
    return {name: value for name, value in vars(member).items() if name not in own}


_LOOKS: dict[type, Callable[[_Seen, Any], bytes]] = {
    list: _Seen._sequence,
    tuple: _Seen._sequence,
    dict: _Seen._dict,
    types.MappingProxyType: _Seen._dict,
    set: _Seen._set,
    frozenset: _Seen._set,
    bytearray: _Seen._bytes,
    memoryview: _Seen._bytes,
    type({}.keys()): _Seen._view,
    type({}.values()): _Seen._view,
    type({}.items()): _Seen._view,
    types.CodeType: _Seen._code,
    types.FunctionType: _Seen._function,
    types.MethodType: _Seen._method,
    types.BuiltinFunctionType: _Seen._built_in,
    types.MethodWrapperType: _Seen._built_in,
    types.WrapperDescriptorType: _Seen._descriptor,
    types.MethodDescriptorType: _Seen._descriptor,
    types.ClassMethodDescriptorType: _Seen._descriptor,
    types.MemberDescriptorType: _Seen._descriptor,
    types.GetSetDescriptorType: _Seen._descriptor,
    types.CellType: _Seen._cell,
    staticmethod: _Seen._wrapper,
    classmethod: _Seen._wrapper,
    property: _Seen._property,
    functools.partial: _Seen._partial,
}

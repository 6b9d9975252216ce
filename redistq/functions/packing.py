"""Packer: makes a signed packet of a call, and stores what is large beside it.

Each client has one, and each worker, for calls of the flows that functions return. A function used
ten thousand times, or an argument that many calls share, crosses to the server once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from ..errors import PayloadTooLarge
from ..protocol.options import CallOptions
from .blobs import BLOB_TTL_S, LARGE, Blobs, Parted, dump_parted
from .function import Known, PickledFunctions, pickled_function, warn_of_generators
from .local_modules import KEPT_BUNDLES, bundle_of
from .pickling import Parents, Seen, dump
from .references import Referable
from .scattered import Scattered
from .signing import Signer
from .written import Call, Needs, Ref, with_needs

_NUMBERS = frozenset({int, float, bool, type(None)})
_TEXTS = frozenset({str, bytes})
_SHORT = 1024
"""Characters of a text that is certainly small."""
_FEW = 32
"""Arguments that are certainly small together, where each of them is."""


@dataclass(slots=True)
class Shared:
    """What the calls of one map, batch or graph share while they are packed: what is stored for
    one of them is stored for all."""

    arguments: dict[int, tuple[Any, Ref | Parted, Seen, list[str]]] = field(default_factory=dict)
    """Large arguments by identity: the value, its stand-in, what it refers to, and the blobs."""
    functions: dict[tuple[int, float], tuple[Known, str]] = field(default_factory=dict)
    """Functions, by identity of what is known of them and how long they are kept: their names."""
    modules: dict[frozenset[str], str] = field(default_factory=dict)
    """Bundles of local modules, as they were for the first call: their names."""


class Packer:
    """Packs the calls of one client; safe to use from several threads."""

    def __init__(
        self, blobs: Blobs, signer: Signer, max_bytes: int, spill: Sequence[Any] | None = None
    ) -> None:
        """``spill`` says where large results of the calls go, as ``Spill.written`` says it."""
        self._blobs = blobs
        self._signer = signer
        self._max_bytes = max_bytes
        self._spill = spill
        self._pickled = PickledFunctions()
        self._bundles: dict[str, str] = {}  # names of those sent before, by their digests

    def store_function(
        self,
        fn: Callable[..., Any],
        keep_s: float,
        needs: list[str],
        shared: Shared | None = None,
    ) -> str:
        """Return the name of the function on the server, where it is with its local modules.

        What was stored is added to ``needs``. Raises PayloadError for what cannot be pickled.
        """
        known = self._pickled.get(fn)
        if known is not None:
            place = id(known), keep_s
            if shared is not None and place in shared.functions:
                return shared.functions[place][1]
            name = self._store_pickled(fn, known.pickled, known.modules, keep_s, needs)
            if shared is not None:
                shared.functions[place] = known, name
            return name
        seen = Seen()
        pickled = dump(fn, seen)
        if seen.generators:
            warn_of_generators(fn, seen.generators)
        else:
            self._pickled.keep(fn, pickled, seen.modules)
        return self._store_pickled(fn, pickled, seen.modules, keep_s, needs)

    def store_setup(
        self,
        options: CallOptions,
        keep_s: float,
        needs: list[str],
        shared: Shared | None = None,
    ) -> str:
        """Return the name of what calls with these options share; '' for nothing. As
        ``store_function``."""
        if options.setup is None:
            return ""
        return self.store_function(options.setup, keep_s, needs, shared)

    def _store_pickled(
        self,
        fn: Callable[..., Any],
        pickled: bytes,
        modules: AbstractSet[str],
        keep_s: float,
        needs: list[str],
    ) -> str:
        bundle = self.store_modules(modules, keep_s, needs)
        return self._blobs.put("function", pickled_function(fn, pickled, bundle), keep_s, needs)

    def store_modules(
        self,
        names: AbstractSet[str],
        keep_s: float,
        needs: list[str],
        shared: Shared | None = None,
    ) -> str:
        """Return the name of the bundle, on the server, of the local modules among these and of
        what they import; '' when there are none."""
        if not names:
            return ""
        if shared is not None and (known := shared.modules.get(frozenset(names))) is not None:
            self._blobs.require((known,) if known else (), needs)
            return known
        name = ""
        if (bundle := bundle_of(names)) is not None:
            known = self._bundles.get(bundle.digest, "")
            name = self._blobs.put("modules", bundle.data, keep_s, needs, known)
            if len(self._bundles) > KEPT_BUNDLES:
                self._bundles = {}
            self._bundles[bundle.digest] = name
        if shared is not None:
            shared.modules[frozenset(names)] = name
        return name

    def scatter(self, value: Any) -> Scattered:
        """Store a value; return what stands for it in arguments. Raises PayloadError or
        PayloadTooLarge."""
        needs: list[str] = []
        seen = Seen()
        size = 0

        def store(part: Any) -> str:
            nonlocal size
            size += memoryview(part).nbytes
            return self._blobs.put("argument", part, BLOB_TTL_S, needs)

        try:
            name = store(dump(dump_parted(value, store, seen, shared=True)))
        except BaseException:
            self._blobs.drop(needs)
            raise
        return Scattered(self._blobs, name, needs, type(value).__name__, size, seen.modules)

    def pack(
        self,
        context: str,
        call: Call,
        keep_s: float,
        needs: list[str],
        shared: Shared | None = None,
        parents: Parents | None = None,
        answers: str = "",
    ) -> bytes:
        """Return a call as the payload of the task that ``context`` names, and of no other.

        Large arguments, and large parts of arguments, go to the server under their content's name;
        ``shared`` remembers what calls have in common. What the server keeps for this one is added
        to ``needs``, and the tasks whose results stand in it to ``parents``. ``answers`` is the id
        of the task that ends as this call does, where it is another.

        Raises PayloadError or PayloadTooLarge; nothing was sent then but arguments that expire.
        """
        modules = ""
        data = _small(call, parents)
        if data is None:
            shared = shared or Shared()
            data, modules = self._packed(call, keep_s, needs, shared, Seen(parents))
        if modules or parents or answers or self._spill:
            data = with_needs(data, Needs(modules, tuple(parents or ()), answers, self._spill))
        packet = self._signer.pack("call", context, data)
        if len(packet) > self._max_bytes:
            raise PayloadTooLarge(len(packet), self._max_bytes)
        return packet

    def _packed(
        self, call: Call, keep_s: float, needs: list[str], shared: Shared, seen: Seen
    ) -> tuple[bytes, str]:
        """Return a call's pickle, and the bundle of local modules that its arguments need."""
        packing = _Packing(self._blobs, keep_s, needs, shared, seen)
        # Most calls are small as they are. Else first the parts that many calls may share, then
        # whole arguments.
        data = packing.pickled(call, sure=False, parted=False)
        if len(data) > LARGE:
            data = packing.pickled(call, sure=False, parted=True)
        if len(data) > LARGE:
            data = packing.pickled(call, sure=True, parted=True)
        for scattered in dict.fromkeys(seen.scattered):
            scattered.need(self._blobs, keep_s, needs)
        return data, self.store_modules(seen.modules, keep_s, needs, shared)


def _small(call: Call, parents: Parents | None) -> bytes | None:
    """Return the pickle of a call whose arguments are single small values and results of tasks, as
    most are that depend on others; None for any other call. The tasks are added to ``parents``."""
    if call.chunk or call.kwargs or len(call.args) > _FEW:
        return None
    found: Parents = {}
    args: list[Any] = []
    for value in call.args:
        if type(value) in _NUMBERS or (type(value) in _TEXTS and len(value) < _SHORT):
            args.append(value)
        elif parents is not None and isinstance(value, Referable):
            reference = None if isinstance(value, Scattered) else value.reference()
            if reference is None:
                return None
            found[reference] = value
            args.append(reference)
        else:
            return None
    data = call.pickled_with(tuple(args))
    if len(data) > LARGE:
        return None  # a number of very many digits
    if parents is not None:
        parents.update(found)
    return data


class _Packing:
    """One call while it is packed."""

    __slots__ = ("_blobs", "_keep_s", "_needs", "_shared", "seen")

    def __init__(
        self, blobs: Blobs, keep_s: float, needs: list[str], shared: Shared, seen: Seen
    ) -> None:
        self._blobs = blobs
        self._keep_s = keep_s
        self._needs = needs
        self._shared = shared.arguments
        self.seen = seen

    def pickled(self, call: Call, *, sure: bool, parted: bool) -> bytes:
        """Return the call's pickle, without large arguments: those that are ``sure`` to be large
        once pickled, or only those that look it; ``parted``: nor large parts of the others."""
        if call.chunk:
            args: Any = [tuple([self._stored(a, sure) for a in one]) for one in call.args]
        else:
            args = tuple([self._stored(a, sure) for a in call.args])
        kwargs = {name: self._stored(a, sure) for name, a in call.kwargs.items()}
        slim = Call(call.function, args, kwargs, call.chunk, call.logs, call.stream, call.setup)
        return slim.pickled(self._store if parted else None, self.seen)

    def _store(self, part: Any) -> str:
        return self._blobs.put("argument", part, self._keep_s, self._needs)

    def _stored(self, value: Any, sure: bool) -> Any:
        """Return the value itself when it is small, else what stands for it."""
        if isinstance(value, Referable):
            return self._referred(value)
        known = self._shared.get(id(value))
        if known is not None:
            self._saw(known[2])
            self._blobs.require(known[3], self._needs)
            return known[1]
        own = Seen(None if self.seen.parents is None else {})
        before = len(self._needs)
        if not _looks_large(value) and not (sure and _is_large(value, own)):
            return value
        parted = dump_parted(value, self._store, own)
        ref: Parted | Ref = parted
        if len(parted.data) >= LARGE // 4:
            ref = Ref(self._store(dump(parted)))
        # The value is kept alive, or its id could mean another object.
        self._shared[id(value)] = (value, ref, own, self._needs[before:])
        self._saw(own)
        return ref

    def _referred(self, value: Referable) -> Any:
        """Return what stands for a task's result: as the pickler writes it, without its pickler."""
        if isinstance(value, Scattered) and self.seen.parents is not None:
            value.written(self.seen)
            return Ref(value.name)
        if self.seen.parents is None or (reference := value.reference()) is None:
            return value
        self.seen.parents[reference] = value
        return reference

    def _saw(self, own: Seen) -> None:
        self.seen.modules |= own.modules
        self.seen.scattered += own.scattered
        if self.seen.parents is not None:
            self.seen.parents.update(own.parents or {})


def _is_large(value: Any, own: Seen) -> bool:
    return len(dump(value, Seen(own.parents))) >= LARGE


def _looks_large(value: Any) -> bool:
    """Return whether a value is clearly large, without pickling it."""
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size >= LARGE
    if isinstance(value, bytes | bytearray | str):
        return len(value) >= LARGE
    usage = getattr(value, "memory_usage", None)
    if usage is not None and hasattr(value, "iloc"):
        total = usage(index=True)
        return int(total if isinstance(total, int) else total.sum()) >= LARGE
    return False


def keep_needs_s(options: CallOptions) -> float:
    """Return how long what a call needs is kept on the server: a week from when it is due."""
    return BLOB_TTL_S + (options.delay or 0)


def label(fn: Any) -> str:
    """Return what monitors call a function."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = str(getattr(fn, "__qualname__", type(fn).__name__)).replace("\n", " ")
    return name.replace("<locals>.", "")[-150:]


def arguments_of(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the arguments of a call by their names, of which keys are made."""
    try:
        return inspect.signature(fn).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return dict(kwargs)  # what cannot be called so fails where it runs

"""Function calls as they are written down: what a client packs and a worker opens.

A call names its function by a blob, so that a function used ten thousand times travels once; so it
does with large arguments. What its arguments need stands before their pickle.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import PayloadError
from ..protocol.codec import dumps, loads
from ..protocol.options import CallOptions
from .blobs import Fetch, Parted, Store, dump_parted
from .function import load_here
from .pickling import Seen, can_be_sent, dump, what_cannot
from .references import Reference

CALL = "redistq.call"
"""The task name of function calls."""
_WITH_NEEDS = 1
"""The first byte of a call that says what it needs; a pickle begins with another."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for an argument that is stored as a blob."""

    digest: str


_STAND_INS = frozenset({Ref, Parted})


def is_whole(args: Iterable[Any]) -> bool:
    """Return whether nothing stands for any of these arguments."""
    return _STAND_INS.isdisjoint(map(type, args))


def put_in(value: Any, fetch: Fetch, shared: dict[Any, Any] | None = None) -> Any:
    """Return an argument, found where something stands for it. ``shared`` remembers those that
    several calls of a chunk have in common.

    Else it is loaded anew for every call: one that changes its argument changes its own copy.
    """
    kind = type(value)
    if kind is not Ref and kind is not Parted:
        return value
    place = value.digest if kind is Ref else id(value)  # of one pickle, which holds it once
    if shared is not None and place in shared:
        return shared[place]
    if kind is Ref:
        found = load_here(fetch(value.digest), "an argument", fetch)
    else:
        found = load_here(value, "an argument", fetch)
    if shared is not None:
        shared[place] = found
    return found


@dataclass(frozen=True, slots=True)
class Call:
    """One call, or a chunk of calls of the same function, before it is packed.

    With ``chunk`` set, ``args`` is a list of argument tuples and the result a list of results. With
    ``stream`` set what it yields is its stream, and the result how many items there are.
    """

    function: str
    args: Any
    kwargs: dict[str, Any]
    chunk: bool = False
    logs: bool | Literal["only"] = False
    stream: bool = False
    setup: str = ""
    """The function whose value it shares with others; '' for none."""

    @classmethod
    def under(
        cls,
        options: CallOptions,
        function: str,
        args: Any,
        kwargs: dict[str, Any] | None = None,
        *,
        chunk: bool = False,
        stream: bool = False,
        setup: str = "",
    ) -> Call:
        """Return a call with what its options say of the call itself; ``setup`` names theirs."""
        return cls(function, args, kwargs or {}, chunk, options.logs, stream, setup)

    def pickled(self, store: Store | None = None, seen: Seen | None = None) -> bytes:
        """Return it as bytes; with ``store`` its large parts are left out and stored (blobs.py).

        Raises PayloadError naming what cannot be pickled.
        """
        fields = self._fields(self.args, self.kwargs)
        try:
            return dump(fields, seen) if store is None else dump(dump_parted(fields, store, seen))
        except PayloadError as error:
            kind = "call" if self.chunk else "argument"
            parts = {f"{kind} {i}": value for i, value in enumerate(self.args, 1)}
            parts.update((f"argument {name}", value) for name, value in self.kwargs.items())
            for name, value in parts.items():
                if not can_be_sent(value):
                    why = error.__cause__
                    raise PayloadError(what_cannot(value, why, name)) from why
            raise

    def pickled_with(self, args: tuple[Any, ...]) -> bytes:
        """Return it as bytes with these arguments alone, single values and references."""
        return pickle.dumps(self._fields(args, {}), 5)

    def _fields(self, args: Any, kwargs: dict[str, Any]) -> tuple[Any, ...]:
        fields = (self.function, args, kwargs, self.chunk, self.logs)
        if self.setup:
            return (*fields, self.stream, self.setup)
        # A worker of an earlier release cannot make a call of a stream.
        return (*fields, self.stream) if self.stream else fields

    @classmethod
    def unpickled(
        cls,
        data: bytes,
        fetch: Fetch,
        use: Callable[[str], None] | None = None,
    ) -> Call:
        """Return the call; ``fetch`` finds the parts that were left out, and ``use`` is called
        first with the bundle of local modules that its arguments need."""
        return cls.loaded(*needs_in(data), fetch, use)

    @classmethod
    def loaded(
        cls,
        needs: Needs,
        pickled: bytes,
        fetch: Fetch,
        use: Callable[[str], None] | None = None,
    ) -> Call:
        """The same, of what ``needs_in`` returned."""
        if needs.modules and use is not None:
            use(needs.modules)
        return cls(*load_here(pickled, "an argument", fetch))


@dataclass(frozen=True, slots=True)
class Needs:
    """What is known of a call before it is loaded."""

    modules: str = ""
    """The bundle of local modules that its arguments need; '' for none."""
    results: tuple[Reference, ...] = ()
    """The results that stand in its arguments."""
    answers: str = ""
    """The id of the task that ends as this call does, for it returned a flow of which this is the
    last; '' for none."""
    spill: Sequence[Any] | None = None
    """Where a large result goes instead of to the server, as ``Spill.written`` says it."""


NO_NEEDS = Needs()


def with_needs(call: bytes, needs: Needs) -> bytes:
    """Return a pickled call with what is known of it before it: nothing is loaded to know that."""
    results = [(one.kind, one.lane, one.id, one.total) for one in needs.results]
    said: list[Any] = [needs.modules, results, needs.answers]
    if needs.spill:
        said.append(needs.spill)
    text = dumps(said)
    return b"%c%d\n%b%b" % (_WITH_NEEDS, len(text), text, call)


def needs_in(data: bytes) -> tuple[Needs, bytes]:
    """Return what is known of a call, and its pickle."""
    if data[0] != _WITH_NEEDS:
        return NO_NEEDS, data
    at = data.index(b"\n") + 1
    end = at + int(data[1 : at - 1])
    modules, results, answers, *spill = loads(data[at:end])
    references = tuple(map(Reference._make, results))
    return Needs(modules, references, answers, spill[0] if spill else None), data[end:]

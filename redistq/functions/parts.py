"""Large parts of an object: left out of its pickle, wherever in it they stand, and stored once.

Used by clients (``dump_parted``) and by the worker's handler for function calls (``load_whole``).
It knows neither server nor signatures: whoever calls it says where a part goes and comes from.

A hundred calls that each carry one array inside a dict, a bound method, a closure or joblib's
batches would else carry a hundred copies. Parts are the memory of arrays (whatever hands its memory
to pickle protocol 5: numpy, pandas, scipy, Arrow) and long ``bytes`` and ``str``; an object that
occurs twice in one pickle stays one object.
"""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import PayloadError, RedistqError
from .pickling import Seen, pickler, what_cannot

LARGE = 64 * 1024
"""Parts, and arguments, of this many bytes or more are stored once."""

Store = Callable[[Any], str]
"""Stores a part, given as bytes or as its memory, and answers the name of its content."""


@dataclass(frozen=True, slots=True)
class Parted:
    """The pickle of an object some of whose parts are stored elsewhere."""

    data: bytes


def dump_parted(value: Any, store: Store, seen: Seen | None = None) -> Parted:
    """A pickle of protocol 5 without the large parts of ``value``, which are stored.

    ``seen`` is told what it refers to. Raises PayloadError naming what cannot be pickled, and
    whatever ``store`` raises.
    """
    file = io.BytesIO()
    try:
        own = _parting_pickler()(file, store)
        own.seen = seen
        own.dump(value)
    except RedistqError:
        raise
    except Exception as error:
        raise PayloadError(what_cannot(value, error)) from error
    return Parted(file.getvalue())


@functools.cache
def _parting_pickler() -> Any:
    class Pickler(pickler()):  # type: ignore[misc]
        def __init__(self, file: Any, store: Store) -> None:
            super().__init__(file, 5)
            self._store = store

        # Asked of every object; most are none of these three.
        def persistent_id(self, obj: Any) -> tuple[str, str] | None:
            kind = type(obj)
            if kind is pickle.PickleBuffer:
                try:
                    memory = obj.raw()
                except BufferError:
                    return None  # not in one piece: pickle copies it
                if memory.nbytes < LARGE:
                    return None
                name = self._store(memory)
                return ("constant" if memory.readonly else "memory", name)
            if kind is bytes and len(obj) >= LARGE:
                return ("constant", self._store(obj))
            if kind is str and len(obj) >= LARGE:
                return ("text", self._store(obj.encode("utf-8", "surrogatepass")))
            return None

    return Pickler


def load_whole(value: Any, fetch: Callable[[str], bytes]) -> Any:
    """An object that was loaded, with its parts put in where it was parted."""
    if type(value) is not Parted:
        return value
    return _Unpickler(io.BytesIO(value.data), fetch).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, fetch: Callable[[str], bytes]) -> None:
        super().__init__(file)
        self._fetch = fetch

    def persistent_load(self, pid: tuple[str, str]) -> Any:
        kind, name = pid
        data = self._fetch(name)
        if kind == "memory":
            return bytearray(data)  # a copy: whoever changes it changes only their own
        return str(data, "utf-8", "surrogatepass") if kind == "text" else data

"""Local modules that came with a call, imported in a worker process under their own names.

Used by the worker's handler for function calls; local_modules.py is the sender's side.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import pickle
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from .local_modules import KEPT_BUNDLES, SourceLoader, read_source


class Shipped:
    """Makes a worker process import local modules from the bundles that come with its calls.

    A finder of modules, the first one asked. ``use`` makes the modules of a bundle those that
    imports find from now on; what has changed is forgotten, with all that imports it, and imported
    anew. Functions that run already keep what they have.
    """

    def __init__(self) -> None:
        self._offers: dict[str, tuple[str, str, bool, list[str], bytes]] = {}
        self._loaded: dict[str, str] = {}
        self._at_start = {
            name: hashlib.blake2b(text, digest_size=20).hexdigest() for name, text in _own_modules()
        }
        self._bundles: OrderedDict[str, list[Any]] = OrderedDict()
        self._current = ""
        self._lock = threading.RLock()
        sys.meta_path.insert(0, self)

    def use(self, digest: str, read: Callable[[], bytes]) -> None:
        """Import the modules of that bundle from now on; ``read`` gives its data."""
        if digest == self._current:
            return
        with self._lock:
            rows = self._bundles.get(digest)
            if rows is None:
                rows = self._bundles[digest] = pickle.loads(read())
                while len(self._bundles) > KEPT_BUNDLES:
                    self._bundles.popitem(last=False)
            # What the worker has imported by itself, for its handlers, may be the very same.
            same = all(
                self._at_start.get(name, own) == own
                for name, own in ((row[0], _text_digest(row)) for row in rows)
            )
            changed = [row for row in rows if self._loaded.get(row[0]) != row[1]]
            for name, state, *offer in changed:
                self._offers[name] = (state, *offer)
                if not (same and name in self._at_start and name not in self._loaded):
                    _forget(name)
                self._loaded[name] = state
            self._current = digest

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """A module of the bundle in use; None for all others."""
        offer = self._offers.get(name)
        if offer is None:
            return None
        _, origin, package, folders, text = offer
        if not origin:
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = folders
            return spec
        loader = SourceLoader(name, origin, text)
        return importlib.util.spec_from_file_location(
            name, origin, loader=loader, submodule_search_locations=folders if package else None
        )


def _own_modules() -> list[tuple[str, bytes]]:
    """The local modules that are loaded, with their sources."""
    found = []
    for name, module in list(sys.modules.items()):
        source = read_source(name, getattr(module, "__spec__", None))
        if source is not None:
            found.append((name, source.text))
    return found


def _text_digest(row: Sequence[Any]) -> str:
    return hashlib.blake2b(row[5], digest_size=20).hexdigest()


def _forget(name: str) -> None:
    """The next import of that module loads it anew."""
    if sys.modules.pop(name, None) is None:
        return
    parent, _, child = name.rpartition(".")
    above = sys.modules.get(parent)
    if above is not None and hasattr(above, child):
        delattr(above, child)  # or `from package import module` would find the old one

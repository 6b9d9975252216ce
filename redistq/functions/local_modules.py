"""Local modules: files of the user's own beside a notebook, which travel with the calls using them.

A module that was installed is the same wherever its version is; one beside the notebook is edited
between two cells. So what a call uses of such modules is sent with it, as source, in the state in
which the sender has it loaded: ``bundle_of`` makes one bundle of a function's modules and all that
those import. A worker process imports them from there (``Shipped``) under their own names, once for
each state of a module and of what it imports: classes, ``isinstance`` and the modules' state are as
in any program, and results come back as the classes of the kernel.

What is local: Python files outside the standard library and outside site-packages, which includes
packages installed in editable mode. Compiled modules and what a module reads beside itself are
taken from the disk, as always.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import pickle
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PayloadError
from ..protocol.pieces import Memory
from .dependencies import outside, parents, prefixes, runs

KEPT_BUNDLES = 32
_NEVER = frozenset({"__main__", "__mp_main__", "redistq", *sys.builtin_module_names})


@dataclass(frozen=True, slots=True)
class Bundle:
    """Local modules in one state. ``digest`` names it; ``data`` is what travels."""

    digest: str
    data: bytes
    modules: dict[str, str]
    """The digest of each module's source and of all that it imports, by name."""


@dataclass(slots=True)
class _Source:
    """A local module as it is loaded here, or as it is on the disk when it is not loaded."""

    name: str
    spec: Any
    origin: str
    package: bool
    folders: list[str]
    text: bytes
    digest: str
    stat: tuple[int, int]
    imports: tuple[str, ...] = ()
    edited: _Source | None = None
    """The file as it was edited since, while the module here is still the older one."""


_sources: dict[str, _Source] = {}
_elsewhere: dict[str, Any] = {}
"""What is not local, by name, with the spec under which it was loaded; None: it was not."""
_bundles: OrderedDict[tuple[tuple[str, str], ...], Bundle] = OrderedDict()
_warned: set[tuple[str, str]] = set()
_lock = threading.RLock()


def is_local(name: str) -> bool:
    """Return whether a module of that name, loaded or not, is a file of the user's own."""
    if not name or _is_elsewhere(name):
        return False
    with _lock:
        return _source(name) is not None


def digest_of(name: str) -> str:
    """Return what names the state of a local module and of all local modules that it imports."""
    bundle = bundle_of([name])
    return bundle.modules[name] if bundle is not None else ""


def bundle_of(names: Iterable[str]) -> Bundle | None:
    """Bundle these modules, their packages and all local modules they import; None for none."""
    todo = [name for name in names if is_local(name)]
    if not todo:
        return None
    with _lock:
        found: dict[str, _Source] = {}
        while todo:
            name = todo.pop()
            if name in found or (source := _source(name)) is None:
                continue
            found[name] = source
            todo.extend(source.imports)
            todo.extend(parents(name))
        if not found:
            return None
        key = tuple(sorted((source.name, source.digest) for source in found.values()))
        known = _bundles.get(key)
        if known is None:
            known = _bundles[key] = _bundle(found)
            while len(_bundles) > KEPT_BUNDLES:
                _bundles.popitem(last=False)
        return known


def _bundle(found: dict[str, _Source]) -> Bundle:
    states: dict[str, str] = {}
    for name in found:
        reached = set()
        todo = [name]
        while todo:
            one = todo.pop()
            if one in found and one not in reached:
                reached.add(one)
                todo.extend(found[one].imports)
                todo.extend(parents(one))
        state = hashlib.blake2b(digest_size=20)
        for one in sorted(reached):
            state.update(f"{one}\0{found[one].digest}\0".encode("utf-8", "surrogatepass"))
        states[name] = state.hexdigest()
    rows = [
        (name, states[name], source.origin, source.package, source.folders, source.text)
        for name, source in sorted(found.items())
    ]
    data = pickle.dumps(rows, 5)
    return Bundle(hashlib.blake2b(data, digest_size=20).hexdigest(), data, states)


def _source(name: str) -> _Source | None:
    """Return the state of a local module that counts here; None for what is not local."""
    module = sys.modules.get(name)
    known = _sources.get(name)
    if module is None:
        spec = known.spec if known is not None else _find_spec(name)
    else:
        spec = getattr(module, "__spec__", None)
    if known is not None and known.spec is spec:
        return _as_loaded(known, module)
    fresh = _read_source(name, spec)
    if fresh is None:
        if module is not None and _has_lost_its_file(name, spec):
            raise PayloadError(
                f"the module {name!r}, which a call needs, cannot be sent: its file {spec.origin} "
                "was deleted or cannot be read any more, and it was not sent before; put the file "
                "back, or define what the call needs in the notebook itself"
            )
        if spec is not None:
            _elsewhere[name] = None if module is None else spec
        return None
    fresh.imports = _imports(fresh)
    if module is not None and not runs(module, fresh.name, fresh.text, fresh.origin):
        _say_edited(fresh)
    _sources[name] = fresh
    return fresh


def _as_loaded(known: _Source, module: Any) -> _Source:
    """Return a module seen before; a file edited since then counts once the module here runs it.

    ``importlib.reload`` gives a module another spec, so what comes here was not reloaded; some
    tools replace single functions instead, which is seen by their code.
    """
    if not known.text and not known.origin:
        return known
    stat = _stat(known.origin)
    if stat is None or stat == known.stat:
        return known
    fresh = known.edited
    if fresh is None or fresh.stat != stat:
        fresh = _read_source(known.name, known.spec)
        if fresh is None:
            return known
        if fresh.digest == known.digest:
            known.stat = stat
            return known
        fresh.imports = _imports(fresh)
        known.edited = fresh
    if module is None or runs(module, fresh.name, fresh.text, fresh.origin):
        _sources[known.name] = fresh
        return fresh
    return known


def _find_spec(name: str) -> Any:
    """Return the spec of a module that is not loaded, without loading its packages."""
    path: Sequence[str] | None = None
    if parent := name.rpartition(".")[0]:
        if (loaded := sys.modules.get(parent)) is not None:
            path = getattr(loaded, "__path__", None)
        else:
            path = getattr(_find_spec(parent), "submodule_search_locations", None)
        if path is None:
            return None  # in no package, such as a function that is imported from a module
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        try:
            spec = find(name, path, None) if find is not None else None
        except Exception:  # of somebody else's finder; the import itself shows it
            continue
        if spec is not None:
            return spec
    return None


def _read_source(name: str, spec: Any) -> _Source | None:
    folders = list(getattr(spec, "submodule_search_locations", None) or ())
    package = getattr(spec, "submodule_search_locations", None) is not None
    origin = getattr(spec, "origin", None) or ""
    if spec is None or name.partition(".")[0] in _NEVER:
        return None
    if package and origin in ("", "namespace"):  # a folder without __init__.py
        if not folders or not all(_is_own(folder) for folder in folders):
            return None
        return _Source(name, spec, "", True, folders, b"", "namespace", (0, 0))
    if not origin.endswith(".py") or not _is_own(origin):
        return None
    stat = _stat(origin)
    try:
        text = _text_of(origin, getattr(spec, "loader", None))
    except OSError:
        return None
    digest = hashlib.blake2b(text, digest_size=20).hexdigest()
    return _Source(name, spec, origin, package, folders, text, digest, stat or (0, 0))


def _text_of(path: str, loader: Any) -> bytes:
    """Return the source that a module was sent with, else its file's; raises OSError."""
    if isinstance(loader, SourceLoader):
        return loader.get_data(path)
    with open(path, "rb") as file:
        return file.read()


def _has_lost_its_file(name: str, spec: Any) -> bool:
    """Return whether a module that is loaded here came from a file of the user's own that cannot be
    read any more."""
    origin = getattr(spec, "origin", None) or ""
    if (
        name.partition(".")[0] in _NEVER
        or type(getattr(spec, "loader", None)) is not importlib.machinery.SourceFileLoader
        or not origin.endswith(".py")
        or not _is_own(origin)
    ):
        return False
    try:
        _text_of(origin, None)
    except OSError:
        return True
    return False


def _stat(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _is_own(path: str) -> bool:
    parts = path.split(os.sep)
    if "site-packages" in parts or "dist-packages" in parts:
        return False
    try:
        whole = os.path.abspath(path)
    except OSError:  # the current folder was deleted, and the path begins there
        return True
    return not whole.startswith(_library_folders())


@functools.cache
def _library_folders() -> tuple[str, ...]:
    import sysconfig

    paths = sysconfig.get_paths()
    folders = {paths["stdlib"], paths["platstdlib"], os.path.dirname(os.__file__)}
    folders |= {os.path.realpath(folder) for folder in folders}
    return tuple(os.path.join(folder, "") for folder in folders)


def _imports(source: _Source) -> tuple[str, ...]:
    """Return the local modules that a module imports, also inside its functions."""
    import ast

    try:
        tree = ast.parse(source.text)
    except (SyntaxError, ValueError):
        return ()
    package = source.name if source.package else source.name.rpartition(".")[0]
    wanted: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                wanted.update(dict.fromkeys(prefixes(alias.name)))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".") if package else []
                kept = parts[: len(parts) - node.level + 1]
                base = ".".join([*kept, base] if base else kept)
            if base:
                wanted.update(dict.fromkeys(prefixes(base)))
                names = [alias.name for alias in node.names if alias.name != "*"]
                wanted.update(dict.fromkeys(f"{base}.{name}" for name in names))
    return tuple(name for name in wanted if name != source.name and _may_be_local(name))


def _is_elsewhere(name: str) -> bool:
    if name.partition(".")[0] in _NEVER:
        return True
    if name not in _elsewhere:
        return False
    module = sys.modules.get(name)
    return _elsewhere[name] is (None if module is None else getattr(module, "__spec__", None))


def _may_be_local(name: str) -> bool:
    if name in _sources:
        return True
    if _is_elsewhere(name):
        return False
    module = sys.modules.get(name)
    spec = _find_spec(name) if module is None else getattr(module, "__spec__", None)
    if _read_source(name, spec) is not None:
        return True
    return module is not None and _has_lost_its_file(name, spec)


def _say_edited(source: _Source) -> None:
    if (source.name, source.digest) in _warned:
        return
    _warned.add((source.name, source.digest))
    warnings.warn(
        f"the module {source.name!r} was edited after it was imported here, and workers run the "
        f"file as it is now: reload it (importlib.reload, or %autoreload 2)",
        stacklevel=outside(),
    )


# -- in a worker process ---------------------------------------------------------------------------


class SourceLoader(importlib.machinery.SourceFileLoader):
    """Loads a module from the source that was sent; no bytecode is read or written."""

    def __init__(self, name: str, path: str, text: bytes) -> None:
        super().__init__(name, path)
        self._text = text

    def get_data(self, path: str) -> bytes:
        """Return the source, or the content of another file beside it."""
        return self._text if path == self.path else super().get_data(path)

    def path_stats(self, path: str) -> Any:
        """Raise OSError: there is no bytecode for this source."""
        raise OSError


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
        self.current = ""
        """The bundle in use."""
        self._lock = threading.RLock()
        sys.meta_path.insert(0, self)

    def use(self, digest: str, read: Callable[[], Memory]) -> None:
        """Import the modules of that bundle from now on; ``read`` gives its data."""
        if digest == self.current:
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
            self.current = digest

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec of a module of the bundle in use; None for all others."""
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
    """Return the local modules that are loaded, with their sources."""
    found = []
    for name, module in list(sys.modules.items()):
        source = _read_source(name, getattr(module, "__spec__", None))
        if source is not None:
            found.append((name, source.text))
    return found


def _text_digest(row: Sequence[Any]) -> str:
    return hashlib.blake2b(row[5], digest_size=20).hexdigest()


def _forget(name: str) -> None:
    """Make the next import of that module load it anew."""
    if sys.modules.pop(name, None) is None:
        return
    parent, _, child = name.rpartition(".")
    above = sys.modules.get(parent)
    if above is not None and hasattr(above, child):
        delattr(above, child)  # or `from package import module` would find the old one

"""Files of spilled values: in a folder, or wherever fsspec reaches. See spill.py.

Whatever goes wrong is a SpillError that names the place, this machine, and what is missing.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import SpillError
from ..protocol.pieces import Memory

_WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"})
"""Protocols whose objects appear when they are whole; elsewhere a file is moved to its name."""
UNFINISHED = ".unfinished"


class Files(Protocol):
    """The files of one place."""

    def write(self, file: str, parts: Sequence[Memory]) -> None:
        """Write a file, which appears when it is whole."""

    def read(self, file: str, size: int) -> bytearray:
        """Return what is in a file of about so many bytes."""

    def found(self, folder: str) -> list[tuple[str, float]]:
        """Return the files of a folder, each with the seconds since it was written."""

    def remove(self, file: str) -> None:
        """Remove a file; one that is gone is no error."""


@functools.lru_cache(maxsize=32)
def files_at(url: str, options: str) -> Files:
    """Return the files at a URL; ``options`` are fsspec's, as JSON."""
    return _Folder(url) if "://" not in url else _Remote(url, json.loads(options))


@contextlib.contextmanager
def _said(url: str, what: str, file: str) -> Iterator[None]:
    """Raise as SpillError what goes wrong while a file is read or written."""
    host = socket.gethostname()
    try:
        yield
    except SpillError:
        raise
    except FileNotFoundError as error:
        raise SpillError(
            f"{file} is not in {url} as {host} sees it ({error}): it was deleted, or that place is "
            "not shared with this machine; send the call again"
        ) from error
    except ImportError as error:
        raise SpillError(
            f"{host} cannot {what} {url}: {error}; install it there: pip install 'redistq[spill]' "
            "and the package of that kind of store (s3fs for s3://)"
        ) from error
    except Exception as error:  # broad: whatever a store's client raises
        raise SpillError(
            f"{host} cannot {what} {file} in {url} ({type(error).__name__}: {error}): check "
            "the URL, and give this machine the right to, in its environment or by storage_options"
        ) from error


def _read_into(file: Any, size: int) -> bytearray:
    found = bytearray(size)
    view = memoryview(found)
    at = 0
    while at < size and (count := file.readinto(view[at:])):
        at += count
    if at < size or file.read(1):
        return found[:at] + b"\0" * (at == size)  # of another size than was said
    return found


class _Folder:
    def __init__(self, url: str) -> None:
        self._url = url
        self._root = Path(url)

    def write(self, file: str, parts: Sequence[Memory]) -> None:
        with _said(self._url, "write", file):
            path = self._root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f"{secrets.token_hex(8)}{UNFINISHED}")
            try:
                with open(unfinished, "wb", buffering=0) as out:
                    for part in parts:
                        rest = memoryview(part)
                        while rest:
                            rest = rest[out.write(rest) :]
                    os.fsync(out.fileno())
                os.replace(unfinished, path)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise

    def read(self, file: str, size: int) -> bytearray:
        with _said(self._url, "read", file), open(self._root / file, "rb", buffering=0) as found:
            return _read_into(found, size)

    def found(self, folder: str) -> list[tuple[str, float]]:
        with _said(self._url, "list", folder):
            root = self._root / folder
            if not root.is_dir():
                return []
            now = time.time()
            rows = []
            for entry in os.scandir(root):
                with contextlib.suppress(FileNotFoundError):
                    rows.append((f"{folder}/{entry.name}", now - entry.stat().st_mtime))
            return rows

    def remove(self, file: str) -> None:
        with _said(self._url, "delete", file):
            (self._root / file).unlink(missing_ok=True)


class _Remote:
    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._url = url
        self._options = options
        self._protocol = url.partition("://")[0]

    @functools.cached_property
    def _place(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        system, root = url_to_fs(self._url, **self._options)
        return system, str(root).rstrip("/")

    def write(self, file: str, parts: Sequence[Memory]) -> None:
        with _said(self._url, "write", file):
            system, root = self._place
            path = f"{root}/{file}"
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            own = self._protocol in _WHOLE
            target = path if own else f"{path}-{secrets.token_hex(8)}{UNFINISHED}"
            with system.open(target, "wb") as out:
                for part in parts:
                    out.write(part)
            if not own:
                system.mv(target, path)

    def read(self, file: str, size: int) -> bytearray:
        with _said(self._url, "read", file):
            system, root = self._place
            with system.open(f"{root}/{file}", "rb") as found:
                return _read_into(found, size)

    def found(self, folder: str) -> list[tuple[str, float]]:
        with _said(self._url, "list", folder):
            system, root = self._place
            try:
                rows = system.ls(f"{root}/{folder}", detail=True, refresh=True)
            except FileNotFoundError:
                return []
            now = time.time()
            names = [row["name"].rpartition("/")[2] for row in rows]
            return [
                (f"{folder}/{name}", now - _written(row))
                for name, row in zip(names, rows, strict=True)
            ]

    def remove(self, file: str) -> None:
        with _said(self._url, "delete", file), contextlib.suppress(FileNotFoundError):
            system, root = self._place
            system.rm_file(f"{root}/{file}")


def _written(row: dict[str, Any]) -> float:
    """Return when a file was written, by what a store lists of it; now where it does not say."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        when: Any = row.get(name)
        if isinstance(when, int | float):
            return float(when)
        if hasattr(when, "timestamp"):
            return float(when.timestamp())
        if isinstance(when, str):
            from datetime import datetime

            with contextlib.suppress(ValueError):
                return datetime.fromisoformat(when).timestamp()
    return time.time()

"""Scattered: a value that is on the server already, as an argument of any call.

Made by packers for clients. Its content is blobs (blobs.py), so that the same value is there once,
whoever stored it. Where it stands in arguments its name is written, and the worker puts the value
in; each call that takes it is one more that needs the blobs, until it has its end.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from .blobs import BLOB_TTL_S, BlobMissing, Blobs, stored_value
from .references import Referable

if TYPE_CHECKING:
    from .pickling import Seen


class Scattered(Referable):
    """Stands for a value that was stored; see Client.scatter.

    ``release()``, or the end of a ``with`` block, says that no more calls will take it: those that
    were sent still get it. So does the end of the last reference to it.
    """

    __slots__ = (
        "__weakref__",
        "_blobs",
        "_finalizer",
        "_kind",
        "_modules",
        "_needs",
        "bytes",
        "name",
    )

    def __init__(
        self,
        blobs: Blobs,
        name: str,
        needs: list[str],
        kind: str,
        size: int,
        modules: set[str],
    ) -> None:
        self._blobs = blobs
        self._modules = modules
        self._needs = needs
        self._kind = kind
        self.name = name
        """Its content's name on the server."""
        self.bytes = size
        """Bytes of its content, before they are compressed."""
        self._finalizer = weakref.finalize(self, blobs.drop_later, needs)
        self._finalizer.atexit = False

    @property
    def released(self) -> bool:
        """Whether no call can take it any more."""
        return not self._finalizer.alive

    def release(self) -> None:
        """Say that no more calls will take it. Safe to call twice."""
        if self._finalizer.detach() is not None:
            self._blobs.drop(self._needs)

    def __enter__(self) -> Scattered:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def check(self, blobs: Blobs) -> None:
        """Raise ConfigurationError where calls of that client cannot take it."""
        if self.released:
            raise ConfigurationError(f"{self!r} takes part in no more calls: scatter it again")
        if blobs is not self._blobs:
            raise ConfigurationError(
                f"{self!r} is of another client: scatter it by this one too (what the server has "
                "is not sent again)"
            )

    def need(self, blobs: Blobs, keep_s: float, needs: list[str]) -> None:
        """Note that a call takes it, which is kept for ``keep_s`` at most."""
        self.check(blobs)
        try:
            blobs.use(self._needs, max(keep_s, BLOB_TTL_S), needs)
        except BlobMissing as error:
            raise ConfigurationError(
                f"{self!r} is not on the server any more: scatter it again"
            ) from error

    # -- as an argument --------------------------------------------------------------------------

    def reference(self) -> None:
        """Return None: no task has to end before it is there."""

    def prepare(self, client: Any) -> None:
        """Whether it can be taken is checked where the call is packed."""

    def failure(self) -> None:
        """Return None: it is there."""

    def identity(self) -> str:
        """Return what names its content."""
        return f"scattered {self.name}"

    def written(self, seen: Seen | None) -> Any:
        """Return how it is pickled inside other objects."""
        if seen is not None:
            seen.scattered.append(self)
            seen.modules |= self._modules
        return stored_value, (self.name,)

    def __repr__(self) -> str:
        size = float(self.bytes)
        unit = "B"
        for larger in ("kB", "MB", "GB"):
            if size < 1000:
                break
            size, unit = size / 1000, larger
        words = f"<Scattered {self._kind}, {size:.3g} {unit}"
        return f"{words}, released>" if self.released else f"{words}>"

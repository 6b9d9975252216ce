"""zstd by whichever module there is: Python's own (3.14), or the package zstandard."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

from ..errors import UntrustedPayload


class _Python:
    """Python's own."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def compress(self, data: bytes, level: int) -> bytes:
        """Return data compressed."""
        return bytes(self._module.compress(data, level))

    def decompress(self, data: bytes, most: int) -> tuple[bytes, bool]:
        """Return at most so many bytes, and whether that is the end of them."""
        opened = self._module.ZstdDecompressor()
        try:
            return opened.decompress(data, most), bool(opened.eof)
        except Exception as error:  # its own type
            raise UntrustedPayload(f"what is compressed is damaged: {error}") from None


class _Package:
    """The package zstandard."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def compress(self, data: bytes, level: int) -> bytes:
        """Return data compressed."""
        return bytes(self._module.ZstdCompressor(level=level).compress(data))

    def decompress(self, data: bytes, most: int) -> tuple[bytes, bool]:
        """Return at most so many bytes, and whether that is the end of them."""
        opened = self._module.ZstdDecompressor()
        try:
            size = self._module.frame_content_size(data)
            with opened.stream_reader(data) as reader:
                whole = reader.read(most)
            return whole, size in (-1, len(whole))
        except Exception as error:  # its own type
            raise UntrustedPayload(f"what is compressed is damaged: {error}") from None


def is_there() -> bool:
    """Return whether something can compress with zstd; nothing is imported for it."""
    return any(importlib.util.find_spec(name) is not None for name in ("compression", "zstandard"))


@functools.cache
def module() -> _Python | _Package | None:
    """Return what compresses with zstd; None where nothing can."""
    for name, kind in (("compression.zstd", _Python), ("zstandard", _Package)):
        try:
            return kind(importlib.import_module(name))
        except ImportError:
            continue
    return None

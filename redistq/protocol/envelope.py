"""Envelopes: how what a codec seals is marked, so that whoever reads it knows what it needs.

An envelope is ``\\0rqe1``, a header (one line of JSON), a line feed, and the body; docs/format.md
has it all. No JSON text begins with a zero byte, and the packets of function calls go on otherwise
(signing.py), so none of these is taken for another. Codecs make and open them; here they are only
recognised and described.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import Unreadable, UntrustedPayload

MAGIC = b"\0rqe1"
_ANY = b"\0rqe"
MAX_HEADER = 1024
_BOUND = frozenset({"task", "unique", "schedule"})
_KNOWN = frozenset({"for", "zip", "enc", "key", "sig", "by", "ends"})
ZIPS = ("zlib", "zstd")
CIPHER = "A256GCM"
SIGNATURE = "HS256"


@dataclass(frozen=True, slots=True)
class Header:
    """What an envelope says of itself; an empty text where it does not say it."""

    bound: str = "task"
    """What it is bound to: a task's id, its unique key, or the schedule that adds it."""
    zip: str = ""
    key: str = ""
    """The id of the key it is encrypted with."""
    by: str = ""
    """The id of the key it is signed with."""
    ends: str = ""
    """The id of the task that ends as the one it belongs to does."""

    def written(self) -> bytes:
        """Return it as it stands in an envelope."""
        return _written(self)

    @property
    def protected(self) -> bool:
        """Whether nobody can make one like it without a key."""
        return bool(self.key or self.by)

    def words(self) -> str:
        """Return how it is sealed, for people."""
        parts = []
        if self.key:
            parts.append(f"encrypted, key {self.key}")
        if self.by:
            parts.append(f"signed, key {self.by}")
        if self.zip and not self.key:
            parts.append(f"compressed, {self.zip}")
        return "; ".join(parts) or "sealed"


def is_envelope(data: bytes) -> bool:
    """Return whether data was sealed by a codec, of whatever version."""
    return data[: len(_ANY)] == _ANY


def parted(data: bytes) -> tuple[Header, bytes, int]:
    """Return the header of an envelope, the bytes of it, and where the body begins.

    Raises UntrustedPayload for what is none, and Unreadable for one of a newer release.
    """
    if data[: len(MAGIC)] != MAGIC:
        if is_envelope(data):
            version = data[len(_ANY) : len(MAGIC)].decode("latin-1")
            raise Unreadable("an envelope", f"envelope format {version}", _UPGRADE)
        raise UntrustedPayload("this is no envelope of a codec")
    end = data.find(b"\n", len(MAGIC), len(MAGIC) + MAX_HEADER)
    if end < 0:
        raise UntrustedPayload("an envelope is damaged: its header has no end")
    raw = data[len(MAGIC) : end]
    return _read(raw), raw, end + 1


_UPGRADE = "it was written by a newer release of redistq: upgrade this one"


@lru_cache(maxsize=256)
def _written(header: Header) -> bytes:
    found: dict[str, str] = {"for": header.bound}
    if header.zip:
        found["zip"] = header.zip
    if header.key:
        found |= {"enc": CIPHER, "key": header.key}
    if header.by:
        found |= {"sig": SIGNATURE, "by": header.by}
    if header.ends:
        found["ends"] = header.ends
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode()


@lru_cache(maxsize=256)
def _read(raw: bytes) -> Header:
    try:
        found: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UntrustedPayload(f"an envelope is damaged: its header is no JSON ({error})") from None
    if not isinstance(found, dict) or not all(
        isinstance(value, str) and value for value in found.values()
    ):
        raise UntrustedPayload("an envelope is damaged: its header is no mapping of words")
    if newer := found.keys() - _KNOWN:
        raise Unreadable("an envelope", f"header field {min(newer)!r}", _UPGRADE)
    for name, known in (("for", _BOUND), ("zip", ZIPS), ("enc", (CIPHER,)), ("sig", (SIGNATURE,))):
        if found.get(name, "") not in ("", *known):
            raise Unreadable("an envelope", f"{name} {found[name]!r}", _UPGRADE)
    if "for" not in found or ("enc" in found) != ("key" in found):
        raise UntrustedPayload("an envelope is damaged: its header is not whole")
    if ("sig" in found) != ("by" in found):
        raise UntrustedPayload("an envelope is damaged: its header is not whole")
    return Header(
        found["for"],
        found.get("zip", ""),
        found.get("key", ""),
        found.get("by", ""),
        found.get("ends", ""),
    )


def described(data: bytes | str) -> str:
    """Return what an envelope is, for people; '' for anything else. Its start will do."""
    raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    if not is_envelope(raw):
        return ""
    try:
        return f"({parted(raw)[0].words()})"
    except (Unreadable, UntrustedPayload):
        return "(sealed)"

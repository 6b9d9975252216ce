"""Keys by their ids: one seals, all of them open. They are never shown."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigurationError
from ..protocol.checks import shown

LEAST_BYTES = 16
MAX_ID = 64


class Keys:
    """Secret keys by their ids. New data is sealed with the ``current`` one; with the others, too,
    what was sealed before is opened: so keys are rotated while everything runs.

    A key is text or bytes, 16 at least; ``secrets.token_hex(32)`` makes one.
    """

    __slots__ = ("_derived", "_keys", "current")

    def __init__(self, keys: Mapping[str, str | bytes], current: str = "") -> None:
        if not isinstance(keys, Mapping) or not keys:
            raise ConfigurationError("keys are given by their ids: {'2026-11': '...'}, one or more")
        self._keys: dict[str, bytes] = {}
        for name, key in keys.items():
            self._keys[_checked_id(name)] = _checked_key(name, key)
        if not current and len(self._keys) > 1:
            raise ConfigurationError(
                f"say which of the keys {', '.join(self._keys)} is the current one, with which new "
                "data is sealed"
            )
        self.current = current or next(iter(self._keys))
        if self.current not in self._keys:
            raise ConfigurationError(
                f"the current key is {shown(current)}, which is none of {', '.join(self._keys)}"
            )
        self._derived: dict[tuple[str, bytes], bytes] = {}

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all of them."""
        return tuple(self._keys)

    def derived(self, name: str, purpose: bytes) -> bytes | None:
        """Return 32 bytes made of a key for one purpose alone; None where there is no such key."""
        place = (name, purpose)
        found = self._derived.get(place)
        if found is None and (key := self._keys.get(name)) is not None:
            found = self._derived[place] = hmac.digest(key, b"redistq rqe1 " + purpose, "sha256")
        return found

    def settings(self) -> dict[str, Any]:
        """Return what makes the same keys again, for a process of ours: never to be shown."""
        return {
            "current": self.current,
            "keys": {name: "hex:" + key.hex() for name, key in self._keys.items()},
        }

    @classmethod
    def of(cls, what: str, found: Any) -> Keys:
        """Return the keys that settings say; raises ConfigurationError without a word of them."""
        if not isinstance(found, Mapping) or found.keys() - {"current", "keys"}:
            raise ConfigurationError(f"{what} of a codec has current and keys, and nothing else")
        return cls(found.get("keys") or {}, found.get("current", ""))

    def __repr__(self) -> str:
        return f"<Keys {', '.join(self._keys)}; current {self.current}>"

    def __reduce__(self) -> Any:
        raise TypeError("keys are not pickled: they would travel with whatever holds them")


def _checked_id(name: Any) -> str:
    if isinstance(name, str) and 0 < len(name) <= MAX_ID and name.isprintable():
        return name
    raise ConfigurationError(
        f"the id of a key is one line of 1 to {MAX_ID} characters, such as '2026-11'"
    )


def _checked_key(name: str, key: Any) -> bytes:
    if isinstance(key, str) and key.startswith("hex:"):
        try:
            key = bytes.fromhex(key[4:])
        except ValueError:
            raise ConfigurationError(f"key {name!r} is not hexadecimal behind its hex:") from None
    elif isinstance(key, str):
        key = key.encode()
    if not isinstance(key, bytes) or len(key) < LEAST_BYTES:
        raise ConfigurationError(
            f"key {name!r} has less than {LEAST_BYTES} bytes: secrets.token_hex(32) makes one"
        )
    return key

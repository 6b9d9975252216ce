"""The stages of a codec: compression, encryption and signature. Each works on bytes alone."""

from __future__ import annotations

import hmac
import os
import zlib
from typing import Any

from ..errors import ConfigurationError, Unreadable, UntrustedPayload
from ..protocol.checks import count, shown
from ..protocol.envelope import ZIPS
from .keys import Keys

MOST_UNPACKED = 256 * 1024 * 1024
"""Most bytes that anything is decompressed to."""
_PROBE = 65_536
MAC = 32
_SALT = 16
_NONCE = 12
_TAG = 16


class Compress:
    """Compresses what is ``least`` bytes or longer, where that saves a tenth; ``algorithm`` is
    zlib, or zstd where Python has it (3.14) or the package zstandard is installed."""

    __slots__ = ("_squeeze", "algorithm", "least", "level")

    def __init__(self, algorithm: str = "zlib", level: int | None = None, least: int = 512) -> None:
        if algorithm not in ZIPS:
            raise ConfigurationError(f"compression is {' or '.join(ZIPS)}, not {shown(algorithm)}")
        self.algorithm = algorithm
        self.least = count("least", least, most=1 << 30)
        usual = 1 if algorithm == "zlib" else 3
        most = 9 if algorithm == "zlib" else 19
        self.level = usual if level is None else count("level", level, least=1, most=most)
        if algorithm == "zstd" and zstd() is None:
            raise ConfigurationError(
                "compression with zstd needs a package: pip install 'redistq[zstd]'"
            )

    def smaller(self, data: bytes) -> bytes | None:
        """Return data compressed; None where that does not pay, or nobody would unpack it."""
        if not self.least <= len(data) <= MOST_UNPACKED:
            return None
        # Tried on a part of what is long: what is compressed already is not held up by it.
        if len(data) > 2 * _PROBE:
            middle = len(data) // 2
            if len(self._squeezed(data[middle : middle + _PROBE])) > 0.9 * _PROBE:
                return None
        found = self._squeezed(data)
        return found if len(found) < 0.9 * len(data) else None

    def _squeezed(self, data: bytes) -> bytes:
        if self.algorithm == "zlib":
            return zlib.compress(data, self.level)
        found: bytes = zstd().compress(data, self.level)
        return found

    def __repr__(self) -> str:
        return f"Compress({self.algorithm!r})"


class Sign:
    """Signs with HMAC-SHA256: nobody without a key can make or change anything, everybody can read
    it."""

    __slots__ = ("keys",)

    def __init__(self, keys: Keys) -> None:
        self.keys = keys

    def mac(self, name: str, where: bytes, data: bytes | memoryview) -> bytes:
        """Return the signature of data, in its place, with that key; raises Unreadable."""
        key = self.keys.derived(name, b"sign")
        if key is None:
            raise Unreadable("what is signed", f"signing key {name}")
        mac = hmac.new(key, where, "sha256")
        mac.update(data)
        return mac.digest()

    def __repr__(self) -> str:
        return f"Sign({self.keys!r})"


class Encrypt:
    """Encrypts with AES-256-GCM, which signs, too; needs the package cryptography."""

    __slots__ = ("keys",)

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        _aes()  # missing: said now, not with the first task

    def sealed(self, name: str, where: bytes, data: bytes) -> bytes:
        """Return data encrypted, which opens in that place alone."""
        # A key of its own for each message: no count of them makes a nonce come twice.
        salt = os.urandom(_SALT + _NONCE)
        cipher = self._cipher(name, salt[:_SALT])
        return salt + bytes(cipher.encrypt(salt[_SALT:], data, where))

    def opened(self, name: str, where: bytes, data: bytes | memoryview) -> bytes:
        """Return what was encrypted; raises Unreadable and UntrustedPayload."""
        cipher = self._cipher(name, bytes(data[:_SALT]))
        if len(data) < _SALT + _NONCE + _TAG:
            raise UntrustedPayload("what is encrypted is damaged: its end is missing")
        try:
            nonce = bytes(data[_SALT : _SALT + _NONCE])
            return bytes(cipher.decrypt(nonce, bytes(data[_SALT + _NONCE :]), where))
        except Exception as error:  # InvalidTag, by whatever module
            raise _changed("encrypted", name) from error

    def _cipher(self, name: str, salt: bytes) -> Any:
        key = self.keys.derived(name, b"encrypt")
        if key is None:
            raise Unreadable("what is encrypted", f"encryption key {name}")
        return _aes()(hmac.digest(key, salt, "sha256"))

    def __repr__(self) -> str:
        return f"Encrypt({self.keys!r})"


def check_mac(found: bytes | memoryview, wanted: bytes, name: str) -> None:
    """Raise UntrustedPayload where a signature is not the one that belongs there."""
    if not hmac.compare_digest(found, wanted):
        raise _changed("signed", name)


def _changed(how: str, name: str) -> UntrustedPayload:
    return UntrustedPayload(
        f"this is {how} with another key than ours called {name!r}, or for another task, or "
        "somebody has changed what is on the server: where both sides have the same keys, look who "
        "can write to it"
    )


def unzipped(algorithm: str, data: bytes) -> bytes:
    """Return data decompressed, of MOST_UNPACKED bytes at most; raises UntrustedPayload, and
    Unreadable where this Python cannot."""
    if algorithm == "zlib":
        opened = zlib.decompressobj()
        try:
            whole = opened.decompress(data, MOST_UNPACKED + 1)
        except zlib.error as error:
            raise UntrustedPayload(f"what is compressed is damaged: {error}") from None
        finished = opened.eof
    else:
        module = zstd()
        if module is None:
            raise Unreadable("what is compressed", ZSTD, "pip install 'redistq[zstd]'")
        whole, finished = module.decompress(data, MOST_UNPACKED + 1)
    if len(whole) > MOST_UNPACKED:
        raise UntrustedPayload(f"what is compressed holds more than {MOST_UNPACKED:,} bytes")
    if not finished:
        raise UntrustedPayload("what is compressed is damaged: its end is missing")
    return whole


ZSTD = "package zstandard"


def zstd() -> Any:
    """Return what compresses with zstd; None where nothing can."""
    from . import zstandard

    return zstandard.module()


def _aes() -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise ConfigurationError(
            "encryption needs a package: pip install 'redistq[encryption]'"
        ) from error
    return AESGCM

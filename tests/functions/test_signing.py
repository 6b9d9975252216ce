"""Packets: what pays is compressed, and it costs little to see that something does not."""

from __future__ import annotations

import hashlib
import hmac
import random
import zlib
from typing import Any

import pytest

from redistq import UntrustedPayload
from redistq.functions import signing
from redistq.functions.signing import Signer, is_compressed
from redistq.protocol.pieces import Pieces

SIZE = 400_000


def noise(seed: int, size: int = SIZE) -> bytes:
    """Bytes that cannot be compressed."""
    return random.Random(seed).randbytes(size)


def packed(signer: Signer, data: bytes) -> bytes:
    """The packet of a large result."""
    packet = signer.pack_memory("result", "task", [b"head", data])
    return bytes(packet) if isinstance(packet, Pieces) else packet


@pytest.mark.parametrize(
    "data",
    [
        bytes(SIZE),
        b'{"name": "value", "number": 17}\n' * (SIZE // 32),
        bytes(b & 15 for b in noise(1)),
    ],
    ids=["zeros", "text", "half of each byte"],
)
def test_what_pays_is_compressed_after_much_that_did_not(data: bytes) -> None:
    """Any number of values that cannot be compressed do not hide one that can."""
    signer = Signer(b"k" * 32)
    for seed in range(8):
        packet = packed(signer, noise(seed))
        assert not is_compressed(packet)
        assert len(packet) > SIZE
    packet = packed(signer, data)
    assert is_compressed(packet)
    assert len(packet) < 0.7 * SIZE
    assert signer.unpack("result", "task", packet) == b"head" + data


def test_what_repeats_at_long_distances_is_found_after_a_while() -> None:
    """Short samples do not see it; long ones are taken again now and then, and then of each."""
    signer = Signer(b"k" * 32)
    repeating = noise(9, 15_000) * (SIZE // 15_000)
    assert is_compressed(packed(signer, repeating))
    for seed in range(8):
        packed(signer, noise(seed))
    found = [is_compressed(packed(signer, repeating)) for _ in range(40)]
    assert found.index(True) < 16
    assert all(found[found.index(True) :])


def test_packets_are_the_same_where_hmac_is_pythons_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """There it has no inner object that is quicker to copy."""
    usual = Signer(b"k" * 32)
    real = hmac.new

    def new(key: bytes, digestmod: str) -> Any:
        made = real(key, digestmod=lambda: hashlib.new(digestmod))
        assert not getattr(made, "_hmac", None)
        return made

    monkeypatch.setattr(signing.hmac, "new", new)
    plain = Signer(b"k" * 32)
    for one, other in ((usual, plain), (plain, usual)):
        packet = one.pack("call", "task", b"data")
        assert packet == other.pack("call", "task", b"data")
        assert other.unpack("call", "task", packet) == b"data"
        assert one.name_of("argument", b"data") == other.name_of("argument", b"data")
        with pytest.raises(UntrustedPayload):
            other.unpack("call", "another task", packet)


def test_values_that_do_not_pay_are_soon_looked_at_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    """After three in a row, a large value costs 4 kB of compression, but for one in 16."""
    tried: list[int] = []
    real = zlib.compress

    def compress(data: Any, level: int) -> bytes:
        tried.append(len(data))
        return real(data, level)

    monkeypatch.setattr(signing.zlib, "compress", compress)
    signer = Signer(b"k" * 32)
    data = noise(1)
    for _ in range(3 + 32):
        packed(signer, data)
    assert tried.count(4_096) == 35
    assert tried.count(65_536) == 5
    assert len(tried) == 40
    del tried[:]
    packet = signer.pack_memory("argument", "name", [data])
    assert len(packet) > SIZE
    assert tried == [4_096, 65_536], "another kind has its own memory"

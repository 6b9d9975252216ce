"""Results whose arrays are not copied on their way, and what is large in signed packets."""

from __future__ import annotations

from typing import Any

import numpy
import pandas
import pyarrow
import pytest

from redistq import UntrustedPayload
from redistq.functions.outband import BESIDE, dumped, loaded
from redistq.functions.pickling import Seen
from redistq.functions.signing import Kind, Signer
from redistq.protocol.pieces import Pieces

KEY = b"k" * 32


def numbers() -> Any:
    return numpy.random.default_rng(1).integers(0, 256, 4 * BESIDE, dtype="uint8")


def made(value: Any) -> bytes:
    return b"".join(dumped([value], Seen()))


def test_what_comes_back_is_equal_and_can_be_changed() -> None:
    """Arrays, frames, tables, in whatever they stand; constants stay constant."""
    constant = numbers()
    constant.flags.writeable = False
    frame = pandas.DataFrame({"a": numbers(), "b": numbers() / 3, "c": "text"})
    values = [numbers(), numbers()[::2], numbers().reshape(2, -1).T, numbers().astype(">f8")]
    sent = {"values": values, "constant": constant, "frame": frame, "small": [1, "a"]}
    for read in (bytes, bytearray):  # as it is read by the slower way, and into memory of its own
        found = loaded(memoryview(read(made(sent))))
        for one, other in zip(found["values"], values, strict=True):
            numpy.testing.assert_array_equal(one, other)
            one[0] = 1
        assert found["constant"].flags.writeable is False
        pandas.testing.assert_frame_equal(found["frame"], frame)
        found["frame"].loc[0, "a"] = 7
        assert found["small"] == [1, "a"]
    table = pyarrow.table({"a": numbers()})
    assert loaded(bytearray(made(table))).equals(table)
    assert loaded(made(numbers()))[0] == numbers()[0]


def test_only_what_nobody_else_holds_is_sent_from_where_it_is() -> None:
    """A function may return what it, or another, goes on to change."""

    def is_copied(holder: list[Any], owner: Any) -> bool:
        parts = dumped(holder, Seen())
        memories = [part for part in parts if isinstance(part, memoryview)]
        assert len(memories) == 1
        return not numpy.shares_memory(numpy.frombuffer(memories[0], "uint8"), owner)

    where = numbers()
    address = where.__array_interface__["data"]
    holder = [where]
    del where
    [_, _, memory] = dumped(holder, Seen())
    assert numpy.frombuffer(memory, "uint8").__array_interface__["data"][0] == address[0]
    kept = numbers()
    assert is_copied([kept], kept)
    assert is_copied([kept[10:-10]], kept)
    assert is_copied([{"x": kept}], kept)


def test_arrays_lie_where_numpy_is_quick() -> None:
    """At multiples of 16 bytes, as memory is allocated."""
    signer = Signer(KEY)
    packet = signer.pack_memory("result", "task", dumped([[numbers(), numbers()]], Seen()))
    assert type(packet) is Pieces
    data = signer.unpack("result", "task", bytearray(bytes(packet)))
    for array in loaded(data):
        assert array.__array_interface__["data"][0] % 16 == 0


@pytest.mark.parametrize("kind", ["result", "argument"])
def test_a_large_packet_is_good_for_its_place_alone(kind: Kind) -> None:
    """Not changed in any byte, not for another, not under another key, not as another kind."""
    signer = Signer(KEY)
    data = numbers().tobytes()
    context = signer.name_of(kind, data) if kind == "argument" else "task"
    packet = bytes(signer.pack_memory(kind, context, (data[:10], data[10:])))
    assert signer.unpack(kind, context, bytearray(packet)) == data
    assert Signer(None, allow_unsigned=True).unpack(kind, context, packet) == data
    for changed in (packet[:-1], packet + b"\0", packet[:100] + b"\0\0" + packet[102:]):
        with pytest.raises(UntrustedPayload):
            signer.unpack(kind, context, changed)
    for flags in range(16):  # they may say that it is nothing, but not that it is something else
        try:
            assert signer.unpack(kind, context, packet[:4] + bytes((flags,)) + packet[5:]) == data
        except UntrustedPayload:
            continue
    other: Kind = "function" if kind == "argument" else "argument"
    for reader, place, as_kind in (
        (signer, "0" * 40, kind),
        (Signer(b"o" * 32), context, kind),
        (Signer(None), context, kind),
        (signer, context, other),
        (signer, context, "call"),
    ):
        with pytest.raises(UntrustedPayload):
            reader.unpack(as_kind, place, packet)  # type: ignore[arg-type]

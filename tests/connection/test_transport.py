"""Commands as they are sent and answers as they are read: large ones with fewer copies."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest

from redistq.connection import transport
from redistq.connection.address import resolve
from redistq.connection.broker import Broker
from redistq.connection.incoming import DIRECT
from redistq.errors import WrongKind
from redistq.protocol.pieces import Large, Pieces


def values() -> Any:
    """Values small and large: each has a place of its own in what is sent and read."""
    return [b"", b"x", b"\r\n" * transport.LARGE_SEND, bytes(range(256)) * 4096]


def test_a_large_command_is_packed_as_hiredis_does() -> None:
    """Byte by byte, whatever its values lie in."""
    for value in values():
        command = ("SET", "a:\u00e9", value, "PX", 600_000)
        packed = hiredis.pack_command(command)
        assert b"".join(transport._in_pieces(command)) == packed
        halves = Pieces((value[: len(value) // 3], bytearray(value[len(value) // 3 :])))
        in_pieces = Large(("SET", "a:\u00e9", halves, "PX", 600_000))
        assert b"".join(transport._in_pieces(in_pieces)) == packed
        assert in_pieces.plain() == command


def test_large_values_arrive_in_memory_of_their_own(url: str) -> None:
    """Whatever was read before and comes after, and however much of it came at once."""
    broker = Broker(resolve(url), slot_key="tasks")
    sent = values()
    for n, value in enumerate(sent):
        broker.call(Large(("SET", f"value:{n}", Pieces((value,)), "PX", 60_000)))
    gets = [Large(("GET", f"value:{n}")) for n in range(len(sent))]
    for get, value in zip(gets, sent, strict=True):
        found = broker.call(get)
        assert found == value
        assert type(found) is (bytearray if len(value) >= DIRECT else bytes)
        assert broker.call(tuple(get)) == value
    order = [3, 2, 1, 3, 0, 2, 2, 3, 1]
    mixed = [gets[n] if at % 3 else tuple(gets[n]) for at, n in enumerate(order)]
    assert list(broker.call_many(mixed)) == [sent[n] for n in order]
    assert list(broker.call_many(gets[n] for n in order)) == [sent[n] for n in order]
    text = "return {1, {ARGV[1], false}, redis.status_reply('fine'), 'x'}"
    answer = broker.call(Large(("EVAL", text, 0, Pieces((sent[3],)))))
    assert answer == [1, [sent[3], None], b"fine", b"x"]
    assert broker.call(Large(("GET", "value:none"))) is None
    # Among others of one round trip, whatever their size and order.
    stored = [Large(("SET", f"again:{n}", Pieces((value,)))) for n, value in enumerate(sent)]
    lengths = [("STRLEN", f"again:{n}") for n in range(len(sent))]
    answers = broker.call_all([("PING",), *stored, *lengths])
    assert answers[-len(sent) :] == list(map(len, sent))
    assert [broker.call(Large(("GET", f"again:{n}"))) for n in range(len(sent))] == sent
    broker.call(("HSET", "value:hash", "a", "b"))
    with pytest.raises(WrongKind):
        broker.call(Large(("GET", "value:hash")))
    assert broker.call(gets[2]) == sent[2]
    broker.close()

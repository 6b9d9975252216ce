"""Commands as they are sent: large ones as hiredis packs them, with fewer copies."""

from __future__ import annotations

import hiredis
import pytest

from redistq.connection import transport
from redistq.connection.address import resolve
from redistq.connection.broker import Broker


@pytest.mark.parametrize("size", [0, 1, transport.LARGE_SEND, 1_000_000])
def test_a_large_command_is_packed_as_hiredis_does(size: int) -> None:
    """Byte by byte."""
    command = ("SET", "a:\u00e9", b"\r\n" * size, "PX", 600_000)
    assert transport._packed_large(command) == hiredis.pack_command(command)


def test_a_large_value_arrives(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the way for large ones, which small ones do not go."""
    packed: list[int] = []
    real = transport._packed_large
    monkeypatch.setattr(
        transport, "_packed_large", lambda command: packed.append(1) or real(command)
    )
    broker = Broker(resolve(url), slot_key="tasks")
    value = bytes(range(256)) * 4096
    broker.call(("SET", "large", value, "PX", 60_000))
    broker.call(("SET", "small", b"x", "PX", 60_000))
    assert packed == [1]
    assert broker.call(("GET", "large")) == value
    broker.close()

"""The queue that the tests of single scripts look at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.script_world import World
from support.servers import Server


@pytest.fixture
def world(every_server: Server) -> Iterator[World]:
    """An empty queue on each server in turn."""
    made = World(every_server)
    yield made
    made.close()

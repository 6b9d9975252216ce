"""A test's queue on the session's default server, as the plugin gives one on its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from redistq import Registry
    from redistq.testing import TestQueue


@pytest.fixture
def registry() -> Registry:
    """Handlers of this test alone."""
    from redistq import Registry

    return Registry()


@pytest.fixture
def queue(url: str, registry: Registry) -> Iterator[TestQueue]:
    """A queue with these handlers."""
    from redistq.testing import TestQueue

    with TestQueue(registry, url=url) as queue:
        yield queue

"""The pytest plugin: a queue for each test that asks for one.

pytest finds it by itself where redistq is installed. Until a test uses a fixture nothing is loaded
and nothing is started. The processes of ``pytest -n`` share one server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ..client.client import Client
    from .queue import TestQueue


@pytest.fixture(scope="session")
def redistq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server for the whole session, which holds nothing but test queues.

    Override it, to return another address: that of Redis 7, say.
    """
    from .server import leave_session, session_url

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    yield session_url(folder / "redistq-server")
    leave_session()


@pytest.fixture
def redistq_handlers() -> object:
    """What ``redistq_queue`` runs: a mapping or a Registry. None, unless it is overridden: the
    functions with ``@task``."""
    return None


@pytest.fixture
def redistq_queue(redistq_server: str, redistq_handlers: object) -> Iterator[TestQueue]:
    """A queue for this test alone: a ``redistq.testing.TestQueue``. Its keys are removed after."""
    from .queue import TestQueue

    with TestQueue(redistq_handlers, url=redistq_server) as queue:  # type: ignore[arg-type]
        yield queue


@pytest.fixture
def redistq_client(redistq_queue: TestQueue) -> Client:
    """The client of ``redistq_queue``, whose calls its ``drain`` runs."""
    return redistq_queue.client

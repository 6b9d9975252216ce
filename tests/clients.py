"""Clients with workers for the tests: one server and two worker processes for a whole module.

Used by the tests of clients. Starting worker processes takes most of a second, and the tests of a
module do not mind each other's tasks.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from servers import Server

KEY = "a signing key for tests only"


def gate(folder: Path) -> tuple[Callable[[], str], Callable[[], None]]:
    """A function that ends when it is let go, and what lets it go; works across processes."""
    path = str(folder / "go")

    def wait_for_it() -> str:
        import os
        import time

        for _ in range(3000):
            if os.path.exists(path):
                return "went"
            time.sleep(0.01)  # a poll: processes share no better signal than a file
        return "gave up"

    return wait_for_it, Path(path).touch


@contextlib.contextmanager
def serving(workers: int = 2, **options: Any) -> Iterator[Any]:
    """A server, and a client with worker processes; its threads have started already."""
    from redistq import Client

    with Server() as server:
        client = Client(server.url, signing_key=KEY, **options)
        try:
            if workers:
                client.start_workers(workers)
                assert client.submit(abs, -1).result(30) == 1
            client.server = server  # type: ignore[attr-defined]
            yield client
        finally:
            client.close()


def threads_of(client: Any) -> list[threading.Thread]:
    """The threads of a client's sender."""
    return list(client.sender._threads)

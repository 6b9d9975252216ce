"""Clients with workers for the tests: one server and two worker processes for a whole module.

Used by the tests of clients. Starting worker processes takes most of a second, and the tests of a
module do not mind each other's tasks.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from redistq import TaskProducer
from redistq.client import submission
from redistq.client.futures import TaskFuture
from redistq.client.session import Session
from redistq.protocol.options import CallOptions
from support.servers import Server

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


def session(client: Any) -> Session:
    """What a client has open, for tests of what users do not see."""
    found: Session = client._session
    return found


def kept(client: Any) -> weakref.ref[Session]:
    """Whether what a client has open is there still: it goes with the last of its futures."""
    return weakref.ref(session(client))


def producer_of(client: Any) -> TaskProducer:
    """A producer of the client's queue."""
    return TaskProducer(address=client.address, stream=client.keys.stream)


def asked(client: Any, command: str) -> int:
    """How often the client's server was asked for that."""
    stats = client.broker.call(("INFO", "commandstats")).decode()
    for line in stats.splitlines():
        if line.startswith(f"cmdstat_{command}:"):
            return int(line.partition("calls=")[2].partition(",")[0])
    return 0


def store_function(client: Any, fn: Callable[..., Any]) -> str:
    """The name under which the server keeps a function."""
    return session(client).packer.store_function(fn, 600, [])


def send(client: Any, task_id: str, name: str, payload: bytes) -> TaskFuture:
    """A task with that payload, as a client sends it."""
    inside = session(client)
    future = TaskFuture(inside, inside.queue(), task_id, name)
    return submission.send(inside, future, name, payload, CallOptions())


def threads_of(client: Any) -> list[threading.Thread]:
    """The threads of a client's sender."""
    return list(session(client).exchange.pending.threads)

"""The world of each test: a real, empty server, a clean environment, and a check for leaks.

Used by every test through pytest. It must never import redistq at module level: a broken package
has to show as failing tests, not as a session that cannot be collected.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import redis
import support.quick_json  # noqa: F401  (before any test loads jsonschema)
from support.servers import FLAVOURS, MISSING, Server, binary, others_serve

PROCESS_GRACE_S = 15.0
THREAD_GRACE_S = 5.0
LONGEST = (
    *("notebooks", "gate_faults", "gate_model", "client_faults", "ssh", "environments"),
    *("examples", "script_faults", "batch", "executor_own_suite", "lab", "waiting", "readme"),
    *("frames", "worker_faults", "dashboard", "at_exit", "leftovers", "cluster", "cli_monitor"),
    *("bounds", "dashboard_browser", "firing", "embedded", "killers", "refusals"),
    *("worker_processes", "kernels"),
)
"""The files that take longest, as they did; first, so that none runs alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; all others in their order."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(autouse=True)
def clean_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings from outside; afterwards no redistq thread that the test started may be left."""
    monkeypatch.delenv("REDISTQ_URL", raising=False)
    monkeypatch.setenv("REDISTQ_HOME", str(tmp_path / "redistq-home"))
    before = set(threading.enumerate())
    yield
    embedded = sys.modules.get("redistq.connection.embedded")
    if embedded is not None:
        embedded.leave()  # a server that the test started in this home ends with the test
    deadline = time.monotonic() + THREAD_GRACE_S
    leaked = []
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("redistq"):
            while True:
                try:
                    thread.join(max(0.0, deadline - time.monotonic()))
                    break
                except RuntimeError:  # it is being started just now
                    time.sleep(0.001)
            if thread.is_alive():
                leaked.append(thread.name)
    if leaked:
        pytest.fail(f"threads outlived the test: {', '.join(sorted(leaked))}")


@pytest.fixture(scope="module", autouse=True)
def own_default_registry() -> Iterator[None]:
    """What a module's tests register by ``@task`` is gone with them: workers that other tests start
    would look for it."""
    module = sys.modules.get("redistq.handlers.registry")
    registry = None if module is None else module.default_registry
    before = {} if registry is None else {name: copy(v) for name, v in vars(registry).items()}
    yield
    if registry is not None:
        vars(registry).update(before)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[Any]:
    """What forks the processes of workers, with their modules loaded; None where it cannot."""
    from support.fork_server import start

    found = start()
    yield found
    if found is not None:
        found.close()


@pytest.fixture(scope="module", autouse=True)
def quick_starts(request: pytest.FixtureRequest, fork_server: Any) -> Iterator[None]:
    """The processes of workers load no modules, unless a test is about how they start."""
    with pytest.MonkeyPatch.context() as patch:
        if fork_server is not None and request.node.get_closest_marker("own_start") is None:
            patch.setattr("redistq.system.processes.subprocess", fork_server)
            patch.setattr("support.fork_server.current", fork_server)
        yield


@pytest.fixture(autouse=True)
def own_starts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this test do, if it is marked."""
    if request.node.get_closest_marker("own_start") is not None:
        monkeypatch.setattr("redistq.system.processes.subprocess", subprocess)
        monkeypatch.setattr("support.fork_server.current", None)


@pytest.fixture(scope="session")
def servers_by_flavour() -> Iterator[Callable[[str], Server]]:
    """One server per flavour for the whole session, started when it is first asked for."""
    running: dict[str, Server] = {}

    def get(flavour: str) -> Server:
        if flavour not in running:
            if binary(flavour) is None:
                pytest.skip(f"no {flavour} server here: {MISSING[flavour]}")
            running[flavour] = Server(flavour)
        return running[flavour].start()

    yield get
    for server in running.values():
        server.close()


@pytest.fixture(scope="session")
def valkey_server(servers_by_flavour: Callable[[str], Server]) -> Server:
    """The session's default server: Valkey from the wheel, no persistence."""
    return servers_by_flavour("valkey")


@pytest.fixture(scope="module", autouse=True)
def alone(servers_by_flavour: Callable[[str], Server]) -> None:
    """No process that a test before left to its own end serves the default server any more: its
    scheduler would move the tasks of these tests. A client of this process, which nobody holds and
    nothing has collected yet, is no such process."""
    deadline = time.monotonic() + PROCESS_GRACE_S
    with servers_by_flavour("valkey").client() as client:
        while others_serve(client) and time.monotonic() < deadline:
            time.sleep(0.05)


@pytest.fixture
def server(valkey_server: Server) -> Server:
    """The default server, emptied for this test (data and script cache)."""
    valkey_server.flush()
    return valkey_server


@pytest.fixture
def url(server: Server) -> str:
    """The default server's address over TCP."""
    return server.url


@pytest.fixture
def farm(url: str, db: redis.Redis) -> Iterator[Any]:
    """A queue on the default server, and its monitor: a `support.farm.Farm`."""
    from support.farm import Farm

    farm = Farm(url, db)
    yield farm
    farm.monitor.close()


@pytest.fixture
def gate(db: redis.Redis) -> Any:
    """Waiting tasks and limits of that queue, by hand: a `support.gate.HandMade`."""
    from support.gate import HandMade

    return HandMade(db)


@pytest.fixture
def db(server: Server) -> Iterator[redis.Redis]:
    """A plain redis-py client for looking into the default server."""
    options: dict[str, Any] = {"protocol": 2, "decode_responses": True}
    with redis.Redis.from_url(server.url, **options) as connection:
        yield connection


@pytest.fixture(params=FLAVOURS)
def every_server(
    request: pytest.FixtureRequest, servers_by_flavour: Callable[[str], Server]
) -> Server:
    """Each known flavour in turn, emptied; skipped with the reason where it is missing."""
    server = servers_by_flavour(request.param)
    server.flush()
    return server


@pytest.fixture
def private_server() -> Iterator[Callable[..., Server]]:
    """A factory of fresh servers for this test alone; takes the options of `Server`."""
    started: list[Server] = []

    def start(flavour: str = "valkey", **options: Any) -> Server:
        if binary(flavour) is None:
            pytest.skip(f"no {flavour} server here: {MISSING[flavour]}")
        server = Server(flavour, **options)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.close()

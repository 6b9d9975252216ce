"""CPython's own tests of executors and their futures, with ours in the place of its pools.

They are read from the ``test`` package of the running interpreter (one file up to 3.11, a folder
since 3.12), or from Debian's package of the same version where the interpreter comes without. What
differs on purpose is named below and must fail: a difference that has gone is as much a surprise
as a new one. docs/client.md tells users of it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import multiprocessing
import re
import sys
import types
import unittest
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from support.clients import KEY, serving

from redistq import Client, PayloadError, TaskFailed
from redistq.client.futures import TaskFuture
from redistq.client.outcomes import RemoteTraceback

VERSION = "{}.{}".format(*sys.version_info)
WORKERS = 3
EXPLAINED = {
    "workers are not an option of a client: start_workers has their number": (
        "test_max_workers_negative",
    ),
    "what cannot be pickled is refused by submit, and leaves no future": (
        "test_error_at_task_pickle",
    ),
    "an error in unpickling is that task's own; nothing else is broken by it": (
        "test_error_at_task_unpickle",
        "test_error_during_result_unpickle_in_result_handler",
    ),
    "what would end this process (KeyboardInterrupt, SystemExit) arrives as TaskFailed": (
        "test_exit_during_func_exec_on_worker",
        "test_exit_during_result_pickle_on_worker",
    ),
    "cancel tells waiters at once: no worker of this process comes by later": ("test_cancel",),
    "running() asks the server": ("test_running",),
    "a future's text names its task": (
        "test_repr",
        "test_multiple_set_result",
        "test_multiple_set_exception",
    ),
}
"""What fails, and why."""

LEFT_OUT = (
    # These look into the pool (_processes, _max_workers), or are about options of its making.
    "test_killed_child",
    "test_saturation",
    "test_idle_process_reuse_one",
    "test_idle_process_reuse_multiple",
    "test_max_tasks_per_child",
    "test_max_tasks_per_child_defaults_to_spawn_context",
    "test_max_tasks_early_shutdown",
    "test_max_workers_too_large",
    "test_python_finalization_error",
    "test_shutdown_deadlock_pickle",
    # Ten calls that end their worker, six times each: others show as much in a tenth of the time.
    "test_crash_big_data",
)

FILES = (
    *("util", "executor", "test_as_completed", "test_wait", "test_shutdown"),
    *("test_process_pool", "test_deadlock", "test_future"),
)
CHANGES = (
    (r"futures\.process\._RemoteTraceback", "RemoteTraceback"),
    (r"cause\.tb\b", "cause.text"),
    # Scripts: a client with workers of its own is their executor.
    (r"from concurrent\.futures import \{executor_type\}", "from redistq import Client"),
    (r"(?m)^( +)t = \{executor_type\}\(.*\)$", r"\1t = Client(); t.start_workers(1)"),
    (
        r"from test\.test_concurrent_futures\S* import sleep_and_print",
        "sleep_and_say = lambda t, msg: (__import__('time').sleep(t), msg)[1]",
    ),
    # What tasks print stays with their worker.
    (
        r"t\.submit\(sleep_and_print, (.*)\)",
        r"t.submit(sleep_and_say, \1).add_done_callback(lambda f: print(f.result()))",
    ),
)


def sources() -> list[Path]:
    """The files of CPython's tests; none where they are not installed."""
    package = importlib.util.find_spec("test")
    places = list(package.submodule_search_locations or ()) if package else []
    for place in map(Path, (*places, f"/usr/lib/python{VERSION}/test")):
        if (one := place / "test_concurrent_futures.py").exists():
            return [one]
        files = [place / "test_concurrent_futures" / f"{name}.py" for name in FILES]
        if all(file.exists() for file in files):
            return files
    return []


def load() -> Any:
    """CPython's tests as one module, with our errors in the place of the pools'."""
    files = sources()
    if not files:
        why = f"CPython's tests are not installed (Debian: libpython{VERSION}-testsuite)"
        pytest.skip(why, allow_module_level=True)
    pytest.importorskip("test.support", reason="CPython's test.support is not installed")
    texts = [file.read_text() for file in files]
    for pattern, other in CHANGES:
        changed = [re.subn(pattern, other, text) for text in texts]
        assert any(n for _, n in changed), f"CPython's tests have another form now: no {pattern}"
        texts = [text for text, _ in changed]
    module = types.ModuleType("executor_own_suite")
    # The standard pickler finds the functions by their module, and ours takes them along.
    sys.modules[module.__name__] = module
    cloudpickle.register_pickle_by_value(module)
    for file, text in zip(files, texts, strict=True):
        # The files of the folder become one module, with the lines where they were.
        alone = re.sub(r"(?m)^from \.\w+ import (\([^)]*\)|.*)$", emptied, text)
        exec(compile(alone, str(file), "exec"), vars(module))
    vars(module).update(
        BrokenProcessPool=(TaskFailed, PayloadError),
        PicklingError=PayloadError,
        RemoteTraceback=RemoteTraceback,
    )
    return module


def emptied(lines: re.Match[str]) -> str:
    """Nothing, in as many lines."""
    return "\n" * lines[0].count("\n")


suite = load()


class Ours(unittest.TestCase):
    """Clients in the place of pools, on one server and with the same workers."""

    client: Client
    executor: Client
    worker_count = WORKERS

    def executor_type(self, max_workers: int = 0, **_: Any) -> Client:
        client = Client(self.client.server.url, signing_key=KEY)  # type: ignore[attr-defined]
        self.addCleanup(client.close)
        return client

    def get_context(self) -> BaseContext:
        return multiprocessing.get_context("spawn")

    def setUp(self) -> None:
        self.executor = self.executor_type()

    def tearDown(self) -> None:
        self.executor.shutdown()
        del self.executor


class OwnWorkers(Ours):
    """Each client brings workers, which end with it; scripts find the same server."""

    def setUp(self) -> None:
        patch = pytest.MonkeyPatch()
        self.addCleanup(patch.undo)
        patch.setenv("REDISTQ_URL", self.client.server.url)  # type: ignore[attr-defined]
        patch.setenv("REDISTQ_SIGNING_KEY", KEY)
        super().setUp()

    def executor_type(self, max_workers: int = 0, **_: Any) -> Client:
        client = super().executor_type()
        client.start_workers(max_workers or self.worker_count)
        return client


class Futures(Ours):
    """Futures of tasks that are not due yet in the place of those that no pool has made."""

    def setUp(self) -> None:
        super().setUp()
        patch = pytest.MonkeyPatch()
        self.addCleanup(patch.undo)
        # The library's own words on errors in callbacks go where they go without pytest.
        patch.setattr(logging.getLogger(), "handlers", [])
        patch.setattr(suite, "Future", self.waiting)
        for name in ("PENDING", "RUNNING", "CANCELLED", "CANCELLED_AND_NOTIFIED"):
            future = suite.create_future(state=getattr(suite, name))
            patch.setattr(suite, f"{name}_FUTURE", future)
        ends = {"EXCEPTION": {"exception": OSError()}, "SUCCESSFUL": {"result": 42}}
        for name, end in ends.items():
            future = suite.create_future(state=suite.FINISHED, **end)
            patch.setattr(suite, f"{name}_FUTURE", future)

    def waiting(self) -> TaskFuture:
        return self.executor.options(delay=3600).submit(int)

    def tearDown(self) -> None:
        self.executor.close()


def put_on(part: type, ours: type[Ours]) -> type:
    """CPython's tests of one class, run on ours."""
    marked: dict[str, Any] = dict.fromkeys(LEFT_OUT)
    for why, names in EXPLAINED.items():
        for name in names:
            if (test := getattr(part, name, None)) is not None:
                marked[name] = pytest.mark.xfail(strict=True, reason=why)(copied(test))
    return type(part.__name__, (ours, part), {**marked, "__test__": True})


def copied(test: types.FunctionType) -> types.FunctionType:
    """The same function, which can be marked for itself."""
    return types.FunctionType(
        test.__code__, test.__globals__, test.__name__, test.__defaults__, test.__closure__
    )


TestExecutor = put_on(suite.ProcessPoolExecutorTest, Ours)
TestAsCompleted = put_on(suite.AsCompletedTests, Ours)
TestWait = put_on(suite.WaitTests, Ours)
TestShutdown = put_on(suite.ExecutorShutdownTest, OwnWorkers)
TestCrashes = put_on(suite.ExecutorDeadlockTest, Ours)
TestFutures = put_on(suite.FutureTests, Futures)


@pytest.fixture(scope="module", autouse=True)
def client() -> Iterator[Client]:
    """Workers for all clients."""
    with serving(WORKERS) as client, contextlib.ExitStack() as stack:
        Ours.client = client
        # Else the scripts' workers warn of it, where nothing is to be said.
        client.broker.call(("CONFIG", "SET", "appendonly", "yes"))
        gc.freeze()  # some collect garbage many times, and have few objects of their own
        stack.callback(gc.unfreeze)
        yield client
        del Ours.client

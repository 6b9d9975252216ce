"""joblib's own tests of ``Parallel``, with its backends replaced by ours.

They are read from the installed joblib, and every test that names a backend, or takes the default
one, runs on redistq's workers. What differs on purpose is named below and must fail: a difference
that has gone is as much a surprise as a new one. docs/client.md tells users of it.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import joblib._parallel_backends
import joblib.test
import pytest
from support.clients import KEY, serving

import redistq.joblib
from redistq import Client

WORKERS = 4
EXPLAINED = {
    "without n_jobs, all workers are used, as with Dask": (
        "test_effective_n_jobs_None",
        "test_nested_backend_in_sequential",
    ),
    "a loop may stand in a thread or process of another backend: no warning, no single job": (
        "test_nested_parallel_warnings[multiprocessing-redistq-True]",
        "test_nested_parallel_warnings[threading-redistq-True]",
    ),
    "what would end this process (KeyboardInterrupt, SystemExit) arrives as TaskFailed": (
        "test_error_capture",
    ),
    "arrays come by the server, not as files mapped into memory": (
        "test_auto_memmap_on_arrays_from_generator",
        "test_memmapping_leaks",
    ),
    "workers have the environment of their start": (
        "test_threadpool_limitation_in_child_override",
    ),
}
"""What fails, and why: names of tests, or of single cases of one."""

LEFT_OUT = (
    # Calls that wait for each other: nothing says that they run at the same time.
    "test_initializer_reused",
    "test_initializer_not_reused",
    # Reads all of the standard error of a program; a server without a disk is warned of there.
    "test_parallel_with_interactively_defined_bound_method_loky",
)
LONG = (
    "test_nested_parallel_warnings",
    "test_nested_loop",
    "test_parallel_with_unpicklable_functions_in_args",
    "test_parallel_with_interactively_defined_functions",
    "test_parallel_with_interactively_defined_functions_loky",
    "test_backend_batch_statistics_reset",
    "test_multiple_generator_call",
    "test_multiple_generator_call_separated",
    "test_multiple_generator_call_separated_gc",
)
"""Each makes programs, clients or many loops: ``pytest -m whole``."""

BACKENDS = """
RETURN_GENERATOR_BACKENDS = {"redistq": None}
ALL_VALID_BACKENDS = ["redistq"]
PROCESS_BACKENDS = PARALLEL_BACKENDS = ["redistq"]
"""
CHANGES = (
    (r"joblib\._parallel_backends\.LokyBackend", "LokyBackend"),
    (r"LokyBackend", "RedistqBackend"),
    (r'"loky"', '"redistq"'),
    # These take all of joblib's backends, and "spawn" beside a list of names.
    (r'parametrize\("(\w*backend)", BACKENDS\)', r'parametrize("\1", ["redistq"])'),
    (r'PROCESS_BACKENDS \+ \(\[\] if mp is None else \["spawn"\]\)', "PROCESS_BACKENDS"),
    # Two generators at a time are as good as two thread pools: no executor is shared.
    (r'\("redistq", True\),\n        \("threading", False\)', '("redistq", False)'),
    # Scripts: the name is known once it was imported.
    (r"(?m)^from joblib import Parallel, delayed", "import redistq.joblib\n\\g<0>"),
    # A call that has begun is finished: one second of sleep shows as much as ten, and five as 30.
    (r"(sleep\)?)\(10\)", r"\1(1)"),
    (r"sleep\(30\)", "sleep(5)"),
    (r"\[10\] \* 100", "[1] * 100"),
    # Marked as failing with joblib's own backend; it passes with ours.
    (r'@pytest\.mark\.xfail\(reason="https://github\.com/joblib/loky/pull/255"\)\n', ""),
    (r"(?m)^(pytestmark = |@)pytest\.mark\.(thread_unsafe|no_cover).*$", ""),
)


class RedistqBackend(redistq.joblib.RedistqBackend):
    """The backend, with the one client of this module."""

    shared: Client

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"client": self.shared, **options})


def suite() -> Iterator[tuple[str, Any]]:
    """joblib's tests that use a backend, by name."""
    path = Path(joblib.test.__file__).with_name("test_parallel.py")
    source = path.read_text()
    for pattern, other in CHANGES:
        source, times = re.subn(pattern, other, source)
        assert times, f"joblib's tests have another form now: no {pattern}"
    head, mark, rest = source.partition("\n\ndef get_default_backend_instance")
    assert mark, "joblib's tests have another form now"
    head = head.replace("    RedistqBackend,\n", "")
    module = types.ModuleType("joblib_own_suite")
    vars(module).update(
        __package__="joblib.test", __file__=str(path), RedistqBackend=RedistqBackend
    )
    # The standard pickler finds the functions by their module, and ours takes them along.
    sys.modules[module.__name__] = module
    cloudpickle.register_pickle_by_value(module)
    exec(compile(head + BACKENDS + mark + rest, str(path), "exec"), vars(module))
    for name, found in vars(module).items():
        if name.startswith("test_") and name not in LEFT_OUT:
            yield name, pytest.mark.whole(found) if name in LONG else found


globals().update(suite())


@pytest.fixture(scope="module", autouse=True)
def client() -> Iterator[Client]:
    """One client with workers for all of them."""
    with serving(WORKERS) as client:
        RedistqBackend.shared = client
        yield client


@pytest.fixture(autouse=True)
def as_default(client: Client, monkeypatch: pytest.MonkeyPatch, request: Any) -> None:
    """Our backend is joblib's default; scripts find the same server."""
    monkeypatch.setitem(joblib.parallel.BACKENDS, "redistq", RedistqBackend)
    for name in ("DEFAULT_BACKEND", "DEFAULT_PROCESS_BACKEND"):
        monkeypatch.setattr(joblib.parallel, name, "redistq")
    monkeypatch.setenv("REDISTQ_URL", client.server.url)  # type: ignore[attr-defined]
    monkeypatch.setenv("REDISTQ_SIGNING_KEY", KEY)
    name = request.node.name
    for why, names in EXPLAINED.items():
        if name in names or name.partition("[")[0] in names:
            request.applymarker(pytest.mark.xfail(strict=True, reason=why))

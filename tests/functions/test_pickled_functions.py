"""The pickle of a function is used again only while all that it holds is the same."""

from __future__ import annotations

import json
import linecache
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from redistq.functions.function import PickledFunctions

CELL = """
import json

factor = 1000
text = "a"

def helper(x):
    return x

def make(step=1):
    counter = 5
    def counts(x, base=0):
        "Doc."
        return x * factor + base + counter + step
    def set_counter(value):
        nonlocal counter
        counter = value
    return counts, set_counter

def plain(x):
    return json.dumps([x, factor, [text for _ in range(2)], later])

def uses_helper(x):
    return helper(x)

def annotated(x: int) -> int:
    return x

def keyword(x, *, y=1):
    return x + y

counts, set_counter = make()
"""


@pytest.fixture
def cell() -> dict[str, Any]:
    """The names that a notebook's cell leaves behind."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(CELL, "<cell>", "exec"), scope)
    return scope


def test_a_function_that_is_the_same_is_not_pickled_again(cell: dict[str, Any]) -> None:
    """With plain globals, modules and closures; nor when others were sent in between."""
    functions = PickledFunctions()
    for name in ("plain", "counts", "annotated"):
        functions.keep(cell[name], b"pickle", {"json"})
        known = functions.get(cell[name])
        assert known is not None, name
        assert (known.pickled, known.modules) == (b"pickle", {"json"})
    assert functions.get(cell["plain"]) is not None


def test_few_are_remembered_and_large_ones_alone(cell: dict[str, Any]) -> None:
    """A program that makes functions without end does not keep them all."""
    functions = PickledFunctions()
    functions.keep(cell["plain"], b"pickle", ())
    for _ in range(70):
        scope: dict[str, Any] = {"__name__": "__main__"}
        exec("def other(): pass", scope)
        functions.keep(scope["other"], b"pickle", ())
        assert functions.get(scope["other"]) is not None
    assert functions.get(cell["plain"]) is None
    functions.keep(cell["plain"], b"x" * 100_000, ())
    assert functions.get(cell["plain"]) is not None
    assert functions.get(scope["other"]) is None


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "a global": ("counts", lambda cell: cell.update(factor=1001)),
    "a global of another type": ("plain", lambda cell: cell.update(factor=1000.0)),
    "a global becomes an object": ("plain", lambda cell: cell.update(text=["a"])),
    "a global that was not there": ("plain", lambda cell: cell.update(later=3)),
    "a global is gone": ("plain", lambda cell: cell.pop("text")),
    "another module": ("plain", lambda cell: cell.update(json=sys)),
    "a closure": ("counts", lambda cell: cell["set_counter"](6)),
    "a default": ("counts", lambda cell: setattr(cell["counts"], "__defaults__", (1,))),
    "the code": (
        "counts",
        lambda cell: setattr(
            cell["counts"],
            "__code__",
            cell["counts"].__code__.replace(co_name="other"),
        ),
    ),
    "an attribute": ("plain", lambda cell: setattr(cell["plain"], "seen", 1)),
    "the doc": ("counts", lambda cell: setattr(cell["counts"], "__doc__", "Other.")),
    "the name": ("plain", lambda cell: setattr(cell["plain"], "__qualname__", "x")),
    "an annotation": (
        "annotated",
        lambda cell: cell["annotated"].__annotations__.update(x=float),
    ),
    "its source": (
        "plain",
        lambda cell: linecache.cache.update({"<cell>": (1, None, ["x"], "<cell>")}),
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_is_seen(what: str, cell: dict[str, Any]) -> None:
    """Each part of what a pickle holds, changed by itself."""
    functions, (name, change) = PickledFunctions(), CHANGES[what]
    functions.keep(cell[name], b"pickle", ())
    assert functions.get(cell[name]) is not None
    try:
        change(cell)
        assert functions.get(cell[name]) is None
    finally:
        linecache.cache.pop("<cell>", None)


def test_a_module_that_is_loaded_later_is_seen(cell: dict[str, Any]) -> None:
    """The submodules that a function uses travel with it: there may be one more now."""
    functions = PickledFunctions()
    functions.keep(cell["plain"], b"pickle", ())
    sys.modules["redistq_loaded_later"] = types.ModuleType("redistq_loaded_later")
    try:
        assert functions.get(cell["plain"]) is None
    finally:
        del sys.modules["redistq_loaded_later"]


@pytest.mark.parametrize("name", ["uses_helper", "keyword", "set_counter"])
def test_what_may_change_unseen_is_pickled_each_time(name: str, cell: dict[str, Any]) -> None:
    """Functions that refer to functions, keyword defaults, and lists in a closure."""
    cell["set_counter"]([1])
    functions = PickledFunctions()
    functions.keep(cell[name], b"pickle", ())
    assert functions.get(cell[name]) is None


def test_callables_that_are_no_functions_are_none_of_ours(cell: dict[str, Any]) -> None:
    """They hold a state, or cost nothing to pickle."""
    functions = PickledFunctions()
    for other in (len, dict, cell["plain"].__call__):
        functions.keep(other, b"pickle", ())
        assert functions.get(other) is None


def test_a_function_of_a_module_is_known_while_its_name_means_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It travels by its name: another one of that name, or none, and it would by its code."""
    functions = PickledFunctions()
    given = json.dumps
    functions.keep(given, b"pickle", {"json"})
    assert functions.get(given) is not None
    monkeypatch.setattr(json, "dumps", json.loads)
    assert functions.get(given) is None
    functions.keep(given, b"pickle", {"json"})
    assert functions.get(given) is None
    monkeypatch.undo()
    assert functions.get(given) is not None

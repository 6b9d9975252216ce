"""The fingerprint of a call: another for whatever a worker would do otherwise; else the same."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from redistq import PayloadError
from redistq.functions.fingerprint import fingerprint

SETUP = """
import abc, collections, dataclasses, datetime, enum, functools, random, typing
import numpy as np
"""


def notebook(source: str, folder: Path | None = None, seed: str = "0") -> str:
    """The fingerprint of ``f(1)`` after cells with that source, in a process of its own."""
    code = f"{SETUP}\n{textwrap.dedent(source)}\n"
    code += "from redistq.functions.fingerprint import fingerprint\nprint(fingerprint(f, (1,), {}))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(folder or "")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def cell(source: str) -> Any:
    """``f`` as a cell with that source defines it, in a notebook of its own."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(SETUP, scope)
    exec(textwrap.dedent(source), scope)
    return scope["f"]


# Each is a function f and a part of its source, with what may stand in that part's place.
CHANGES = {
    "constant": ("def f(x): return x + 1", "1", "2"),
    "type of a constant": ("def f(x): return x + 1", "1", "1.0"),
    "attribute": ("class C: rate = 1\ndef f(x): return x * C.rate", "1", "2"),
    "inherited": (
        "class A:\n  def m(self): return 1\nclass B(A): pass\nclass C(B): pass\n"
        "def f(x): return C().m()",
        "1",
        "2",
    ),
    "bases": (
        "class A: pass\nclass B: pass\nclass C(A): pass\ndef f(x): return C.__mro__",
        "C(A)",
        "C(B)",
    ),
    "metaclass": (
        "class M(type):\n  def n(cls): return 1\nclass C(metaclass=M): pass\n"
        "def f(x): return C.n()",
        "1",
        "2",
    ),
    "enum value": ("class E(enum.Enum):\n  A = 1\ndef f(x): return E.A.value", "1", "2"),
    "enum method": (
        "class E(enum.Enum):\n  A = 1\n  def m(self): return 5\ndef f(x): return E.A.m()",
        "5",
        "6",
    ),
    "enum names": ("class E(enum.Enum):\n  A = 1\ndef f(x): return list(E)", "A =", "B ="),
    "enum way in": (
        "class E(enum.Enum):\n  A = 1\n  @classmethod\n  def _missing_(cls, v): return 5\n"
        "def f(x): return E(x)",
        "5",
        "6",
    ),
    "static method": (
        "class C:\n  @staticmethod\n  def m(): return 1\ndef f(x): return C.m()",
        "1",
        "2",
    ),
    "class method": (
        "class C:\n  @classmethod\n  def m(cls): return 1\ndef f(x): return C.m()",
        "1",
        "2",
    ),
    "property": (
        "class C:\n  @property\n  def p(self): return 1\ndef f(x): return C().p",
        "1",
        "2",
    ),
    "cached property": (
        "class C:\n  @functools.cached_property\n  def p(self): return 1\ndef f(x): return C().p",
        "1",
        "2",
    ),
    "nested class": ("class C:\n  class D: v = 1\ndef f(x): return C.D.v", "1", "2"),
    "dataclass default": (
        "@dataclasses.dataclass\nclass C:\n  v: int = 1\ndef f(x): return C().v",
        "1",
        "2",
    ),
    "dataclass factory": (
        "@dataclasses.dataclass\nclass C:\n"
        "  v: list = dataclasses.field(default_factory=lambda: [1])\n"
        "def f(x): return C().v",
        "[1]",
        "[2]",
    ),
    "abstract base": (
        "class A(abc.ABC):\n  def m(self): return 1\nclass C(A): pass\ndef f(x): return C().m()",
        "1",
        "2",
    ),
    "state of an object": (
        "class C:\n  def __init__(self, v): self.v = v\no = C(1)\ndef f(x): return o.v",
        "C(1)",
        "C(2)",
    ),
    "callable object": (
        "class C:\n  def __init__(self, v): self.v = v\n  def __call__(self, x): return self.v\n"
        "  def __repr__(self): return 'C'\nf = C(1)",
        "C(1)",
        "C(2)",
    ),
    "slots": (
        "class C:\n  __slots__ = ('v',)\n  def __init__(self, v): self.v = v\n"
        "  def __call__(self, x): return self.v\nf = C(1)",
        "C(1)",
        "C(2)",
    ),
    "bound method": (
        "class C:\n  def __init__(self, v): self.v = v\n"
        "  def m(self, x): return self.v\nf = C(1).m",
        "C(1)",
        "C(2)",
    ),
    "method of a value": ("f = [1].index", "[1]", "[2]"),
    "global": ("V = 1\ndef f(x): return V", "1", "2"),
    "global of a function's function": (
        "V = 1\ndef g(): return V\ndef h(): return g()\ndef f(x): return h()",
        "1",
        "2",
    ),
    "global in a comprehension": ("V = 1\ndef f(x): return [V for _ in range(3)]", "1", "2"),
    "global in a nested function": (
        "V = 1\ndef f(x):\n  def g(): return (lambda: V)()\n  return g()",
        "1",
        "2",
    ),
    "closure": (
        "def make(v):\n  def g(x): return v\n  return g\nf = make(1)",
        "make(1)",
        "make(2)",
    ),
    "default": ("def f(x, v=1): return v", "1", "2"),
    "keyword default": ("def f(x, *, v=1): return v", "1", "2"),
    "partial": ("def g(v, x): return v\nf = functools.partial(g, 1)", "1)", "2)"),
    "partial keyword": ("def g(x, v): return v\nf = functools.partial(g, v=1)", "v=1", "v=2"),
    "function attribute": ("def f(x): return f.v\nf.v = 1", "v = 1", "v = 2"),
    "decorator": (
        "def d(g):\n  @functools.wraps(g)\n  def w(x): return g(x) + 1\n  return w\n"
        "@d\ndef f(x): return x",
        "1",
        "2",
    ),
    "decorated": (
        "def d(g):\n  @functools.wraps(g)\n  def w(x): return g(x)\n  return w\n"
        "@d\ndef f(x): return 1",
        "return 1",
        "return 2",
    ),
    "cached function": ("@functools.cache\ndef f(x): return 1", "1", "2"),
    "overload": (
        "@functools.singledispatch\ndef f(x): return 0\n@f.register\ndef _(x: int): return 1",
        "return 1",
        "return 2",
    ),
    "overload's type": (
        "@functools.singledispatch\ndef f(x): return 0\n@f.register(int)\ndef _(x): return 1",
        "int)",
        "str)",
    ),
    "generator": ("def f(x): yield 1", "1", "2"),
    "exception handling": (
        "def f(x):\n  try: return g()\n  except KeyError: return 1\n",
        "KeyError",
        "ValueError",
    ),
    "array": ("V = np.array([1, 2])\ndef f(x): return V", "[1, 2]", "[1, 3]"),
    "array's type": ("V = np.array([1, 2])\ndef f(x): return V", "2])", "2], dtype='i2')"),
    "set": ("V = {'a', 'b'}\ndef f(x): return V", "'b'", "'c'"),
    "dict": ("V = {'a': 1}\ndef f(x): return V", "1", "2"),
    "order of a dict": (
        "V = {'a': 1, 'b': 1}\ndef f(x): return list(V)",
        "'a': 1, 'b'",
        "'b': 1, 'a'",
    ),
    "deep in a value": ("V = [{'a': (1, [2])}]\ndef f(x): return V", "[2]", "[3]"),
    "type used": ("def f(x): return isinstance(x, int)", "int", "str"),
    "module used": ("import math, cmath\ndef f(x): return math.sqrt(x)", "math.sqrt", "cmath.sqrt"),
    "named tuple": (
        "T = collections.namedtuple('T', 'a')\nV = T(1)\ndef f(x): return V",
        "T(1)",
        "T(2)",
    ),
    "random generator": ("V = np.random.default_rng(1)\ndef f(x): return V", "1", "2"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_what_a_call_depends_on_is_seen(name: str) -> None:
    """However far it is from the function itself; defined again as it was, nothing has changed."""
    source, old, new = CHANGES[name]
    assert source.count(old) >= 1
    changed = new.join(source.rsplit(old, 1)) if name != "bases" else source.replace(old, new)
    before = fingerprint(cell(source), (1,), {})
    assert fingerprint(cell("\n\n" + source), (1,), {}) == before
    assert fingerprint(cell(changed), (1,), {}) != before


EVERYTHING = "\n".join(
    f"{source.replace('def f(', f'def f{n}(').replace('f = ', f'f{n} = ', 1)}"
    for n, (source, _, _) in enumerate(CHANGES.values())
    if "f." not in source and "@f" not in source
)


def test_it_is_the_same_in_every_kernel() -> None:
    """Whatever the hash seed, the addresses, and the strings that happen to be interned."""
    names = [
        f"f{n}" for n in range(len(CHANGES)) if f"f{n}(" in EVERYTHING or f"f{n} =" in EVERYTHING
    ]
    every = (
        f"{EVERYTHING}\nWORDS = {{'red', 'green', 'blue'}}\n"
        f"PARTS = dict.fromkeys(WORDS, frozenset(WORDS)).keys() | WORDS\n"
        f"def f(x): return [{', '.join(names)}], x in {{'a', 'b', 'c'}}, WORDS, PARTS\n"
    )
    assert len(names) > 30
    assert len({notebook(every, seed=seed) for seed in ("0", "1", "4711")}) == 1


def test_local_modules_count_with_their_source(tmp_path: Path) -> None:
    """And what they import; also inside functions, and where the function itself is theirs."""
    (tmp_path / "deep.py").write_text("RATE = 1\n")
    (tmp_path / "helper.py").write_text("def g():\n    from deep import RATE\n    return RATE\n")
    ways = (
        "import helper\ndef f(x): return helper.g()",
        "def f(x):\n  import helper\n  return helper.g()",
        "from helper import g\ndef f(x): return g()",
        "from helper import g as f",
    )
    before = [notebook(way, tmp_path) for way in ways]
    assert before == [notebook(way, tmp_path, seed="7") for way in ways]
    (tmp_path / "deep.py").write_text("RATE = 2\n")
    assert all(
        a != b for a, b in zip(before, (notebook(way, tmp_path) for way in ways), strict=True)
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        ("a", b"a"),
        ([1], (1,)),
        ([], ()),
        (0.0, -0.0),
        ({1}, frozenset({1})),
        pytest.param(10**5000, 10**5000 + 1, id="long"),
        ([["a"], "b"], [["a", "b"]]),
        ("", None),
    ],
)
def test_values_that_look_alike_differ(one: Any, other: Any) -> None:
    """By type, and by where one ends and the next begins."""
    assert fingerprint(len, (one,), {}) != fingerprint(len, (other,), {})
    assert fingerprint(len, (), {"a": one}) != fingerprint(len, (one,), {})


def test_equal_values_are_equal_however_they_were_made() -> None:
    """Shared or copied, in whatever order a set was filled."""
    shared = ["x"]
    assert fingerprint(len, ([shared, shared],), {}) == fingerprint(len, ([["x"], ["x"]],), {})
    one, other = set(), set()
    for n in range(1000):
        one.add(str(n))
        other.add(str(999 - n))
    assert fingerprint(len, (one,), {}) == fingerprint(len, (other,), {})
    assert fingerprint(len, (), {"a": 1, "b": 2}) == fingerprint(len, (), {"b": 2, "a": 1})
    own: list[Any] = []
    own.append(own)
    assert fingerprint(len, (own,), {}) == fingerprint(len, (own,), {})


def test_frames_count_with_their_content() -> None:
    """Values, index, columns and types."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2], "b": ["x", None]})
    before = fingerprint(len, (frame,), {})
    assert fingerprint(len, (frame.copy(),), {}) == before
    others = [frame.assign(a=[1, 3]), frame.rename(columns={"a": "c"}), frame.set_index("a")]
    others += [frame.astype({"a": "float64"}), frame.fillna("y"), frame[["b", "a"]]]
    assert before not in {fingerprint(len, (other,), {}) for other in others}


PYDANTIC = """
import pydantic
class Size(pydantic.BaseModel):
    width: int = pydantic.Field(1, gt=0)
    @pydantic.field_validator("width")
    @classmethod
    def check(cls, value): return value + 10
class Box(Size):
    size: Size = Size()
    model_config = pydantic.ConfigDict(frozen=True)
BOX = Box()
def f(x): return Box(width=x), BOX
"""


def test_models_of_pydantic_count_with_their_fields_validators_and_settings() -> None:
    """In every kernel alike, although what it makes of them holds addresses."""
    before = notebook(PYDANTIC)
    assert notebook("padding = [object() for _ in range(5000)]\n" + PYDANTIC, seed="7") == before
    changes = [("(1, gt=0)", "(2, gt=0)"), ("gt=0", "gt=-1"), ("value + 10", "value + 11")]
    changes += [("width: int", "width: float"), ("frozen=True", "frozen=False")]
    changes += [("BOX = Box()", "BOX = Box(width=5)")]
    others = [notebook(PYDANTIC.replace(old, new)) for old, new in changes]
    assert len({before, *others}) == len(changes) + 1


class Agreeable:
    """Has every attribute that it is asked for, as mocks have."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args: self

    def __call__(self, x: int) -> int:
        return x + self.value


def test_objects_that_have_every_attribute_are_looked_into() -> None:
    """They are taken for what their type is, not for what they answer to."""
    assert fingerprint(Agreeable(1), (), {}) == fingerprint(Agreeable(1), (), {})
    assert fingerprint(Agreeable(1), (), {}) != fingerprint(Agreeable(2), (), {})


class Holder:
    """Holds something, deep inside."""

    def __init__(self, value: Any) -> None:
        self.inner = [{"key": value}]


@pytest.mark.parametrize("what", [threading.Lock(), (n for n in range(3)), sys.stdout])
def test_what_cannot_be_looked_into_is_refused(what: Any) -> None:
    """By the way to it; never taken for another of its type."""
    with pytest.raises(
        PayloadError, match=r"argument 1\.inner\[0\]\['key'\] is a \w+\.\w+"
    ) as error:
        fingerprint(len, (Holder(what),), {})
    assert "without cache= and name=" in str(error.value)
    scope: dict[str, Any] = {"__name__": "__main__", "thing": what}
    exec("def f(x): return thing", scope)
    with pytest.raises(PayloadError, match="the function global 'thing' is a"):
        fingerprint(scope["f"], (1,), {})


def test_what_is_nested_beyond_reason_is_refused() -> None:
    """With the reason, not with a RecursionError."""
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(PayloadError, match="nested too deeply"):
        fingerprint(len, (deep,), {})

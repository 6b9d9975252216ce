"""Random numbers on workers: a generator that is copied to all of them is named, once."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable, Iterator
from random import random as drawn_by_name
from typing import Any

import numpy
import pytest
from numpy.random import rand as drawn_by_numpy
from support.clients import gate, serving

from redistq import Client
from redistq.functions import function as functions


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving(2) as client:
        yield client


def in_notebook(source: str, **values: Any) -> Any:
    scope: dict[str, Any] = {"__name__": "__main__", "functools": functools, **values}
    exec(source, scope)
    return scope["f"]


class Own(random.Random):
    """A generator of the user's own making."""


MAKERS: dict[str, Callable[[], Any]] = {
    "numpy Generator": lambda: numpy.random.default_rng(1),
    "numpy RandomState": lambda: numpy.random.RandomState(1),
    "random Random": lambda: random.Random(1),
}
WAYS = {
    "'rng'": "def f(x): return rng and x",
    "'shared_rng'": "def f(x, shared_rng=rng): return x",
    "'keyword_rng'": "def f(x, *, keyword_rng=rng): return x",
    "'inner_rng'": (
        "def make(inner_rng):\n  def g(x): return inner_rng and x\n  return g\nf = make(rng)"
    ),
    "'model.rng'": (
        "class M: pass\nmodel = M()\nmodel.rng = rng\ndef f(x): return model.rng and x"
    ),
    r"\"table\['a'\]\"": "table = {'a': rng}\ndef f(x): return table['a'] and x",
    "'deep_rng'": (
        "deep_rng = rng\ndef h(): return deep_rng\ndef g(): return h()\n"
        "def f(x): return [g() for _ in 'a'] and x"
    ),
    "'partial_rng'": ("def g(x, partial_rng): return x\nf = functools.partial(g, partial_rng=rng)"),
    "'wrapped_rng'": (
        "wrapped_rng = rng\ndef d(g):\n  @functools.wraps(g)\n  def w(x): return g(x)\n  return w\n"
        "@d\ndef f(x): return wrapped_rng and x"
    ),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", WAYS)
def test_a_generator_from_outside_is_named_once(
    client: Client, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever way a function reaches it; the mend is named too."""
    f = in_notebook(WAYS[name], rng=MAKERS[kind]())
    monkeypatch.setattr(functions, "_warned", set())  # of the other kinds and ways
    with pytest.warns(UserWarning, match=rf"uses the random generator {name}") as caught:
        future = client.submit(f, 1)
    assert kind.split()[1] in str(caught[0].message)
    assert "Make one in the function, seeded by the item" in str(caught[0].message)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = list(client.map(f, [1, 2]))
    assert (future.result(20), again) == (1, [1, 2])


def test_functions_that_make_their_own_are_not_warned_of(client: Client) -> None:
    """Nor those that are given one, nor those that use the process's own."""

    def seeded(x: int) -> float:
        return float(numpy.random.default_rng([1, x]).random()) + random.Random(x).random()

    def given(rng: Any) -> float:
        return float(rng.random())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(set(client.map(seeded, range(5)))) == 5
        assert len(set(client.map(given, numpy.random.default_rng(1).spawn(5)))) == 5
        client.submit(lambda: random.random()).result(20)


@pytest.mark.parametrize(
    "draw", [drawn_by_name, drawn_by_numpy, random.random, numpy.random.standard_normal]
)
@pytest.mark.parametrize("seeded", [False, True])
def test_the_global_generators_do_not_repeat(
    client: Client, tmp_path: Any, draw: Any, seeded: bool
) -> None:
    """Each process has its own, whatever the kernel did with its, and however it is referred to."""
    if seeded:
        random.seed(1)
        numpy.random.seed(1)
    both, let_go = gate(tmp_path)

    def work(n: int) -> tuple[int, float]:
        import os

        if n < 2:
            both()  # so that each of the two processes has one of these
        return os.getpid(), float(draw())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        futures = [client.submit(work, n) for n in range(20)]
    let_go()
    drawn = [future.result(20) for future in futures]
    assert len({value for _, value in drawn}) == 20

"""Setups: what a client's calls share in a worker process, made once."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from support.clients import serving
from support.workers import until

import redistq
from redistq import Client, ConfigurationError, RedistqError, setup_value
from redistq.functions.setups import Setups


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with one worker process of four threads; its own have started already."""
    with serving(0) as client:
        client.start_workers(1, threads=4)
        assert client.submit(abs, -1).result(30) == 1
        yield client


def loading(path: Path, value: Any = "model") -> Callable[[], Any]:
    """A setup that notes each of its calls in a file."""
    name = str(path)

    def load_model() -> Any:
        with open(name, "a") as file:
            print("loads", file=file)
        return {"value": value}

    return load_model


def calls(path: Path) -> int:
    """How often such a setup was called."""
    return len(path.read_text().splitlines())


def test_a_setup_is_called_once_and_shared_by_all_calls(client: Client, tmp_path: Path) -> None:
    log = tmp_path / "log"
    setup = loading(log)
    bound = client.options(setup=setup)

    def use(n: int) -> tuple[int, int, Any]:
        import os

        import redistq

        return n, os.getpid(), redistq.setup_value()["value"]

    pid = client.submit(os.getpid).result(30)
    assert bound.submit(use, 1).result(30) == (1, pid, "model")
    assert list(bound.map(use, range(20))) == [(n, pid, "model") for n in range(20)]
    assert list(bound.map(use, range(20), chunksize=5)) == [(n, pid, "model") for n in range(20)]
    assert bound.map_batch(use, range(20)).results() == [(n, pid, "model") for n in range(20)]
    assert bound.options(retries=1).submit(use, 2).result(30) == (2, pid, "model")
    assert calls(log) == 1


def test_coroutines_have_it_and_a_setup_may_be_one(client: Client) -> None:
    async def load() -> str:
        return "from a loop"

    async def use() -> Any:
        import redistq

        return redistq.setup_value()

    assert client.options(setup=load).submit(use).result(30) == "from a loop"


def test_an_error_reaches_each_future_and_the_next_call_tries_again(
    client: Client, tmp_path: Path
) -> None:
    log, good = tmp_path / "log", tmp_path / "good"
    names = str(log), str(good)

    def load_model() -> str:
        import os

        with open(names[0], "a") as file:
            print("loads", file=file)
        if not os.path.exists(names[1]):
            raise OSError("there are no weights")
        return "model"

    def use(n: int) -> Any:
        import redistq

        return redistq.setup_value()

    bound = client.options(setup=load_model)
    futures = [bound.submit(use, n) for n in range(3)]
    for future in futures:
        error = future.exception(30)
        assert isinstance(error, OSError)
        assert str(error) == "there are no weights"
        assert any("raised by the setup" in note for note in error.__notes__)
    failed = calls(log)
    assert 1 <= failed <= 3
    good.touch()
    assert bound.submit(use, 4).result(30) == "model"
    assert calls(log) == failed + 1


def test_a_cached_call_is_of_its_setup(client: Client, tmp_path: Path) -> None:
    def use(n: int) -> Any:
        import redistq

        return redistq.setup_value()["value"]

    first = client.options(setup=loading(tmp_path / "a", "a"), cache=60)
    second = client.options(setup=loading(tmp_path / "a", "b"), cache=60)
    assert first.submit(use, 1).result(30) == "a"
    assert second.submit(use, 1).result(30) == "b"
    assert first.submit(use, 1).result(30) == "a"


def test_a_named_batch_that_is_resumed_with_another_setup_runs_anew(
    client: Client, tmp_path: Path
) -> None:
    def use(n: int) -> Any:
        import redistq

        return redistq.setup_value()["value"]

    for value in ("a", "b"):
        bound = client.options(setup=loading(tmp_path / value, value))
        assert bound.map_batch(use, [1, 2], name="of-a-setup").results() == [value, value]
    again = client.options(setup=loading(tmp_path / "b", "b"))
    assert again.map_batch(use, [1, 2], name="of-a-setup").results() == ["b", "b"]
    assert calls(tmp_path / "b") == 1


def test_graphs_flows_and_schedules_have_it_too(client: Client, tmp_path: Path) -> None:
    bound = client.options(setup=loading(tmp_path / "log"))

    def use(*_: Any) -> Any:
        import redistq

        return redistq.setup_value()["value"]

    with bound.graph("graph-of-a-setup") as graph:
        node = graph.submit(use)
    assert node.result(30) == "model"
    assert bound.run(redistq.chain(redistq.sig(use), redistq.sig(use))).result(30) == "model"


def test_without_a_setup_it_is_said(client: Client) -> None:
    with pytest.raises(RedistqError, match=r"no setup was given .*options\(setup=load_model\)"):
        setup_value()

    def use() -> Any:
        import redistq

        return redistq.setup_value()

    with pytest.raises(RedistqError, match="no setup was given"):
        client.submit(use).result(30)


def test_what_is_no_setup_is_refused(client: Client) -> None:
    def yields() -> Iterator[int]:
        yield 1

    with pytest.raises(ConfigurationError, match="without a call"):
        client.options(setup={"a": "model"})  # type: ignore[typeddict-item]
    with pytest.raises(ConfigurationError, match="does not yield"):
        client.options(setup=yields)
    with pytest.raises(ConfigurationError, match="is a task's name"):
        client.options(setup=dict).submit("resize", 1)


# -- what is kept ----------------------------------------------------------------------------------


class Model:
    """Something of which it can be seen whether it is still there."""


def given(setups: Setups, key: str, setup: Callable[[], Any]) -> Any:
    """What a call with that setup is given."""
    setups.give(key, lambda: setup, nullcontext)
    return setup_value()


def test_a_hundred_threads_share_one_call() -> None:
    setups, made, go = Setups(), [], threading.Event()

    def load() -> Model:
        made.append(Model())
        assert go.wait(20)
        return made[0]

    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(given(setups, "a", load))) for _ in range(100)
    ]
    for thread in threads:
        thread.start()
    until(lambda: made, "the setup to be called")
    go.set()
    for thread in threads:
        thread.join(20)
    assert found == [made[0]] * 100
    assert len(made) == 1


def test_an_earlier_version_of_a_setup_is_released_before_the_next_is_made() -> None:
    setups = Setups()
    seen: list[Any] = []

    def version(number: int) -> Callable[[], Any]:
        def load_model() -> Model:
            seen.append([one() is None for one in made])
            model = Model()
            made.append(weakref.ref(model))
            model.itself = model  # type: ignore[attr-defined]  # only the collector finds it
            return model

        load_model.__qualname__ = "load_model"  # as in a notebook's cell
        return load_model

    made: list[Any] = []

    def use(number: int) -> None:
        import contextvars

        contextvars.Context().run(given, setups, str(number), version(number))

    for number in range(3):
        use(number)
    assert seen == [[], [True], [True, True]]


def test_of_several_setups_the_last_few_are_kept() -> None:
    import contextvars

    setups, made = Setups(), []

    def use(number: int) -> None:
        def load() -> int:
            made.append(number)
            return number

        found = contextvars.Context().run(given, setups, str(number), load)
        assert found == number

    for number in (0, 1, 2, 3, 0, 4, 0, 2, 3):  # 4 takes the place of 1
        use(number)
    assert made == [0, 1, 2, 3, 4]
    use(1)
    assert made[-1] == 1

"""What travels to workers and back beside plain data: caches, dispatchers, errors, proxies."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.clients import serving

from redistq import Client
from redistq.errors import TaskFailed
from redistq.functions.pickling import by_value, error_by_value, load


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


# -- functions -------------------------------------------------------------------------------------


def test_cached_functions_travel(client: Client) -> None:
    """A cache around a function, a method, a helper, or a function that calls itself."""

    @functools.lru_cache(maxsize=7, typed=True)
    def table(n: int) -> int:
        return n * 7

    @functools.cache
    def fibonacci(n: int) -> int:
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    class Shop:
        @functools.cache  # noqa: B019 - on a method, as people write it
        def price(self, n: int) -> int:
            return n * 2

    def use(n: int) -> tuple[int, Any]:
        return table(n), table.cache_parameters()

    assert client.submit(table, 2).result(10) == 14
    assert client.submit(use, 2).result(10) == (14, {"maxsize": 7, "typed": True})
    assert client.submit(fibonacci, 30).result(10) == 832040
    assert client.submit(Shop().price, 4).result(10) == 8
    assert client.submit(functools.partial(table, 3)).result(10) == 21


def test_cached_properties_and_methods_by_type_travel(client: Client) -> None:
    """Of a class of the notebook: what is in an object's cache goes with the object."""

    class Model:
        @functools.cached_property
        def weight(self) -> int:
            """How heavy."""
            return 9

        @functools.singledispatchmethod
        def show(self, value: Any) -> str:
            return "any"

        @show.register
        def _(self, value: int) -> str:
            return "int"

    model = Model()
    assert client.submit(lambda: (Model().weight, Model.weight.__doc__)).result(10) == (
        9,
        "How heavy.",
    )
    model.__dict__["weight"] = 4
    assert client.submit(lambda: (model.weight, model.show(1), model.show(""))).result(10) == (
        *(4, "int", "any"),
    )
    assert client.submit(model.show, 1).result(10) == "int"


def test_a_cached_function_of_a_module_travels_by_its_name() -> None:
    """What workers can import is not copied: both sides keep one cache each."""
    import tokenize

    cached = tokenize._compile  # type: ignore[attr-defined]
    assert load(by_value(cached)) is cached


def test_dispatchers_travel(client: Client) -> None:
    """``singledispatch`` functions with implementations for types of any origin, and methods."""

    class Own:
        pass

    @functools.singledispatch
    def show(value: Any) -> str:
        return "any"

    @show.register(int)
    def _(value: int) -> str:
        return "int"

    @show.register(Own)
    def _(value: Own) -> str:
        return "own"

    class Printer:
        @functools.singledispatchmethod
        def show(self, value: Any) -> str:
            return "any"

        @show.register(int)
        def _(self, value: int) -> str:
            return "int"

    show(1)  # fills its cache of types
    for value, text in ((1, "int"), (1.5, "any"), (Own(), "own")):
        assert client.submit(show, value).result(10) == text
    assert client.submit(Printer().show, 1).result(10) == "int"


# -- errors ----------------------------------------------------------------------------------------


class Coded(Exception):
    """Its constructor takes what its text is made of."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class KeywordOnly(Exception):
    def __init__(self, *, where: str, code: int = 0) -> None:
        super().__init__(where)
        self.where, self.code = where, code


class Slotted(ValueError):
    __slots__ = ("code",)

    def __init__(self, code: int, extra: str) -> None:
        super().__init__(extra)
        self.code = code


class OfTheSystem(FileNotFoundError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "no such page", path)
        self.code = 7


class Undecodable(UnicodeDecodeError):
    def __init__(self, code: int) -> None:
        super().__init__("utf-8", b"\xff", 0, 1, "odd")
        self.code = code


class Several(ExceptionGroup[Exception]):
    def __new__(cls, *parts: Exception) -> Several:
        return super().__new__(cls, "several", parts)

    def derive(self, excs: Any) -> Several:
        return Several(*excs)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int
    where: str = "here"


class NoArguments(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


ERRORS: list[Callable[[], BaseException]] = [
    lambda: Coded(5),
    lambda: KeywordOnly(where="x", code=5),
    lambda: Slotted(5, "extra"),
    lambda: OfTheSystem("/x"),
    lambda: Undecodable(5),
    lambda: Several(Coded(5), ValueError("v")),
    lambda: Frozen(code=5),
    lambda: NoArguments(5),
]


@pytest.mark.parametrize("make", ERRORS, ids=lambda make: type(make()).__name__)
def test_errors_with_constructors_of_their_own_keep_their_type(
    client: Client, make: Callable[[], BaseException]
) -> None:
    """An error arrives as it was raised: type, text, args and attributes, whatever made it."""

    def fail() -> None:
        raise make()

    error, wanted = client.submit(fail).exception(10), make()
    assert type(error) is type(wanted)
    assert str(error) == str(wanted)
    for name in ("code", "where", "filename", "errno", "reason"):
        assert getattr(error, name, None) == getattr(wanted, name, None)
    if isinstance(error, Several):
        assert [str(part) for part in error.exceptions] == ["code 5", "v"]
    assert "in fail" in str(error.__cause__)


def test_parts_of_an_error_that_cannot_be_sent_arrive_as_text(client: Client) -> None:
    """A lock among its attributes, or a large body, does not cost an error its type."""

    class Refused(Exception):
        def __init__(self, status: int) -> None:
            super().__init__("refused", threading.Lock())
            self.status, self.connection, self.body = status, threading.Lock(), "x" * 200_000

    def fail() -> None:
        raise Refused(403)

    def fail_in_a_group() -> None:
        raise ExceptionGroup("group", [Refused(403), ValueError("v")])

    error: Any = client.submit(fail).exception(10)
    assert (type(error).__name__, error.status) == ("Refused", 403)
    assert "lock" in error.args[1]
    assert "lock" in error.connection
    assert len(error.body) == 300
    group: Any = client.submit(fail_in_a_group).exception(10)
    assert [type(part).__name__ for part in group.exceptions] == ["Refused", "ValueError"]


def test_errors_that_cannot_travel_are_told_in_words(client: Client) -> None:
    """An error whose class, or whose own way of pickling, cannot be sent is a TaskFailed."""

    class Stubborn(Exception):
        def __reduce__(self) -> Any:
            raise SystemExit("not me")

    def fail() -> None:
        raise Stubborn("its text")

    error = client.submit(fail).exception(10)
    assert isinstance(error, TaskFailed)
    assert (error.type.rpartition(".")[2], error.message) == ("Stubborn", "its text")


def test_an_error_is_as_small_as_it_is_asked_to_be() -> None:
    """Many large parts are text each, so that the report of a failure stays short."""
    error = Coded(5)
    error.__dict__.update({f"part{n}": "x" * 10_000 for n in range(50)})
    whole = error_by_value(error, 64 * 1024)
    assert len(whole) < 64 * 1024
    assert load(whole).code == 5


# -- managers --------------------------------------------------------------------------------------


def test_proxies_of_a_manager_travel_both_ways(client: Client) -> None:
    """A Manager's dict and list, given to a worker, are the caller's own, and so when they come
    back."""

    def work(shared: Any, found: Any) -> Any:
        shared["worker"] = 1
        found.append(len(shared))
        return shared

    with multiprocessing.get_context("spawn").Manager() as manager:
        shared, found = manager.dict({"caller": 0}), manager.list()
        back = client.submit(work, shared, found).result(10)
        assert dict(shared) == {"caller": 0, "worker": 1} == dict(back)
        assert list(found) == [2]

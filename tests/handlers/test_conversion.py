"""Arguments and results of any kind of data: written as JSON, and made again on the other side."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import numpy as np
import pydantic
import pytest
import redis

from redistq import (
    ArgumentError,
    PayloadError,
    Registry,
    ResultError,
    TaskFailed,
    TaskProducer,
    TaskWorker,
)

registry = Registry()
task = registry.task


@dataclasses.dataclass
class Order:
    number: int
    when: dt.datetime
    file: Path | None = None


class Customer(pydantic.BaseModel):
    name: str
    born: dt.date


class Point(msgspec.Struct):
    x: float
    y: float = 0


class Pair(NamedTuple):
    left: int
    right: dt.date


class Row(TypedDict):
    id: uuid.UUID


class Colour(enum.Enum):
    RED = "red"


class Own:
    """A class of one's own, which nothing knows how to write."""


WHEN = dt.datetime(2026, 3, 1, 12, 30, tzinfo=dt.UTC)
ID = uuid.UUID(int=5)
SAMPLES: list[tuple[Any, Any]] = [
    (Order, Order(1, WHEN, Path("a/b"))),
    (Customer, Customer(name="Ann", born=WHEN.date())),
    (Point, Point(1.5)),
    (Pair, Pair(1, WHEN.date())),
    (Row, {"id": ID}),
    (Colour, Colour.RED),
    (dt.datetime, WHEN),
    (dt.date, WHEN.date()),
    (dt.timedelta, dt.timedelta(hours=2, microseconds=3)),
    (uuid.UUID, ID),
    (Decimal, Decimal("1.10")),
    (bytes, b"\x00\xff"),
    (Path, Path("/tmp/x")),
    (set[int], {1, 2}),
    (tuple[int, str], (1, "a")),
    (dict[uuid.UUID, Order], {ID: Order(2, WHEN)}),
    (list[Order], [Order(1, WHEN), Order(2, WHEN)]),
    (Sequence[dt.date], [WHEN.date()]),
    (Path | None, None),
    (Order | Customer, Customer(name="Bo", born=WHEN.date())),
    (Path | int, 3),
    (int | Path, Path("x")),
    (list[Path | int], [Path("x"), 3]),
    (Customer | None, None),
    (Annotated[Order, "as it was paid"], Order(3, WHEN)),
    (Literal["a", "b"], "b"),
    (np.int64, np.int64(3)),
    (np.float32, np.float32(1.5)),
    (float, np.float64(2.5)),
    (int, 10**30),
    (float, 1),
    (Any, {"a": [1, None, True]}),
]


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    with TaskProducer(url=url) as producer, producer.active():
        yield producer


def test_every_kind_of_data_goes_there_and_back(url: str, producer: TaskProducer) -> None:
    """What the handler is given and what the caller gets equal what was given, of the same type."""
    registry = Registry()
    calls = []
    for number, (annotation, value) in enumerate(SAMPLES):
        name = f"sample-{number}"
        given: list[Any] = []

        def run(value: Any, given: list[Any] = given) -> Any:
            given.append(value)
            return value

        def call(value: Any, other: int = 0, run: Any = run) -> Any:
            return run(value)

        call.__annotations__ = {"value": annotation, "return": annotation}
        # What is closed over is no argument of the task.
        call.__defaults__ = (0, run)
        calls.append((registry.task(name=name, retries=0)(call), value, given))
    with TaskWorker(url=url, task_handlers=registry):
        for function, value, given in calls:
            result = function.delay(value).result(10)
            for found in (*given, result):
                assert found == value
                assert type(found) is type(value) or isinstance(value, int | float)


@task(retries=0)
def charge(order: Order, customer: Customer | None = None) -> Customer | None:
    assert isinstance(order, Order)
    return customer


@task(retries=0)
def single(order: Order) -> str:
    """One payload, which is annotated as data."""
    return f"{type(order).__name__} {order.number}"


@task(retries=0)
def plain(payload: dict[str, Any]) -> Any:
    return payload


@task(retries=0)
def strict(a: int, *rest: float, path: Path | None = None, **more: dt.date) -> str:
    return repr((a, rest, path, more))


@task(retries=0)
def implicit(a: int, b: str = None) -> Any:  # type: ignore[assignment] # noqa: RUF013
    return [a, b]


@task(retries=0)
def no_data(frame: Own, items: Iterator[int], b: "Unknown" = 1) -> Any:  # type: ignore[name-defined] # noqa: F821, UP037
    return [frame, items, b]


@task(retries=0)
def wrong_result(a: int, b: int) -> Order:
    return {"number": "x"}  # type: ignore[return-value]


@task(retries=0)
def own_result(a: int, b: int) -> set[int]:
    return {Own()}  # type: ignore[arg-type]


@task
def dates(first: dt.date, days: int) -> Iterator[dt.date]:
    for day in range(days):
        yield first + dt.timedelta(days=day)


def test_what_is_wrong_is_named_at_the_call(producer: TaskProducer, db: redis.Redis) -> None:
    """The argument, where in it, what was expected, and what to do; nothing is stored."""
    for call, words in (
        (
            lambda: strict.delay("x"),
            "argument a of task 'strict' is not what it is annotated as: "
            "Expected `int`, got `str`; pass that, or annotate it",
        ),
        (lambda: strict.delay(1, 2, "x"), "argument rest of task"),
        (lambda: strict.delay(1, path=3), "argument path of task .*Expected `Path"),
        (lambda: strict.delay(1, more="today"), "argument more of task .*Invalid RFC3339"),
        (lambda: charge.delay({"number": 1}), "argument order of task .*missing.*`when`"),
        (lambda: charge.delay({"number": "1", "when": WHEN}), r"- at `order\.number`"),
        (lambda: charge.delay(Order(1, WHEN), {"name": "Ann"}), "customer .*(?s:.)*born"),
        (lambda: single.delay({"number": 1}), "argument order of task 'single'"),
    ):
        with pytest.raises(ArgumentError, match=words):
            call()
    assert not db.exists("tasks")


def test_what_cannot_be_written_is_named_with_its_path(
    producer: TaskProducer, db: redis.Redis
) -> None:
    """Wherever in the arguments it is."""
    for call, words in (
        (
            lambda: no_data.delay(Own(), []),
            r"argument frame of task 'no_data' is a .*\.?Own, which "
            "cannot be written as JSON; pass plain values",
        ),
        (lambda: no_data.delay({"a": [1, Own()]}, []), r"argument frame\['a'\]\[1\] of task"),
        (lambda: no_data.delay(np.zeros(3), []), r"argument frame of task .*numpy\.ndarray"),
        (lambda: plain.delay({1, Own()}), r"argument payload\[\d\] of task 'plain'"),
        (lambda: no_data.delay(1, [], b=Order(Own(), WHEN)), r"argument b\.number of task"),
    ):
        with pytest.raises(ArgumentError, match=words):
            call()
    assert isinstance(ArgumentError(""), TypeError)
    with pytest.raises(PayloadError):
        producer.add_task("plain", {"when": WHEN})
    assert not db.exists("tasks")


def test_what_other_programs_send_is_converted_or_fails_for_good(
    url: str, producer: TaskProducer
) -> None:
    """As the annotations say; and what says nothing of data is passed over."""
    with TaskWorker(url=url, task_handlers=registry):

        def result(name: str, *args: Any, **kwargs: Any) -> Any:
            task_id = producer.add_task(name, {"args": args, "kwargs": kwargs})
            return producer.get_result(task_id, 10)

        assert "1.0" in result("strict", 1, 1, path="a", x="2026-01-01")
        assert result("charge", {"number": 1, "when": "2026-01-01T00:00:00"}) is None
        assert (
            producer.get_result(
                producer.add_task("single", {"number": 4, "when": "2026-01-01T00:00:00Z"}), 10
            )
            == "Order 4"
        )
        assert single.delay(Order(5, WHEN)).result(10) == "Order 5"
        assert implicit.delay(1, None).result(10) == [1, None]
        assert no_data.delay({"any": 1}, [1], b="x").result(10) == [{"any": 1}, [1], "x"]
        assert plain.delay(WHEN).result(10) == "2026-03-01T12:30:00Z"
        for name, args, words in (
            ("strict", ["1"], "ArgumentError: argument a of task 'strict'"),
            ("charge", [{"number": 1}], "missing required field `when`"),
        ):
            with pytest.raises(TaskFailed, match=words):
                result(name, *args)
        with pytest.raises(TaskFailed, match="order"):
            producer.get_result(producer.add_task("single", {"number": 1}), 10)


def test_results_and_items_are_typed(url: str, producer: TaskProducer) -> None:
    """As the function's return annotation says; one that is not that is an error that says so."""
    with TaskWorker(url=url, task_handlers=registry):
        ann = Customer(name="Ann", born=WHEN.date())
        assert charge.delay(Order(1, WHEN), ann).result(10) == ann
        days = dates.delay(WHEN.date(), 2)
        assert list(days.stream(timeout=10)) == [dt.date(2026, 3, 1), dt.date(2026, 3, 2)]
        assert list(producer.stream(days.id, timeout=10)) == ["2026-03-01", "2026-03-02"]
        wrong = wrong_result.delay(1, 2)
        with pytest.raises(ResultError, match="result of task 'wrong_result' is not what"):
            wrong.result(10)
        assert producer.get_result(wrong.id, 10) == {"number": "x"}
        with pytest.raises(TaskFailed, match="ResultError: the handler returned set"):
            own_result.delay(1, 2).result(10)


def test_plain_calls_load_nothing_more() -> None:
    """msgspec is for those who use its types: neither importing nor plain tasks load it."""
    code = (
        "import sys, redistq.worker, redistq.producer\n"
        "from redistq import Registry\n"
        "from redistq.worker.compose import composed\n"
        "from redistq.handlers.registry import OfFunction\n"
        "registry = Registry()\n"
        "@registry.task\n"
        "def add(a: int, b: float = 1.0, *, name: str = 'x', more=None) -> dict[str, int]: ...\n"
        "call, _ = composed(registry['add'])\n"
        "call({'args': [1, 2], 'kwargs': {'name': 'y'}})\n"
        "OfFunction.of(add, add.__redistq_handler__.shape.payload((1, 2), {}), {})\n"
        "print([m for m in ('msgspec', 'pydantic', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_arguments_are_json_that_other_languages_read(
    producer: TaskProducer, db: redis.Redis
) -> None:
    """Times as RFC 3339, bytes as base64, models and dataclasses as objects."""
    charge.delay(Order(1, WHEN, Path("a")), customer=Customer(name="Ann", born=WHEN.date()))
    ((_, fields),) = db.xrange("tasks")
    assert json.loads(fields["payload"]) == {
        "args": [{"number": 1, "when": "2026-03-01T12:30:00Z", "file": "a"}],
        "kwargs": {"customer": {"name": "Ann", "born": "2026-03-01"}},
    }


@task(batch=10, within=0.05, retries=0)
def charge_many(orders: list[Order]) -> list[Order]:
    assert all(isinstance(order, Order) for order in orders)
    return [dataclasses.replace(order, number=-order.number) for order in orders]


def test_payloads_of_a_batch_handler_are_converted_one_by_one(
    url: str, producer: TaskProducer
) -> None:
    """One that does not fit fails alone; results are typed as one of the list."""
    with pytest.raises(ArgumentError, match="argument orders of task 'charge_many'"):
        charge_many.delay({"number": "x"})  # type: ignore[arg-type]
    wrong = producer.add_task("charge_many", {"number": "x"})
    handles = charge_many.map([Order(number, WHEN) for number in (1, 2, 3)])
    with TaskWorker(url=url, task_handlers=registry):
        assert [handle.result(10) for handle in handles] == [
            Order(-number, WHEN) for number in (1, 2, 3)
        ]
        with pytest.raises(TaskFailed, match="ArgumentError: argument orders of task"):
            producer.get_result(wrong, 10)


def test_a_class_that_was_converted_is_pickled_as_before() -> None:
    """What a conversion leaves on a class, and what @task puts on a function, neither goes to
    workers of a client nor makes the function another one."""
    code = (
        "import pickle, cloudpickle\n"
        "from dataclasses import dataclass\n"
        "from redistq import Registry, TaskProducer\n"
        "from redistq.functions.fingerprint import fingerprint\n"
        "from redistq.functions.pickling import by_value\n"
        "from redistq.handlers.conversion import types_of\n"
        "registry = Registry()\n"
        "@dataclass\n"
        "class Order:\n"
        "    number: int\n"
        "def plain(order: Order, more: int) -> Order: return order\n"
        "name = plain.__name__\n"
        "before = fingerprint(plain, (), {})\n"
        "charge = registry.task(plain)\n"
        "types_of(registry[name]).check((Order(1), 2), {})\n"
        "assert '__msgspec_cache__' in vars(Order)\n"
        "assert fingerprint(charge, (), {}) == before\n"
        "loaded = pickle.loads(by_value(charge))\n"
        "assert loaded.task_name == name\n"
        "types_of(registry[name]).check((Order(1), 2), {})\n"
        "print(loaded.options(delay=1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "<tasks plain>", done.stderr

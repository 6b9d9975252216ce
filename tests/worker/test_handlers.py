"""Handlers: the decorator, registries, what signatures are allowed, and when to try again."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest

from redistq import ConfigurationError, Registry, TaskContext
from redistq.handlers import Handler, RetryPolicy, default_registry, task


def plain(payload: Any) -> Any:
    return payload


def test_the_decorator_registers_and_leaves_the_function_as_it_was() -> None:
    """@task with and without options registers under a name; calling the function is unchanged."""
    registry = Registry()

    @registry.task
    def one(payload: int) -> int:
        return payload + 1

    @registry.task(name="other.name", retries=7, timeout=2.5, result_ttl=0, retry_on=OSError)
    async def two(payload: int) -> int:
        return payload + 2

    assert sorted(registry) == ["one", "other.name"]
    assert one(1) == 2
    handler = registry["other.name"]
    assert handler.is_async
    assert not registry["one"].is_async
    assert (handler.policy.retries, handler.timeout, handler.result_ttl) == (7, 2.5, 0)
    assert handler.policy.retry_on == (OSError,)
    assert "one, other.name" in repr(registry)
    assert len(registry) == 2


def test_task_fills_the_default_registry() -> None:
    """The module's own @task registers where a worker looks when it is given nothing else."""
    try:
        task(name="only-in-this-test")(plain)
        assert default_registry["only-in-this-test"].function is plain
    finally:
        default_registry._handlers.pop("only-in-this-test", None)


def test_a_marked_function_keeps_its_options_in_another_registry() -> None:
    """A function decorated with @task brings its retries and limits along under any name."""
    first, second = Registry(), Registry()

    @first.task(retries=9, timeout=1.5, backoff=0.5)
    def job(payload: Any) -> None: ...

    second.add("alias", job)
    assert second["alias"].policy.retries == 9
    assert second["alias"].timeout == 1.5
    assert Registry({"x": job})["x"].policy.backoff == 0.5


def test_two_functions_cannot_share_a_name_but_a_new_edition_replaces_the_old() -> None:
    """A second function for a name is refused; a cell that is run again is not."""
    registry = Registry()
    registry.add("a", plain)
    with pytest.raises(ConfigurationError, match="two handlers want the task name 'a'"):
        registry.add("a", lambda payload: payload)

    def define(n: int) -> Any:
        @registry.task(name="cell")
        def cell(payload: Any) -> int:
            return n

        return cell

    define(1)
    again = define(2)
    assert registry["cell"].function is again


class Callable_:
    def __call__(self, payload: Any, context: TaskContext) -> None: ...


class AsyncCallable:
    async def __call__(self, payload: Any) -> None: ...


class Methods:
    def method(self, payload: Any) -> None: ...

    @classmethod
    def of_class(cls, payload: Any, context: Any) -> None: ...

    @staticmethod
    async def static(payload: Any, *, note: str = "") -> None: ...


def takes_two(payload: Any, anything: Any) -> None: ...
def takes_context(payload: Any, context: Any = None) -> None: ...
def annotated(payload: Any, c: TaskContext | None = None) -> None: ...
def annotated_plainly(payload: Any, c: TaskContext = ...) -> None: ...  # type: ignore[assignment]
def has_default(payload: Any, limit: int = 3) -> None: ...
def variable(*args: Any, **more: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "is_async", "wants_context"),
    [
        (plain, False, False),
        (takes_two, False, False),
        (takes_context, False, True),
        (annotated_plainly, False, True),
        (has_default, False, False),
        (variable, False, False),
        (lambda payload: None, False, False),
        (Callable_(), False, True),
        (AsyncCallable(), True, False),
        (Methods().method, False, False),
        (Methods.of_class, False, True),
        (Methods.static, True, False),
        (functools.partial(takes_two, anything=1), False, False),
        (functools.partial(Methods.static, note="x"), True, False),
        (str, False, False),
        (len, False, False),
        (print, False, False),
    ],
    ids=lambda value: (
        getattr(value, "__name__", type(value).__name__) if not isinstance(value, bool) else ""
    ),
)
def test_what_can_be_a_handler(function: Any, is_async: bool, wants_context: bool) -> None:
    """Functions, methods, partials, callables and built-ins; a parameter that is named context, or
    annotated so, is given it."""
    handler = Handler.of("name", function)
    assert (handler.is_async, handler.wants_context) == (is_async, wants_context)


@pytest.mark.parametrize("function", [3, None])
def test_what_cannot_be_a_handler_is_refused_when_it_is_registered(function: Any) -> None:
    """What is no function is named at once."""
    with pytest.raises(ConfigurationError, match="the handler of task 'bad' is"):
        Registry().add("bad", function)


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201])
def test_names_are_one_short_line(name: str) -> None:
    """A name that would not fit into logs and records is refused."""
    with pytest.raises(ConfigurationError, match="one line of 1 to 200 characters"):
        Registry().add(name, plain)


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": -1}, {"timeout": "1"}, {"result_ttl": -1}, {"result_ttl": "1"}],
    ids=str,
)
def test_limits_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    """A timeout is above 0 and a result_ttl at least 0, in seconds; None means no limit."""
    with pytest.raises(ConfigurationError, match="of task 'plain'"):
        Registry().task(**options)(plain)


# -- the retry policy ------------------------------------------------------------------------------


def test_waits_grow_up_to_a_cap() -> None:
    """Without jitter the wait doubles from backoff to backoff_cap, however many attempts."""
    policy = RetryPolicy(backoff=1, backoff_cap=10, jitter=0)
    assert [policy.delay(n) for n in (1, 2, 3, 4, 5, 6)] == [1, 2, 4, 8, 10, 10]
    assert policy.delay(10_000) == 10
    assert RetryPolicy(backoff=2, factor=3, jitter=0).delay(3) == 18
    assert RetryPolicy(backoff=0).delay(5) == 0


def test_jitter_only_shortens_and_spreads() -> None:
    """Waits lie between (1 - jitter) of the full wait and all of it, and differ."""
    policy, state = RetryPolicy(backoff=8, jitter=0.5), random.getstate()
    random.seed(1)
    try:
        waits = [policy.delay(1) for _ in range(1000)]
    finally:
        random.setstate(state)
    assert 4 <= min(waits) < 4.2
    assert 7.8 < max(waits) <= 8


def test_which_errors_are_worth_another_try() -> None:
    """retry_on names what is, subclasses included; never_retry wins over it."""
    policy = RetryPolicy(retry_on=(OSError, ValueError), never_retry=(FileNotFoundError,))
    assert policy.wants(PermissionError())
    assert policy.wants(UnicodeError())
    assert not policy.wants(FileNotFoundError())
    assert not policy.wants(KeyError())
    assert not RetryPolicy().wants(SystemExit())
    assert RetryPolicy(retry_on=(BaseException,)).wants(SystemExit())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"retries": -1}, "retries is a whole number, 0 or more"),
        ({"retries": 10**400}, "at most 1,000,000"),
        ({"backoff": float("inf")}, "backoff"),
        ({"factor": float("nan")}, "factor"),
        ({"backoff": -1}, "backoff"),
        ({"backoff_cap": -1}, "backoff"),
        ({"factor": 0.5}, "factor"),
        ({"jitter": 1.5}, "jitter is between 0 and 1"),
        ({"jitter": -0.1}, "jitter is between 0 and 1"),
    ],
    ids=lambda value: str(value),
)
def test_policies_that_cannot_work_are_refused(options: dict[str, Any], words: str) -> None:
    """Each impossible value is named when the policy is made."""
    with pytest.raises(ConfigurationError, match=words):
        RetryPolicy(**options)


@pytest.mark.parametrize(
    ("given", "advice"), [("resize", r"@task\(name='resize'\)"), (3, r"@task\(name=\.\.\.")]
)
def test_options_without_a_name_are_refused_with_what_to_write(given: Any, advice: str) -> None:
    """@task("resize") is a name given as if it were the function: the error says how to name it."""
    with pytest.raises(ConfigurationError, match=advice):
        Registry().task(given)

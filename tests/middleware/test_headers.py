"""Headers and travelling context variables: what stays with a task, from its adding to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest
import redis
from support.workers import until

from redistq import (
    AsyncTaskProducer,
    Client,
    ConfigurationError,
    Fail,
    Registry,
    Retry,
    TaskContext,
    TaskMonitor,
    TaskProducer,
    TaskWorker,
    current_task,
    limit,
    travels,
)
from redistq.middleware import ambient
from redistq.middleware.travel import _travelling
from redistq.protocol.headers import MAX_HEADERS_BYTES

tenant: ContextVar[Any] = ContextVar("tenant")
user: ContextVar[Any] = ContextVar("user", default="nobody")


@pytest.fixture
def travelling() -> Iterator[None]:
    """Both variables travel."""
    travels(tenant, user)
    yield
    _travelling.variables.clear()
    ambient.leave(_travelling)


def read_headers(payload: Any, context: TaskContext) -> dict[str, str]:
    return context.headers


async def read_async(payload: Any, context: TaskContext) -> dict[str, str]:
    return context.headers


HANDLERS = {"read": read_headers, "read_async": read_async}
GIVEN = {"tenant": "a", "länge": '"gate":"k1 x"', "gate": "k1 y"}


def test_headers_come_with_the_context(url: str) -> None:
    """By every way in, and for none it is an empty dict."""
    with TaskProducer(url=url) as door, TaskWorker(url=url, task_handlers=HANDLERS):
        for name in HANDLERS:
            assert door.get_result(door.add_task(name, headers=GIVEN), 10) == GIVEN
            assert door.get_result(door.add_task(name), 10) == {}
            ids = door.add_tasks([{"type": name, "headers": GIVEN}, (name, 1)])
            assert [door.get_result(task_id, 10) for task_id in ids] == [GIVEN, {}]
            task_id = door.schedule_task(name, None, 0, headers=GIVEN)
            assert door.get_result(task_id, 10) == GIVEN
            gated = door.add_task(name, headers=GIVEN, limits="key", expires=60)
            assert door.get_result(gated, 10) == GIVEN
        with door.graph("g") as graph:
            first = graph.add("read", headers=GIVEN)
            second = graph.add("read", after=first, headers={"b": "2"})
        assert [door.get_result(task_id, 10) for task_id in (first, second)] == [GIVEN, {"b": "2"}]


def test_the_awaited_producer_takes_headers_too(url: str) -> None:
    """AsyncTaskProducer.add_task."""
    import asyncio

    async def add() -> Any:
        door = AsyncTaskProducer(url=url)
        found = await door.get_result(await door.add_task("read", headers=GIVEN), 10)
        await door.close()
        return found

    with TaskWorker(url=url, task_handlers=HANDLERS):
        assert asyncio.run(add()) == GIVEN


def test_headers_stay_over_retries_delays_dead_letters_and_replays(url: str) -> None:
    """Each attempt has them, and the record of a task that waits or failed shows them."""
    seen: list[dict[str, str]] = []
    registry = Registry()

    @registry.task(retries=1, backoff=0.01)
    def fails(payload: Any, context: TaskContext) -> str:
        seen.append(context.headers)
        if len(seen) == 1:
            raise Retry(delay=0.02)
        if len(seen) == 2:
            raise Fail("dead")
        return "alive"

    with TaskProducer(url=url) as door:
        task_id = door.add_task("fails", headers=GIVEN, delay=0.1)
        assert door.get_task(task_id).headers == GIVEN
        with TaskWorker(url=url, task_handlers=registry):
            until(lambda: door.get_task(task_id).state == "failed", "it is dead")
            assert door.get_task(task_id).headers == GIVEN
            assert door.replay(task_id) == 1
            assert door.get_result(task_id, 10) == "alive"
    assert seen == [GIVEN] * 3


def test_headers_stay_where_a_rule_takes_the_task_back(url: str) -> None:
    """A name that is limited later: the key is written into the options, not into a header."""
    began = []
    registry = Registry()

    @registry.task
    def one(payload: Any, context: TaskContext) -> dict[str, str]:
        began.append(payload)
        return context.headers

    headers = {"gate": "z", "x": '{"gate":"'}
    with TaskProducer(url=url) as door:
        ids = [door.add_task("one", n, headers=headers) for n in range(5)]
        door.limits.set("name:one", at_most=1)
        with TaskWorker(url=url, task_handlers=registry):
            assert [door.get_result(task_id, 10) for task_id in ids] == [headers] * 5
            until(lambda: door.limits.get("name:one").in_use == 0, "all slots are given back")


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"a": 1}, "is text, not 1"),
        ({"a\nb": "c"}, "one line"),
        ({"": "c"}, "one line"),
        ({1: "c"}, "one line"),
        ("a=b", "text by name"),
        ({"a": "x" * MAX_HEADERS_BYTES}, "8,192 are allowed"),
    ],
)
def test_headers_that_are_none_are_refused_before_anything_is_sent(
    url: str, db: redis.Redis, headers: Any, words: str
) -> None:
    """With a clear error, by producers and clients."""
    with TaskProducer(url=url) as door, Client(url) as client:
        with pytest.raises(ConfigurationError, match=words):
            door.add_task("read", headers=headers)
        with pytest.raises(ConfigurationError, match=words):
            client.options(headers=headers)
    assert not db.exists("tasks")


def test_a_task_without_headers_carries_none(url: str, db: redis.Redis) -> None:
    """Not a byte."""
    with TaskProducer(url=url) as door:
        door.add_task("read", 1)
        door.add_task("read", 1, headers={})
        door.add_task("read", 1, headers=None)
    assert [entry["opts"] for _, entry in db.xrange("tasks")] == ["", "", ""]


def test_headers_written_by_hand_are_read_as_far_as_they_are_text(url: str) -> None:
    """Anyone may write an entry: what is no text is passed over."""
    with TaskProducer(url=url) as door, TaskWorker(url=url, task_handlers=HANDLERS):
        for number, opts in enumerate(('{"headers":{"a":"b","c":1}}', '{"headers":[1]}')):
            fields = (f"id{number}", "read", b"1", opts, "")
            door.broker.call(door.commands.enqueue_one(*fields))
        assert door.get_result("id0", 10) == {"a": "b"}
        assert door.get_result("id1", 10) == {}


def test_the_monitor_shows_headers(url: str, tmp_path: Any) -> None:
    """While a task is queued, and on the command line."""
    with TaskProducer(url=url) as door:
        task_id = door.add_task("read", 1, headers=GIVEN)
    with TaskMonitor(url=url) as monitor:
        assert monitor.records.task(task_id).headers == GIVEN
    words = ("-m", "redistq", "monitor", "--url", url, "task", task_id)
    for more in ((), ("--json",)):
        done = subprocess.run([sys.executable, *words, *more], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if more:
            assert json.loads(done.stdout)["headers"] == GIVEN
        else:
            assert "header tenant: a" in done.stdout


# -- context variables -----------------------------------------------------------------------------


@pytest.mark.usefixtures("travelling")
def test_what_is_set_where_a_task_is_added_is_set_in_its_handler(url: str) -> None:
    """Plain and async; a default does not travel, nor does what is not set; the next task of the
    same thread has nothing of the one before."""
    registry = Registry()

    @registry.task
    def tell(payload: Any, context: TaskContext) -> list[Any]:
        return [tenant.get(None), user.get(), sorted(context.headers)]

    @registry.task
    async def tell_async(payload: Any, context: TaskContext) -> list[Any]:
        return [tenant.get(None), user.get(), sorted(context.headers)]

    with (
        TaskProducer(url=url) as door,
        TaskWorker(url=url, task_handlers=registry, thread_count=1),
    ):
        for name in ("tell", "tell_async"):
            token = tenant.set({"id": 7})
            assert door.get_result(door.add_task(name), 10) == [{"id": 7}, "nobody", ["var:tenant"]]
            given = door.add_task(name, headers={"var:tenant": "8", "a": "b"})
            assert door.get_result(given, 10) == [8, "nobody", ["a", "var:tenant"]]
            tenant.reset(token)
            assert door.get_result(door.add_task(name), 10) == [None, "nobody", []]


@pytest.mark.usefixtures("travelling")
def test_variables_go_on_into_what_a_handler_adds(url: str) -> None:
    """Spawned and added tasks have them, and no header that was only for the first."""
    registry = Registry()
    children: list[str] = []

    @registry.task
    def tell(payload: Any, context: TaskContext) -> list[Any]:
        return [tenant.get(None), context.headers.get("only")]

    @registry.task
    def first(payload: Any, context: TaskContext) -> None:
        children.append(context.spawn("tell"))
        children.append(context.spawn("tell", headers={"only": "mine"}))
        with TaskProducer(url=url) as door:
            children.append(door.add_task("tell"))

    token = tenant.set("a")
    try:
        with TaskProducer(url=url) as door, TaskWorker(url=url, task_handlers=registry):
            door.get_result(door.add_task("first", headers={"only": "first"}), 10)
            found = [door.get_result(task_id, 10) for task_id in children]
        assert found == [["a", None], ["a", "mine"], ["a", None]]
    finally:
        tenant.reset(token)


@pytest.mark.usefixtures("travelling")
def test_a_value_that_is_no_json_is_refused_and_a_header_that_is_none_passed_over(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller hears which variable it is; the worker says it once and runs the task."""
    token = tenant.set(object())
    with TaskProducer(url=url) as door, TaskWorker(url=url, task_handlers=HANDLERS):
        with pytest.raises(ConfigurationError, match="'tenant' cannot travel"):
            door.add_task("read")
        tenant.reset(token)
        for _ in range(2):
            task_id = door.add_task("read", headers={"var:tenant": "{"})
            assert door.get_result(task_id, 10) == {"var:tenant": "{"}
    said = [r for r in caplog.records if "is no JSON" in r.getMessage()]
    assert len(said) == 1


@pytest.mark.usefixtures("travelling")
def test_calls_of_a_client_have_headers_and_variables(url: str) -> None:
    """A function sees both, in a batch too."""

    def told(n: int = 0) -> Any:
        return current_task().headers

    with Client(url, signing_key="k" * 32) as client:
        worker = TaskWorker(url=url, task_handlers={}, signing_key=(b"k" * 32).hex())
        token = tenant.set("a")
        with worker:
            calls = client.options(headers={"a": "b"})
            wanted = {"a": "b", "var:tenant": '"a"'}
            assert calls.submit(told).result(20) == wanted
            assert calls.map_batch(told, [1, 2]).results() == [wanted, wanted]
        tenant.reset(token)


def test_only_context_variables_travel() -> None:
    """Anything else is refused."""
    with pytest.raises(ConfigurationError, match="context variables"):
        travels("tenant")  # type: ignore[arg-type]


def test_keys_are_made_of_what_middleware_leaves(url: str) -> None:
    """A limit's key is looked up in the payload as it is sent."""
    from redistq import Middleware

    class Adds(Middleware):
        def enqueue(self, task: Any, next: Any) -> str:
            task.payload["tenant"] = "b"
            return str(next(task))

    with TaskProducer(url=url, middleware=[Adds()]) as door:
        door.add_task("read", {"tenant": "a"}, limits=limit("tenant:{tenant}"))
        assert list(door.limits.all()) == ["tenant:b"]


def test_tasks_of_a_schedule_have_headers(url: str) -> None:
    """Those that it was set with."""
    with TaskProducer(url=url) as door, TaskWorker(url=url, task_handlers=HANDLERS):
        door.schedules.set("often", task="read", every="1h", headers=GIVEN)
        task_id = door.schedules.run_now("often")
        assert door.get_result(task_id, 10) == GIVEN

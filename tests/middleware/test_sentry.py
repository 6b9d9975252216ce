"""The Sentry example against the real SDK, with a transport that keeps what would be sent."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.workers import until

from redistq import (
    BatchErrors,
    Client,
    Fail,
    Registry,
    TaskContext,
    TaskFailed,
    TaskProducer,
    TaskWorker,
)

sentry_sdk = pytest.importorskip("sentry_sdk")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sentry.py"


def _example() -> Any:
    spec = importlib.util.spec_from_file_location("sentry_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sentry_example"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sent() -> Iterator[dict[str, list[Any]]]:
    """What was sent, by kind: events and transactions."""
    kept: dict[str, list[Any]] = {"event": [], "transaction": []}

    class Keeps(sentry_sdk.transport.Transport):  # type: ignore[name-defined,misc]
        def capture_envelope(self, envelope: Any) -> None:
            for item in envelope.items:
                kept.setdefault(item.type, []).append(item.payload.json)

    sentry_sdk.init(
        "https://nobody@localhost/1",
        transport=Keeps,
        traces_sample_rate=1.0,
        default_integrations=False,
    )
    yield kept
    sentry_sdk.init()


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
def test_each_task_that_fails_for_good_is_reported_once(
    url: str, sent: dict[str, list[Any]], is_async: bool
) -> None:
    """With its own breadcrumbs and tags, of its last attempt, in the trace of who added it."""
    registry = Registry()
    registry.middleware(_example().SentryMiddleware())

    def work(payload: int, context: TaskContext) -> None:
        sentry_sdk.add_breadcrumb(message=f"crumb {payload} {context.attempt}")
        sentry_sdk.set_tag("own", str(payload))
        raise ValueError(f"no {payload}")

    if is_async:

        @registry.task(name="work", retries=1, backoff=0.01)
        async def work_async(payload: int, context: TaskContext) -> None:
            work(payload, context)

    else:
        registry.task(name="work", retries=1, backoff=0.01)(work)

    middleware = [_example().SentryMiddleware()]
    with (
        TaskProducer(url=url, middleware=middleware) as door,
        TaskWorker(url=url, task_handlers=registry),
    ):
        with sentry_sdk.start_transaction(name="request") as request:
            ids = [door.add_task("work", n) for n in range(4)]
        for task_id in ids:
            with pytest.raises(TaskFailed):
                door.get_result(task_id, 10)
        until(lambda: len(sent["event"]) == 4, "all are reported")
        until(lambda: len(sent["transaction"]) == 9, "each attempt has a transaction")
    events = {event["contexts"]["redistq"]["task_id"]: event for event in sent["event"]}
    assert set(events) == set(ids)
    for n, task_id in enumerate(ids):
        event = events[task_id]
        assert event["exception"]["values"][-1]["value"] == f"no {n}"
        assert event["tags"]["redistq.task"] == "work"
        assert event["tags"]["own"] == str(n)
        assert event["transaction"] == "work"
        assert event["contexts"]["redistq"]["attempt"] == 2
        crumbs = [crumb["message"] for crumb in event["breadcrumbs"]["values"]]
        assert crumbs == [f"crumb {n} 2"]
    traces = {t["contexts"]["trace"]["trace_id"] for t in sent["transaction"]}
    assert traces == {request.trace_id}


def test_calls_of_clients_and_tasks_in_batches_are_reported(
    url: str, sent: dict[str, list[Any]]
) -> None:
    """Functions that a Client sends, and each task of a batch that fails."""
    registry = Registry()
    registry.middleware(_example().SentryMiddleware())

    @registry.task(batch=10)
    def save(rows: list[int]) -> None:
        raise BatchErrors({1: Fail("row 1")})

    def breaks() -> None:
        raise ZeroDivisionError("call")

    key = (b"k" * 32).hex()
    with (
        Client(url, signing_key="k" * 32) as client,
        TaskProducer(url=url) as door,
    ):
        ids = door.add_tasks([("save", n) for n in range(3)])
        with TaskWorker(url=url, task_handlers=registry, signing_key=key):
            with pytest.raises(ZeroDivisionError):
                client.submit(breaks).result(20)
            door.get_result(ids[2], 10)
            until(lambda: len(sent["event"]) == 2, "both are reported")
    said = {e["exception"]["values"][-1]["value"]: e for e in sent["event"]}
    assert set(said) == {"call", "row 1"}
    assert said["row 1"]["contexts"]["redistq"]["task_id"] == ids[1]

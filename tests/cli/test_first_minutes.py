"""The first minutes: what people try first works, or says what to write instead."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from support.clients import KEY, producer_of

from redistq import (
    AsyncTaskProducer,
    Client,
    ConfigurationError,
    TaskFailed,
    TaskMonitor,
    TaskProducer,
    TaskScheduler,
    TaskWorker,
    UnknownBatch,
    UnknownTask,
)
from redistq.handlers import Registry, RetryPolicy
from redistq.protocol.options import TaskOptions


@pytest.fixture
def idle(url: str) -> Iterator[Client]:
    """A client without workers."""
    client = Client(url, signing_key=KEY)
    yield client
    client.close()


# -- places and workers --------------------------------------------------------------------------


def add_tasks(client: Client, items: Any) -> None:
    """Tasks of a producer beside the client."""
    with producer_of(client) as producer:
        producer.add_tasks(items)


@pytest.mark.parametrize("number", [4, True, 2.5])
def test_a_number_is_no_server(number: Any) -> None:
    """Client(4), as with the executors of the standard library, says what starts workers."""
    with pytest.raises(ConfigurationError, match="a client takes a server's URL") as refused:
        Client(number)
    if number == 4:
        assert "client.start_workers(4)" in str(refused.value)


@pytest.mark.parametrize(
    "kind", [TaskProducer, AsyncTaskProducer, TaskMonitor, TaskScheduler, TaskWorker]
)
def test_a_url_in_the_hosts_place_is_a_url(kind: Any, url: str) -> None:
    """Everything takes its server's URL as first argument, as a client does."""
    more = {"task_handlers": {"abs": abs}} if kind is TaskWorker else {}
    made = kind(url, **more)
    address = getattr(made, "address", None) or made.url
    assert str(address) == url


def test_no_workers_can_be_asked_for(idle: Client, db: redis.Redis) -> None:
    """start_workers(0) starts none; what is no number of workers is refused."""
    workers = idle.start_workers(0)
    assert (workers.processes, workers.running, idle.has_workers()) == (0, False, False)
    assert workers.stop() is True
    assert db.exists("workers:tasks") == 0
    for odd in (-1, 1.5, True, "2"):
        with pytest.raises(ConfigurationError, match="the number of workers is a whole number"):
            idle.start_workers(odd)  # type: ignore[arg-type]


# -- times as text -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("1m", 60),
        ("1h30m", 5400),
        ("1 h 30 min", 5400),
        ("2d", 172_800),
        ("1.5h", 5400),
        ("500ms", 0.5),
        (".5s", 0.5),
        ("1w", 604_800),
        ("10SEC", 10),
    ],
)
def test_times_may_be_text_everywhere(idle: Client, text: str, seconds: float) -> None:
    """One grammar for calls, tasks, handlers, retries and workers."""
    for option in ("timeout", "delay", "result_ttl", "cache"):
        assert getattr(idle.options(**{option: text})._options, option) == seconds
    given = {"timeout": text, "result_ttl": text, "delay": text}
    options = TaskOptions.of(given, "a task")
    assert options.due == f"+{int(seconds * 1000)}"
    assert options.written() == TaskOptions(timeout=seconds, result_ttl=seconds).written()
    handler = Registry().add("x", abs, timeout=text, result_ttl=text)
    assert (handler.timeout, handler.result_ttl) == (seconds, seconds)
    assert RetryPolicy(backoff=text).backoff == seconds  # type: ignore[arg-type]
    worker = TaskWorker(task_handlers={"x": abs}, result_ttl=text, address=idle.address)
    assert worker.settings.result_ttl == seconds


@pytest.mark.parametrize("text", ["", "1", "m", "1y", "1m x", "-1m", "1..5s", "m1"])
def test_text_that_is_no_time_is_refused(idle: Client, text: str) -> None:
    """The error names the option and shows how times are written."""
    for option in ("timeout", "delay", "result_ttl", "cache"):
        with pytest.raises(ConfigurationError, match=rf"{option} is .*'1h30m'"):
            idle.options(**{option: text})


def test_waits_take_times_as_text(idle: Client) -> None:
    """Of futures, maps, batches and producers."""
    future, batch = idle.submit(abs, -1), idle.map_batch(abs, [-1])
    producer = producer_of(idle)
    waits: list[Callable[[], Any]] = [
        lambda: future.result("100ms"),  # type: ignore[arg-type]
        lambda: future.exception("100ms"),  # type: ignore[arg-type]
        lambda: list(idle.map(abs, [-1], timeout="100ms")),  # type: ignore[arg-type]
        lambda: batch.results("100ms"),  # type: ignore[arg-type]
        lambda: producer.get_result(future.task_id, "100ms"),  # type: ignore[arg-type]
    ]
    for wait in waits:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"after 0\.\d"):
            wait()
        assert time.monotonic() - began < 5
    producer.close()


def test_an_entry_holds_numbers_only() -> None:
    """What somebody wrote by hand is not read as text: the scripts could not."""
    for name in ("timeout", "result_ttl"):
        with pytest.raises(ConfigurationError, match=f"in an entry {name} is a number"):
            TaskOptions.read(json.dumps({name: "1m"}).encode())


# -- slips ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slip", "words"),
    [
        (
            lambda c: c.submit(abs(-1)),
            r"submit takes a function, not 1; .* client.submit\(fn, ...\)",
        ),
        (lambda c: c.submit(None), "submit takes a function, not None"),
        (lambda c: c.submit("two\nlines"), "a task's name is one line"),
        (lambda c: c.map(abs), r"map takes one iterable or more: client.map\(fn, items\)"),
        (lambda c: c.map(abs(-1), [1]), "map takes a function, not 1"),
        (lambda c: c.map("resize", [1]), "map takes a function, not 'resize'; named tasks"),
        (lambda c: c.map_batch(abs, 5), r"not 5; range\(5\)\?"),
        (lambda c: c.map_batch(abs, None), "map_batch takes the items of its calls, not None"),
        (lambda c: c.map_batch(abs(-1), [1]), "map_batch takes a function, not 1"),
        (lambda c: c.map_batch(abs, [1], name=5), "a batch's name is text, not 5"),
        (lambda c: c.options(priority="hihg"), "priority is one of high, normal, low"),
        (lambda c: c.options(priority=["high"]), "priority is one of high, normal, low"),
        (lambda c: c.options(retrys=3), r"no option 'retrys'; did you mean 'retries'\?"),
        (lambda c: c.start_workers(1, thread=2), r"no option 'thread'; did you mean 'threads'\?"),
        (lambda c: add_tasks(c, [{"type": "x", "delays": 1}]), "did you mean 'delay'"),
        (lambda c: c.start_workers(processes=2), r"comes first: client.start_workers\(4\)"),
        (lambda c: c.batch(5), "takes a batch's name, not 5"),
        (lambda c: c.future(None), "takes a task's id, not None"),
        (lambda c: TaskMonitor(4), "not by int"),
        (lambda c: TaskMonitor(c), r"not by Client; .* TaskMonitor\(address=client.address"),
        (lambda c: Client(c.address.url, signing_key=5), "a signing key has at least 16 bytes"),
        (lambda c: Client(c.address.url, max_payload_bytes="8MB"), "max_payload_bytes is a whole"),
    ],
)
def test_a_slip_is_said_before_anything_is_sent(
    idle: Client, db: redis.Redis, slip: Any, words: str
) -> None:
    """A TypeError or ConfigurationError that shows how it is written."""
    with pytest.raises((TypeError, ConfigurationError), match=words):
        slip(idle)
    assert db.keys("task*") == []
    assert db.keys("batch*") == []


def test_an_unknown_batch_is_called_a_batch(idle: Client) -> None:
    """With one that is near; a batch that was deleted says so, too."""
    batch = idle.map_batch(abs, [-1], name="november")
    with pytest.raises(UnknownBatch, match=r"no batch 'novembre': .* did you mean 'november'\?"):
        idle.batch("novembre")
    batch.delete()
    for ask in (batch.counts, lambda: idle.batch("november"), lambda: batch.wait(1)):
        with pytest.raises(UnknownBatch, match="no batch 'november'"):
            ask()
    assert issubclass(UnknownBatch, UnknownTask)


def test_an_error_without_words_has_a_text(idle: Client) -> None:
    """Whatever ends a wait, what arrives says something."""
    with pytest.raises(TimeoutError) as late:
        idle.submit("nobody").result(0)
    assert "pending" in str(late.value)
    assert (
        str(TaskFailed("x", {"type": "ValueError", "message": ""})) == "task x failed: ValueError"
    )
    assert str(TaskFailed("x", {})).startswith("task x failed: ")


# -- batches by their own name -------------------------------------------------------------------


def test_a_batch_goes_by_its_own_name_everywhere(idle: Client, url: str, capsys: Any) -> None:
    """In frames, on dashboards and at the command line; one without a name goes by its function."""
    pytest.importorskip("pandas")
    from redistq.cli.monitor import main
    from redistq.dashboard import Dashboard

    idle.map_batch(abs, [-1], name="pages-november")
    idle.options(name="pages").map_batch(abs, [-1], name="pages-october")
    idle.map_batch(abs, [-1])
    with TaskMonitor(url) as monitor:
        assert sorted(monitor.get_batches()["name"]) == ["abs", "pages-november", "pages-october"]
    shown = Dashboard(idle).html()
    assert "pages-november" in shown
    assert "pages-october" in shown
    assert main(["batches", "--url", url]) == 0
    assert "pages-november" in capsys.readouterr().out


def test_the_help_of_the_dashboard_names_the_web_page(capsys: Any) -> None:
    """``redistq dashboard --help`` says that there is one for browsers."""
    from redistq.cli import main

    with pytest.raises(SystemExit):
        main(["dashboard", "--help"])
    assert "redistq web" in capsys.readouterr().out

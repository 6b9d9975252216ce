"""Prometheus figures from the monitor and from workers, and OpenTelemetry spans."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from support.farm import Farm, fill
from support.gate import HandMade
from support.workers import until

from redistq import ConfigurationError, Fail, Snooze, TaskMonitor, TaskProducer, TaskWorker, tracing
from redistq.handlers import Registry
from redistq.monitor.metrics import MetricsServer


def scrape(address: str) -> dict[tuple[str, str], float]:
    """Every sample by its name and its one label beside the queue."""
    with urllib.request.urlopen(address, timeout=10) as reply:
        text = reply.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels.pop("queue") == "tasks"
            found[sample.name, "".join(sample.labels.values())] = sample.value
    return found


# -- Prometheus ----------------------------------------------------------------------------------


def test_figures_for_prometheus(farm: Farm, url: str) -> None:
    """Depths, ends by state, workers and ages, as a snapshot has them."""
    fill(farm)
    farm.register("w2")
    farm.call(farm.commands.heartbeat(10_000, [("w1", "\n3000000 150"), ("w2", "\n5000000 ")]))
    server = MetricsServer(TaskMonitor(url=url), 0)
    try:
        assert server.host == "127.0.0.1"
        told = scrape(server.url)
    finally:
        server.stop()
    assert told["redistq_up", ""] == 1
    used = ("workers_resident_bytes", "largest_worker_resident_bytes", "workers_cpu_cores")
    assert [told[f"redistq_{name}", ""] for name in used] == [8_000_000, 5_000_000, 1.5]
    assert told["redistq_server_used_bytes", ""] > 100_000
    assert told["redistq_server_max_bytes", ""] == 0
    places = {place: told["redistq_tasks", place] for place in ("ready", "pending", "delayed")}
    assert places == {"ready": 2, "pending": 1, "delayed": 1}
    assert told["redistq_tasks", "dead"] == 1
    assert told["redistq_attempts_total", "succeeded"] == 2
    assert told["redistq_attempts_total", "failed"] == 1
    assert told["redistq_attempts_total", "recovered"] == 0
    assert (told["redistq_workers", ""], told["redistq_worker_threads", ""]) == (2, 4)
    assert told["redistq_running_tasks", ""] == 1
    assert 0 <= told["redistq_oldest_ready_seconds", ""] < 30
    assert told["redistq_paused", ""] == told["redistq_delayed_late_seconds", ""] == 0


def test_limits_and_what_waits_for_prometheus(farm: Farm, url: str) -> None:
    """Waiting tasks by reason, which add up; keys with a rule alone, and no more than fifty."""
    gate = HandMade(farm.client)
    gate.some_of_everything()
    for n in range(100):
        gate.rule(f"many:{n}", "at_most=1", s=1)
    for n in range(130):
        gate.waits(f"m{n}", "limit", "tenant:a")
    server = MetricsServer(TaskMonitor(url=url), 0)
    try:
        told = scrape(server.url)
    finally:
        server.stop()
    assert told["redistq_tasks", "waiting"] == 137
    reasons = {key[1]: value for key, value in told.items() if key[0] == "redistq_waiting_tasks"}
    assert reasons == {
        "parents": 1,
        "limit": 95,
        "rate": 1,
        "order": 1,
        "share": 1,
        "paused": 1,
        "other": 37,
    }
    assert 89 <= told["redistq_oldest_waiting_seconds", ""] < 120
    assert told["redistq_limit_slots", "tenant:a"] == told["redistq_limit_in_use", "tenant:a"] == 3
    assert told["redistq_limit_waiting", "tenant:a"] == 132
    assert ("redistq_limit_slots", "api") not in told  # a rate has none
    keys = {key for name, key in told if name == "redistq_limit_in_use"}
    assert 40 <= len(keys) <= 50
    assert "free" not in keys


def test_a_scrape_asks_the_server_once(farm: Farm, url: str) -> None:
    """One script a scrape, whatever the queue holds; nothing is asked in between."""
    server = MetricsServer(TaskMonitor(url=url), 0)
    try:
        scrape(server.url)
        farm.client.config_resetstat()
        scrape(server.url)
        scrape(server.url)
        stats: dict[str, Any] = farm.client.info("commandstats")
    finally:
        server.stop()
    assert stats["cmdstat_evalsha"]["calls"] == 2
    assert "cmdstat_scan" not in stats


def test_a_server_that_is_away_is_down(private_server: Any) -> None:
    """redistq_up falls to 0 and old figures are not passed off as new; then it rises again."""
    server = private_server()
    metrics = MetricsServer(TaskMonitor(url=server.url, timeout=0.3), 0)
    try:
        assert scrape(metrics.url)["redistq_up", ""] == 1
        server.kill()
        assert scrape(metrics.url) == {("redistq_up", ""): 0}
        server.start()
        assert scrape(metrics.url)["redistq_up", ""] == 1
    finally:
        metrics.stop()
    with pytest.raises(urllib.error.URLError):
        scrape(metrics.url)


def test_a_port_that_is_taken_is_said(url: str) -> None:
    """The error names the address; nothing is left behind."""
    with socket.socket() as taken, TaskMonitor(url=url) as monitor:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}"):
            MetricsServer(monitor, port)
        with pytest.raises(ConfigurationError):
            MetricsServer(monitor, 99_999)


def test_without_prometheus_client_it_says_what_to_install(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optional package is asked for by its extra's name."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with TaskMonitor(url=url) as monitor, pytest.raises(ImportError, match=r"redistq\[metrics\]"):
        MetricsServer(monitor, 0)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:80", "LOCALHOST", ""])
def test_figures_for_this_machine_are_given_under_its_names(url: str, host: str) -> None:
    """And not to a web site whose name was made to point here, in a browser that can reach it."""
    import http.client

    with TaskMonitor(url=url) as monitor:
        server = MetricsServer(monitor, 0)
        try:
            for name, status in ((host, 200), ("evil.example", 403), ("127.0.0.1.evil:80", 403)):
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
                connection.putrequest("GET", "/metrics", skip_host=True)
                if name:
                    connection.putheader("Host", name)
                connection.endheaders()
                answer = connection.getresponse()
                assert (answer.status, b"redistq_up" in answer.read()) == (status, status == 200)
                connection.close()
        finally:
            server.stop()


def test_figures_for_others_are_given_under_any_name(url: str) -> None:
    """Served elsewhere, its name is that of a service or a proxy."""
    with TaskMonitor(url=url) as monitor:
        server = MetricsServer(monitor, 0, "0.0.0.0")
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{server.port}/metrics")
            request.add_header("Host", "queue.monitoring.svc:9100")
            with urllib.request.urlopen(request, timeout=10) as answer:
                assert answer.status == 200
        finally:
            server.stop()


def started(command: list[str], words: str, cwd: Path | None = None) -> tuple[Any, str]:
    """A process, and the address in the line with some words that it printed."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd
    )
    lines: list[str] = []
    found = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if words in line:
                found.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    if not found.wait(30):
        process.kill()
        pytest.fail(f"never said {words!r}: {''.join(lines)}")
    line = next(line for line in lines if words in line)
    address = re.search(r"http://\S+", line)
    assert address is not None
    return process, address[0]


def test_the_monitor_serves_metrics_until_a_signal(farm: Farm, url: str) -> None:
    """`redistq monitor metrics --port` ends with 0 on SIGTERM."""
    command = [sys.executable, "-m", "redistq.cli_monitor", "--url", url]
    process, address = started([*command, "metrics", "--port", "0"], "metrics of queue tasks at")
    try:
        assert scrape(address)["redistq_up", ""] == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_worker_serves_metrics(farm: Farm, url: str, tmp_path: Path) -> None:
    """`python -m redistq.worker --metrics-port` serves the figures while it drains the queue."""
    (tmp_path / "jobs.py").write_text(
        "from redistq import task\n@task\ndef double(payload):\n    return payload * 2\n"
    )
    command = [sys.executable, "-m", "redistq.worker", "jobs", "--url", url]
    process, address = started([*command, "--metrics-port", "0"], "metrics at", tmp_path)
    try:
        farm.producer.add_tasks([("double", n) for n in range(5)])
        until(
            lambda: scrape(address)["redistq_attempts_total", "succeeded"] == 5,
            "five tasks succeeded",
            timeout=20,
        )
        assert scrape(address)["redistq_workers", ""] == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# -- OpenTelemetry -------------------------------------------------------------------------------


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Tracing switched on, with spans kept in memory."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.enable(provider)
    yield exporter
    tracing.disable()
    provider.shutdown()


def by_name(spans: InMemorySpanExporter) -> dict[str, Any]:
    """Finished spans by name."""
    return {span.name: span for span in spans.get_finished_spans()}


def test_a_span_goes_from_the_producer_to_the_handler(
    url: str, spans: InMemorySpanExporter
) -> None:
    """The handler's span is the child of the one that created the task, in the caller's trace;
    inside the handler it is the current one, so what the handler does belongs to it."""
    inside: list[int] = []
    registry = Registry()

    @registry.task(name="work")
    def work(payload: Any) -> Any:
        inside.append(trace.get_current_span().get_span_context().span_id)
        return payload

    tracer = trace.get_tracer("test", tracer_provider=TracerProvider())
    with TaskProducer(url=url) as producer, TaskWorker(url=url, task_handlers=registry):
        with tracer.start_as_current_span("request") as request:
            task_id = producer.add_task("work", 1, retries=0)
        assert producer.get_result(task_id, timeout=20) == 1
        until(lambda: "process work" in by_name(spans), "the span ends")
    created, processed = by_name(spans)["create work"], by_name(spans)["process work"]
    assert created.kind is trace.SpanKind.PRODUCER
    assert processed.kind is trace.SpanKind.CONSUMER
    assert created.parent.span_id == request.get_span_context().span_id
    assert processed.parent.span_id == created.context.span_id
    assert processed.context.trace_id == request.get_span_context().trace_id
    assert inside == [processed.context.span_id]
    assert processed.attributes["messaging.message.id"] == task_id
    assert processed.attributes["messaging.destination.name"] == "tasks"
    assert processed.attributes["redistq.attempt"] == 1
    assert processed.status.is_ok or processed.status.is_unset


def test_async_handlers_have_spans(url: str, spans: InMemorySpanExporter) -> None:
    """Two coroutines at once keep their spans apart."""
    seen: dict[int, int] = {}
    registry = Registry()

    @registry.task(name="wait")
    async def wait(payload: int) -> None:
        import asyncio

        await asyncio.sleep(0.05)
        seen[payload] = trace.get_current_span().get_span_context().span_id

    with TaskProducer(url=url) as producer, TaskWorker(url=url, task_handlers=registry):
        ids = producer.add_tasks([("wait", n) for n in range(2)])
        for task_id in ids:
            producer.get_result(task_id, timeout=20)
    ran = {
        span.attributes["messaging.message.id"]: span.context.span_id
        for span in spans.get_finished_spans()
        if span.name == "process wait" and span.attributes is not None
    }
    assert seen == {n: ran[task_id] for n, task_id in enumerate(ids)}


def test_a_batch_has_one_span_that_is_linked_with_each_task(
    url: str, spans: InMemorySpanExporter
) -> None:
    """Its tasks may have been created in different traces."""
    registry = Registry()

    @registry.task(name="save", batch=10)
    def save(rows: list[Any], context: Any) -> list[Any]:
        return rows

    with TaskProducer(url=url) as producer:
        ids = producer.add_tasks([("save", n) for n in range(3)])
        with TaskWorker(url=url, task_handlers=registry):
            assert [producer.get_result(task_id, timeout=20) for task_id in ids] == [0, 1, 2]
            until(lambda: "process save" in by_name(spans), "the span ends")
    finished = spans.get_finished_spans()
    (processed,) = [span for span in finished if span.name == "process save"]
    created = {span.context.span_id for span in finished if span.name == "create save"}
    assert {link.context.span_id for link in processed.links} == created
    assert len(created) == 3
    assert processed.attributes is not None
    assert processed.attributes["messaging.batch.message_count"] == 3


def test_what_a_handler_raises_is_in_its_span(url: str, spans: InMemorySpanExporter) -> None:
    """An error makes the span an error; a retry is a second span of the same trace; a snooze is
    no error."""
    tries: list[int] = []
    registry = Registry()

    @registry.task(name="work", retries=1, backoff=0.01)
    def work(payload: Any) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise Snooze(0.01)
        if len(tries) == 2:
            raise ValueError("no")
        raise Fail("enough")

    with TaskProducer(url=url) as producer, TaskWorker(url=url, task_handlers=registry):
        task_id = producer.add_task("work")
        until(lambda: producer.get_task(task_id).state == "failed", "the task fails", timeout=20)
        error = producer.get_task(task_id).error
    ran = [span for span in spans.get_finished_spans() if span.name == "process work"]
    assert [span.status.is_ok or span.status.is_unset for span in ran] == [True, False, False]
    assert ran[0].attributes is not None
    assert ran[0].attributes["redistq.snoozed"] is True
    assert ran[1].events[0].attributes is not None
    assert ran[1].events[0].attributes["exception.type"] == "ValueError"
    assert len({span.context.trace_id for span in ran}) == 1
    assert error is not None
    assert not re.search(r"(tracing|execution|contextlib)\.py", error["traceback"])


def test_off_means_nothing_travels(url: str, db: redis.Redis) -> None:
    """Without tracing a task carries no context, and no OpenTelemetry is asked."""
    assert tracing.active is None
    with TaskProducer(url=url) as producer:
        producer.add_task("work")
    ((_, entry),) = db.xrange("tasks")
    assert entry["opts"] == ""


def test_a_strange_context_does_no_harm(url: str, spans: InMemorySpanExporter) -> None:
    """A task whose context is nonsense runs, in a trace of its own."""
    with TaskProducer(url=url) as producer:
        for carrier in ('{"trace":[1,2]}', '{"trace":{"traceparent":"junk"}}'):
            fields = ("id" + carrier[9:11], "work", b"1", carrier, "")
            producer.broker.call(producer.commands.enqueue_one(*fields))
        with TaskWorker(url=url, task_handlers={"work": lambda payload: payload}):
            assert producer.get_result("id[1", timeout=20) == 1
            assert producer.get_result('id{"', timeout=20) == 1


def test_the_environment_switches_tracing_on() -> None:
    """REDISTQ_TRACING=1 is enough, in child processes too."""
    import os

    code = "from redistq import tracing; print(tracing.active is not None)"
    for value, answer in (("1", "True"), ("0", "False"), ("", "False")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "REDISTQ_TRACING": value},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.stdout.strip(), done.returncode) == (answer, 0), done.stderr

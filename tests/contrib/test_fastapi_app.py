"""The example app, served by uvicorn and asked with httpx; its tasks run by a real worker."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.servers import free_port
from support.workers import Command, command, until

from redistq import TaskProducer, TaskWorker

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fastapi_app.py"


@pytest.fixture
def served(tmp_path: Path, url: str) -> Iterator[tuple[httpx.Client, Command]]:
    """The app, and its server's process."""
    shutil.copy(EXAMPLE, tmp_path)
    port = free_port()
    args = (
        "-m",
        "uvicorn",
        "fastapi_app:app",
        "--port",
        str(port),
        "--timeout-graceful-shutdown=5",
    )
    with command(tmp_path, *args, url=url) as server:
        server.says("Application startup complete")
        server.says("Uvicorn running")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield client, server


@pytest.fixture
def web(served: tuple[httpx.Client, Command]) -> httpx.Client:
    """The app."""
    return served[0]


@pytest.fixture
def worker(url: str) -> Iterator[TaskWorker]:
    """A worker with the example's tasks, in this process."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("fastapi_app", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handlers = {"count_words": module.count_words, "spell": module.spell, "fails": fails}
    with TaskWorker(url=url, task_handlers=handlers) as worker:
        yield worker


def fails(payload: Any) -> None:
    """A task with an error."""
    raise ValueError(f"no good: {payload}")


def events(web: httpx.Client, path: str, **headers: str) -> list[tuple[str, Any, str]]:
    """All server-sent events of a path: kind, data, number."""
    found = []
    with web.stream("GET", path, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for block in answer.read().decode().strip().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
            if fields:
                data = json.loads(fields["data"])
                found.append((fields["event"], data, fields.get("id", "")))
    return found


def test_a_request_adds_a_task_and_its_state_is_told(web: httpx.Client, worker: TaskWorker) -> None:
    """Status, result, progress, and the end."""
    task_id = web.post("/count", params={"words": 60}).json()["task"]
    told = events(web, f"/tasks/{task_id}/events")
    kinds = [kind for kind, _, _ in told]
    assert kinds[-1] == "end"
    assert set(kinds[:-1]) <= {"progress"}
    said = [data["progress"] for kind, data, _ in told[:-1] if data.get("progress")]
    assert said
    assert said == sorted(said, key=lambda one: one["done"])
    assert told[-1][1]["result"] == 60
    assert web.get(f"/tasks/{task_id}/result").json() == {"id": task_id, "result": 60}
    status = web.get(f"/tasks/{task_id}").json()
    assert (status["state"], status["name"], status["settled"]) == (
        "succeeded",
        "count_words",
        True,
    )


def test_what_a_task_yields_is_streamed_and_resumed(web: httpx.Client, worker: TaskWorker) -> None:
    """From the first item, or after the last that a listener got."""
    task_id = web.post("/spell", params={"text": "abcd"}).json()["task"]
    told = events(web, f"/tasks/{task_id}/stream")
    assert [(data, number) for kind, data, number in told if kind == "item"] == [
        *(("a", "0"), ("b", "1"), ("c", "2"), ("d", "3")),
    ]
    assert (told[-1][0], told[-1][1]["state"]) == ("end", "succeeded")
    again = events(web, f"/tasks/{task_id}/stream", **{"Last-Event-ID": "1"})
    assert [data for kind, data, _ in again if kind == "item"] == ["c", "d"]


def test_tasks_that_fail_wait_or_are_unknown(web: httpx.Client, url: str) -> None:
    """Each has an answer of its own."""
    with TaskProducer(url=url) as producer:
        waits = producer.add_task("fails", 1)
        answer = web.get(f"/tasks/{waits}/result", params={"timeout": 0.1})
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")
        assert web.delete(f"/tasks/{waits}").json() == {"id": waits, "outcome": "cancelled"}
        assert web.get(f"/tasks/{waits}/result").status_code == 410
        failed = producer.add_task("fails", 2, retries=0)
        with TaskWorker(url=url, task_handlers={"fails": fails}):
            answer = web.get(f"/tasks/{failed}/result")
        assert answer.status_code == 500
        assert answer.json()["detail"]["message"] == "no good: 2"
        status = web.get(f"/tasks/{failed}").json()
        assert status["error"] == {"type": "ValueError", "message": "no good: 2"}
        assert events(web, f"/tasks/{failed}/events")[-1][1]["state"] == "failed"
    for path in ("/tasks/nobody", "/tasks/nobody/result", "/tasks/nobody/events"):
        assert web.get(path).status_code == 404
    assert web.delete("/tasks/nobody").status_code == 404


def test_a_listener_that_goes_leaves_nothing(
    served: tuple[httpx.Client, Command], url: str, db: Any
) -> None:
    """Neither a connection nor an error; and the app ends though one listens."""
    web, server = served
    with TaskProducer(url=url) as producer:
        task_id = producer.add_task("nobody_runs_this", 1)
        before = len(db.client_list())
        with web.stream("GET", f"/tasks/{task_id}/events") as answer:
            assert next(answer.iter_lines()) == "event: progress"
        until(lambda: len(db.client_list()) <= before + 2, "the connections of the listener")
        with web.stream("GET", f"/tasks/{task_id}/stream"):
            time.sleep(0.1)
            server.process.terminate()
            server.wait()
    assert "Traceback" not in server.output
    assert "Application shutdown complete" in server.output


def test_the_producer_is_there_while_the_app_runs() -> None:
    """Outside that it says how to open it."""
    from redistq import RedistqError
    from redistq.contrib.fastapi import RedistqFastAPI

    with pytest.raises(RedistqError, match="lifespan"):
        _ = RedistqFastAPI().producer

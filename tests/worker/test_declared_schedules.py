"""@task(cron=...): schedules declared in code are set by the first worker of a deploy, and once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.workers import until

from redistq import ConfigurationError, TaskProducer, TaskWorker
from redistq.handlers import Registry
from redistq.worker import declaring
from redistq.worker.declaring import ENV_DEPLOY, declare_schedules

HOUR = "0 * * * *"


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer for the default server."""
    with TaskProducer(url=url) as producer:
        yield producer


def app(*names: str, cron: str = HOUR, **options: Any) -> Registry:
    """What a module declares."""
    registry = Registry()
    for name in names:

        @registry.task(name=name, cron=cron, **options)
        def run(payload: Any) -> Any:
            return payload

    @registry.task(name="plain")
    def plain(payload: Any) -> None:
        pass

    return registry


def start(producer: TaskProducer, registry: Registry) -> dict[str, str]:
    """A worker process starts; the schedules there are after that, and their rules."""
    declare_schedules(producer.broker, [producer.commands], registry)
    return {schedule.name: schedule.rule for schedule in producer.schedules}


def test_a_worker_sets_what_its_code_declares(url: str, producer: TaskProducer) -> None:
    """With payload, zone and what ``@task`` says of its tasks; it says who declared it."""
    registry = Registry()

    @registry.task(
        name="report",
        cron="0 6 * * mon",
        tz="Europe/Berlin",
        payload={"week": 1},
        missed="skip",
        overlap="queue",
        limits="reports",
        retries=1,
    )
    def report(payload: Any) -> Any:
        return payload

    @registry.task(name="tick", every=0.2)
    def tick(payload: Any) -> None:
        pass

    with TaskWorker(url=url, task_handlers=registry):
        until(lambda: len(producer.schedules.all()) == 2, "they are set")
        made = producer.schedules["report"]
        assert (made.rule, made.task) == ("At 06:00 on Monday (Europe/Berlin)", "report")
        assert (made.missed, made.overlap) == ("skip", "queue")
        assert made.source.startswith(f"code {__name__} ")
        assert producer.get_result(producer.schedules.run_now("report"), 10) == {"week": 1}
        until(lambda: producer.schedules["tick"].fired >= 2, "the other one fires")


def test_the_worker_command_sets_them_too(url: str, producer: TaskProducer, tmp_path: Path) -> None:
    """Each of its processes looks, and one does it."""
    (tmp_path / "declares.py").write_text(
        textwrap.dedent(
            """
            from redistq import task

            @task(every="1h")
            def hourly(payload):
                pass
            """
        )
    )
    command = [sys.executable, "-m", "redistq.worker", "declares", "--processes", "2"]
    env = {**os.environ, "REDISTQ_URL": url}
    worker = subprocess.Popen(command, cwd=tmp_path, env=env)
    try:
        until(lambda: "hourly" in producer.schedules.all(), "it is set", 20)
    finally:
        worker.terminate()
        worker.wait(20)
    assert producer.schedules["hourly"].source.startswith("code declares ")


def test_a_deploy_is_done_once(producer: TaskProducer, db: redis.Redis) -> None:
    """What operators change or delete afterwards stays so, whichever worker starts."""
    code = app("a", "b")
    assert set(start(producer, code)) == {"a", "b"}
    producer.schedules.delete("a")
    producer.schedules.set("b", every="5m", task="b")
    producer.schedules.set("own", every="5m", task="x")
    assert start(producer, code) == {"b": "every 5 min", "own": "every 5 min"}
    info: Any = db.config_resetstat()
    start(producer, code)
    info = db.info("commandstats")
    assert "cmdstat_hset" not in info
    assert "cmdstat_hdel" not in info


def test_a_new_deploy_sets_and_deletes_and_an_old_worker_does_neither(
    producer: TaskProducer, caplog: pytest.LogCaptureFixture
) -> None:
    """A rolling deploy: a worker of the code before is started again in the midst of it."""
    old, new = app("a", "gone"), app("a", "more", cron="30 * * * *")
    producer.schedules.set("own", cron=HOUR, task="x")
    start(producer, old)
    at_half_past = start(producer, new)
    assert set(at_half_past) == {"a", "more", "own"}
    assert start(producer, old) == at_half_past
    assert "a newer deploy has set others" in caplog.text
    assert start(producer, new) == at_half_past


def test_a_rollback_has_another_name(
    producer: TaskProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same code as a new deploy sets what it declares again."""
    old, new = app("a"), app("b")
    start(producer, old)
    assert set(start(producer, new)) == {"b"}
    monkeypatch.setenv(ENV_DEPLOY, "rollback of today")
    assert set(start(producer, old)) == {"a"}
    assert producer.schedules["a"].source == f"code {__name__} rollback of today"
    monkeypatch.delenv(ENV_DEPLOY)
    assert set(start(producer, new)) == {"a"}, "the code that was rolled back is old"


def test_code_that_declares_nothing_any_more_deletes_what_it_did(producer: TaskProducer) -> None:
    """As long as its module is there; what others declare is left alone."""
    other = Registry()

    def run(payload: Any) -> None:
        pass

    run.__module__ = "another.app"
    other.task(name="theirs", cron=HOUR)(run)
    start(producer, other)
    assert set(start(producer, app("a"))) == {"a", "theirs"}
    assert set(start(producer, app())) == {"theirs"}


def test_one_that_dies_in_the_midst_leaves_the_rest_to_the_next(
    producer: TaskProducer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A deploy is noted when all of it is there."""
    code = app("a", "b", "c")
    real = declaring._Deploy._set

    def dies(self: Any, name: str) -> None:
        if name == "b":
            raise declaring.RedistqError("gone")
        real(self, name)

    monkeypatch.setattr(declaring._Deploy, "_set", dies)
    assert set(start(producer, code)) == {"a"}
    assert "are tried at the next start: gone" in caplog.text
    monkeypatch.undo()
    assert set(start(producer, code)) == {"a", "b", "c"}


def test_only_so_many_deploys_are_remembered(producer: TaskProducer) -> None:
    """The newest fifty."""

    def ask(deploy: str, step: str = "ask") -> str:
        word: bytes = producer.broker.call(producer.commands.deploy("app", deploy, step))
        return word.decode()

    assert ask("d0") == "new"
    for n in range(60):
        assert ask(f"d{n}", "done") == "newest"
    assert ask("d59") == "newest"
    assert ask("d59", "done") == "newest"
    assert ask("d58", "done") == "old"
    assert ask("d10") == "old"
    assert ask("d9") == "new"


def test_what_is_no_schedule_is_said_where_it_is_declared() -> None:
    """When the module is imported."""
    registry = Registry()
    for options, words in (
        ({"cron": "0 6 * *"}, "five fields"),
        ({"cron": HOUR, "every": 5}, "not both"),
        ({"cron": HOUR, "tz": "Nowhere/Here"}, "zone"),
        ({"every": "often"}, "every"),
        ({"cron": HOUR, "missed": "never"}, "missed is one of"),
        ({"cron": HOUR, "overlap": "never"}, "overlap is one of"),
        ({"tz": "Europe/Berlin"}, "with cron= or every="),
        ({"payload": 1}, "with cron= or every="),
        ({"crom": HOUR}, "cron"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            registry.task(name="x", **options)  # type: ignore[call-overload]

"""``redistq monitor steps`` and ``send-event``; and what listings say of tasks that sleep."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
import redis
from support.farm import Farm

from redistq import cli_monitor
from redistq.functions.signing import MAGIC

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def farm(url: str, db: redis.Redis) -> Iterator[Farm]:
    """A farm on the default server."""
    farm = Farm(url, db)
    yield farm
    farm.monitor.close()


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process: its exit code, what it printed, its complaints."""

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "120")
        capsys.readouterr()
        try:
            code = cli_monitor.main(["--url", url, *args])
        except SystemExit as error:
            code = int(error.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def put_off(farm: Farm, event: str = "", id: str | None = None) -> str:
    """A task that has done a step and sleeps, or waits for an event; its id."""
    task_id: str = farm.producer.add_task("work", task_id=id)
    (entry, flat) = farm.fetch("w1")[0]
    key = (entry.decode(), task_id)
    assert flat[1].decode() == task_id
    calls = farm.commands
    farm.call(calls.step("w1", key, 1, "pay\x1b[31m", "12.5", b"null"))
    kind = "event" if event else "sleep"
    delay = "" if event else 60_000
    row = (*key, kind, "work", "1", "1.0", 2, event, delay, 0, "-")
    assert farm.call(calls.suspend("w1", [row])) == []
    return task_id


def test_steps_are_listed(farm: Farm, run: Run) -> None:
    """For people and for programs; what others wrote cannot drive the terminal."""
    task_id = put_off(farm)
    code, out, err = run("steps", task_id)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert "pay" in first
    assert "step" in first
    assert "12 ms" in first
    assert "\x1b" not in out
    assert "sleep" in second
    rows = json.loads(run("steps", task_id, "--json")[1])
    assert [(row["number"], row["kind"]) for row in rows] == [(1, "step"), (2, "sleep")]
    assert run("steps", task_id, "--csv")[1].splitlines()[0] == "number,name,kind,at,run_s,size"
    farm.producer.add_task("work", task_id="new")
    assert run("steps", "new") == (0, "Task new has done no steps.\n", "")
    assert run("steps", "nobody")[0] == 3


def test_an_event_is_sent_signed(farm: Farm, run: Run) -> None:
    """By the key of this user's clients; to all, or to one task."""
    one, two = put_off(farm, "paid"), put_off(farm, "paid")
    said = "event paid is sent: 1 task goes on\n"
    assert run("send-event", "paid", "--task", one, "--payload", '{"by": "me"}') == (0, said, "")
    assert run("send-event", "paid") == (0, said, "")
    assert run("send-event", "paid")[1] == "event paid is sent: 0 tasks go on\n"
    kept = farm.call(("GET", farm.producer.keys.event_prefix + "paid"))
    assert MAGIC in kept
    assert [farm.producer.steps(id)[1].kind for id in (one, two)] == ["event", "event"]
    assert run("send-event", "paid", "--task", "nobody")[0] == 3
    code, _, err = run("send-event", "paid", "--payload", "yes")
    assert (code, "--payload is JSON" in err) == (2, True)
    assert run("send-event", "paid", "--keep", "never")[0] == 2


def test_listings_say_what_a_task_waits_for(farm: Farm, run: Run) -> None:
    """A frame of delayed tasks, a task's own page, and its status."""
    asleep, waits = put_off(farm), put_off(farm, "order 7: paid")
    frame = farm.monitor.get_delayed().set_index("task_id")
    assert list(frame.loc[[asleep, waits], "reason"]) == ["sleep", "event"]
    assert frame.loc[waits, "event"] == "order 7: paid"
    for task_id, words in ((asleep, "sleeps until 20"), (waits, "waits for event 'order 7: paid'")):
        assert words in run("task", task_id)[1]
        assert words in farm.producer.get_task(task_id).why
    (row,) = [r for r in json.loads(run("delayed", "--json")[1]) if r["task_id"] == waits]
    assert row["event"] == "order 7: paid"


def test_dead_letters_go_on_or_begin_anew(farm: Farm, run: Run) -> None:
    """`replay` keeps the steps that are done, unless it is asked to forget them."""
    task_id = put_off(farm)
    for options, steps in (((), 2), (("--forget-steps",), 0)):
        farm.client.zadd("delayed:tasks", {task_id: 1}, xx=True)
        farm.call(farm.commands.promote())
        farm.settle("w1", farm.fetch("w1"), error={"type": "E", "message": "", "traceback": ""})
        assert run("replay", task_id, *options)[0] == 0
        assert len(farm.producer.steps(task_id)) == steps

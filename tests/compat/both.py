"""The same module of tasks with Celery and with the bridge, and what became of each case.

``python both.py URL`` prints what Celery makes of them, as JSON: it runs in a process of its own,
for its threads outlive its worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("project_tasks.py")
WAIT_S = 15


def project(package: str, name: str) -> types.ModuleType:
    """The module of tasks, with ``celery`` or the bridge in its imports."""
    text = SOURCE.read_text(encoding="utf-8").replace("from celery", f"from {package}")
    module = types.ModuleType(name)
    module.__dict__["package"] = sys.modules[package]
    sys.modules[name] = module
    exec(compile(text, str(SOURCE), "exec"), module.__dict__)
    return module


def outcome_of(result: Any) -> tuple[str, Any]:
    """State and value of a result, an error as its type and arguments."""
    try:
        value = result.get(timeout=WAIT_S)
    except Exception as error:
        return result.state, (type(error).__name__, tuple(map(str, error.args)))
    return result.state, value


Case = Callable[[Any], Any]
CASES: dict[str, Case] = {
    "delay": lambda t: outcome_of(t.add.delay(1, b=2)),
    "default argument": lambda t: outcome_of(t.add.delay(1)),
    "apply_async": lambda t: outcome_of(t.add.apply_async((3,), {"b": 4})),
    "a name of its own": lambda t: outcome_of(t.named.delay(1)),
    "by name": lambda t: outcome_of(t.app.send_task("named.task", [7])),
    "shared_task": lambda t: outcome_of(t.double.delay(4)),
    "called here": lambda t: (t.add(2, 3), t.double(4)),
    "calls another directly": lambda t: outcome_of(t.calls_directly.delay(5)),
    "nested values": lambda t: outcome_of(t.echo.delay([1, (2, None)], a={"b": [True]}, c="ä")),
    "types": lambda t: outcome_of(t.types.apply_async(kwargs=t.EXAMPLES)),
    "countdown": lambda t: outcome_of(t.add.apply_async((1, 1), countdown=0.1)),
    "task_id": lambda t: t.add.apply_async((1, 1), task_id="my-id").id,
    "an error": lambda t: outcome_of(t.divide.delay(1, 0)),
    "an error of its own": lambda t: outcome_of(t.odd.delay()),
    "an error with a key": lambda t: outcome_of(t.missing.delay()),
    "an error that is not raised": lambda t: (
        type(t.odd.delay().get(timeout=WAIT_S, propagate=False)).__name__
    ),
    "wrong arguments": lambda t: _raises(lambda: t.add.delay())[0],
    "too many arguments": lambda t: _raises(lambda: t.add.delay(1, 2, 3))[0],
    "retry": lambda t: outcome_of(t.retrying.delay(2)),
    "retry too often": lambda t: outcome_of(t.retrying.delay(5)),
    "retry without an error": lambda t: outcome_of(
        t.retried_without_error.apply_async(task_id="retried")
    ),
    "retry without end": lambda t: outcome_of(t.retry_for_long.delay(5)),
    "autoretry_for": lambda t: outcome_of(t.auto.delay(2)),
    "autoretry_for too often": lambda t: outcome_of(t.auto.delay(3)),
    "dont_autoretry_for": lambda t: outcome_of(t.not_auto.delay()),
    "request": lambda t: outcome_of(t.request.delay()),
    "ignore_result": lambda t: t.no_result.delay().get(timeout=WAIT_S),
    "chain": lambda t: outcome_of((t.add.s(1, 1) | t.double.s() | t.add.s(5)).delay()),
    "chain with arguments": lambda t: outcome_of(
        t.package.chain(t.add.s(1), t.double.s()).delay(4)
    ),
    "chain, immutable": lambda t: outcome_of((t.add.s(1, 1) | t.double.si(10)).apply_async()),
    "chain's parents": lambda t: _parents((t.add.s(1, 1) | t.double.s()).delay()),
    "chain of one": lambda t: outcome_of(t.package.chain(t.add.s(1, 1)).delay()),
    "group": lambda t: t.package.group(t.add.s(i, i) for i in range(4))().get(timeout=WAIT_S),
    "group with arguments": lambda t: (
        t.package.group([t.add.s(1), t.add.s(2)]).delay(5).get(timeout=WAIT_S)
    ),
    "group of chains": lambda t: t.package.group(
        [t.add.s(1, 1) | t.double.s(), t.double.s(3)]
    )().get(timeout=WAIT_S),
    "group, its counts": lambda t: _counts(t.package.group([t.add.s(1, 1), t.double.s(3)])()),
    "chord": lambda t: outcome_of(t.package.chord([t.add.s(i, 0) for i in range(5)])(t.total.s())),
    "chord with a body that has arguments": lambda t: outcome_of(
        t.package.chord([t.add.s(1, 0)], t.echo.s("more")).apply_async()
    ),
    "group | task": lambda t: outcome_of(
        (t.package.group([t.add.s(1, 1), t.double.s(3)]) | t.total.s()).delay()
    ),
    "task | group | task": lambda t: outcome_of(
        (t.add.s(1, 1) | t.package.group([t.add.s(1), t.double.s()]) | t.total.s()).delay()
    ),
    "chord with nothing in it": lambda t: outcome_of(t.package.chord([], t.total.s())()),
    "chain that fails": lambda t: _raises(
        lambda: (t.odd.s() | t.double.s()).delay().get(timeout=WAIT_S)
    ),
    "map and starmap": lambda t: [
        t.double.map([1, 2]).delay().get(timeout=WAIT_S),
        t.add.starmap([(1, 2), (3, 4)]).delay().get(timeout=WAIT_S),
    ],
    "chunks": lambda t: t.add.chunks([(i, 1) for i in range(5)], 2)().get(timeout=WAIT_S),
    "replace": lambda t: outcome_of(t.replaced.delay(3)),
    "replace by a chord": lambda t: outcome_of(t.replaced_by_chord.delay(3)),
    "a signature by its name": lambda t: outcome_of(
        t.package.signature("named.task", args=(5,), app=t.app).delay()
    ),
    "link": lambda t: _links(t, t.add.apply_async((1, 1), link=t.note.s()), ("note", 2)),
    "link_error": lambda t: _links(
        t, t.odd.apply_async(link_error=t.on_error.s()), ("on_error", "Odd", "('odd', 3)")
    ),
    "link_error with an id": lambda t: _links(
        t, t.odd.apply_async(link_error=t.on_error_id.s()), ("on_error_id", True)
    ),
    "signals": lambda t: _signals(t, "named.task", t.named.delay(3)),
    "signals of a failure": lambda t: _signals(t, t.missing.name, t.missing.delay()),
    "apply": lambda t: outcome_of(t.add.apply((1, 2))),
    "apply that fails": lambda t: outcome_of(t.divide.apply((1, 0))),
    "apply that retries": lambda t: outcome_of(t.retrying.apply((2,))),
    "apply of a chain": lambda t: outcome_of((t.add.s(1, 1) | t.double.s()).apply()),
    "apply of a chord": lambda t: outcome_of(
        t.package.chord([t.add.s(1, 1), t.add.s(2, 2)], t.total.s()).apply()
    ),
    "eager": lambda t: _eager(t, lambda: outcome_of(t.add.delay(1, 2))),
    "eager request": lambda t: _eager(t, lambda: outcome_of(t.request.delay())[1]["eager"]),
    "an unknown id": lambda t: t.app.AsyncResult("nobody").state,
}


def _raises(call: Callable[[], Any]) -> tuple[str, str]:
    try:
        return ("returned", repr(call()))
    except Exception as error:
        return type(error).__name__, str(error)


def _parents(result: Any) -> Any:
    return [result.get(timeout=WAIT_S), result.parent.get(timeout=WAIT_S), result.parent.parent]


def _counts(result: Any) -> Any:
    values = result.get(timeout=WAIT_S)
    found = (result.ready(), result.successful(), result.failed(), result.waiting())
    return [values, found, result.completed_count(), len(result.results)]


def _links(t: Any, result: Any, wanted: Any) -> bool:
    from support.workers import until

    until(lambda: wanted in t.seen, f"{wanted} in {t.seen[-5:]}", timeout=WAIT_S)
    return True


def _signals(t: Any, name: str, result: Any) -> Any:
    from support.workers import until

    outcome_of(result)

    def found() -> list[Any]:
        return [row[:1] + row[2:] for row in t.seen if row[1] == name]

    until(lambda: found() and found()[-1][0] == "postrun", "the signal of the end")
    return found()[-2:]


def _eager(t: Any, call: Callable[[], Any]) -> Any:
    t.app.conf.task_always_eager = True
    try:
        return call()
    finally:
        t.app.conf.task_always_eager = False


def outcomes(t: Any) -> dict[str, Any]:
    """What each case came to, as JSON has it."""
    found = {}
    for name, case in CASES.items():
        try:
            found[name] = case(t)
        except Exception as error:
            found[name] = ("raised", type(error).__name__, str(error))
    return dict(json.loads(json.dumps(found, default=repr)))


@contextlib.contextmanager
def redistq_worker(t: Any, url: str) -> Iterator[None]:
    """redistq's worker, in threads of this process."""
    from redistq import TaskWorker

    t.app.conf.broker_url = url
    with TaskWorker(url=url, task_handlers=t.app.registry, thread_count=4):
        yield
    t.app.close()


def main(url: str) -> None:
    """Print what Celery makes of the cases."""
    import celery
    from celery.contrib.testing.worker import start_worker

    assert celery is not None
    t = project("celery", "project_tasks_both")
    t.app.conf.update(
        broker_url=url, result_backend=url, worker_hijack_root_logger=False,
        worker_enable_remote_control=False, result_chord_retry_interval=0.05,
    )  # fmt: skip
    with start_worker(t.app, pool="threads", concurrency=4, perform_ping_check=False):
        print(json.dumps(outcomes(t)), flush=True)
        os._exit(0)


if __name__ == "__main__":
    sys.path.insert(0, str(SOURCE.parents[1]))
    main(sys.argv[1])

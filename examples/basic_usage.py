"""The first steps: add tasks, run them, read results and errors.

Run it with ``python examples/basic_usage.py``; it finds or starts a server by itself and ends.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from redistq import Fail, TaskContext, TaskFailed, TaskProducer, TaskWorker, task

QUEUE = "example-basic"


@task
def area(payload: dict[str, float]) -> float:
    """A handler takes the payload and returns what JSON can hold."""
    return payload["width"] * payload["height"]


@task(retries=3, backoff=0.1)
def unsteady(payload: Any, context: TaskContext) -> str:
    """With a second parameter it gets a context of its run; what it raises is retried."""
    if context.attempt < 3:
        raise ConnectionError("the service is busy")
    return f"done at attempt {context.attempt}"


@task
def refuse(payload: dict[str, Any]) -> None:
    """Fail ends a task at once, whatever retries are left."""
    raise Fail(f"no such customer: {payload['customer']}")


def main() -> None:
    """Add tasks of three kinds and wait for each."""
    logging.getLogger("redistq").setLevel(logging.ERROR)  # failures are part of the show
    with TaskProducer(stream=QUEUE) as producer, TaskWorker(stream=QUEUE, thread_count=2):
        # One task: by function or by name.
        print("area:    ", producer.get_result(producer.add_task(area, {"width": 3, "height": 4})))

        # Many tasks in few calls; results come in the order asked for.
        ids = producer.add_tasks(("area", {"width": n, "height": n}) for n in range(1, 6))
        print("squares: ", [producer.get_result(task_id) for task_id in ids])

        # Later: half a second from now, by the server's clock.
        before = time.perf_counter()
        later = producer.add_task(area, {"width": 1, "height": 1}, delay=0.5)
        producer.get_result(later, timeout=10)
        print(f"delayed:  came after {time.perf_counter() - before:.1f} s")

        # A failure that passes is retried.
        print("retried: ", producer.get_result(producer.add_task(unsteady), timeout=10))

        # One that does not is kept as a dead letter, with the error, for inspection and replay.
        refused = producer.add_task(refuse, {"customer": 42})
        try:
            producer.get_result(refused, timeout=10)
        except TaskFailed as error:
            print(f"failed:   {error.type}: {error.message}")
        status = producer.get_task(refused)
        print(f"status:   {status.state} after {status.attempt} attempt, payload {status.payload}")
        producer.purge(refused)


if __name__ == "__main__":
    main()

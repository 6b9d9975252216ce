"""Watching a queue: the figures of ``TaskProducer.snapshot`` while a batch runs.

A snapshot is one call that only reads, and all its figures are of the same instant.
"""

from __future__ import annotations

import random
import time

from redistq import TaskProducer, TaskWorker, task

QUEUE = "example-monitor"
TASKS = 400


@task(retries=5, backoff=0.2, result_ttl=60)
def work(payload: float) -> None:
    """Take as long as the payload says; one in ten fails and is retried."""
    time.sleep(payload)
    if random.random() < 0.1:
        raise RuntimeError("bad luck")


def main() -> None:
    """Add a batch, start two processes, and print a line of figures until all is done."""
    names = ("ready", "pending", "delayed", "succeeded", "retried", "dead", "workers")
    with TaskProducer(stream=QUEUE) as producer:
        before = producer.snapshot().counters
        producer.add_tasks((work, random.uniform(0.005, 0.03)) for _ in range(TASKS))
        began = time.perf_counter()
        with TaskWorker(stream=QUEUE, processes=2, thread_count=2):
            print(f"{'seconds':>8}" + "".join(f"{name:>10}" for name in names))
            while True:
                now = producer.snapshot()
                # Counters are totals since the queue began; this run's share is the difference.
                ran = {name: n - before.get(name, 0) for name, n in now.counters.items()}
                figures = (
                    *(now.ready, now.pending, now.delayed),
                    *(ran.get("succeeded", 0), ran.get("retried", 0)),
                    *(now.dead, now.workers_total),
                )
                seconds = time.perf_counter() - began
                print(f"{seconds:8.1f}" + "".join(f"{figure:10,}" for figure in figures))
                if not (now.ready or now.pending or now.delayed):
                    break
                time.sleep(0.4)
        producer.purge()


if __name__ == "__main__":
    main()

"""Work for several CPUs: one worker, two processes, each a complete worker of its own.

Threads share one interpreter, so pure Python computes no faster with more of them; processes do.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

from redistq import TaskProducer, TaskWorker, task

QUEUE = "example-processes"
STEP, TASKS = 10_000, 40


@task(result_ttl=60)
def count_primes(payload: dict[str, int]) -> dict[str, Any]:
    """How many primes lie in ``start <= n < stop``; also says which process counted."""
    found = sum(
        n > 1 and all(n % divisor for divisor in range(2, int(n**0.5) + 1))
        for n in range(payload["start"], payload["stop"])
    )
    return {"primes": found, "pid": os.getpid()}


def main() -> None:
    """Count the primes below STEP * TASKS, with one process and with two."""
    ranges = [{"start": n * STEP, "stop": (n + 1) * STEP} for n in range(TASKS)]
    with TaskProducer(stream=QUEUE) as producer:
        for processes in (1, 2):
            with TaskWorker(stream=QUEUE, processes=processes, thread_count=1):
                began = time.perf_counter()
                ids = producer.add_tasks((count_primes, part) for part in ranges)
                results = [producer.get_result(task_id, timeout=60) for task_id in ids]
                took = time.perf_counter() - began
            primes = sum(result["primes"] for result in results)
            shares = sorted(Counter(result["pid"] for result in results).values())
            print(
                f"{processes} process{'es' if processes > 1 else ''}: {primes:,} primes below "
                f"{STEP * TASKS:,} in {took:.2f} s; tasks per process: {shares}"
            )


if __name__ == "__main__":
    main()

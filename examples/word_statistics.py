"""Word statistics of the standard library: what ``make demo`` runs.

Every module of the installed standard library is one task; two worker processes count its words.
Trouble is arranged on purpose: some tasks fail at first and are retried, one kills the process it
runs in, and one names a file that does not exist and ends as a dead letter. In the end every file
must have been counted exactly once, to the byte; if not, this script exits with code 1.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path
from typing import Any

from redistq import TaskContext, TaskFailed, TaskProducer, TaskWorker, task

QUEUE = "demo"
RETRY_EVERY = 50  # one file in so many fails at its first attempt
WORD = re.compile(r"[A-Za-z_]{2,}")


@task(retries=2, backoff=0.1, result_ttl=60)
def count_words(payload: dict[str, Any], context: TaskContext) -> dict[str, Any]:
    """Count the words of one file; the trouble that the payload asks for comes first."""
    trouble = payload.get("trouble")
    if trouble == "fail once" and context.attempt == 1:
        raise OSError("a failure on purpose")
    if trouble == "kill the worker" and context.recovered == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    data = Path(payload["path"]).read_bytes()
    words = Counter(WORD.findall(data.decode("utf-8", "replace").lower()))
    return {
        "bytes": len(data),
        "words": words,
        "attempt": context.attempt,
        "recovered": context.recovered,
    }


def library_files() -> list[Path]:
    """The modules of the standard library, without installed packages and the big test suite."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
    return sorted(
        path for path in root.rglob("*.py") if left_out.isdisjoint(path.relative_to(root).parts)
    )


def make_payloads(files: list[Path]) -> list[dict[str, Any]]:
    """One payload a file; every RETRY_EVERY-th fails once, one in the middle kills its worker."""
    payloads: list[dict[str, Any]] = [{"path": str(path)} for path in files]
    for payload in payloads[::RETRY_EVERY]:
        payload["trouble"] = "fail once"
    untroubled = [payload for payload in payloads if "trouble" not in payload]
    untroubled[len(untroubled) // 2]["trouble"] = "kill the worker"
    return payloads


def main() -> int:
    """Run the demo; answers the exit code."""
    logging.getLogger("redistq").setLevel(logging.ERROR)  # the trouble below is on purpose
    files = library_files()
    payloads = make_payloads(files)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    print(f"Counting the words of {len(files)} files of Python {version}'s standard library.")
    print("Two worker processes; some tasks fail, one kills its process, one is hopeless.")

    with TaskProducer(stream=QUEUE) as producer:
        with TaskWorker(stream=QUEUE, processes=2, task_handlers={"count_words": count_words}):
            started = time.perf_counter()
            task_ids = producer.add_tasks((count_words, payload) for payload in payloads)
            hopeless = producer.add_task(count_words, {"path": "/lost.py"})
            results = [producer.get_result(task_id, timeout=60) for task_id in task_ids]
            try:
                producer.get_result(hopeless, timeout=60)
                error = ""
            except TaskFailed as failure:
                error = f"{failure.type}: {failure.message}"
            elapsed = time.perf_counter() - started
        dead = [letter for letter in producer.dead_letters() if letter.id == hopeless]
        producer.purge(hopeless)  # results go by themselves, 60 seconds after they were stored

    words: Counter[str] = Counter()
    for result in results:
        words.update(result["words"])
    retried = sum(result["attempt"] > 1 for result in results)
    show(
        {
            "files": f"{len(results):,}",
            "words": f"{words.total():,}",
            "retried": f"{retried:,}",
            "dead letters": f"{len(dead):,}",
            "recovered": f"{sum(result['recovered'] for result in results):,}",
            "throughput": f"{(len(results) + 1) / elapsed:,.0f} tasks/s",
            "elapsed": f"{elapsed:.2f} s",
        },
        "  ".join(f"{word} {count:,}" for word, count in words.most_common(5)),
        error,
    )

    wrong = []
    if sum(result["bytes"] for result in results) != sum(path.stat().st_size for path in files):
        wrong.append("the bytes read are not the bytes of the files")
    if retried != len(payloads[::RETRY_EVERY]):
        wrong.append("not every task that failed was retried")
    if not any(result["recovered"] for result in results):
        wrong.append("the task that killed its worker was not recovered")
    if len(dead) != 1 or dead[0].attempt != 3:
        wrong.append("the hopeless task is not one dead letter after three attempts")
    for complaint in wrong:
        print(f"word_statistics: {complaint}", file=sys.stderr)
    if not wrong:
        print("Every file was counted exactly once.")
    return 1 if wrong else 0


def show(figures: dict[str, str], common: str, error: str) -> None:
    """Print the summary: a table where rich is installed, plain lines where it is not."""
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        for name, value in figures.items():
            print(f"{name:>14}  {value}")
        print(f"Most common words: {common}\nDead letter: {error}")
        return
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in figures.items():
        table.add_row(name, value)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"[bold]Most common words:[/] {escape(common)}")
    console.print(f"[bold]Dead letter:[/] {escape(error)}")


if __name__ == "__main__":
    sys.exit(main())

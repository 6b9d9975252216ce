"""mayu (Rust core). On a Python with a GIL its worker runs in process mode, one task at a time a
process; ``--processes`` says how many. It has no bulk call.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import work
from base import CPU_BOUND, URL, Peer
from mayu import App

app = App(broker=URL, result_ttl=3600)
TASKS = {
    "noop": app.task(name="noop")(work.noop),
    "late": app.task(name="late")(work.late),
    "size": app.task(name="size")(work.size),
    "spin": app.task(name="spin")(work.spin),
}


class Mayu(Peer):
    name = "mayu"

    def commands(self, processes: int) -> list[list[str]]:
        return [
            [
                *("mayu", "worker", "peer_mayu:app", "--mode", "process"),
                *("--processes", str(processes), "--log-level", "WARNING"),
                *(("--prefetch-multiplier", "1") if CPU_BOUND else ()),
            ]
        ]

    def put(self, task: str, *args: Any) -> Any:
        return TASKS[task].delay(*args)

    def wait(self, handle: Any, timeout: float = 30.0) -> Any:
        return handle.result(timeout=timeout)

    def put_at(self, when: float, task: str, *args: Any) -> None:
        TASKS[task].send(*args, eta=dt.datetime.fromtimestamp(when, dt.UTC))


PEER = Mayu()

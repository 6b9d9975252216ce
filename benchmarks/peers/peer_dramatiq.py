"""dramatiq with the Redis broker, 8 threads a process (its default) and the Results middleware."""

from __future__ import annotations

import time
from typing import Any

import dramatiq
import work
from base import CPU_BOUND, URL, Peer
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

broker = RedisBroker(url=URL)
broker.add_middleware(
    Results(backend=RedisBackend(url=URL), store_results=True, result_ttl=3_600_000)
)
dramatiq.set_broker(broker)
TASKS = {
    name: dramatiq.actor(getattr(work, name), actor_name=name)
    for name in ("noop", "late", "size", "spin")
}


class Dramatiq(Peer):
    name = "dramatiq"

    def commands(self, processes: int) -> list[list[str]]:
        threads = "1" if CPU_BOUND else "8"
        return [["dramatiq", "peer_dramatiq", "--processes", str(processes), "--threads", threads]]

    def put(self, task: str, *args: Any) -> Any:
        return TASKS[task].send(*args)

    def wait(self, handle: Any, timeout: float = 30.0) -> Any:
        return handle.get_result(block=True, timeout=int(timeout * 1000))

    def put_at(self, when: float, task: str, *args: Any) -> None:
        delay = max(1, int((when - time.time()) * 1000))
        TASKS[task].send_with_options(args=args, delay=delay)


PEER = Dramatiq()

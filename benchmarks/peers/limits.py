"""What the same commands cost with bare redis-py and hiredis: ``limits.py SCENARIO JSON``.

single: redistq's own EVALSHA, arguments made before. bulk: the same with 200 tasks a call, two
under way. drain: read 100, acknowledge and delete them with one command each, store 100 results.
trip: XADD, XREADGROUP in another process, XADD back, XREAD.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import redis

from redistq.protocol.commands import Commands
from redistq.protocol.keys import QueueKeys
from redistq.protocol.scripts import text_of

ECHO = """
import redis, sys
r = redis.Redis.from_url(sys.argv[1], protocol=2, socket_timeout=60)
r.xgroup_create("echo", "g", id="0", mkstream=True)
print("ready", flush=True)
while True:
    for _, entries in r.xreadgroup("g", "c", {"echo": ">"}, count=1, block=50000):
        for entry, fields in entries:
            if fields[b"n"] == b"stop":
                sys.exit()
            r.xadd("back", fields)
"""


def single(client: redis.Redis, params: dict[str, Any]) -> dict[str, float]:
    """One EVALSHA of ``enqueue`` after another."""
    n = params["n"]
    command = Commands(QueueKeys("tasks")).enqueue_one("x" * 20, "noop", b"1", "", "")
    client.script_load(text_of(command[1]))
    sha, arguments = command[1], list(command[3:])
    ids = [f"{k:020x}" for k in range(n)]
    started = time.perf_counter()
    for task_id in ids:
        arguments[4] = task_id
        client.evalsha(sha, 3, *arguments)
    return {"rate": n / (time.perf_counter() - started)}


def bulk(client: redis.Redis, params: dict[str, Any]) -> dict[str, float]:
    """EVALSHA with 200 tasks a call."""
    n, calls = params["n"], Commands(QueueKeys("tasks"))
    client.script_load(text_of(calls.enqueue([])[1]))
    commands = []
    for start in range(0, n, 200):
        flat: list[Any] = []
        for k in range(start, min(start + 200, n)):
            flat += (f"{k:020x}", "noop", b"1", "", "")
        commands.append(calls.enqueue(flat))
    started = time.perf_counter()
    for at in range(0, len(commands), 2):
        pipe = client.pipeline(transaction=False)
        for command in commands[at : at + 2]:
            pipe.execute_command(*command)
        pipe.execute()
    return {"rate": n / (time.perf_counter() - started)}


def drain(client: redis.Redis, params: dict[str, Any]) -> dict[str, float]:
    """Read, acknowledge, delete, store: no task is decoded or run."""
    n = params["n"]
    client.xgroup_create("s", "g", id="0", mkstream=True)
    for start in range(0, n, 1000):
        pipe = client.pipeline(transaction=False)
        for k in range(start, min(start + 1000, n)):
            pipe.xadd("s", {"id": k, "name": "noop", "payload": k})
        pipe.execute()
    started = time.perf_counter()
    while True:
        reply: Any = client.xreadgroup("g", "c", {"s": ">"}, count=100)
        if not reply:
            break
        entries = reply[0][1]
        pipe = client.pipeline(transaction=False)
        names = [entry for entry, _ in entries]
        pipe.xack("s", "g", *names)
        pipe.xdel("s", *names)
        for _, fields in entries:
            pipe.set(b"result:" + fields[b"id"], fields[b"payload"], px=86_400_000)
        pipe.execute()
    return {"rate": n / (time.perf_counter() - started)}


def trip(client: redis.Redis, params: dict[str, Any]) -> dict[str, float]:
    """There and back over two streams."""
    n, url = params["n"], params["url"]
    echo = subprocess.Popen([sys.executable, "-c", ECHO, url], stdout=subprocess.PIPE, text=True)
    assert echo.stdout is not None
    echo.stdout.readline()
    last, took = b"0-0", []
    for k in range(n + 20):
        started = time.perf_counter()
        client.xadd("echo", {"n": k})
        reply: Any = client.xread({"back": last}, block=5000)
        took.append(time.perf_counter() - started)
        last = reply[0][1][-1][0]
        time.sleep(0.002)
    client.xadd("echo", {"n": "stop"})
    echo.wait(10)
    took = sorted(took[20:])
    return {"p50": 1e3 * took[n // 2], "p99": 1e3 * took[n * 99 // 100]}


def main() -> None:
    """Measure and print."""
    params = json.loads(sys.argv[2])
    client = redis.Redis.from_url(params["url"], protocol=2)
    figures = {"single": single, "bulk": bulk, "drain": drain, "trip": trip}[sys.argv[1]](
        client, params
    )
    print("RESULT " + json.dumps(figures))


if __name__ == "__main__":
    main()

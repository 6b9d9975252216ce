"""Schedulers that kill themselves (SIGKILL) at random points: before, amid or after a command.

Run as a program by test_schedule_kills.py: ten at a time, each in a process of its own, until so
many have died; then two that live on until standard input ends.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from typing import Any

from redistq import TaskScheduler


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def run(url: str, seed: int, mortal: bool) -> None:
    """One scheduler; a mortal one dies at one of its next commands."""
    dice = random.Random(seed)
    scheduler = TaskScheduler(url=url)
    call, left, point = scheduler._broker.call, dice.randint(1, 12), dice.choice("bad")

    def counted(command: Any, deadline: Any = None) -> Any:
        nonlocal left
        left -= 1
        if left or not mortal:
            return call(command, deadline)
        if point == "b":
            die()
        if point == "d":
            threading.Timer(dice.random() * 0.0015, die).start()
        answer = call(command, deadline)
        die()
        return answer

    scheduler._broker.call = counted  # type: ignore[method-assign]
    scheduler._firing._call = counted
    while True:
        scheduler._step()


def main(url: str, kills: int, seed: int) -> None:
    alive: set[int] = set()
    born = dead = 0

    def bear(mortal: bool) -> None:
        nonlocal born
        born += 1
        pid = os.fork()
        if not pid:
            try:
                run(url, seed * 100_000 + born, mortal)
            finally:
                os._exit(1)
        alive.add(pid)

    while dead < kills:
        while len(alive) < 10:
            bear(True)
        pid, status = os.wait()
        alive.discard(pid)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            dead += 1
        else:
            print(f"ended with {status}", flush=True)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    for pid in alive:
        os.waitpid(pid, 0)
    alive.clear()
    print(f"killed {dead}", flush=True)
    for _ in range(2):
        bear(False)
    sys.stdin.read()
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

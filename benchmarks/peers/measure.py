"""One measurement of one peer, in a process of its own: ``measure.py MODULE SCENARIO JSON``.

Started by ../peers.py with the peer's own interpreter. It starts the peer's worker, runs the
scenario, ends the worker, and prints the figures as one line of JSON. What the worker printed is
in the log beside it, and is shown when something fails.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import marks as marks_module
import redis
from marks import SIZE, Marks

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent

WARM = 64
TICK = os.sysconf("SC_CLK_TCK")


def tree(roots: list[int]) -> list[int]:
    """These processes and all below them, parents first."""
    below: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            below.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found = list(roots)
    for pid in found:
        found.extend(below.get(pid, ()))
    return found


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of these processes."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / TICK


class Bench:
    """A peer, its worker, its server, and the marks that its tasks leave."""

    def __init__(self, module: str, params: dict[str, Any]) -> None:
        self.params = params
        self.marks = Marks.create()
        os.environ[marks_module.ENV] = str(self.marks.path)
        self.peer = importlib.import_module(module).PEER
        self.server = redis.Redis.from_url(params["url"], protocol=2)
        self.log = os.open(params["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.halted: list[int] = []
        self.streams: list[Any] = []
        self.timeout = float(params.get("timeout", 120))

    # -- the worker ------------------------------------------------------------------------------

    def start(self, processes: int = 1) -> None:
        """Start the worker and wait until it has run a few tasks."""
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
        }
        for command in self.peer.commands(processes):
            program = sys.executable if command[0] == "python" else str(BIN / command[0])
            self.workers.append(
                subprocess.Popen(
                    [program, *command[1:]],
                    cwd=HERE,
                    env=env,
                    stdout=self.log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        self.peer.many("noop", [(SIZE - 1 - k,) for k in range(WARM)])
        self.until(SIZE - WARM, SIZE, 60)
        if processes > 1:
            time.sleep(2.0)  # every process must be up, and no peer says when
            self.peer.many("noop", [(SIZE - 1 - k,) for k in range(WARM)])
        time.sleep(0.5)

    def halt(self) -> None:
        """Stop the worker's processes in their tracks: connected, but taking nothing more."""
        self.halted = tree([w.pid for w in self.workers])
        self._signal(self.halted, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        pids, self.halted = self.halted, []
        self._signal(pids, signal.SIGCONT)

    @staticmethod
    def _signal(pids: list[int], number: int) -> None:
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def end(self) -> None:
        """End the worker: asked first, then killed with all that it started."""
        pids = tree([w.pid for w in self.workers])
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        for worker in self.workers:
            try:
                worker.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
        self._signal(pids, signal.SIGKILL)
        for worker in self.workers:
            worker.wait()
        self.workers.clear()

    # -- looking ---------------------------------------------------------------------------------

    def until(self, start: int, stop: int, timeout: float | None = None) -> None:
        """Wait until these tasks have run."""
        deadline = time.monotonic() + (timeout or self.timeout)
        while (done := self.marks.count(start, stop)) < stop - start:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{done} of {stop - start} tasks ran")
            if any(w.poll() is not None for w in self.workers):
                raise RuntimeError("the worker ended by itself")
            time.sleep(0.001)

    def until_or(self, stop: int, seconds: float, started: float) -> tuple[int, float]:
        """How many of the first ``stop`` tasks ran, after how long: all of them, or time is up."""
        while True:
            done = self.marks.count(0, stop)
            took = time.perf_counter() - started
            if (done == stop and not self.unsettled()) or took > seconds:
                return done, took
            time.sleep(0.001)

    def find_groups(self) -> None:
        """The streams with consumer groups: there the server says what is not acknowledged yet."""
        self.streams = [
            key
            for key in self.server.scan_iter(count=10_000, _type="stream")
            if self.server.xinfo_groups(key)
        ]

    def unsettled(self) -> int:
        """Tasks that ran and are not acknowledged, where a peer uses streams; 0 elsewhere."""
        return sum(g["pending"] for key in self.streams for g in self.server.xinfo_groups(key))

    def server_cpu(self) -> float:
        """Seconds of CPU that the server has used."""
        info = self.server.info("cpu")
        return float(info["used_cpu_sys"]) + float(info["used_cpu_user"])

    def memory(self) -> int:
        """Bytes the server's data takes."""
        return int(self.server.info("memory")["used_memory"])

    def command_us(self) -> float | None:
        """Microseconds of all commands so far, by ``commandstats``; None where it cannot be told.

        The time of a script includes that of the commands it runs, which are counted again by
        their own names: a peer with scripts must say what else it sends.
        """
        stats = {k[8:]: v for k, v in self.server.info("commandstats").items()}
        scripts = {name for name in stats if name.split("_")[0] in ("eval", "evalsha", "fcall")}
        wanted: set[str] = set(stats) - {"info", "script|load", "function|load"}
        if scripts:
            if not self.peer.direct:
                return None
            wanted = scripts | set(self.peer.direct)
        return float(sum(stats[name]["usec"] for name in wanted if name in stats))

    def commands(self) -> int:
        """Commands run so far, those inside scripts counted."""
        stats = self.server.info("commandstats")
        return sum(v["calls"] for k, v in stats.items() if not k.startswith("cmdstat_info"))

    # -- scenarios -------------------------------------------------------------------------------

    def single(self) -> dict[str, float]:
        """A: enqueue, one call after another."""
        n = self.params["n"]
        self.peer.each("noop", [(k,) for k in range(100)])
        rows = [(k,) for k in range(n)]
        started = time.perf_counter()
        self.peer.each("noop", rows)
        return {"rate": n / (time.perf_counter() - started)}

    def drain(self, processes: int = 1) -> dict[str, float]:
        """B, C, H, L: bulk enqueue while the worker is stopped, then let it go."""
        n, cap = self.params["n"], self.params["cap"]
        self.start(processes)
        time.sleep(1.0)
        self.halt()
        memory, cpu, commands = self.memory(), self.server_cpu(), self.commands()
        command_us = self.command_us()
        rows = [(k,) for k in range(n)]
        started = time.perf_counter()
        self.peer.many("noop", rows)
        enqueued = time.perf_counter() - started
        queued = self.memory() - memory
        enqueue_cpu = self.server_cpu() - cpu
        assert self.marks.count(0, n) == 0, "the worker was not halted"
        self.find_groups()
        started = time.perf_counter()
        self.resume()
        done, took = self.until_or(n, cap, started)
        figures = {
            "bulk": n / enqueued,
            "rate": done / took,
            "done": done,
            "queued_bytes": queued / n,
            "enqueue_cpu_us": 1e6 * enqueue_cpu / n,
        }
        if done == n:
            time.sleep(1.0)
            figures["cpu_us"] = 1e6 * (self.server_cpu() - cpu) / n
            if command_us is not None and (after := self.command_us()) is not None:
                figures["command_us"] = (after - command_us) / n
            figures["commands"] = (self.commands() - commands) / n
            figures["finished_bytes"] = (self.memory() - memory) / n
        return figures

    def drain2(self) -> dict[str, float]:
        """D: the same with two processes."""
        return self.drain(2)

    def trip(self) -> dict[str, float]:
        """E: from the call to the result in hand, with an idle worker."""
        self.start()
        n = self.params["n"]
        self.peer.trips(range(n, n + 20), 0.0)
        took = sorted(self.peer.trips(range(n), 0.002))
        return {"p50": 1e3 * took[n // 2], "p99": 1e3 * took[n * 99 // 100]}

    def loaded(self) -> dict[str, float]:
        """E: the same while another process enqueues half of what the worker can run."""
        self.start()
        n, log = self.params["n"], self.params["log"] + ".load"
        spec = json.dumps({**self.params, "log": log})
        load = subprocess.Popen(
            [sys.executable, __file__, self.peer_module, "load", spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        try:
            time.sleep(3.0)
            took = sorted(self.peer.trips(range(n), 0.002))
        finally:
            assert load.stdin is not None
            load.stdin.close()
            load.wait(10)
        return {"p50": 1e3 * took[n // 2], "p99": 1e3 * took[n * 99 // 100]}

    peer_module = ""

    def load(self) -> dict[str, float]:
        """The other process: bulk calls every 20 ms, until its standard input ends."""
        import select

        count = max(1, int(self.params["load"] * 0.02))
        rows, due = [(SIZE // 2 + k,) for k in range(count)], time.perf_counter()
        while not select.select([sys.stdin], [], [], max(0.0, due - time.perf_counter()))[0]:
            self.peer.many("noop", rows)
            due = max(due + 0.02, time.perf_counter() - 0.1)
        return {}

    def cpu(self, skew: bool = False) -> dict[str, float]:
        """F: tasks of 20 ms on two processes: the share of two cores that is work."""
        n, ms = self.params["n"], 20
        rows = [(k, 1000 if skew and k % 50 == 25 else ms) for k in range(n)]
        self.start(2)
        started = time.perf_counter()
        self.peer.many("spin", rows)
        self.until(0, n)
        took = time.perf_counter() - started
        return {"efficiency": sum(row[1] for row in rows) / 2000 / took}

    def skew(self) -> dict[str, float]:
        """F: the same, but one task in 50 takes a second."""
        return self.cpu(skew=True)

    def burst(self, spread: float = 0.0) -> dict[str, float]:
        """G: delayed tasks due at once: how late they begin; and how late without any delay."""
        n = self.params["n"]
        self.start()
        ahead = self.params["ahead"]
        due = time.time() + ahead
        dues = [(due + spread * k / n, k) for k in range(n)]
        self.peer.later(dues)
        left = due - time.time()
        if left < 0.3:
            raise RuntimeError(f"enqueueing {n} delayed tasks took longer than {ahead} s")
        self.until(0, n, ahead + spread + 60)
        late = sorted(1e3 * (self.marks.when(k) - when) for when, k in dues)
        return {"p50": late[n // 2], "p99": late[n * 99 // 100], "first": late[0]}

    def spread(self) -> dict[str, float]:
        """G: the same, due over ten seconds."""
        return self.burst(spread=10.0)

    def idle(self) -> dict[str, float]:
        """I: what a worker costs that has nothing to do."""
        self.start()
        time.sleep(3.0)
        pids, seconds = tree([w.pid for w in self.workers]), self.params["seconds"]
        commands, cpu, server = self.commands(), cpu_seconds(pids), self.server_cpu()
        time.sleep(seconds)
        return {
            "commands": (self.commands() - commands) / seconds,
            "cpu_percent": 100 * (cpu_seconds(pids) - cpu) / seconds,
            "server_cpu_percent": 100 * (self.server_cpu() - server) / seconds,
        }

    def payload(self) -> dict[str, float]:
        """J: payloads of 1 KB, 100 KB and 5 MB, from the first call to the last task run."""
        self.start()
        figures, at = {}, 0
        for label, length, n in (
            ("1 KB", 1000, 1000),
            ("100 KB", 100_000, 100),
            ("5 MB", 5_000_000, 6),
        ):
            n = max(3, int(n * self.params["scale"]))
            data = "x" * length
            started = time.perf_counter()
            try:
                self.peer.many("size", [(k, data) for k in range(at, at + n)])
                self.until(at, at + n, 30)
            except Exception as error:
                figures[label + " error"] = f"{type(error).__name__}: {error}"[:200]
                break
            figures[label] = n / (time.perf_counter() - started)
            at += n
        return figures

    def crowd(self) -> dict[str, float]:
        """K: the same with idle workers on the queue: registered, beating, their reads blocked."""
        from crowd import Crowd

        with Crowd(self.params["url"], self.params["idle"]):
            return self.backlog()

    def backlog(self) -> dict[str, float]:
        """K: the drain rate over the first tasks of a backlog of n, from the first that ran.

        Waking up is not part of it: a small backlog is drained many times over, and would pay for
        that each time. Only so many marks are looked at as can have been set, or looking at a
        million of them would slow down what is measured.
        """
        n, part, spent, done, at = self.params["n"], self.params["part"], 0.0, 0, 0
        self.start()
        self.find_groups()
        while done < part:
            self.halt()
            self.peer.many("noop", [(at + k,) for k in range(n)])
            seen = min(n, part + 5_000)
            self.resume()
            while not (before := self.marks.count(at, at + seen)):
                time.sleep(0.0002)
            started = time.perf_counter()
            while (ran := self.marks.count(at, at + seen)) < min(n, part) or (
                ran == n and self.unsettled()
            ):
                time.sleep(0.0005)
            spent += time.perf_counter() - started
            done, at = done + ran - before, (at + n) % (SIZE - WARM - n)
            if n < part and at < n:
                self.marks.clear()
        return {"rate": done / spent}


def main() -> None:
    """Measure and print."""
    module, scenario, params = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    os.environ["BENCH_URL"] = params["url"]
    if scenario in ("cpu", "skew"):
        os.environ["BENCH_PROFILE"] = "cpu"
    Bench.peer_module = module
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    bench = Bench(module, params)
    if why := bench.peer.skip.get(scenario):
        print("RESULT " + json.dumps({"skip": why}))
        return
    try:
        bench.peer.open()
        figures = getattr(bench, scenario)()
    finally:
        if scenario != "load":
            bench.resume()
            bench.end()
        bench.marks.remove()
    print("RESULT " + json.dumps(figures), flush=True)
    os._exit(0)  # a peer's own threads must not hold up the next measurement


if __name__ == "__main__":
    main()

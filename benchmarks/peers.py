"""redistq against the field, side by side, on one machine in one run.

Usage: python benchmarks/peers.py [--quick] [--only SCENARIO ...] [--peers PEER ...]

It makes environments of its own in ``.venv-bench`` (one for all peers, one more for each that
excludes the others), starts a server of its own, and runs every scenario in turn, never two at
once: round by round, the peers of a round one after another, in an order that turns. Each
measurement is a process of its own with a fresh worker on an emptied server. What comes out, the
median of all rounds with the least and the greatest, is written to ``benchmarks/results/`` as a
table, JSON and a picture. A peer that cannot run is named there with its error.

Figures of a noisy machine are to be read as ratios within one run. See README.md beside this file
for what each scenario does and what was found.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "tests")]

from peers import COMMON, FANOUT, QUEUES, Entry  # noqa: E402  (the folder of the same name)
from support.servers import Server  # noqa: E402  (beside the tests, in no package)

LIMIT = "bare redis-py"
ROUNDS = 5
TIMEOUT_S = 240
SKIPPED = "not run"


@dataclass(frozen=True)
class Metric:
    """One column: a figure of a scenario, and which way is better."""

    scenario: str
    key: str
    label: str
    digits: int = 0
    lower: bool = False


@dataclass(frozen=True)
class Scenario:
    """What is run for every peer, with the parameters of a full and of a quick run."""

    name: str
    title: str
    full: dict[str, Any]
    quick: dict[str, Any]
    rounds: int = ROUNDS
    only: tuple[str, ...] = ()
    limit: bool = False


SCENARIOS = (
    Scenario("single", "A: enqueue, one call a task", {"n": 5_000}, {"n": 1_000}, limit=True),
    Scenario("bulk", "B: the limit of bulk enqueue", {"n": 20_000}, {"n": 5_000}, only=(LIMIT,)),
    Scenario(
        "drain",
        "B, C, H, L: bulk enqueue, drain with one process, memory, server CPU",
        {"n": 20_000, "cap": 8},
        {"n": 10_000, "cap": 4},
        limit=True,
    ),
    Scenario(
        "drain2", "D: drain with two processes", {"n": 20_000, "cap": 8}, {"n": 10_000, "cap": 4}
    ),
    Scenario("trip", "E: round trip, idle", {"n": 300}, {"n": 100}, limit=True),
    Scenario("loaded", "E: round trip at half load", {"n": 300}, {"n": 60}, rounds=3),
    Scenario("cpu", "F: 20 ms of CPU on two processes", {"n": 200}, {"n": 60}),
    Scenario("skew", "F: one in 50 takes a second", {"n": 200}, {"n": 60}, rounds=3),
    Scenario("burst", "G: delayed, due at once", {"n": 5_000}, {"n": 500}, rounds=3),
    Scenario("spread", "G: delayed, over ten seconds", {"n": 5_000}, {"n": 500}, rounds=3),
    Scenario("idle", "I: an idle worker", {"seconds": 12}, {"seconds": 6}, rounds=3),
    Scenario("payload", "J: payloads", {"scale": 1.0}, {"scale": 0.1}, rounds=3),
    Scenario("backlog", "K: backlogs", {"part": 60_000}, {"part": 5_000}, only=("redistq",)),
    Scenario("crowd", "K: idle workers", {"part": 60_000}, {"part": 5_000}, only=("redistq",)),
    Scenario(
        "fanout",
        "Functions fanned out",
        {"n": 2_000, "tasks": 200},
        {"n": 300, "tasks": 50},
        rounds=3,
    ),
)

METRICS = (
    Metric("single", "rate", "A enqueue/s, one call each"),
    Metric("drain", "bulk", "B bulk enqueue/s"),
    Metric("drain", "rate", "C drain/s, 1 process"),
    Metric("drain2", "rate", "D drain/s, 2 processes"),
    Metric("trip", "p50", "E round trip p50, ms", 2, True),
    Metric("trip", "p99", "E p99, ms", 2, True),
    Metric("loaded", "p50", "E at half load p50, ms", 2, True),
    Metric("loaded", "p99", "E at half load p99, ms", 2, True),
    Metric("cpu", "efficiency", "F efficiency", 3),
    Metric("skew", "efficiency", "F efficiency, skewed", 3),
    Metric("burst", "p50", "G late at once p50, ms", 1, True),
    Metric("burst", "p99", "G late at once p99, ms", 1, True),
    Metric("spread", "p50", "G late spread p50, ms", 1, True),
    Metric("spread", "p99", "G late spread p99, ms", 1, True),
    Metric("drain", "queued_bytes", "H bytes a queued task", 0, True),
    Metric("drain", "finished_bytes", "H bytes a finished task", 0, True),
    Metric("idle", "commands", "I idle commands/s", 1, True),
    Metric("idle", "cpu_percent", "I idle worker CPU, %", 2, True),
    Metric("payload", "1 KB", "J tasks/s of 1 KB"),
    Metric("payload", "100 KB", "J tasks/s of 100 KB"),
    Metric("payload", "5 MB", "J tasks/s of 5 MB", 1),
    Metric("drain", "command_us", "L a task by commandstats, µs", 1, True),
    Metric("drain", "cpu_us", "L server CPU a task, µs", 1, True),
    Metric("drain", "commands", "L commands a task", 1, True),
)
BACKLOGS = (1_000, 10_000, 100_000, 1_000_000)
CROWDS = (1, 4, 16, 64)


# -- environments --------------------------------------------------------------------------------


def newest_python() -> str:
    """The newest interpreter on PATH: two of the peers need one that is newer than redistq does."""
    for minor in (14, 13, 12):
        if found := shutil.which(f"python3.{minor}"):
            return found
    return sys.executable


class Environments:
    """The virtual environments that peers are installed in; made when they are missing."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.python = folder, python
        out = subprocess.run(
            [python, "-c", "import sys; print(*sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        self.version = (int(out[0]), int(out[1]))
        self.errors: dict[str, str] = {}

    def interpreter(self, entry: Entry) -> Path:
        """The interpreter that has a peer."""
        return self.folder / entry.venv / "bin" / "python"

    def _pip(self, venv: str, *packages: str) -> str:
        done = subprocess.run(
            [
                *(self.folder / venv / "bin" / "python", "-m", "pip"),
                *("install", "-q", "--disable-pip-version-check", *packages),
            ],
            capture_output=True,
            text=True,
        )
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return (lines or [done.stderr[-300:]])[-1][:300] if done.returncode else ""

    def install(self, entries: Iterable[Entry]) -> None:
        """Install what is missing; who cannot be installed is remembered with pip's words."""
        for entry in entries:
            if entry.python > self.version:
                need, have = (".".join(map(str, v)) for v in (entry.python, self.version))
                self.errors[entry.key] = (
                    f"needs Python {need} or newer, and {have} is the newest here (--python PATH)"
                )
                continue
            venv = self.folder / entry.venv
            if not (venv / "bin" / "python").exists():
                print(f"making {venv.relative_to(ROOT) if venv.is_relative_to(ROOT) else venv}")
                subprocess.run([self.python, "-m", "venv", str(venv)], check=True)
                (self.folder / ".gitignore").write_text("*\n")
                if error := self._pip(entry.venv, *COMMON):
                    raise SystemExit(f"the benchmark's environment cannot be made: {error}")
                if entry.venv == "main" and (error := self._pip("main", "-e", str(ROOT))):
                    raise SystemExit(f"redistq cannot be installed: {error}")
            stamp = venv / f".{entry.key}"
            if entry.packages and not stamp.exists():
                print(f"installing {', '.join(entry.packages)}", flush=True)
                if error := self._pip(entry.venv, *entry.packages):
                    self.errors[entry.key] = error
                else:
                    stamp.touch()

    def versions(self, entries: Iterable[Entry]) -> dict[str, str]:
        """The installed version of each peer's first package."""
        found = {}
        for entry in entries:
            name = re.split(r"[\[<>=]", (*entry.packages, "redistq")[0])[0]
            if entry.key in self.errors or not self.interpreter(entry).exists():
                continue
            code = f"import importlib.metadata as m; print(m.version({name!r}))"
            done = subprocess.run(
                [self.interpreter(entry), "-c", code], capture_output=True, text=True
            )
            if done.returncode == 0 and entry.label != "concurrent.futures":
                found[entry.label] = done.stdout.strip()
        return found


# -- running -------------------------------------------------------------------------------------


class Run:
    """One run: its server, what was measured so far, and who has failed."""

    def __init__(self, server: Server, envs: Environments, args: argparse.Namespace) -> None:
        self.server, self.envs, self.args = server, envs, args
        self.client = server.client()
        self.data: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self.errors: dict[str, dict[str, str]] = {}
        self.minutes = 0.0  # of the runs before this one, of which results are kept
        self.logs = server.directory / "logs"
        self.logs.mkdir()

    def recall(self, anew: set[str]) -> None:
        """Take up the results of an earlier run, but for the scenarios that are measured anew."""
        path = self.args.out / f"{stem(self.args)}.json"
        if path.exists():
            before = json.loads(path.read_text())
            self.data |= {k: v for k, v in before["figures"].items() if k not in anew}
            self.errors |= {k: v for k, v in before["errors"].items() if k not in anew}
            self.minutes = float(before["about"]["took"].split()[0])

    def rounds(self) -> str:
        """How many rounds were run, and of which scenarios fewer."""
        counts = {s: max(map(len, rows.values())) for s, rows in self.data.items() if rows}
        most = max(counts.values(), default=0)
        fewer = [f"{n} of {s}" for s, n in counts.items() if n < most]
        quick = ", quick" if self.args.quick else ""
        return f"{most}{' (' + ', '.join(fewer) + ')' if fewer else ''}{quick}"

    def median(self, scenario: str, label: str, key: str) -> float | None:
        """The median of what was measured so far."""
        rows = self.data.get(scenario, {}).get(label, [])
        values = [row[key] for row in rows if key in row]
        return statistics.median(values) if values else None

    def parameters(self, scenario: Scenario, label: str) -> dict[str, Any]:
        """A scenario's parameters, fitted to what a peer is known to do: slow ones get less."""
        params = dict(scenario.quick if self.args.quick else scenario.full)
        single = self.median("single", label, "rate") or 2_000.0
        if scenario.name in ("drain", "drain2") and label != LIMIT:
            drained = self.median("drain", label, "rate") or single
            params["n"] = int(min(params["n"], max(1000, 5 * single), max(1000, 6 * drained)))
        if scenario.name == "loaded":
            params["load"] = (self.median("drain", label, "rate") or 1_000.0) / 2
        if scenario.name in ("burst", "spread"):
            params["ahead"] = 1.5 + 2 * params["n"] / single
        return params

    def one(self, command: list[str], params: dict[str, Any], scenario: str, label: str) -> None:
        """One measurement, into ``data``; an error into ``errors``."""
        self.client.flushall()
        self.client.config_resetstat()
        log = self.logs / f"{scenario}-{label}".replace("/", "-").replace(" ", "-")
        params = {**params, "url": self.server.url, "log": str(log)}
        with subprocess.Popen(
            [*command, json.dumps(params)],
            cwd=HERE / "peers",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                out, said = process.communicate(timeout=TIMEOUT_S)
                answer = [x[7:] for x in out.splitlines() if x.startswith("RESULT ")]
            except subprocess.TimeoutExpired:
                process.terminate()  # it ends its worker, which would go on taking a core
                answer, said = [], f"TimeoutError: no end after {TIMEOUT_S} s"
                try:
                    process.communicate(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
        if answer:
            figures = json.loads(answer[0])
            if "skip" in figures:
                self.errors.setdefault(scenario, {})[label] = f"{SKIPPED}: {figures['skip']}"
            else:
                self.data.setdefault(scenario, {}).setdefault(label, []).append(figures)
                shown = {k: v if isinstance(v, str) else round(v, 2) for k, v in figures.items()}
                print(f"  {label:<20} {shown}", flush=True)
            return
        lines = [line for line in said.splitlines() if line.strip()] or ["it said nothing"]
        words = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        error = lines[-1] + (f" (its worker: {words[0].strip()})" if words else "")
        self.errors.setdefault(scenario, {})[label] = error[:300]
        print(f"  {label:<20} {error[:200]}", flush=True)

    def run(self, scenario: Scenario) -> None:
        """All rounds of one scenario."""
        print(f"\n{scenario.title}", flush=True)
        rounds = min(self.args.rounds, scenario.rounds)
        for turn in range(rounds):
            for entry, params, name in self._turns(scenario, turn):
                if entry.label in self.errors.get(scenario.name, {}):
                    continue
                if entry.key in self.envs.errors:
                    self.errors.setdefault(scenario.name, {})[entry.label] = self.envs.errors[
                        entry.key
                    ]
                    continue
                python = str(self.envs.interpreter(entry))
                if entry.label == LIMIT:
                    command = [python, "limits.py", scenario.name]
                elif scenario.name == "fanout":
                    command = [python, "fanout.py", entry.key]
                else:
                    command = [python, "measure.py", f"peer_{entry.key}", scenario.name]
                self.one(command, params, scenario.name, name)

    def _turns(self, scenario: Scenario, turn: int) -> list[tuple[Entry, dict[str, Any], str]]:
        def wanted(entry: Entry) -> bool:
            return not self.args.peers or entry.key in self.args.peers or entry.label == LIMIT

        if scenario.name in ("backlog", "crowd"):
            entry, base = QUEUES[0], self.parameters(scenario, "redistq")
            if scenario.name == "backlog":
                sizes = BACKLOGS[:3] if self.args.quick else BACKLOGS
                turns = [({**base, "n": n}, f"backlog of {n:,}") for n in sizes]
            else:
                turns = [
                    ({**base, "n": 60_000, "idle": n}, f"{n} idle worker{'s' if n > 1 else ''}")
                    for n in CROWDS
                ]
            if self.args.peers and "redistq" not in self.args.peers:
                turns = []
            picked = [(entry, params, name) for params, name in turns]
        else:
            entries = [e for e in (FANOUT if scenario.name == "fanout" else QUEUES) if wanted(e)]
            if scenario.limit:
                entries.append(Entry("limits", LIMIT))
            if scenario.only:
                entries = [Entry("limits", LIMIT)]
            picked = [(e, self.parameters(scenario, e.label), e.label) for e in entries]
        turn %= max(len(picked), 1)
        return picked[turn:] + picked[:turn]


def redis_benchmark(server: Server) -> dict[str, float]:
    """What the server's own tool reaches with one connection and with 50 (empty: not installed)."""
    tool = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    found: dict[str, float] = {}
    for clients in (1, 50) if tool else ():
        done = subprocess.run(
            [
                *(str(tool), "-h", "127.0.0.1", "-p", str(server.port), "-c", str(clients)),
                *("-n", "50000", "-q", "XADD", "bench", "*", "id", "x" * 20, "payload", "1"),
            ],
            capture_output=True,
            text=True,
        )
        rates = re.findall(r"([\d.]+) requests per second", done.stdout)
        if rates:
            found[f"redis-benchmark XADD/s, {clients} connection{'s' * (clients > 1)}"] = float(
                rates[-1]
            )
    return found


# -- writing -------------------------------------------------------------------------------------


def spread(run: Run, metric: Metric, label: str) -> str:
    """A cell of the table: the median, and in brackets the least and the greatest."""
    rows = run.data.get(metric.scenario, {}).get(label, [])
    values = [row[metric.key] for row in rows if metric.key in row]
    if not values:
        error = run.errors.get(metric.scenario, {}).get(label, SKIPPED)
        return "–" if error.startswith(SKIPPED) else "error"

    def show(value: float) -> str:
        return f"{value:,.{metric.digits}f}"

    low, high = min(values), max(values)
    text = show(statistics.median(values))
    return text if len(values) == 1 else f"{text} ({show(low)}–{show(high)})"


def targets(run: Run) -> list[tuple[str, str, str, bool | None]]:
    """The issue's targets: name, what is wanted, what was measured, and whether it is met."""
    me, m = "redistq", run.median
    peers = [e.label for e in QUEUES[2:]]

    def best(scenario: str, key: str, lower: bool = False) -> tuple[float | None, str]:
        found = [(v, p) for p in peers if (v := m(scenario, p, key)) is not None]
        return (min(found) if lower else max(found)) if found else (None, "")

    rows: list[tuple[str, str, str, bool | None]] = []

    def ratio(
        name: str, mine: float | None, other: float | None, limit: float, most: bool, whose: str
    ) -> None:
        wanted = f"{'≤' if most else '≥'} {limit:g} × {whose or 'the best peer'}"
        if mine is None or not other:
            rows.append((name, wanted, "not measured", None))
            return
        value = mine / other
        rows.append((name, wanted, f"{value:.2f}", value <= limit if most else value >= limit))

    def plain(name: str, value: float | None, limit: float, most: bool, unit: str) -> None:
        wanted = f"{'≤' if most else '≥'} {limit:g}{unit}"
        met = None if value is None else (value <= limit if most else value >= limit)
        rows.append((name, wanted, "not measured" if value is None else f"{value:.3g}{unit}", met))

    ratio(
        "A single-call enqueue",
        m("single", me, "rate"),
        m("single", LIMIT, "rate"),
        0.9,
        False,
        "bare EVALSHA",
    )
    for scenario, key, name, limit, most in (
        ("single", "rate", "A single-call enqueue", 1.0, False),
        ("drain", "bulk", "B bulk enqueue", 1.8, False),
        ("drain", "rate", "C drain, one process", 2.5, False),
        ("drain2", "rate", "D drain, two processes", 2.5, False),
        ("trip", "p50", "E round trip p50", 0.6, True),
        ("drain", "queued_bytes", "H queued bytes", 0.7, True),
    ):
        other, whose = best(scenario, key, most)
        ratio(name, m(scenario, me, key), other, limit, most, whose)
    ratio(
        "E round trip p50",
        m("trip", me, "p50"),
        m("trip", LIMIT, "p50"),
        1.5,
        True,
        "bare round trip",
    )
    plain("F efficiency", m("cpu", me, "efficiency"), 0.97, False, "")
    late, rate = m("burst", me, "p99"), m("drain", me, "rate")
    n = (SCENARIO["burst"].quick if run.args.quick else SCENARIO["burst"].full)["n"]
    above = None if late is None or not rate else late - 1e3 * 0.99 * n / rate
    plain("G p99 at once, above the drain limit", above, 10, True, " ms")
    plain("G p99 spread", m("spread", me, "p99"), 10, True, " ms")
    plain("H queued bytes", m("drain", me, "queued_bytes"), 200, True, " B")
    plain("I idle commands", m("idle", me, "commands"), 1, True, "/s")
    plain("L a task by commandstats", m("drain", me, "command_us"), 18, True, " µs")
    for scenario, name in (("backlog", "K flat over backlogs"), ("crowd", "K flat over idle")):
        rates = [v for x in run.data.get(scenario, {}) if (v := m(scenario, x, "rate"))]
        flat = min(rates) / max(rates) if rates else None
        plain(name + ", least / greatest", flat, 0.9, False, "")
    return rows


SCENARIO = {s.name: s for s in SCENARIOS}


def table(run: Run, about: dict[str, Any]) -> str:
    """All of it as Markdown."""
    lines = ["# Against the field", ""]
    lines += [f"- {name}: {value}" for name, value in about.items() if name != "limits"]
    lines += [f"- {name}: {value:,.0f}" for name, value in about["limits"].items()]
    lines += ["", "Medians, with the least and the greatest of all rounds.", ""]
    labels = [e.label for e in QUEUES] + [LIMIT]
    if run.args.peers:
        labels = [e.label for e in QUEUES if e.key in run.args.peers] + [LIMIT]
    groups: dict[str, list[Metric]] = {}
    for metric in METRICS:
        groups.setdefault(metric.label[0], []).append(metric)
    for letters in ("ABCD", "EF", "GI", "HL", "J"):
        metrics = [x for letter in letters for x in groups[letter]]
        shown = [x for x in metrics if run.data.get(x.scenario)]
        if not shown:
            continue
        lines.append("| | " + " | ".join(x.label for x in shown) + " |")
        lines.append("|---|" + "---:|" * len(shown))
        for label in labels:
            cells = [spread(run, metric, label) for metric in shown]
            if label != LIMIT or any(cell != "–" for cell in cells):
                lines.append(f"| {label} | " + " | ".join(cells) + " |")
        lines.append("")
    for scenario in ("backlog", "crowd"):
        if rows := run.data.get(scenario):
            lines += [f"| {SCENARIO[scenario].title} | drain/s |", "|---|---:|"]
            metric = Metric(scenario, "rate", "")
            lines += [f"| {label} | {spread(run, metric, label)} |" for label in rows]
            lines.append("")
    if run.data.get("fanout") or run.errors.get("fanout"):
        keys = (("rate", "no-op calls/s", 0), ("efficiency", "efficiency, 20 ms", 3))
        keys += (("skewed", "efficiency, skewed", 3),)
        lines.append("| Fan-out to two processes | " + " | ".join(k[1] for k in keys) + " |")
        lines.append("|---|" + "---:|" * len(keys))
        for entry in FANOUT:
            cells = [spread(run, Metric("fanout", k, "", d), entry.label) for k, _, d in keys]
            lines.append(f"| {entry.label} | " + " | ".join(cells) + " |")
        lines.append("")
    if any(met is not None for *_, met in targets(run)):
        lines += ["| Target | wanted | measured | |", "|---|---|---:|---|"]
        for name, wanted, measured, met in targets(run):
            mark = "" if met is None else "met" if met else "**missed**"
            lines.append(f"| {name} | {wanted} | {measured} | {mark} |")
        lines.append("")
    failed = sorted((p, s, e) for s, errors in run.errors.items() for p, e in errors.items())
    if failed:
        lines += ["What could not be run:", ""]
        lines += [f"- {peer}, {name}: {error}" for peer, name, error in failed]
        lines.append("")
    return "\n".join(lines)


def picture(run: Run, path: Path, about: dict[str, Any]) -> None:
    """The figures that matter most as bars, redistq's own in another colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wanted = [
        Metric("single", "rate", "Enqueue, one call each (tasks/s)"),
        Metric("drain", "bulk", "Bulk enqueue (tasks/s)"),
        Metric("drain", "rate", "Drain, one process (tasks/s)"),
        Metric("drain2", "rate", "Drain, two processes (tasks/s)"),
        Metric("trip", "p50", "Round trip p50 (ms, less is better)", 2, True),
        Metric("drain", "cpu_us", "Server CPU a task (µs, less is better)", 0, True),
    ]
    wanted = [metric for metric in wanted if run.data.get(metric.scenario)]
    if not wanted:
        return
    rows = (len(wanted) + 1) // 2
    figure = Figure(figsize=(11, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for at, metric in enumerate(wanted):
        axes = figure.add_subplot(rows, 2, at + 1)
        found = []
        for entry in QUEUES:
            values = [
                row[metric.key]
                for row in run.data[metric.scenario].get(entry.label, [])
                if metric.key in row
            ]
            if values:
                middle = statistics.median(values)
                found.append((middle, middle - min(values), max(values) - middle, entry.label))
        found.sort(reverse=metric.lower)
        names = [x[3] for x in found]
        colours = ["#c0392b" if name.startswith("redistq") else "#7f8c8d" for name in names]
        axes.barh(names, [x[0] for x in found], color=colours)
        axes.errorbar(
            [x[0] for x in found],
            names,
            xerr=[[x[1] for x in found], [x[2] for x in found]],
            fmt="none",
            ecolor="black",
            capsize=2,
        )
        for value, _, above, name in found:
            axes.annotate(
                f" {value:,.{metric.digits}f}",
                (value + above, name),
                va="center",
                fontsize=8,
            )
        axes.set_title(metric.label, fontsize=10)
        axes.margins(x=0.18)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.suptitle(f"{about['machine']}, {about['server']}, {about['date']}", fontsize=9)
    figure.savefig(path, dpi=120)


def machine() -> str:
    """Cores and the processor's name."""
    name = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
        if found := re.search(r"model name\s*:\s*(.+)", text):
            name = found[1]
    except OSError:
        pass
    return f"{os.cpu_count()} cores, {name}, {platform.system()}"


def stem(args: argparse.Namespace) -> str:
    """The name of the files of results, without its ending."""
    return "peers-quick" if args.quick else "peers"


def write(run: Run, about: dict[str, Any]) -> str:
    """Table, JSON and picture of what was measured so far; answers the table."""
    out, name = run.args.out, stem(run.args)
    out.mkdir(parents=True, exist_ok=True)
    text, found = table(run, about), targets(run)
    whole = {"about": about, "figures": run.data, "errors": run.errors, "targets": found}
    (out / f"{name}.md").write_text(text + "\n")
    (out / f"{name}.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    picture(run, out / f"{name}.png", about)
    return text


def main() -> None:
    """Install, run, write."""
    keys = [entry.key for entry in QUEUES]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, three rounds")
    parser.add_argument("--rounds", type=int, help=f"rounds ({ROUNDS}; 3 when quick)")
    parser.add_argument("--only", nargs="*", choices=list(SCENARIO), help="these scenarios")
    parser.add_argument("--peers", nargs="*", metavar="PEER", help=" ".join(keys))
    parser.add_argument("--server", default="valkey", choices=["valkey", "redis7", "redis62"])
    parser.add_argument("--python", default=newest_python(), help="the peers' interpreter")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-bench")
    parser.add_argument(
        "--keep", action="store_true", help="keep the other scenarios of the results there are"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else ROUNDS)
    for key in args.peers or ():
        if key not in {e.key for e in (*QUEUES, *FANOUT)}:
            parser.error(f"there is no peer {key!r}; the peers are {', '.join(keys)}")
    chosen = [s for s in SCENARIOS if not args.only or s.name in args.only]
    wanted = [
        e for e in (*QUEUES, *FANOUT) if not args.peers or e.key in args.peers or e.key == "redistq"
    ]
    envs = Environments(args.venv, args.python)
    envs.install(wanted)
    started = time.time()
    with Server(args.server) as server:
        about: dict[str, Any] = {
            "machine": machine(),
            "server": f"{args.server} {server.version}, over TCP on this machine, nothing on disk",
            "python": ".".join(map(str, envs.version)),
            "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
            "versions": ", ".join(f"{k} {v}" for k, v in envs.versions(wanted).items()),
            "rounds": "",
            "limits": redis_benchmark(server),
        }
        run = Run(server, envs, args)
        if args.keep:
            run.recall({scenario.name for scenario in chosen})
        try:
            for scenario in chosen:
                run.run(scenario)
                about["rounds"] = run.rounds()
                minutes = run.minutes + (time.time() - started) / 60
                about["took"] = f"{minutes:.0f} minutes"
                text = write(run, about)  # a run that is cut off leaves what it has
        except KeyboardInterrupt:
            print("interrupted: what was finished is written")
        else:
            print("\n" + text)


if __name__ == "__main__":
    main()

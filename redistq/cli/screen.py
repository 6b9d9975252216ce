"""The live screen of ``redistq monitor dashboard``: a queue in a terminal, a few times a second.

One call to the server a picture. Keys: q quit, p pause or resume, r send dead letters again (asks
first), P pause or resume the limit key or schedule aimed at, n run the schedule now, arrows move,
Tab changes the list, Enter shows a task, a limit or a schedule, Esc goes back. Where output is no
terminal it prints one picture. The terminal is put back however the screen ends.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..dashboard.feed import Feed, View
from ..dashboard.words import alerts, rate_now, rates, why_waiting
from ..display.text import clean, clock, duration, one_line, plural
from ..errors import RedistqError
from ..monitor.monitor import TaskMonitor
from ..monitor.tick import Tick, workers_of
from ..system.interpreter import require
from .details import describe
from .rows import row_line
from .tables import console as console_for
from .terminal import Keys, Line, columns, drawn, figures, fit, spark

EVENTS_KEPT = 200
DEAD_KEPT = 50
RUNNING_KEPT = 64
LIMITS_KEPT = 30
NOTICE_S = 4.0
HEADINGS = {
    "running": "In hand",
    "limits": "Limits",
    "schedules": "Schedules",
    "recent": "Recent",
    "dead": "Dead letters",
}
LISTS = ("running", "limits", "schedules", "recent", "dead")
OPTIONAL = ("limits", "schedules")
"""Lists that are there once there is something in them."""
HELP = "q quit  p pause/resume  r retry dead  ↑↓ move  Tab list  Enter show"
HELPS = {
    "limits": "q quit  p pause queue  P pause/resume key  ↑↓ move  Tab list  Enter show",
    "schedules": "q quit  P pause/resume schedule  n run now  ↑↓ move  Tab list  Enter show",
}


def feed_of(monitor: TaskMonitor) -> Feed:
    """Return a feed of a queue that holds what the screen shows."""
    return Feed(
        monitor,
        recent=EVENTS_KEPT,
        fresh_s=0.0,  # a key changes the picture at once
        events=EVENTS_KEPT,
        dead=DEAD_KEPT,
        running=RUNNING_KEPT,
        batches=1,
        limits=LIMITS_KEPT,
        schedules=LIMITS_KEPT,
    )


@dataclass(slots=True)
class Screen:
    """Where the reader of a feed is; ``press`` takes a key, ``lines`` draws the picture."""

    feed: Feed
    focus: str = "recent"
    at: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LISTS, 0))
    asking: str = ""
    notice: str = ""
    notice_until: float = 0.0
    detail: list[str] | None = None
    detail_at: int = 0
    ended: bool = False

    @property
    def tick(self) -> Tick | None:
        """The last tick, if there was one."""
        return self.feed.tick

    @property
    def monitor(self) -> TaskMonitor:
        """The monitor of the queue."""
        return self.feed.monitor

    def rows(self, name: str) -> list[Any]:
        """Return what one of the lists shows."""
        if self.tick is None:
            return []
        if name == "running":
            return list(self.tick.running)
        if name == "limits":
            return [limit for limit in self.tick.limits if limit.has_rule or limit.waiting]
        if name == "schedules":
            return list(self.tick.schedules)
        return list(self.feed.recent) if name == "recent" else list(self.tick.dead)

    # -- keys ------------------------------------------------------------------------------------

    def press(self, key: str) -> None:
        """Do what a key stands for."""
        if self.asking:
            self._answer(key)
        elif self.detail is not None:
            self._in_detail(key)
        elif key == "q":
            self.ended = True
        elif key == "p":
            self._pause()
        elif key == "P" and self.focus == "limits":
            self._pause_key()
        elif key in ("P", "n") and self.focus == "schedules":
            self._change_schedule(key)
        elif key == "r":
            dead = self.tick.snapshot.dead if self.tick else 0
            if dead:
                self.asking = f"Send {plural(dead, 'dead letter')} again? y / n"
            else:
                self.say("there are no dead letters")
        elif key in ("tab", "right"):
            self._turn(1)
        elif key in ("backtab", "left"):
            self._turn(-1)
        elif key == "enter":
            self._show()
        else:
            last = max(0, len(self.rows(self.focus)) - 1)
            self.at[self.focus] = _moved(self.at[self.focus], key, last)

    def _turn(self, step: int) -> None:
        """Go to the next list; limits are one only where there are some."""
        lists = [name for name in LISTS if name not in OPTIONAL or self.rows(name)]
        at = lists.index(self.focus) if self.focus in lists else 0
        self.focus = lists[(at + step) % len(lists)]

    def _answer(self, key: str) -> None:
        self.asking = ""
        if key in ("y", "Y"):
            with self._trying():
                self.say(f"{plural(self.monitor.replay(), 'task')} sent again")
                self.feed.refresh()
        else:
            self.say("nothing was sent")

    def _pause(self) -> None:
        with self._trying():
            if self.tick is not None and self.tick.paused:
                self.monitor.resume()
                self.say("resumed")
            else:
                self.monitor.pause()
                self.say("paused: running tasks finish, no other is started")
            self.feed.refresh()

    def _pause_key(self) -> None:
        limits = self.rows("limits")
        if not limits:
            return
        limit = limits[min(self.at["limits"], len(limits) - 1)]
        with self._trying():
            if limit.paused:
                self.monitor.producer.limits.resume(limit.key)
            else:
                self.monitor.producer.limits.pause(limit.key)
            self.say(f"{clean(limit.key)} is {'resumed' if limit.paused else 'paused'}")
            self.feed.refresh()

    def _change_schedule(self, key: str) -> None:
        rows = self.rows("schedules")
        if not rows:
            return
        schedule = rows[min(self.at["schedules"], len(rows) - 1)].schedule
        schedules = self.monitor.producer.schedules
        with self._trying():
            if key == "n":
                self.say(f"{clean(schedules.run_now(schedule.name))} is there")
            else:
                change = schedules.resume if schedule.paused else schedules.pause
                change(schedule.name)
                done = "resumed" if schedule.paused else "paused"
                self.say(f"{clean(schedule.name)} is {done}")
            self.feed.refresh()

    def _show(self) -> None:
        rows = self.rows(self.focus)
        if not rows:
            return
        row = rows[min(self.at[self.focus], len(rows) - 1)]
        with self._trying():
            self.detail = describe(self.monitor, row, self.tick.now_ms if self.tick else 0)
            self.detail_at = 0

    def _in_detail(self, key: str) -> None:
        assert self.detail is not None
        if key in ("escape", "enter", "q", "left"):
            self.detail = None
        else:
            self.detail_at = _moved(self.detail_at, key, max(0, len(self.detail) - 1))

    def say(self, words: str) -> None:
        """Show words in the last line for a few seconds."""
        self.notice = words
        self.notice_until = time.monotonic() + NOTICE_S

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except RedistqError as error:
            self.say(one_line(str(error)))

    # -- the picture -----------------------------------------------------------------------------

    def lines(self, width: int, height: int, *, live: bool = True) -> list[Line]:
        """Return the picture: ``height`` lines at most, cut to their width when they are drawn."""
        found = self._head(width)
        foot = [self._foot()] if live else []
        room = max(0, height - len(found) - len(foot))
        if self.detail is not None:
            found += [[(line, "")] for line in self.detail[self.detail_at :][:room]]
        elif self.tick is not None:
            found += self._body(width, room, live)
        if live:
            found = found[: height - 1] + [[]] * (height - 1 - len(found))
        return (found + foot)[:height]

    def _head(self, width: int) -> list[Line]:
        tick = self.tick
        title = f" {clean(self.monitor.queue)} · {clean(self.monitor.url, 200)} "
        when = f" {clock(tick.now_ms)} UTC " if tick else " "
        room = max(0, width - len(when))
        lines: list[Line] = [[(fit(title, room) + when, "reverse bold")]]
        trouble = one_line(self.feed.trouble)
        problem = f"{clean(trouble, 300)} (asking again)" if trouble else ""
        view = View(queue=self.monitor.queue, url=self.monitor.url, tick=tick, problem=problem)
        sentences = [sentence for _, sentence in alerts(view)]
        if not sentences and tick is not None:
            sentences = [f"● {tick.health[1]}"]
        lines += [[(sentence, "bold")] for sentence in sentences[:2]]
        if tick is None:
            return lines
        shot = tick.snapshot
        age = 0 if shot.oldest_ms is None else shot.now_ms - shot.oldest_ms
        now = [
            ("queued", shot.ready),
            ("running", tick.running_count),
            ("delayed", shot.delayed),
            ("waiting", shot.waiting),
            ("dead", shot.dead),
            ("workers", len(tick.workers)),
        ]
        totals = [(s, tick.count(s)) for s in ("succeeded", "failed", "retried", "recovered")]
        lines.append(figures(now))
        lines.append(figures(totals) + ([(f"  oldest {duration(age)}", "dim")] if age else []))
        trail = list(self.feed.trail)
        if len(trail) > 1:
            span = max(10, min(60, (width - 36) // 2))
            speeds = [speed for _, speed in rates(trail)]
            depths = [float(point.depth) for point in trail]
            lines.append(
                [
                    (f"{rate_now(trail):>9,.1f}/s ", "bold"),
                    (spark(speeds, span), "green"),
                    ("  queued ", "bold"),
                    (spark(depths, span), "cyan"),
                ]
            )
        return lines

    def _foot(self) -> Line:
        if self.asking:
            return [(f" {self.asking} ", "reverse bold")]
        if self.notice and time.monotonic() < self.notice_until:
            return [(f" {clean(self.notice, 300)} ", "reverse")]
        if self.detail is not None:
            return [("Esc back  ↑↓ move", "dim")]
        return [(HELPS.get(self.focus, HELP), "dim")]

    def _body(self, width: int, room: int, live: bool) -> list[Line]:
        assert self.tick is not None
        workers = workers_of(self.tick)
        lines: list[Line] = []
        if workers:
            most = max(1, min(len(workers), room // 5))
            lines.append([(f"Workers ({len(workers)})", "bold")])
            for worker in workers[:most]:
                since = worker.task_since_ms
                doing = f"{worker.task} {duration(self.tick.now_ms - since)}" if since else ""
                lines.append(
                    columns(
                        width,
                        (f"  {worker.name}", 24, ""),
                        (worker.state, 7, "red" if worker.state == "silent" else ""),
                        (f"{worker.running}/{worker.threads}", 7, ""),
                        (doing, 0, ""),
                    )
                )
            if len(workers) > most:
                lines.append([(f"  and {len(workers) - most} more", "dim")])
        shares = self._shares(room - len(lines))
        for name in LISTS:
            lines += self._list(name, width, shares[name], live)
        return lines

    def _shares(self, room: int) -> dict[str, int]:
        """Return how many lines each list gets: its heading and what it needs, then the rest."""
        needs = {name: len(self.rows(name)) + 1 for name in LISTS}
        for name in OPTIONAL:
            if needs[name] == 1:
                needs[name] = 0  # a queue without limits is not told of them
        shares = {name: min(needs[name], max(2, room // 5)) for name in LISTS}
        for name in (self.focus, "recent", "dead", "running", "limits", "schedules"):
            left = room - sum(shares.values())
            shares[name] += max(0, min(left, needs[name] - shares[name]))
        return shares

    def _list(self, name: str, width: int, share: int, live: bool) -> list[Line]:
        rows = self.rows(name)
        focused = live and name == self.focus
        if share < 1:
            return []
        assert self.tick is not None
        total = {"running": self.tick.snapshot.pending, "dead": self.tick.snapshot.dead}
        count = total.get(name, len(rows))
        heading = HEADINGS[name]
        if name == "limits" and (why := why_waiting(self.tick)):
            heading += f": waiting {why} "
        style = "reverse" if focused else "bold"
        lines: list[Line] = [[(f"{heading} ({count:,})", style)]]
        at = self.at[name] = min(self.at[name], max(0, len(rows) - 1))
        first = max(0, min(at - (share - 1) // 2, len(rows) - (share - 1)))
        for i, row in enumerate(rows[first : first + share - 1], first):
            mark = "▸ " if focused and i == at else "  "
            line = row_line(name, row, mark, width, self.tick.now_ms)
            lines.append([(text, f"{s} reverse") for text, s in line] if mark != "  " else line)
        return lines


def _moved(at: int, key: str, last: int) -> int:
    step = {"up": -1, "down": 1, "pageup": -10, "pagedown": 10, "home": -last, "end": last}
    return max(0, min(last, at + step.get(key, 0)))


def run(monitor: TaskMonitor, *, interval: float = 0.35) -> int:
    """Show the queue until q (0) or a signal (130, 143); piped, one picture."""
    console = console_for("the live screen")
    screen = Screen(feed_of(monitor))
    screen.feed.ask()  # without a first answer there is no screen
    if not console.is_terminal or console.is_dumb_terminal:
        console.print(drawn(screen.lines(console.width, 60, live=False), console.width))
        return 0
    return _live(screen, console, max(0.1, interval))


class _Ended(Exception):
    def __init__(self, signal_number: int) -> None:
        self.number = signal_number


def _live(screen: Screen, console: Any, interval: float) -> int:
    live_module = require("rich.live", "cli", "the live screen")
    before = {}

    def on_signal(number: int, _: Any) -> None:
        raise _Ended(number)

    try:
        # Suspending would leave the shell in the live screen's terminal: q is the way out.
        actions: dict[str, Any] = {
            "SIGTERM": on_signal,
            "SIGHUP": on_signal,
            "SIGTSTP": signal.SIG_IGN,
        }
        for name, action in actions.items():
            if hasattr(signal, name):
                number = getattr(signal, name)
                before[number] = signal.signal(number, action)
        with (
            Keys() as keys,
            live_module.Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            _loop(screen, console, live, keys, interval)
        return 0
    except _Ended as ended:
        return 128 + ended.number
    except KeyboardInterrupt:
        return 130
    except EOFError:
        return 0  # the terminal is gone
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _loop(screen: Screen, console: Any, live: Any, keys: Keys, interval: float) -> None:
    while not screen.ended:
        screen.feed.refresh()
        until = time.monotonic() + interval
        while True:
            width, height = console.size
            live.update(drawn(screen.lines(width, height), width), refresh=True)
            left = until - time.monotonic()
            if screen.ended or left <= 0:
                break
            key = keys.read(left)
            if key is None:
                break
            screen.press(key)

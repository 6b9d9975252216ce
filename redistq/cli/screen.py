"""The live screen of ``redistq monitor dashboard``: a queue in a terminal, a few times a second.

One call to the server a picture. Keys: q quit, p pause or resume, r send dead letters again (asks
first), R only those of the batch, group or task aimed at, c cancel what of the batch has not
started, P pause or resume the limit key or schedule aimed at, n run the schedule now, arrows move,
Tab changes the list, Enter shows a task, a batch, a limit or a schedule and opens a group of dead
letters, Esc goes back. The row that was aimed at is kept while others come in; Home goes to the
newest, and stays with the newest. Where output is no terminal it prints one picture. The terminal
is put back however the screen ends.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..dashboard.actions import Actions
from ..dashboard.feed import Feed, View
from ..display.text import clean, one_line
from ..errors import RedistqError
from ..monitor.monitor import TaskMonitor
from ..monitor.tick import Tick
from ..system.interpreter import require
from . import picture
from .details import describe
from .lists import LISTS, OPTIONAL, Cursor, GroupRow, LetterRow, moved, rows_of
from .tables import console as console_for
from .terminal import Keys, Line, drawn

EVENTS_KEPT = 200
DEAD_KEPT = 10
RUNNING_KEPT = 64
BATCHES_KEPT = 20
LIMITS_KEPT = 30
NOTICE_S = 4.0
HELP = "q quit  p pause/resume  r retry dead  ↑↓ move  Tab list  Enter show"
HELPS = {
    "batches": "q quit  R retry its failed  c cancel the rest  ↑↓ move  Tab list  Enter show",
    "limits": "q quit  p pause queue  P pause/resume key  ↑↓ move  Tab list  Enter show",
    "schedules": "q quit  P pause/resume schedule  n run now  ↑↓ move  Tab list  Enter show",
    "dead": "q quit  r retry all  R retry this  ↑↓ move  Tab list  Enter open",
}


def feed_of(monitor: TaskMonitor) -> Feed:
    """Return a feed of a queue that holds what the screen shows."""
    return Feed(
        monitor,
        recent=EVENTS_KEPT,
        fresh_s=0.0,  # a key changes the picture at once
        deep=True,
        events=EVENTS_KEPT,
        dead=DEAD_KEPT,
        running=RUNNING_KEPT,
        batches=BATCHES_KEPT,
        limits=LIMITS_KEPT,
        schedules=LIMITS_KEPT,
    )


class Shown(Protocol):
    """What ``show`` shows: it asks the server, takes keys and draws itself."""

    ended: bool

    def refresh(self) -> None: ...
    def press(self, key: str) -> None: ...
    def lines(self, width: int, height: int, *, live: bool = True) -> list[Line]: ...


@dataclass(slots=True)
class Screen:
    """Where the reader of a feed is; ``press`` takes a key, ``lines`` draws the picture.

    ``unknown`` says that there is no such queue; ``within`` an overview of several, Esc leaves it.
    """

    feed: Feed
    unknown: str = ""
    within: bool = False
    focus: str = "recent"
    cursors: dict[str, Cursor] = field(default_factory=lambda: {name: Cursor() for name in LISTS})
    opened: set[str] = field(default_factory=set)
    asking: str = ""
    wanted: str = ""
    notice: str = ""
    notice_until: float = 0.0
    detail: list[str] | None = None
    detail_at: int = 0
    ended: bool = False
    left: bool = False

    @property
    def tick(self) -> Tick | None:
        """The last tick, if there was one."""
        return self.feed.tick

    @property
    def monitor(self) -> TaskMonitor:
        """The monitor of the queue."""
        return self.feed.monitor

    def refresh(self) -> None:
        """Ask the server for what is new."""
        self.feed.refresh()
        if self.unknown and self.tick is not None and self.tick.workers + self.tick.events:
            self.unknown = ""

    def _rows(self, view: View | None = None) -> dict[str, list[Any]]:
        return rows_of(view or self.feed.view(), self.feed.recent, self.opened)

    def _aimed(self) -> Any:
        """Return the row that is aimed at; None where there is none."""
        rows = self._rows()[self.focus]
        return rows[self.cursors[self.focus].place(rows)] if rows else None

    # -- keys ------------------------------------------------------------------------------------

    def press(self, key: str) -> None:
        """Do what a key stands for."""
        if self.asking:
            self._answer(key)
        elif self.detail is not None:
            self._in_detail(key)
        elif key == "q":
            self.ended = True
        elif key == "escape":
            self.left = self.within
        elif key == "p":
            self._pause()
        elif key == "P" and self.focus == "limits":
            self._pause_key()
        elif key in ("P", "n") and self.focus == "schedules":
            self._change_schedule(key)
        elif key == "r":
            self._ask_for("retry" if self.tick and self.tick.snapshot.dead else "")
        elif key in ("R", "c") and self.focus in ("batches", "dead"):
            self._ask_for(self._wish(key))
        elif key in ("tab", "right"):
            self._turn(1)
        elif key in ("backtab", "left"):
            self._turn(-1)
        elif key == "enter":
            self._show()
        else:
            self.cursors[self.focus].move(key, self._rows()[self.focus])

    def _turn(self, step: int) -> None:
        """Go to the next list that is there, and keep to the row that is aimed at in it."""
        rows = self._rows()
        lists = [name for name in LISTS if name not in OPTIONAL or rows[name]]
        at = lists.index(self.focus) if self.focus in lists else 0
        self.focus = lists[(at + step) % len(lists)]
        self.cursors[self.focus].pin(rows[self.focus])

    def _wish(self, key: str) -> str:
        """Return the action that a key asks for, of the row aimed at."""
        row = self._aimed()
        if self.focus == "batches" and row is not None:
            if key == "c":
                return f"batch-cancel {row.id}" if row.waiting else ""
            return f"batch-retry {row.id}" if row.failed else ""
        if key == "c":
            return ""
        if isinstance(row, GroupRow):
            return f"group-retry {row.key}"
        return f"task-retry {row.letter.id}" if isinstance(row, LetterRow) else ""

    def _ask_for(self, wish: str) -> None:
        if not wish:
            in_batches = self.focus == "batches"
            self.say(
                "nothing of it to send or cancel" if in_batches else "there are no dead letters"
            )
            return
        verb, _, name = wish.partition(" ")
        question = f"Send {name} to the workers again?"
        if verb != "task-retry":
            question = one_line(Actions(self.feed).question(wish)[0])
        self.wanted = wish
        self.asking = f"{question} y / n"

    def _answer(self, key: str) -> None:
        self.asking = ""
        if key not in ("y", "Y"):
            self.say("nothing was changed")
            return
        actions = Actions(self.feed)
        verb, _, name = self.wanted.partition(" ")
        doing = actions.start(self.wanted)
        if verb == "task-retry":
            doing = actions.of_task(verb, name, "", lambda _: None)
        assert doing is not None
        with self._trying():
            while True:
                try:
                    next(doing)
                except StopIteration as done:
                    self.say(done.value)
                    break
            self._changed()

    def _changed(self) -> None:
        """Look again: something was just changed."""
        self.feed.forget_age()
        self.feed.refresh()

    def _pause(self) -> None:
        with self._trying():
            if self.tick is not None and self.tick.paused:
                self.monitor.resume()
                self.say("resumed")
            else:
                self.monitor.pause()
                self.say("paused: running tasks finish, no other is started")
            self._changed()

    def _pause_key(self) -> None:
        limit = self._aimed()
        if limit is None:
            return
        with self._trying():
            if limit.paused:
                self.monitor.producer.limits.resume(limit.key)
            else:
                self.monitor.producer.limits.pause(limit.key)
            self.say(f"{clean(limit.key)} is {'resumed' if limit.paused else 'paused'}")
            self._changed()

    def _change_schedule(self, key: str) -> None:
        row = self._aimed()
        if row is None:
            return
        schedule = row.schedule
        schedules = self.monitor.producer.schedules
        with self._trying():
            if key == "n":
                self.say(f"{clean(schedules.run_now(schedule.name))} is there")
            else:
                change = schedules.resume if schedule.paused else schedules.pause
                change(schedule.name)
                done = "resumed" if schedule.paused else "paused"
                self.say(f"{clean(schedule.name)} is {done}")
            self._changed()

    def _show(self) -> None:
        row = self._aimed()
        if row is None:
            return
        self.cursors[self.focus].pin(self._rows()[self.focus])
        if isinstance(row, GroupRow):
            self.opened ^= {row.key}
            return
        with self._trying():
            self.detail = describe(self.monitor, row, self.feed.view())
            self.detail_at = 0

    def _in_detail(self, key: str) -> None:
        assert self.detail is not None
        if key in ("escape", "enter", "q", "left"):
            self.detail = None
        else:
            self.detail_at = moved(self.detail_at, key, max(0, len(self.detail) - 1))

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
        view = self.feed.view()
        found = picture.head(view, self.feed.trouble, width, self.unknown)
        foot = [self._foot()] if live else []
        room = max(0, height - len(found) - len(foot))
        if self.detail is not None:
            found += [[(line, "")] for line in self.detail[self.detail_at :][:room]]
        elif view.tick is not None:
            focus = self.focus if live else ""
            found += picture.body(view, self._rows(view), focus, self.cursors, width, room)
        if live:
            found = found[: height - 1] + [[]] * (height - 1 - len(found))
        return (found + foot)[:height]

    def _foot(self) -> Line:
        if self.asking:
            return [(f" {clean(self.asking, 300)} ", "reverse bold")]
        if self.notice and time.monotonic() < self.notice_until:
            return [(f" {clean(self.notice, 300)} ", "reverse")]
        if self.detail is not None:
            return [("Esc back  ↑↓ move", "dim")]
        back = "Esc queues  " if self.within else ""
        return [(back + HELPS.get(self.focus, HELP), "dim")]


def run(monitor: TaskMonitor, *, interval: float = 0.35, unknown: str = "") -> int:
    """Show the queue until q (0) or a signal (130, 143); piped, one picture. ``unknown`` is what is
    said of it while it is no queue."""
    console = console_for("the live screen")
    screen = Screen(feed_of(monitor), unknown)
    screen.feed.ask()  # without a first answer there is no screen
    return show(screen, console, interval)


def show(screen: Shown, console: Any, interval: float) -> int:
    """Show a screen until it has ended; return the exit code of the command."""
    if not console.is_terminal or console.is_dumb_terminal:
        console.print(drawn(screen.lines(console.width, 60, live=False), console.width))
        return 0
    return _live(screen, console, max(0.1, interval))


class _Ended(Exception):
    def __init__(self, signal_number: int) -> None:
        self.number = signal_number


def _live(screen: Shown, console: Any, interval: float) -> int:
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


def _loop(screen: Shown, console: Any, live: Any, keys: Keys, interval: float) -> None:
    while not screen.ended:
        screen.refresh()
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

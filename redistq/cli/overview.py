"""Several queues in the live screen: an overview, the worst first, and each as its own screen.

Enter goes into the queue that is aimed at, Esc comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..dashboard.queues import heading, state_of
from ..display.text import clean, clock, duration, one_line, per_second
from ..errors import RedistqError
from ..monitor.monitor import TaskMonitor
from ..monitor.queues import QueueRow, Queues, worst_first
from .lists import Cursor
from .picture import title_line
from .screen import Screen, feed_of, show
from .tables import console as console_for
from .terminal import Line, columns
from .which import ALL

LOOK_EVERY_S = 1.0
HELP = "q quit  ↑↓ move  Enter show the queue"


@dataclass(slots=True)
class Overview:
    """All queues as rows; ``screen`` is that of the queue that was gone into."""

    queues: Queues
    open_queue: Callable[[str], TaskMonitor]
    rows: list[QueueRow] = field(default_factory=list)
    cursor: Cursor = field(default_factory=Cursor)
    trouble: str = ""
    ended: bool = False
    screen: Screen | None = None
    _looked_at: float = -LOOK_EVERY_S
    _screens: dict[str, Screen] = field(default_factory=dict)

    def look(self) -> None:
        """Ask for the figures of all queues. Raises RedistqError without an answer."""
        self.rows = worst_first(self.queues.look())
        self._looked_at = time.monotonic()
        self.trouble = ""

    def refresh(self) -> None:
        """Ask the server for what is new; that there is no answer is kept."""
        if self.screen is not None:
            self.screen.refresh()
            return
        if time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return
        try:
            self.look()
        except RedistqError as error:
            self.trouble = f"{clean(one_line(str(error)), 300)} (asking again)"

    def press(self, key: str) -> None:
        """Do what a key stands for."""
        if self.screen is not None:
            self.screen.press(key)
            self.ended = self.screen.ended
            if self.screen.left:
                self.screen.left = False
                self.screen = None
        elif key == "q":
            self.ended = True
        elif key in ("enter", "right") and self.rows:
            self._go_into(self.rows[self.cursor.place(self.rows)].name)
        else:
            self.cursor.move(key, self.rows)

    def _go_into(self, name: str) -> None:
        self.cursor.pin(self.rows)
        if name not in self._screens:
            self._screens[name] = Screen(feed_of(self.open_queue(name)), within=True)
        self.screen = self._screens[name]
        self.screen.refresh()

    def lines(self, width: int, height: int, *, live: bool = True) -> list[Line]:
        """Return the picture: ``height`` lines at most."""
        if self.screen is not None:
            return self.screen.lines(width, height, live=live)
        shots = [row.snapshot for row in self.rows if row.snapshot]
        when = f" {clock(max(shot.now_ms for shot in shots))} UTC " if shots else " "
        found = [title_line(clean(str(self.queues.address), 200), when, width)]
        found.append([(self.trouble or heading(self.rows), "bold")])
        if not self.rows:
            found.append([("A queue is here from its first task or worker on.", "dim")])
        else:
            found.append(_columns(width, "queue", "state", _FIGURES, "dim"))
        room = max(1, height - len(found) - 1)
        at = self.cursor.place(self.rows)
        first = max(0, min(at - room // 2, len(self.rows) - room))
        for i, row in enumerate(self.rows[first : first + room], first):
            found.append(_row(row, live and i == at, width))
        if live:
            found = found[: height - 1] + [[]] * (height - 1 - len(found))
            found.append([(HELP, "dim")])
        return found[:height]


_FIGURES = ("queued", "running", "delayed", "waiting", "failed", "rate", "workers", "oldest")


def _row(row: QueueRow, is_aimed: bool, width: int) -> Line:
    name = ("▸ " if is_aimed else "  ") + clean(row.name)
    state, color = state_of(row)
    shot = row.snapshot
    if shot is None:
        line = columns(width, (name, 20, ""), (state, 14, color), (row.problem, 0, "dim"))
    else:
        oldest = "" if shot.oldest_ms is None else duration(shot.now_ms - shot.oldest_ms)
        rate = "–" if row.rate is None else per_second(row.rate)
        counts = (shot.ready, row.running, shot.delayed, row.waiting, row.count("failed"))
        said = (*(f"{count:,}" for count in counts), rate, f"{row.workers:,}", oldest)
        line = _columns(width, name, state, said, "", color)
    return [(text, f"{style} reverse") for text, style in line] if is_aimed else line


def _columns(
    width: int, name: str, state: str, said: tuple[str, ...], style: str, color: str = ""
) -> Line:
    """Return a row of the table: names give way on a narrow terminal, figures are flush right."""
    shown = said[: 8 if width >= 96 else 6]
    spare = max(0, width - 28 - 8 * len(shown))
    wider = min(8, spare // 3)
    parts = [(name, 16 + min(24, spare - wider), style), (state, 12 + wider, color or style)]
    parts += [(f"{text:>7}", 8, style) for text in shown]
    return columns(width, *parts)


def run_several(
    monitor: TaskMonitor,
    names: list[str],
    interval: float,
    open_queue: Callable[[str], TaskMonitor],
) -> int:
    """Show the queues that are named, or with "*" all there are, until q or a signal."""
    console = console_for("the live screen")
    wanted = None if ALL in names else list(dict.fromkeys(names))
    queues = Queues(monitor.producer.address, wanted, group=monitor.commands.group)
    overview = Overview(queues, open_queue)
    try:
        overview.look()  # without a first answer there is no screen
        return show(overview, console, interval)
    finally:
        queues.close()
        for screen in overview._screens.values():
            screen.monitor.close()

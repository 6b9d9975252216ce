"""The live dashboard: its widgets, what they say, what its buttons do, and when it ends.

Made by Dashboard. All of it but ``show``, ``released`` and the callbacks of buttons runs in the
refresher's thread. A callback may run in any thread, at any moment, and does one thing: it leaves a
command for the next step, which comes at once. ipywidgets is imported when the first one goes live.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from ..display.html import tag
from ..display.notebook import Outlet
from ..errors import ConfigurationError, RedistqError
from ..monitor.rows import DeadLetter
from . import page
from .actions import Actions, Progress
from .feed import Feed, View
from .layout import build, unstarted
from .refresher import refresher
from .several import Several, look, whole_page
from .widgets import close, update
from .words import line

GONE_AFTER_S = 4.0
"""So long must a dashboard that was seen have no view before it counts as cleared away."""
UNSEEN_AFTER_S = 10.0
"""So long after the end of its cell one that was never seen and is not kept by a variable ends."""
LIFE_UNSEEN_S = 6 * 3600.0
SLICE_S = 0.2
"""A command that takes long goes on in slices of this length, so that the picture moves."""
DRAWN = ("functions", "timeline", "workers", "priorities", "limits", "schedules", "recent")
"""Sections without buttons of their own."""
TIMELINE_EVERY_S = 2.0
"""The timeline is the largest part of the page."""


@dataclass(slots=True)
class Audience:
    """Whether a dashboard is looked at: ``seen`` once a front end showed it, ``kept`` while its
    handle lives, ``unseen_since`` when it was last without a view (None: it has one)."""

    seen: bool = False
    kept: bool = True
    unseen_since: float | None = None

    def reason_to_leave(self, views: int, cell_ended: bool) -> str:
        """Return why the dashboard should end now, or nothing."""
        now = time.monotonic()
        if views:
            self.unseen_since = None
            return ""
        if self.unseen_since is None or not cell_ended:
            self.unseen_since = now
        unseen = now - self.unseen_since
        if self.seen:
            return "its output was cleared" if unseen > GONE_AFTER_S else ""
        if not self.kept and unseen > UNSEEN_AFTER_S:
            return "nobody keeps it"
        return "it was never seen" if unseen > LIFE_UNSEEN_S else ""


class WidgetPanel:
    """One live dashboard; any number of views of it may be open. With ``several`` queues it shows
    the one that is chosen.

    ``widgets`` are its widgets by name, ``layout`` all of them (see ``build``), ``actions`` what
    its buttons do, ``notice`` the sentence about the last button.
    """

    def __init__(self, feed: Feed, refresh: float, several: Several | None = None) -> None:
        self.feed = feed
        self.several = several
        self.ended = False
        self.notice = ""
        self.audience = Audience()
        self.layout = build(self._command, several is not None)
        self.widgets = self.layout.widgets
        self.actions = Actions(feed)
        self._refresh = refresh
        self._outlet = Outlet()
        self._commands: deque[str] = deque()
        self._work: Progress | None = None
        self._asking = ""
        self._drawn_at = -TIMELINE_EVERY_S
        # From here on it is counted how many front ends show it. Observed, because a look now and
        # then would miss a view that is soon gone.
        root = self.widgets["root"]
        root._view_count = 0
        root.observe(self._on_views, "_view_count")
        self._render()

    def _on_views(self, change: Any) -> None:
        if change["new"] and not self.audience.seen:
            self.audience.seen = True
            refresher.hurry(self)  # an unseen dashboard is refreshed rarely: its picture may be old

    # -- what it says ----------------------------------------------------------------------------

    def show(self) -> bool:
        """Display it (again); return False when it has ended."""
        if self.ended:
            return False
        bundle = {
            "application/vnd.jupyter.widget-view+json": {
                "version_major": 2,
                "version_minor": 0,
                "model_id": self.widgets["root"].model_id,
            },
            **self._still(),
        }
        self._outlet.show(bundle)
        return True

    def _still(self, **more: Any) -> dict[str, str]:
        view = self._view(**more)
        return {
            "text/html": str(whole_page(self.several, view)),
            "text/plain": f"Dashboard of {line(view)}",
        }

    def _view(self, **more: Any) -> View:
        return self.feed.view(notice=self.notice, **more)

    def _render(self) -> None:
        view = self._view(live=True)
        if self.several is not None:
            self.layout.render_queues(self.several)
        update(self.widgets["head"], value=str(page.head(view)))
        update(self.widgets["notice"], value=str(page.notice(view)))
        drawn = time.monotonic()
        for name in DRAWN:
            if name == "timeline" and drawn - self._drawn_at < TIMELINE_EVERY_S:
                continue
            update(self.widgets[name], value=str(page.SECTIONS[name](view)))
            self._drawn_at = drawn if name == "timeline" else self._drawn_at
        self._render_buttons(view)

    def _render_buttons(self, view: View) -> None:
        tick = view.tick
        unavailable = tick is None or bool(view.problem)
        busy = unavailable or self._work is not None
        dead = tick.snapshot.dead if tick else 0
        waiting = unstarted(tick.snapshot) if tick else 0
        paused = bool(tick and tick.paused)
        update(
            self.widgets["pause"],
            description="Resume" if paused else "Pause",
            tooltip="Let the workers start tasks again"
            if paused
            else "Let no worker start another task",
            disabled=busy,
        )
        update(
            self.widgets["retry"],
            description=f"Retry failed ({dead:,})",
            disabled=busy or not dead,
        )
        update(
            self.widgets["cancel"],
            description=f"Cancel not started ({waiting:,})",
            disabled=busy or not waiting,
        )
        self.layout.keys.render(view, busy)
        self.layout.agenda.render(view, busy)
        self.layout.batches.render(view, busy)
        self.layout.groups.render(view, busy, self._full)

        self.layout.finder.render(self.feed, busy)

    def _full(self, dead: DeadLetter) -> DeadLetter:
        """Return a failed task with its traceback."""
        for known in self.feed.tick.dead if self.feed.tick else ():
            if (known.id, known.died_ms) == (dead.id, dead.died_ms):
                return known
        try:
            task = self.feed.monitor.records.task(dead.id)
        except RedistqError:
            return dead
        return replace(dead, traceback=task.traceback, error=task.error or dead.error)

    # -- one step --------------------------------------------------------------------------------

    def step(self) -> float | None:
        """Carry out commands, look whether it is watched, refresh the picture."""
        if self.ended:
            return None
        if why := self._reason_to_end():
            self._end(why)
            return None
        while self._commands:
            command = self._commands.popleft()
            if command == "close":
                self._end("closed")
                return None
            self._handle(command)
        self._go_on()
        self._look()
        self._render()
        if self._work is not None:
            return 0.01
        answers = self.feed.failing_since is None
        if answers and not self.audience.seen and self._outlet.cell_ended:
            return 5.0  # not looked at, as far as we know
        return self.feed.rest_s(self._refresh)

    def _look(self) -> None:
        feed = look(self.several, self.feed)
        if feed is not self.feed:
            self.feed = feed
            self.actions = Actions(feed)
            self._handle("no")  # what was asked is of another queue
            self.layout.finder.hide()
            self.notice = ""
            self._drawn_at = -TIMELINE_EVERY_S

    def _reason_to_end(self) -> str:
        if self._outlet.interrupted:
            return "the kernel was interrupted"
        views = self.widgets["root"]._view_count
        return self.audience.reason_to_leave(views or 0, self._outlet.cell_ended)

    def on_error(self, error: Exception) -> None:
        """Show an unexpected error of a step."""
        self.notice = f"The dashboard failed and goes on: {type(error).__name__}: {error}"

    # -- buttons ---------------------------------------------------------------------------------

    def _command(self, command: str) -> None:
        self._commands.append(command)
        refresher.hurry(self)

    def _handle(self, command: str) -> None:
        verb, _, what = command.partition(" ")
        if verb == "ask":
            self._ask(what)
        elif verb in ("yes", "no"):
            asked = self._asking
            self._asking = ""
            update(self.widgets["confirm"].layout, display="none")
            if verb == "yes" and self._work is None:
                self._work = self.actions.start(asked)
        elif verb == "queue" and self.several is not None:
            with contextlib.suppress(ConfigurationError):  # it has gone meanwhile
                self.several.choose(what)
        elif verb == "group-open":
            self.layout.groups.turn(what)
        elif verb == "group-more":
            self.layout.groups.more(what)
        elif verb == "find":
            self._find(what)
        elif verb == "task" or verb.startswith("task-"):
            self._handle_task(verb, what)
        elif verb == "pause" and self._work is None:
            self._work = self.actions.toggle_pause()
        elif verb == "key" and what and self._work is None:
            self._work = self.actions.toggle_key(what, self.layout.keys.is_paused(what))
        elif verb == "schedule" and what and self._work is None:
            self._work = self.actions.toggle_schedule(what, self.layout.agenda.is_paused(what))
        elif verb == "run" and what and self._work is None:
            self._work = self.actions.run_now(what)

    def _find(self, text: str) -> None:
        try:
            self.notice = self.layout.finder.find(self.feed, text)
        except RedistqError as error:
            self.notice = f"That did not work: {error}"

    def _handle_task(self, verb: str, task_id: str) -> None:
        finder = self.layout.finder
        if verb == "task":
            finder.open(task_id)
        elif verb == "task-close":
            finder.hide()
        elif task_id and self._work is None:
            edited = str(finder.payload.value)
            self._work = self.actions.of_task(verb, task_id, edited, finder.edit)
            finder.hurry()

    def _ask(self, what: str) -> None:
        question, yes = self.actions.question(what)
        if not question:
            return
        self._asking = what
        update(self.widgets["question"], value=str(tag("span", question)))
        update(self.widgets["yes"], description=yes)
        update(self.widgets["confirm"].layout, display="flex")
        with contextlib.suppress(Exception):  # a nicety: older ipywidgets cannot
            self.widgets["no"].focus()

    def _go_on(self) -> None:
        work = self._work
        until = time.monotonic() + SLICE_S
        if work is None:
            return
        try:
            while time.monotonic() < until:
                self.notice = next(work)
        except StopIteration as done:
            self._work = None
            self.notice = done.value
            self.feed.forget_age()
            self.layout.finder.hurry()
        except RedistqError as error:
            self._work = None
            self.notice = f"That did not work: {error}"

    # -- the end ---------------------------------------------------------------------------------

    def released(self) -> None:
        """Note that the handle is gone: from now on only being seen keeps this alive. Called by the
        garbage collector, in any thread: it only sets a flag."""
        self.audience.kept = False

    def end(self, why: str) -> None:
        """Stop being refreshed, leave a still picture, close every widget."""
        refresher.remove(self)
        self._end(why)

    def _end(self, why: str) -> None:
        if self.ended:
            return
        self.ended = True
        with contextlib.suppress(Exception):  # the front end may be gone: what matters comes next
            self._outlet.replace(self._still(ended=why))
        self._outlet.close()
        for widget in (*self.widgets.values(), *self.layout.rows()):
            close(widget)
        self._work = None

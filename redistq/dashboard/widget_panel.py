"""The live dashboard: its widgets, what they say, what its buttons do, and when it ends.

Made by Dashboard. All of it but ``show``, ``released`` and the callbacks of buttons runs in the
refresher's thread. A callback may run in any thread, at any moment, and does one thing: it leaves a
command for the next step, which comes at once. ipywidgets is imported when the first one goes live.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from ..display.html import tag
from ..display.notebook import Outlet
from ..display.text import clock, plural
from ..errors import RedistqError
from ..producer.limits import Limits
from ..producer.schedules import Schedules
from ..protocol.commands import Snapshot
from . import page
from .feed import LETTERS_SHOWN, Feed, View, line
from .page import letter
from .refresher import refresher
from .widgets import KeyChoice, ScheduleChoice, close, ipywidgets, update

GONE_AFTER_S = 4.0
"""So long must a dashboard that was seen have no view before it counts as cleared away."""
UNSEEN_AFTER_S = 10.0
"""So long after the end of its cell one that was never seen and is not kept by a variable ends."""
LIFE_UNSEEN_S = 6 * 3600.0
SLICE_S = 0.2
"""A command that takes long goes on in slices of this length, so that the picture moves."""
PARTS = ("head", "notice", "workers", "limits", "schedules", "batches", "recent", "failed")
BUTTONS = (
    ("pause", "Pause", "Let no worker start another task", "pause"),
    ("retry", "Retry failed", "Send every dead letter again", "ask retry"),
    ("cancel", "Cancel waiting", "Cancel every task that waits", "ask cancel"),
    ("close", "Close", "End this dashboard; a still picture stays", "close"),
)
"""A button's name, its text, its tooltip and the command it gives."""

Progress = Generator[str, None, str]


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
    """One live dashboard; any number of views of it may be open.

    ``widgets`` are its widgets by name (see ``build``), ``letters`` those of the dead letters,
    ``notice`` the sentence about the last button.
    """

    def __init__(self, feed: Feed, refresh: float) -> None:
        self.feed = feed
        self.ended = False
        self.notice = ""
        self.audience = Audience()
        self.letters = Letters()
        self.widgets, self.keys, self.agenda = build(self._command, self.letters)
        self._refresh = refresh
        self._outlet = Outlet()
        self._commands: deque[str] = deque()
        self._work: Progress | None = None
        self._asking = ""
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
        return {"text/html": str(page.page(view)), "text/plain": f"Dashboard of {line(view)}"}

    def _view(self, **more: Any) -> View:
        return self.feed.view(notice=self.notice, **more)

    def _render(self) -> None:
        view = self._view(live=True)
        update(self.widgets["head"], value=str(page.head(view)))
        update(self.widgets["notice"], value=str(page.notice(view)))
        update(self.widgets["workers"], value=str(page.workers(view)))
        update(self.widgets["limits"], value=str(page.limits(view)))
        update(self.widgets["schedules"], value=str(page.schedules(view)))
        update(self.widgets["batches"], value=str(page.batches(view)))
        update(self.widgets["recent"], value=str(page.recent(view)))
        update(self.widgets["failed"], value=str(page.failures(view)))
        self.letters.render(view)
        self._render_buttons(view)

    def _render_buttons(self, view: View) -> None:
        tick = view.tick
        unavailable = tick is None or bool(view.problem)
        busy = unavailable or self._work is not None
        dead = tick.snapshot.dead if tick else 0
        waiting = _unstarted(tick.snapshot) if tick else 0
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
            description=f"Cancel waiting ({waiting:,})",
            disabled=busy or not waiting,
        )
        self.keys.render(view, busy)
        self.agenda.render(view, busy)

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
        self.feed.refresh()
        self._render()
        if self._work is not None:
            return 0.01
        if self.feed.failing_since is not None:
            return min(5.0, 1.0 + (time.monotonic() - self.feed.failing_since) / 5)
        if not self.audience.seen and self._outlet.cell_ended:
            return 5.0  # not looked at, as far as we know
        quiet = time.monotonic() - self.feed.changed_at
        return self._refresh if quiet < 5 else max(1.0, self._refresh)

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
                makers: dict[str, Callable[[], Progress]] = {
                    "retry": self._retry_all,
                    "cancel": self._cancel_all,
                }
                if asked in makers:
                    self._work = makers[asked]()
        elif verb == "pause" and self._work is None:
            self._work = self._toggle_pause()
        elif verb == "key" and what and self._work is None:
            self._work = self._toggle_key(what)
        elif verb == "schedule" and what and self._work is None:
            self._work = self._toggle_schedule(what)
        elif verb == "run" and what and self._work is None:
            self._work = self._run_now(what)

    def _ask(self, what: str) -> None:
        shot = self.feed.tick.snapshot if self.feed.tick else None
        if shot is None:
            return
        self._asking = what
        if what == "cancel":
            waiting = plural(_unstarted(shot), "waiting task")
            question = f"Cancel {waiting}? This cannot be undone."
            yes = "Yes, cancel them"
        else:
            question = f"Send {plural(shot.dead, 'failed task')} to the workers again?"
            yes = "Yes, retry"
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
        except RedistqError as error:
            self._work = None
            self.notice = f"That did not work: {error}"

    def _toggle_pause(self) -> Progress:
        yield ""
        paused = bool(self.feed.tick and self.feed.tick.paused)
        if paused:
            self.feed.monitor.resume()
        else:
            self.feed.monitor.pause()
        return f"{self._now()} {'Resumed' if paused else 'Paused'}."

    def _toggle_key(self, key: str) -> Progress:
        paused = self.keys.is_paused(key)
        return self._toggle(self.feed.monitor.producer.limits, key, paused, key)

    def _toggle_schedule(self, name: str) -> Progress:
        paused = self.agenda.is_paused(name)
        schedules = self.feed.monitor.producer.schedules
        return self._toggle(schedules, name, paused, f"Schedule {name}")

    def _toggle(self, of: Limits | Schedules, name: str, paused: bool, said: str) -> Progress:
        yield ""
        if paused:
            of.resume(name)
        else:
            of.pause(name)
        return f"{self._now()} {said} is {'resumed' if paused else 'paused'}."

    def _run_now(self, name: str) -> Progress:
        yield ""
        task_id = self.feed.monitor.producer.schedules.run_now(name)
        if task_id.outcome == "joined":
            return f"{self._now()} {task_id} has not ended, and no other runs beside it."
        return f"{self._now()} {task_id} is added."

    def _retry_all(self) -> Progress:
        yield "Sending failed tasks again …"
        count = self.feed.monitor.replay()
        return f"{self._now()} {plural(count, 'failed task')} sent again."

    def _cancel_all(self) -> Progress:
        count = 0
        for part in self.feed.monitor.cancel_waiting_by_parts():
            count += part
            yield f"Cancelling: {plural(count, 'task')} so far …"
        return f"{self._now()} {plural(count, 'task')} cancelled."

    def _now(self) -> str:
        tick = self.feed.tick
        return f"{clock(tick.now_ms)} UTC:" if tick else ""

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
        for widget in (*self.widgets.values(), *self.letters.slots):
            close(widget)
        self._work = None


# -- its widgets ---------------------------------------------------------------------------------


def _unstarted(shot: Snapshot) -> int:
    """Return how many tasks have not started."""
    return shot.ready + shot.delayed + shot.waiting


def build(
    on_command: Callable[[str], None], letters: Letters
) -> tuple[dict[str, Any], KeyChoice, ScheduleChoice]:
    """Return the widgets by name, and the choices of limit keys and of schedules; ``root`` holds
    the others as they are laid out.

    ``on_command`` is called with a button's command, in any thread.
    """
    w = ipywidgets()

    def button(text: str, tooltip: str, command: str, style: str = "") -> Any:
        made = w.Button(
            description=text,
            tooltip=tooltip,
            button_style=style,
            layout=w.Layout(width="auto", min_width="8em"),
        )
        if command:
            made.on_click(lambda _: on_command(command))
        return made

    # The default style of the widget would cut off what is wider than a slider.
    found = {name: w.HTML(layout=w.Layout(width="100%", margin="0")) for name in PARTS}
    for name, text, tooltip, command in BUTTONS:
        found[name] = button(text, tooltip, command)
    found["question"] = w.HTML(layout=w.Layout(margin="0 8px 0 0"))
    found["yes"] = button("Yes", "Do it", "yes", "danger")
    found["no"] = button("No, leave it", "Do nothing", "no")
    found["confirm"] = w.HBox(
        [found["question"], found["yes"], found["no"]],
        layout=w.Layout(display="none", flex_flow="row wrap", align_items="center"),
    )
    found["buttons"] = w.HBox(
        [found[name] for name, *_ in BUTTONS],
        layout=w.Layout(flex_flow="row wrap", margin="4px 0"),
    )
    keys = KeyChoice(button, on_command)
    found |= {"key": keys.choice, "key_pause": keys.button, "keys": keys.box}
    agenda = ScheduleChoice(button, on_command)
    found |= {"schedule": agenda.choice, "schedule_pause": agenda.pause}
    found |= {"schedule_run": agenda.run, "agenda": agenda.box}
    found["letters"] = w.VBox(letters.slots, layout=w.Layout(width="100%"))
    order = [
        "head",
        "buttons",
        "confirm",
        "notice",
        "workers",
        "limits",
        "keys",
        "schedules",
        "agenda",
        "batches",
        "recent",
        "failed",
    ]
    found["root"] = w.VBox(
        [*(found[name] for name in order), found["letters"]],
        layout=w.Layout(width="100%", padding="4px 8px"),
    )
    return found, keys, agenda


class Letters:
    """One widget a dead letter: a traceback that is open stays open while others come and go."""

    def __init__(self) -> None:
        w = ipywidgets()
        self.slots = [
            w.HTML(layout=w.Layout(width="100%", margin="0", display="none"))
            for _ in range(LETTERS_SHOWN)
        ]
        self._held = [""] * LETTERS_SHOWN  # which letter each of them shows

    def render(self, view: View) -> None:
        """Show the newest dead letters, those that are shown already where they are."""
        dead_letters = view.tick.dead[:LETTERS_SHOWN] if view.tick else ()
        shown = {f"{dead.id} {dead.died_ms}": dead for dead in dead_letters}
        for at, key in enumerate(self._held):
            if key not in shown:
                self._held[at] = ""
        for key, dead in shown.items():
            if key not in self._held:
                at = self._held.index("")
                self._held[at] = key
                update(self.slots[at], value=str(letter(dead)))
        order = {key: at for at, key in enumerate(shown)}
        for at, key in enumerate(self._held):
            layout = self.slots[at].layout
            update(layout, display=None if key else "none", order=str(order.get(key, 99)))

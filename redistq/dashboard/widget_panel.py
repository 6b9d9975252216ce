"""The live dashboard: widgets that the refresher refreshes, buttons, and the rules of when it ends.

Made by Dashboard. All of it but ``show`` and the button callbacks runs in the refresher's thread. A
callback may run in any thread, at any moment, and does one thing: it leaves a wish for the next
step, which comes at once.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from ..display.elements import tag
from ..display.notebook import Outlet
from ..display.text import clock, plural
from ..errors import RedistqError
from . import page as show
from .refresher import Feed, refresher
from .view import LETTERS_SHOWN, View, line

GONE_AFTER_S = 4.0
"""So long must a dashboard that was seen have no view before it counts as cleared away."""
UNSEEN_AFTER_S = 10.0
"""So long after the end of its cell one that was never seen and is not kept by anyone ends."""
LIFE_UNSEEN_S = 6 * 3600.0
SLICE_S = 0.2
"""A command that takes long goes on in slices of this length, so that the picture moves."""

Progress = Generator[str, None, str]


class WidgetPanel:
    """One live dashboard; any number of views of it may be open."""

    def __init__(self, feed: Feed, refresh: float) -> None:
        try:
            import ipywidgets
        except ImportError as error:
            raise ImportError(
                "ipywidgets is needed for a live dashboard: pip install redistq[notebook]"
            ) from error
        self.ended = False
        self._feed, self._refresh = feed, refresh
        self._outlet = Outlet()
        self._wishes: deque[str] = deque()
        self._work: Progress | None = None
        self._asking = ""
        self._notice = ""
        self._kept, self._was_seen = True, False
        self._unseen_since: float | None = None
        self._build(ipywidgets)
        self._render()

    # -- widgets ---------------------------------------------------------------------------------

    def _build(self, w: Any) -> None:
        def html() -> Any:
            # The default style of the widget would cut off what is wider than a slider.
            return w.HTML(layout=w.Layout(width="100%", margin="0"))

        def button(text: str, help: str, wish: str, style: str = "") -> Any:
            made = w.Button(
                description=text,
                tooltip=help,
                button_style=style,
                layout=w.Layout(width="auto", min_width="8em"),
            )
            made.on_click(lambda _: self._wish(wish))
            return made

        self._head, self._said, self._workers = html(), html(), html()
        self._batches, self._recent, self._failed = html(), html(), html()
        self._pause = button("Pause", "Let no worker start another task", "pause")
        self._retry = button("Retry failed", "Send every dead letter again", "ask retry")
        self._cancel = button("Cancel waiting", "Cancel every task that waits", "ask cancel")
        self._close = button("Close", "End this dashboard; a still picture stays", "close")
        self._question = w.HTML(layout=w.Layout(margin="0 8px 0 0"))
        self._yes = button("Yes", "Do it", "yes", "danger")
        self._no = button("No, leave it", "Do nothing", "no")
        self._confirm = w.HBox(
            [self._question, self._yes, self._no],
            layout=w.Layout(display="none", flex_flow="row wrap", align_items="center"),
        )
        # One widget a letter: a traceback that somebody opened stays open while others come.
        self._slots = [
            w.HTML(layout=w.Layout(width="100%", margin="0", display="none"))
            for _ in range(LETTERS_SHOWN)
        ]
        self._held: list[str] = [""] * LETTERS_SHOWN
        buttons = w.HBox(
            [self._pause, self._retry, self._cancel, self._close],
            layout=w.Layout(flex_flow="row wrap", margin="4px 0"),
        )
        letters = w.VBox(self._slots, layout=w.Layout(width="100%"))
        self._root = w.VBox(
            [
                self._head,
                buttons,
                self._confirm,
                self._said,
                self._workers,
                self._batches,
                self._recent,
                self._failed,
                letters,
            ],
            layout=w.Layout(width="100%", padding="4px 8px"),
        )
        # From here on it is counted how many front ends show it. Observed, because a look now and
        # then would miss a view that is soon gone.
        self._root._view_count = 0
        self._root.observe(self._on_views, "_view_count")
        self._widgets = [
            self._head,
            self._said,
            self._workers,
            self._batches,
            self._recent,
            self._failed,
            self._pause,
            self._retry,
            self._cancel,
            self._close,
            self._question,
            self._yes,
            self._no,
            self._confirm,
            *self._slots,
            buttons,
            letters,
            self._root,
        ]

    def _on_views(self, change: Any) -> None:
        if change["new"] and not self._was_seen:
            self._was_seen = True
            refresher.hurry(self)  # an unseen dashboard is refreshed rarely: its picture may be old

    def show(self) -> bool:
        """Display it (again); answers False when it has ended."""
        if self.ended:
            return False
        bundle = {
            "application/vnd.jupyter.widget-view+json": {
                "version_major": 2,
                "version_minor": 0,
                "model_id": self._root.model_id,
            },
            **self._still(),
        }
        self._outlet.show(bundle)
        return True

    def _still(self, **more: Any) -> dict[str, str]:
        view = self._view(**more)
        return {"text/html": str(show.page(view)), "text/plain": f"Dashboard of {line(view)}"}

    def _view(self, **more: Any) -> View:
        return self._feed.view(notice=self._notice, **more)

    def _render(self) -> None:
        view = self._view(live=True)
        _set(self._head, value=str(show.head(view)))
        _set(self._said, value=str(show.notice(view)))
        _set(self._workers, value=str(show.workers(view)))
        _set(self._batches, value=str(show.batches(view)))
        _set(self._recent, value=str(show.recent(view)))
        _set(self._failed, value=str(show.failures(view)))
        self._render_letters(view)
        tick = view.tick
        away = tick is None or bool(view.problem)
        busy = away or self._work is not None
        dead = tick.snapshot.dead if tick else 0
        waiting = tick.snapshot.ready + tick.snapshot.delayed if tick else 0
        paused = bool(tick and tick.paused)
        _set(
            self._pause,
            description="Resume" if paused else "Pause",
            tooltip="Let the workers start tasks again"
            if paused
            else "Let no worker start another task",
            disabled=busy,
        )
        _set(self._retry, description=f"Retry failed ({dead:,})", disabled=busy or not dead)
        _set(
            self._cancel,
            description=f"Cancel waiting ({waiting:,})",
            disabled=busy or not waiting,
        )

    def _render_letters(self, view: View) -> None:
        letters = view.tick.dead[:LETTERS_SHOWN] if view.tick else ()
        shown = {f"{dead.id} {dead.died_ms}": dead for dead in letters}
        for at, key in enumerate(self._held):
            if key not in shown:
                self._held[at] = ""
        for key, dead in shown.items():
            if key not in self._held:
                at = self._held.index("")
                self._held[at] = key
                _set(self._slots[at], value=str(show.letter(dead)))
        order = {key: at for at, key in enumerate(shown)}
        for at, key in enumerate(self._held):
            layout = self._slots[at].layout
            _set(layout, display=None if key else "none", order=str(order.get(key, 99)))

    # -- one step --------------------------------------------------------------------------------

    def step(self) -> float | None:
        """Carry out wishes, look whether anybody watches, refresh the picture."""
        if self.ended:
            return None
        if why := self._reason_to_end():
            self._end(why)
            return None
        while self._wishes:
            wish = self._wishes.popleft()
            if wish == "close":
                self._end("closed")
                return None
            self._grant(wish)
        self._go_on()
        self._feed.refresh()
        self._render()
        if self._work is not None:
            return 0.01
        if self._feed.failing_since is not None:
            return min(5.0, 1.0 + (time.monotonic() - self._feed.failing_since) / 5)
        if not self._was_seen and self._outlet.cell_ended:
            return 5.0  # nobody looks, as far as we know
        quiet = time.monotonic() - self._feed.changed_at
        return self._refresh if quiet < 5 else max(1.0, self._refresh)

    def _reason_to_end(self) -> str:
        if self._outlet.interrupted:
            return "the kernel was interrupted"
        now = time.monotonic()
        if self._root._view_count:
            self._unseen_since = None
            return ""
        if self._unseen_since is None or not self._outlet.cell_ended:
            self._unseen_since = now
        unseen = now - self._unseen_since
        if self._was_seen:
            return "its output was cleared" if unseen > GONE_AFTER_S else ""
        if not self._kept and unseen > UNSEEN_AFTER_S:
            return "nobody keeps it"
        return "nobody saw it" if unseen > LIFE_UNSEEN_S else ""

    def fault(self, error: Exception) -> None:
        """Show what nobody foresaw."""
        self._notice = f"The dashboard failed and goes on: {type(error).__name__}: {error}"

    # -- buttons ---------------------------------------------------------------------------------

    def _wish(self, wish: str) -> None:
        self._wishes.append(wish)
        refresher.hurry(self)

    def _grant(self, wish: str) -> None:
        verb, _, what = wish.partition(" ")
        if verb == "ask":
            self._ask(what)
        elif verb in ("yes", "no"):
            asked, self._asking = self._asking, ""
            _set(self._confirm.layout, display="none")
            if verb == "yes" and self._work is None:
                makers: dict[str, Callable[[], Progress]] = {
                    "retry": self._retry_all,
                    "cancel": self._cancel_all,
                }
                if asked in makers:
                    self._work = makers[asked]()
        elif verb == "pause" and self._work is None:
            self._work = self._toggle_pause()

    def _ask(self, what: str) -> None:
        shot = self._feed.tick.snapshot if self._feed.tick else None
        if shot is None:
            return
        self._asking = what
        if what == "cancel":
            waiting = plural(shot.ready + shot.delayed, "waiting task")
            question = f"Cancel {waiting}? This cannot be undone."
            yes = "Yes, cancel them"
        else:
            question = f"Send {plural(shot.dead, 'failed task')} to the workers again?"
            yes = "Yes, retry"
        _set(self._question, value=str(tag("span", question)))
        _set(self._yes, description=yes)
        _set(self._confirm.layout, display="flex")
        with contextlib.suppress(Exception):  # a nicety: older ipywidgets cannot
            self._no.focus()

    def _go_on(self) -> None:
        work, until = self._work, time.monotonic() + SLICE_S
        if work is None:
            return
        try:
            while time.monotonic() < until:
                self._notice = next(work)
        except StopIteration as done:
            self._notice, self._work = done.value, None
            self._feed.forget_age()
        except RedistqError as error:
            self._notice, self._work = f"That did not work: {error}", None

    def _toggle_pause(self) -> Progress:
        yield ""
        monitor, tick = self._feed.monitor, self._feed.tick
        paused = bool(tick and tick.paused)
        if paused:
            monitor.resume()
        else:
            monitor.pause()
        return f"{self._now()} {'Resumed' if paused else 'Paused'}."

    def _retry_all(self) -> Progress:
        yield "Sending failed tasks again …"
        count = self._feed.monitor.replay()
        return f"{self._now()} {plural(count, 'failed task')} sent again."

    def _cancel_all(self) -> Progress:
        count = 0
        for part in self._feed.monitor.cancel_waiting_by_parts():
            count += part
            yield f"Cancelling: {plural(count, 'task')} so far …"
        return f"{self._now()} {plural(count, 'task')} cancelled."

    def _now(self) -> str:
        tick = self._feed.tick
        return f"{clock(tick.now_ms)} UTC:" if tick else ""

    # -- the end ---------------------------------------------------------------------------------

    def orphan(self) -> None:
        """The handle is gone: from now on only being seen keeps this alive. Called by the garbage
        collector, in any thread: it only leaves a note."""
        self._kept = False

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
        for widget in self._widgets:
            for part in ("layout", "style"):
                inner = getattr(widget, part, None)
                if inner is not None:
                    _shut(inner)
            _shut(widget)
        self._work = None


def _set(widget: Any, **traits: Any) -> None:
    """Set what has changed, in one message."""
    changed = {name: value for name, value in traits.items() if getattr(widget, name) != value}
    if changed:
        with widget.hold_sync():
            for name, value in changed.items():
                setattr(widget, name, value)


def _shut(widget: Any) -> None:
    with contextlib.suppress(Exception):  # its comm is closed, or the kernel is on its way out
        widget.close()

"""What the live dashboard does with widgets of any kind: set what has changed, and close them.

Used by the panel; ``KeyChoice``, ``ScheduleChoice`` and ``QueueChoice`` are its controls for limit
keys, schedules and queues. ipywidgets is imported when the first widget is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..display.text import clean
from ..monitor.agenda import ScheduleRow
from ..protocol.limits import LimitState
from ..system.interpreter import require
from .feed import View


def ipywidgets() -> Any:
    """Return ipywidgets. Raises ImportError, which says how to install it."""
    return require("ipywidgets", "notebook", "a live dashboard")


def update(widget: Any, **traits: Any) -> None:
    """Set what has changed, in one message."""
    changed = {name: value for name, value in traits.items() if getattr(widget, name) != value}
    if changed:
        with widget.hold_sync():
            for name, value in changed.items():
                setattr(widget, name, value)


def close(widget: Any) -> None:
    """Close a widget with its layout and style."""
    for part in ("layout", "style"):
        inner = getattr(widget, part, None)
        if inner is not None:
            _close_one(inner)
    _close_one(widget)


def _close_one(widget: Any) -> None:
    with contextlib.suppress(Exception):  # its comm is closed, or the kernel is on its way out
        widget.close()


class KeyChoice:
    """One limit key of those that are shown, and the button that pauses it or ends its pause.

    ``on_command`` is called with ``key KEY`` when the button is pressed, in any thread. A key stays
    chosen while others come and go.
    """

    def __init__(self, button: Callable[..., Any], on_command: Callable[[str], None]) -> None:
        w = ipywidgets()
        self.choice = w.Dropdown(
            options=[],
            description="Limit",
            style={"description_width": "initial"},
            layout=w.Layout(width="auto", min_width="16em"),
        )
        self.button = button("Pause key", "Let no other task of this key in", "")
        self.button.on_click(lambda _: on_command(f"key {self.choice.value or ''}"))
        self.box = w.HBox(
            [self.choice, self.button], layout=w.Layout(display="none", flex_flow="row wrap")
        )
        self._limits: dict[str, LimitState] = {}

    def render(self, view: View, busy: bool) -> None:
        """Offer the keys of a view; nothing is shown where there are none."""
        limits = view.tick.limits if view.tick else ()
        self._limits = {
            limit.key: limit
            for limit in sorted(limits, key=lambda limit: limit.key)
            if limit.has_rule or limit.waiting or limit.paused_ms is not None
        }
        keys = tuple(self._limits)
        if tuple(self.choice.options) != keys:
            chosen = self.choice.value
            self.choice.options = keys
            self.choice.value = chosen if chosen in keys else next(iter(keys), None)
        paused = self.is_paused(self.choice.value)
        update(
            self.button,
            description="Resume key" if paused else "Pause key",
            tooltip="Let tasks of this key in again" if paused else "Let no other of its tasks in",
            disabled=busy or not keys,
        )
        update(self.box.layout, display="flex" if keys else "none")

    def is_paused(self, key: str | None) -> bool:
        """Return whether a key was paused when it was last looked at."""
        limit = self._limits.get(key or "")
        return limit is not None and limit.paused_ms is not None


class ScheduleChoice:
    """One schedule of those that are shown, with buttons that pause or resume it and run it now.

    ``on_command`` is called with ``schedule NAME`` or ``run NAME``, in any thread. A schedule stays
    chosen while others come and go.
    """

    def __init__(self, button: Callable[..., Any], on_command: Callable[[str], None]) -> None:
        w = ipywidgets()
        self.choice = w.Dropdown(
            options=[],
            description="Schedule",
            style={"description_width": "initial"},
            layout=w.Layout(width="auto", min_width="16em"),
        )
        self.pause = button("Pause schedule", "Let it fire no more", "")
        self.run = button("Run now", "Add its task at once, beside its times", "")
        self.pause.on_click(lambda _: on_command(f"schedule {self.choice.value or ''}"))
        self.run.on_click(lambda _: on_command(f"run {self.choice.value or ''}"))
        self.box = w.HBox(
            [self.choice, self.pause, self.run],
            layout=w.Layout(display="none", flex_flow="row wrap"),
        )
        self._paused: dict[str, bool] = {}

    def render(self, view: View, busy: bool) -> None:
        """Offer the schedules of a view; nothing is shown where there are none."""
        rows = view.tick.schedules if view.tick else ()
        self._paused = {name: row.schedule.paused for name, row in sorted(_by_name(rows).items())}
        names = tuple(self._paused)
        if tuple(self.choice.options) != names:
            chosen = self.choice.value
            self.choice.options = names
            self.choice.value = chosen if chosen in names else next(iter(names), None)
        paused = self.is_paused(self.choice.value)
        update(
            self.pause,
            description="Resume schedule" if paused else "Pause schedule",
            tooltip="Let it fire at its next time" if paused else "Let it fire no more",
            disabled=busy or not names,
        )
        update(self.run, disabled=busy or not names)
        update(self.box.layout, display="flex" if names else "none")

    def is_paused(self, name: str | None) -> bool:
        """Return whether a schedule was paused when it was last looked at."""
        return self._paused.get(name or "", False)


class QueueChoice:
    """Which of several queues is shown: tabs, or a list where there are many.

    ``on_command`` is called with ``queue NAME`` when one is chosen, in any thread.
    """

    TABS_MOST = 8

    def __init__(self, on_command: Callable[[str], None]) -> None:
        w = ipywidgets()
        self._on_command = on_command
        self._names: tuple[str, ...] = ()
        self._shown = ""
        self.tabs = w.ToggleButtons(options=[], style={"button_width": "auto"})
        self.choice = w.Dropdown(
            options=[], description="Queue", style={"description_width": "initial"}
        )
        for each in (self.tabs, self.choice):
            each.observe(self._chosen, "value")
        self.box = w.HBox([self.tabs, self.choice], layout=w.Layout(margin="8px 0"))

    def _chosen(self, change: Any) -> None:
        name = change["new"]
        if name and name != self._shown:
            self._on_command(f"queue {name}")

    def render(self, names: Sequence[str], chosen: str) -> None:
        """Offer queues, of which one is chosen; nothing is shown where there is no choice."""
        self._shown = chosen
        few = len(names) <= self.TABS_MOST
        if self._names != tuple(names):
            self._names = tuple(names)
            for each in (self.tabs, self.choice):
                each.options = [(clean(name, 40), name) for name in names]
        for each in (self.tabs, self.choice):
            update(each, value=chosen if chosen in names else None)
        update(self.tabs.layout, display="flex" if few else "none")
        update(self.choice.layout, display="none" if few else "flex")
        update(self.box.layout, display="flex" if len(names) > 1 else "none")


def _by_name(rows: Iterable[ScheduleRow]) -> dict[str, ScheduleRow]:
    return {row.schedule.name: row for row in rows}

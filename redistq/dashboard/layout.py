"""The widgets of a live dashboard, and how they are laid out.

ipywidgets is imported when the first one goes live.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..display.html import Html, tag
from ..protocol.commands import Snapshot
from .finder_box import FinderBox
from .several import Several
from .slots import BatchRows, GroupRows
from .widgets import KeyChoice, QueueChoice, ScheduleChoice, ipywidgets, update

PARTS = (
    "head",
    "notice",
    "functions",
    "timeline",
    "workers",
    "priorities",
    "limits",
    "schedules",
    "recent",
)
BUTTONS = (
    ("pause", "Pause", "Let no worker start another task", "pause"),
    ("retry", "Retry failed", "Send every failed task that is kept again", "ask retry"),
    (
        "cancel",
        "Cancel not started",
        "Cancel every task that is queued, delayed or waiting",
        "ask cancel",
    ),
    ("close", "Close", "End this dashboard; a still picture stays", "close"),
)
"""A button's name, its text, its tooltip and the command it gives."""
BUTTON_WIDTH = "13em"
GONE = Html(
    "<style>"
    ".redistq-gone { display: none; border-left: 4px solid #B45309; padding: 3px 10px; "
    "margin: 6px 0; line-height: 1.4 }"
    ".jupyter-widgets-disconnected .redistq-gone { display: block }"
    ".redistq-dashboard .jupyter-widgets-disconnected .redistq-state, "
    ".redistq-dashboard .jupyter-widgets-disconnected.jupyter-button, "
    ".redistq-dashboard .jupyter-widgets-disconnected.widget-text, "
    ".redistq-dashboard .jupyter-widgets-disconnected.widget-dropdown, "
    ".redistq-dashboard.jupyter-widgets-disconnected::before, "
    ".redistq-dashboard .jupyter-widgets-disconnected::before { display: none !important }"
    "</style>"
) + tag(
    "div",
    "An old picture: its kernel has gone. Run this cell again for a live one.",
    class_="redistq-gone",
)
"""What a page shows, by itself, of a dashboard whose kernel was restarted or has died: Jupyter
gives its widgets that class then."""


def unstarted(shot: Snapshot) -> int:
    """Return how many tasks have not started."""
    return shot.ready + shot.delayed + shot.waiting


@dataclass(frozen=True, slots=True)
class Layout:
    """The widgets by name, of which ``root`` holds the others, and those that are made of rows."""

    widgets: dict[str, Any]
    keys: KeyChoice
    agenda: ScheduleChoice
    batches: BatchRows
    groups: GroupRows
    finder: FinderBox
    queues: QueueChoice | None = None

    def render_queues(self, several: Several) -> None:
        """Show the rows of several queues, and offer them."""
        assert self.queues is not None
        update(self.widgets["overview"], value=str(several.html()))
        self.queues.render(several.names(), several.chosen)

    def rows(self) -> list[Any]:
        """Return the widgets that have no name."""
        return [*self.batches.widgets(), *self.groups.widgets(), *self.finder.widgets()]


def build(on_command: Callable[[str], None], several: bool = False) -> Layout:
    """Return the widgets of a dashboard, of one queue or of several.

    ``on_command`` is called with a button's command, in any thread.
    """
    w = ipywidgets()

    def button(text: str, tooltip: str, command: str, style: str = "", least: str = "8em") -> Any:
        made = w.Button(
            description=text,
            tooltip=tooltip,
            button_style=style,
            layout=w.Layout(width="auto", min_width=least),
        )
        if command:
            made.on_click(lambda _: on_command(command))
        return made

    # The default style of the widget would cut off what is wider than a slider.
    found = {name: w.HTML(layout=w.Layout(width="100%", margin="0")) for name in PARTS}
    for name, text, tooltip, command in BUTTONS:
        found[name] = button(text, tooltip, command, least=BUTTON_WIDTH)
    found["close"].layout.min_width = "8em"
    found["close"].layout.margin = "2px 2px 2px auto"  # away from what cancels
    found["gone"] = w.HTML(GONE, layout=w.Layout(width="100%", margin="0"))
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
    batches = BatchRows(on_command)
    groups = GroupRows(on_command)
    finder = FinderBox(button, on_command)
    found["finder"] = finder.box
    found |= {"batches": batches.box, "failed": groups.box}
    queues = QueueChoice(on_command) if several else None
    if queues is not None:
        found["overview"] = w.HTML(layout=w.Layout(width="100%", margin="0"))
        found |= {"tabs": queues.tabs, "queue": queues.choice, "queues": queues.box}
    order = [
        *(("gone", "overview", "queues") if several else ("gone",)),
        *("head", "buttons", "confirm", "notice", "finder", "batches", "failed"),
        *("functions", "timeline"),
        *("workers", "priorities", "limits", "keys", "schedules", "agenda", "recent"),
    ]
    found["root"] = w.VBox(
        [found[name] for name in order],
        layout=w.Layout(width="100%", padding="4px 8px"),
    )
    found["root"].add_class("redistq-dashboard")
    return Layout(found, keys, agenda, batches, groups, finder, queues)

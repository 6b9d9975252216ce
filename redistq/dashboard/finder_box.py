"""The search field of a live dashboard, what it found, and one task with its buttons.

Callbacks only give a command: ``find TEXT``, ``task ID``, ``task-retry ID``, ``task-cancel ID``,
``task-edit ID``, ``task-send ID`` and ``task-close``. All else runs in the refresher's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..display.html import Html, tag
from ..errors import RedistqError, UnknownTask
from ..monitor.rows import TaskHistory
from ..protocol.keys import ENDED
from .feed import Feed
from .finder import Found, may_cancel, may_edit, may_retry, rerun_line, search, task_page
from .widgets import ipywidgets, update

_COPY = (
    "(navigator.clipboard?navigator.clipboard.writeText(this.dataset.code):Promise.reject())"
    ".then(()=>{this.textContent='Copied: paste it into a cell'},"
    "()=>{this.textContent='Not allowed here: copy the line below'})"
)
LOOK_EVERY_S = 1.0
"""How often a task that is shown is looked at while it has not ended."""


class FinderBox:
    """Search, results and one task."""

    def __init__(self, button: Callable[..., Any], on_command: Callable[[str], None]) -> None:
        w = ipywidgets()
        self.shown = ""
        """The id of the task that is shown."""
        self._looked_at = 0.0
        self._task: TaskHistory | None = None
        self._seen: tuple[tuple[str, str], ...] = ()
        self.field = w.Text(
            placeholder="Find tasks: name, id, argument or error, then Enter",
            description="Find",
            continuous_update=False,
            style={"description_width": "initial"},
            layout=w.Layout(width="100%", max_width="420px"),
        )
        self.field.observe(lambda change: on_command(f"find {change['new']}"), "value")
        self.said = w.HTML(layout=w.Layout(margin="0 8px"))
        self.results = w.Select(
            options=[],
            rows=6,
            layout=w.Layout(width="100%", max_width="860px", display="none"),
        )
        self.results.observe(self._chosen(on_command), "value")
        self.detail = w.HTML(layout=w.Layout(width="100%", margin="0"))
        self.payload = w.Textarea(layout=w.Layout(width="100%", max_width="860px", display="none"))
        self.buttons = {
            name: button(text, tip, "")
            for name, text, tip in (
                ("retry", "Retry", "Send this task again, as it was"),
                ("edit", "Edit and retry", "Send it again with other arguments"),
                ("send", "Send", "Add it with these arguments, as a new task"),
                ("cancel", "Cancel", "Cancel it; a running one is asked to end"),
                ("close", "Hide", "Show no task"),
            )
        }
        for name, made in self.buttons.items():
            made.on_click(lambda _, verb=name: on_command(f"task-{verb} {self.shown}"))
        self.copier = w.HTML()
        self.bar = w.HBox(
            [*self.buttons.values(), self.copier],
            layout=w.Layout(display="none", flex_flow="row wrap"),
        )
        self.box = w.VBox(
            [
                w.HBox([self.field, self.said], layout=w.Layout(flex_flow="row wrap")),
                self.results,
                self.bar,
                self.payload,
                self.detail,
            ],
            layout=w.Layout(width="100%", margin="6px 0 0 0"),
        )

    def _chosen(self, on_command: Callable[[str], None]) -> Callable[[Any], None]:
        def told(change: Any) -> None:
            if change["new"]:
                on_command(f"task {change['new']}")

        return told

    def find(self, feed: Feed, text: str) -> str:
        """Search, and list what was found; return what to say of it."""
        found: list[Found] = search(feed, text)
        options = [("choose a task …", ""), *((each.line, each.id) for each in found)]
        self.results.options = options if found else []
        update(self.results.layout, display="flex" if found else "none")
        if len(found) == 1:
            self.open(found[0].id)
        return "" if found or not text.strip() else f"Nothing was found for {text.strip()!r}."

    def open(self, task_id: str) -> None:
        """Show this task from the next look on."""
        self.shown = task_id
        self._task = None
        self._looked_at = 0.0
        update(self.payload.layout, display="none")

    def hide(self) -> None:
        """Show no task."""
        self.open("")
        update(self.detail, value="")
        update(self.bar.layout, display="none")

    def edit(self, payload: str) -> None:
        """Offer the payload of the task that is shown for editing."""
        update(self.payload, value=payload)
        update(self.payload.layout, display="flex")

    def hurry(self) -> None:
        """Look at the task again at the next step: something was done to it."""
        self._task = None
        self._looked_at = 0.0

    def render(self, feed: Feed, busy: bool) -> None:
        """Show the task that was chosen, as it stands."""
        if not self.shown:
            return
        self._look(feed)
        task = self._task
        offered = {
            "retry": task is not None and may_retry(task),
            "edit": task is not None and may_edit(task),
            "send": self.payload.layout.display == "flex",
            "cancel": task is not None and may_cancel(task),
            "close": True,
        }
        for name, is_offered in offered.items():
            update(self.buttons[name], disabled=busy and name != "close")
            update(self.buttons[name].layout, display="inline-flex" if is_offered else "none")
        line = rerun_line(task) if task is not None else ""
        update(self.copier, value=str(copy_button(line)) if line else "")
        update(self.bar.layout, display="flex")

    def _look(self, feed: Feed) -> None:
        ended = self._task is not None and self._task.state in (*ENDED, "settled")
        if ended or time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        records = feed.monitor.records
        try:
            self._task = records.task(self.shown)
            update(self.detail, value=str(task_page(self._task, records.log(self.shown))))
        except UnknownTask:
            update(self.detail, value="The server does not know this task, or no more.")
        except RedistqError:
            pass  # the dashboard says that there is no answer; it is looked at again

    def widgets(self) -> list[Any]:
        """Return its widgets, to be closed."""
        head = self.box.children[0]
        parts = [
            self.field,
            self.said,
            self.results,
            self.detail,
            self.payload,
            self.bar,
            self.copier,
        ]
        return [*parts, *self.buttons.values(), head, self.box]


def copy_button(code: str) -> Html:
    """Return a button that puts a line of code into the clipboard.

    No front end lets a widget's callback make a cell (``set_next_input`` is for a cell that runs),
    so it is the browser that copies, where the page may: over https, or from this machine.
    """
    what = {"data-code": code, "title": "Copy the line that runs this call in the notebook"}
    return tag("button", "Copy: run it here", class_="jupyter-button", onclick=_COPY, **what)

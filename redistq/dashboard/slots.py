"""Rows of a live dashboard with buttons of their own: batches, and groups of failed tasks.

A row stays in its place on the page while others come and go, so what is open stays open. Used by
the panel, in the refresher's thread; callbacks of buttons only give a command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..display.html import Html, tag
from ..monitor.failures import groups_of
from ..monitor.rows import DeadLetter
from .failed import GROUPS_SHOWN, failures_heading, group_key, group_line, letter
from .feed import LETTERS_SHOWN, View
from .tables import BATCHES_SHOWN, batch_line, batches_heading
from .widgets import close, ipywidgets, update

LETTERS_MOST = 25
"""Most letters that one group shows."""

OnCommand = Callable[[str], None]


class Row:
    """One line of HTML beside its buttons, of whatever thing has ``key``."""

    def __init__(self, buttons: Sequence[tuple[str, str, str]], on_command: OnCommand) -> None:
        """``buttons``: text, tooltip, and the command, to which the key is added."""
        w = ipywidgets()
        self.key = ""
        self.line = w.HTML(layout=w.Layout(flex="1 1 300px", margin="0", min_width="0"))
        self.buttons = [self._button(w, on_command, *each) for each in buttons]
        self.box = w.HBox(
            [self.line, *self.buttons],
            layout=w.Layout(
                display="none",
                flex_flow="row wrap",
                align_items="center",
                border_bottom="1px solid #7f7f7f59",
                max_width="860px",
                padding="1px 0",
            ),
        )

    def _button(self, w: Any, on_command: OnCommand, text: str, tip: str, command: str) -> Any:
        made = w.Button(description=text, tooltip=tip, layout=w.Layout(width="auto"))
        made.on_click(lambda _: on_command(f"{command} {self.key}"))
        return made

    def widgets(self) -> list[Any]:
        """Return its widgets, to be closed."""
        return [self.line, *self.buttons, self.box]


def placed(rows: Sequence[Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return which row shows which key: those that are shown already stay where they are."""
    held = {row.key: row for row in rows if row.key in keys}
    free = [row for row in rows if row.key not in keys]
    for key in keys:
        if key not in held and free:
            held[key] = free.pop(0)
            held[key].key = key
    for row in free:
        row.key = ""
    return held


class BatchRows:
    """The newest batches and graphs, each with buttons that send its failures again and cancel it.

    Commands: ``ask batch-retry NAME`` and ``ask batch-cancel NAME``.
    """

    BUTTONS = (
        ("Retry failed", "Send the failed tasks of this batch again", "ask batch-retry"),
        ("Cancel", "Cancel what of this batch has not started", "ask batch-cancel"),
    )

    def __init__(self, on_command: OnCommand) -> None:
        w = ipywidgets()
        self.heading = w.HTML(layout=w.Layout(width="100%", margin="0"))
        self.rows = [Row(self.BUTTONS, on_command) for _ in range(BATCHES_SHOWN)]
        self.box = w.VBox(
            [self.heading, *(row.box for row in self.rows)], layout=w.Layout(width="100%")
        )

    def render(self, view: View, busy: bool) -> None:
        """Show the batches of a view."""
        found = {row.id: row for row in view.batches[:BATCHES_SHOWN]} if view.tick else {}
        update(self.heading, value=str(batches_heading(view)))
        held = placed(self.rows, list(found))
        order = {key: at for at, key in enumerate(found)}
        for key, row in held.items():
            batch = found[key]
            update(row.line, value=_said(batch_line(batch, view)))
            retry, cancel = row.buttons
            name = batch.name or batch.id
            update(retry, disabled=busy or not batch.failed, tooltip=f"Retry the failed of {name}")
            update(cancel, disabled=busy or not batch.waiting, tooltip=f"Cancel {name}")
            for button, useful in ((retry, batch.failed), (cancel, batch.waiting)):
                update(button.layout, visibility="visible" if useful else "hidden")
            update(row.box.layout, display="flex", order=str(order[key]))
        _hide(self.rows, self.heading)

    def widgets(self) -> list[Any]:
        """Return its widgets, to be closed."""
        return [self.heading, *(each for row in self.rows for each in row.widgets())]


def _said(line: Html) -> str:
    return str(tag("div", line, style="line-height:1.5;font-size:13px"))  # a widget's is 28 px


def _hide(rows: Sequence[Any], heading: Any) -> None:
    for row in rows:
        if not row.key:
            update(row.box.layout, display="none")
    update(heading.layout, order="-1")


class GroupRow(Row):
    """One group of failed tasks; it opens to its newest, more of them on demand."""

    BUTTONS = (
        ("▸ Show", "Show the newest of these tasks", "group-open"),
        ("Retry group", "Send all failed tasks of this error and name again", "ask group-retry"),
    )

    def __init__(self, on_command: OnCommand) -> None:
        super().__init__(self.BUTTONS, on_command)
        w = ipywidgets()
        self.shown = 0
        self.letters: dict[str, Any] = {}
        self.more = w.Button(
            description="More",
            tooltip="Show more of these tasks",
            layout=w.Layout(width="auto", display="none", align_self="flex-start"),
        )
        self.more.on_click(lambda _: on_command(f"group-more {self.key}"))
        self.body = w.VBox([], layout=w.Layout(padding="0 0 0 18px", display="none"))
        head = self.box
        head.layout.border_bottom = ""
        head.layout.display = "flex"
        self.head = head
        self.box = w.VBox([head, self.body], layout=w.Layout(display="none", width="100%"))

    def render_letters(
        self, letters: Sequence[DeadLetter], full: Callable[[DeadLetter], DeadLetter]
    ) -> None:
        """Show so many of the group's letters as are wanted; ``full`` adds the traceback to one."""
        w = ipywidgets()
        wanted = {f"{each.id} {each.died_ms}": each for each in letters[: self.shown]}
        for gone in self.letters.keys() - wanted.keys():
            close(self.letters.pop(gone))
        for key, each in wanted.items():
            if key not in self.letters:
                made = w.HTML(layout=w.Layout(width="100%", margin="0"))
                made.value = str(letter(full(each)))
                self.letters[key] = made
        update(
            self.buttons[0],
            description="▾ Hide" if self.shown else "▸ Show",
            tooltip="Hide them" if self.shown else "Show the newest of these tasks",
        )
        children = (*(self.letters[key] for key in wanted), self.more)
        if tuple(self.body.children) != children:
            self.body.children = children
        update(self.body.layout, display="flex" if self.shown else "none")
        is_more = self.shown < min(len(letters), LETTERS_MOST)
        update(self.more.layout, display="inline-flex" if is_more else "none")

    def widgets(self) -> list[Any]:
        """Return its widgets, to be closed."""
        return [*super().widgets(), self.head, self.body, self.more, *self.letters.values()]


class GroupRows:
    """Failed tasks by error and name, the most frequent first.

    Commands: ``group-open KEY``, ``group-more KEY`` and ``ask group-retry KEY``. A key is of the
    type of error and the task's name, between them a line feed.
    """

    def __init__(self, on_command: OnCommand) -> None:
        w = ipywidgets()
        self.heading = w.HTML(layout=w.Layout(width="100%", margin="0"))
        self.rows = [GroupRow(on_command) for _ in range(GROUPS_SHOWN)]
        self.box = w.VBox(
            [self.heading, *(row.box for row in self.rows)], layout=w.Layout(width="100%")
        )

    def render(self, view: View, busy: bool, full: Callable[[DeadLetter], DeadLetter]) -> None:
        """Show the groups of a view; ``full`` returns a letter with its traceback."""
        now_ms = view.tick.now_ms if view.tick else 0
        found: Mapping[str, Any] = {
            group_key(group.error_type, group.name): (group, letters)
            for group, letters in groups_of(view.letters)[:GROUPS_SHOWN]
        }
        update(self.heading, value=str(failures_heading(view)))
        before = {id(row): row.key for row in self.rows}
        held = placed(self.rows, list(found))
        order = {key: at for at, key in enumerate(found)}
        for key, row in held.items():
            if before[id(row)] != key:
                row.shown = 0
            group, letters = found[key]
            update(row.line, value=_said(group_line(group, now_ms)))
            update(row.buttons[1], disabled=busy)
            row.render_letters(letters, full)
            update(row.box.layout, display="flex", order=str(order[key]))
        _hide(self.rows, self.heading)

    def turn(self, key: str) -> None:
        """Open a group, or close it."""
        for row in self.rows:
            if row.key == key:
                row.shown = 0 if row.shown else LETTERS_SHOWN

    def more(self, key: str) -> None:
        """Show more of a group."""
        for row in self.rows:
            if row.key == key:
                row.shown = min(row.shown + LETTERS_SHOWN, LETTERS_MOST)

    def widgets(self) -> list[Any]:
        """Return its widgets, to be closed."""
        return [self.heading, *(each for row in self.rows for each in row.widgets())]

"""The widgets of a live dashboard: how they are made, laid out, set and closed.

Used by the widget panel, which knows what they say and when. ipywidgets is imported here, when the
first dashboard goes live.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from ..system.interpreter import require
from .page import letter
from .view import LETTERS_SHOWN, View

PARTS = ("head", "notice", "workers", "batches", "recent", "failed")
BUTTONS = (
    ("pause", "Pause", "Let no worker start another task", "pause"),
    ("retry", "Retry failed", "Send every dead letter again", "ask retry"),
    ("cancel", "Cancel waiting", "Cancel every task that waits", "ask cancel"),
    ("close", "Close", "End this dashboard; a still picture stays", "close"),
)
"""A button's name, its text, its tooltip and the command it gives."""


def build(on_command: Callable[[str], None], letters: Letters) -> dict[str, Any]:
    """Return the widgets by name; ``root`` holds the others as they are laid out.

    ``on_command`` is called with a button's command, in any thread.
    """
    w = _ipywidgets()

    def button(text: str, tooltip: str, command: str, style: str = "") -> Any:
        made = w.Button(
            description=text,
            tooltip=tooltip,
            button_style=style,
            layout=w.Layout(width="auto", min_width="8em"),
        )
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
    found["letters"] = w.VBox(letters.slots, layout=w.Layout(width="100%"))
    order = ("head", "buttons", "confirm", "notice", "workers", "batches", "recent", "failed")
    found["root"] = w.VBox(
        [*(found[name] for name in order), found["letters"]],
        layout=w.Layout(width="100%", padding="4px 8px"),
    )
    return found


class Letters:
    """One widget a dead letter: a traceback that is open stays open while others come and go."""

    def __init__(self) -> None:
        w = _ipywidgets()
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


def _ipywidgets() -> Any:
    return require("ipywidgets", "notebook", "a live dashboard")

"""What the sections of a web page lead to, and their buttons."""

from __future__ import annotations

from ..dashboard.links import Links
from ..display.html import Html, tag
from . import shell


class Anchors(Links):
    """Anchors to the pages of this app, and buttons of its form for whoever may act."""

    def __init__(self, root: str, queue: str, *, acts: bool) -> None:
        """``root`` is where the app is mounted, ``acts`` whether there are buttons."""
        self.root = root
        self.queue = queue
        self.acts = acts

    def task(self, task_id: str, text: str) -> Html:
        """Return a link to a task."""
        return tag("a", text, href=shell.address(self.root, "/task", q=self.queue, id=task_id))

    def batch(self, batch_id: str, text: str, queue: str) -> Html:
        """Return a link to a batch or graph of a queue."""
        return tag("a", text, href=shell.address(self.root, "/batch", q=queue, id=batch_id))

    def to_queue(self, name: str, text: str) -> Html:
        """Return a link to a queue, or to one of its priorities."""
        return tag("a", text, href=shell.address(self.root, "/queue", q=name))

    def button(self, what: str, text: str, tip: str) -> Html:
        """Return the button of an action, for whoever may act."""
        return shell.action(what, text, tip) if self.acts else Html("")

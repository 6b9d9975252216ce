"""What the sections of a page lead to, and their buttons: nothing in a notebook, where widgets are
the buttons; on a web page anchors and buttons of a form (see redistq/web/anchors.py)."""

from __future__ import annotations

from ..display.html import Html, join


class Links:
    """Of a page without any. ``acts`` says whether it has buttons."""

    acts = False

    def task(self, task_id: str, text: str) -> Html:
        """Return a text that leads to a task."""
        return join([text])

    def batch(self, batch_id: str, text: str, queue: str) -> Html:
        """Return a text that leads to a batch or graph of a queue."""
        return join([text])

    def to_queue(self, name: str, text: str) -> Html:
        """Return a text that leads to a queue, or to one of its priorities."""
        return join([text])

    def button(self, what: str, text: str, tip: str) -> Html:
        """Return the button of an action (see Actions.start); ``tip`` says more of it."""
        return Html("")


NO_LINKS = Links()

"""Dashboard: a live picture of a queue, or of several, in a notebook cell; a still one where none
can live.

Used by people, in notebooks. It looks, at most twice a second, and changes something only when a
button is pressed. It ends by itself and leaves no thread, no connection and no comm behind.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterable
from typing import Any

from ..connection.address import Address, resolve
from ..display.notebook import Outlet, in_kernel, show_bundle
from ..errors import ConfigurationError
from ..protocol.keys import DEFAULT_GROUP, DEFAULT_QUEUE, QueueKeys
from .feed import Feed, feed_of
from .refresher import refresher
from .several import Several, look, whole_page, whole_text
from .widget_panel import WidgetPanel
from .words import line

__all__ = ["Dashboard"]

ENV_MODE = "REDISTQ_DASHBOARD"
HTML_LIFE_S = 6 * 3600.0
MODES = ("auto", "widget", "html", "text", "static")


class Dashboard:
    """One queue at a glance: figures, workers, recent and failed tasks, and buttons.

    ``source`` is a URL, or anything that knows its queue: a TaskMonitor, a TaskProducer, a
    TaskWorker or a Client; without one the server is found as ``settings.resolve`` says. As the
    last line of a cell, or with ``display``, it goes live; it goes on while other cells run.

    It ends, and leaves a still picture in its place, when it is closed, when its output is cleared
    or its cell deleted, when it was shown without being kept and no page shows it, and when a cell
    is interrupted. ``queues`` names several queues of one server (``"*"``: all there are): a table
    of them, the worst first, stands above the one that is chosen. ``mode`` (else
    ``$REDISTQ_DASHBOARD``): ``widget`` has buttons, ``html`` is live without them, ``static`` is
    one picture, ``text`` a few lines; ``auto`` is the best that works here.
    """

    def __init__(
        self,
        source: Any = None,
        *,
        queue: str | None = None,
        url: str | None = None,
        group: str | None = None,
        queues: str | Iterable[str] | None = None,
        refresh: float = 0.5,
        mode: str | None = None,
    ) -> None:
        mode = mode or os.environ.get(ENV_MODE) or "auto"
        if mode not in MODES:
            raise ConfigurationError(
                f"a dashboard's mode is one of {', '.join(MODES)}, not {mode!r} (see {ENV_MODE})"
            )
        if isinstance(refresh, bool) or not isinstance(refresh, int | float) or refresh < 0.5:
            raise ConfigurationError(f"refresh is in seconds, at least 0.5: {refresh!r}")
        if isinstance(source, str):
            url = source
            source = None
        self.mode = mode
        self.refresh = float(refresh)
        if queues is not None and queue is not None:
            raise ConfigurationError("give either queue, for one, or queues, for several")
        where, queue, group, delayed_key = where_of(source, url, queue, group)
        self.several = None if queues is None else Several(where, queues, group)
        """The queues it was given, where these are several."""
        if self.several is None:
            self._feed: Feed | None = feed_of(where, queue, group, delayed_key)
        else:
            self._feed = None
        self._panels: list[WidgetPanel | HtmlPanel] = []
        # The panel is kept by the refresher, and knows nothing of this handle: when the handle
        # goes, a panel that no page shows goes too.
        weakref.finalize(self, _release, self._panels)

    @property
    def feed(self) -> Feed:
        """What is known of the queue that it shows."""
        shown = self._feed
        if self.several is not None and (
            shown is None or shown.monitor.queue != self.several.chosen
        ):
            self.several.refresh()
            shown = self._feed = self.several.feed()
        assert shown is not None
        return shown

    @property
    def queue(self) -> str:
        """The name of the queue that it shows."""
        return self.feed.monitor.queue

    def choose(self, queue: str) -> None:
        """Show another of several queues. Raises ConfigurationError for one that it was not
        given."""
        if self.several is None:
            raise ConfigurationError(f"this dashboard has one queue, {self.queue!r}: queues=[…]")
        self.several.choose(queue)
        for panel in self._panels:
            refresher.hurry(panel)

    @property
    def panel(self) -> WidgetPanel | HtmlPanel | None:
        """What shows it live, of the last time that it was shown; None when nothing does."""
        return self._panels[0] if self._panels else None

    @property
    def live(self) -> bool:
        """Whether it is shown somewhere and still refreshed."""
        return any(not panel.ended for panel in self._panels)

    def close(self) -> None:
        """End it: a still picture stays, threads and comms go. Safe to call twice."""
        for panel in self._panels:
            panel.end("closed")
        self._panels.clear()

    def html(self) -> str:
        """Return the dashboard of this moment as HTML that needs nothing else."""
        self._refresh()
        return str(whole_page(self.several, self.feed.view()))

    def text(self) -> str:
        """Return the dashboard of this moment as a few lines of text."""
        self._refresh()
        return whole_text(self.several, self.feed.view())

    def _refresh(self) -> None:
        if self.several is not None:
            self.several.refresh()
        self.feed.refresh()

    def _repr_html_(self) -> str:
        return self.html()

    def __repr__(self) -> str:
        return f"Dashboard({line(self.feed.view())})"

    def _ipython_display_(self) -> None:
        """Show it, in the way that works here; IPython calls this."""
        mode = self._mode_here()
        if mode == "text":
            print(self.text())
            return
        if mode == "static":
            show_bundle({"text/html": self.html(), "text/plain": self.text()})
            return
        self._refresh()
        if any(shown.show() for shown in self._panels):
            return  # one more view of what is live already
        panel: WidgetPanel | HtmlPanel = (
            WidgetPanel(self.feed, self.refresh, self.several)
            if mode == "widget"
            else HtmlPanel(self.feed, self.refresh, self.several)
        )
        self._panels[:] = [panel]
        panel.show()
        refresher.add(panel)

    def _mode_here(self) -> str:
        if self.mode != "auto":
            return self.mode
        if not in_kernel():
            return "text"
        try:
            import ipywidgets  # noqa: F401
        except ImportError:
            return "static"
        return "widget"


def _release(panels: list[WidgetPanel | HtmlPanel]) -> None:
    for panel in panels:
        panel.released()


def where_of(
    source: Any, url: str | None, queue: str | None, group: str | None
) -> tuple[Address, str, str, str]:
    """Return server, queue, group and delayed key of what a dashboard was given."""
    if source is None:
        address = resolve(url)
        keys = QueueKeys(queue or DEFAULT_QUEUE, clustered=address.clustered)
        return address, keys.stream, group or DEFAULT_GROUP, keys.delayed
    what = type(source).__name__
    inner = getattr(source, "producer", None)  # a monitor's
    if isinstance(getattr(inner, "address", None), Address):
        source = inner
    known = getattr(source, "address", None)
    commands = getattr(source, "commands", None)
    if commands is None and isinstance(getattr(source, "keys", None), QueueKeys):
        commands = source  # keys and group are a client's own attributes
    settings = getattr(source, "settings", None)
    if not isinstance(known, Address) or (commands is None and settings is None):
        raise ConfigurationError(
            "a dashboard is made from a URL, a TaskMonitor, a TaskProducer, a TaskWorker or a "
            f"Client, not {what}"
        )
    if url is not None or queue is not None or group is not None:
        raise ConfigurationError(
            f"a {what} knows its server and queue: give either it or url, queue and group"
        )
    if commands is not None:
        return known, commands.keys.stream, commands.group, commands.keys.delayed
    assert settings is not None
    keys = QueueKeys(settings.queue, settings.delayed_key, known.clustered)
    return known, keys.stream, settings.group, keys.delayed


# -- live without widgets ------------------------------------------------------------------------


class HtmlPanel:
    """A live picture that replaces itself, without buttons, for where there are no widgets.

    Whether it is seen cannot be known, so it ends in time. All of it but ``show`` and ``released``
    runs in the refresher's thread.
    """

    def __init__(self, feed: Feed, refresh: float, several: Several | None = None) -> None:
        self.feed = feed
        self.several = several
        self.ended = False
        self._refresh = max(1.0, refresh)
        self._outlet: Outlet | None = None
        self._shown = ""
        self._born = time.monotonic()
        self._released = False

    def show(self) -> bool:
        """Show it once; return False when it was shown: later views are pictures of their own."""
        if self.ended or self._outlet is not None:
            return False
        self._outlet = Outlet()
        self._outlet.show(self._bundle(live=True))
        return True

    def _bundle(self, **more: Any) -> dict[str, str]:
        view = self.feed.view(**more)
        return {
            "text/html": str(whole_page(self.several, view)),
            "text/plain": whole_text(self.several, view),
        }

    def step(self) -> float | None:
        """Put the newest picture in place."""
        if self.ended:
            return None
        if why := self._reason_to_end():
            self._end(why)
            return None
        self.feed = look(self.several, self.feed)
        bundle = self._bundle(live=True)
        if bundle["text/html"] != self._shown and self._outlet is not None:
            self._shown = bundle["text/html"]
            self._outlet.replace(bundle)
        return self._refresh

    def _reason_to_end(self) -> str:
        if self._outlet is not None:
            if self._outlet.interrupted:
                return "the kernel was interrupted"
            if self._released and self._outlet.cell_ended:
                return "nobody keeps it"
        return "it was live for six hours" if time.monotonic() - self._born > HTML_LIFE_S else ""

    def on_error(self, error: Exception) -> None:
        """Do nothing: the refresher has logged it, and there is no line to show it on."""

    def released(self) -> None:
        """Note that the handle is gone: it ends with its cell, since whether it is seen
        cannot be known. Called by the garbage collector, in any thread: it only sets a flag."""
        self._released = True

    def end(self, why: str) -> None:
        """Leave a last picture and stop."""
        refresher.remove(self)
        self._end(why)

    def _end(self, why: str) -> None:
        if not self.ended:
            self.ended = True
            if self._outlet is not None:
                self._outlet.replace(self._bundle(ended=why))
                self._outlet.close()

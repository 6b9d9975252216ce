"""The queues of one dashboard: a row of each, and the one that is shown below them.

Used by Dashboard and its panels. It has no thread: ``refresh`` asks the server, with one call for
all queues.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterable

from ..connection.address import Address
from ..display.html import Html, block, join, tag
from ..display.text import WARNING, clean
from ..errors import ConfigurationError, RedistqError
from ..monitor.queues import QueueRow, Queues, worst_first
from ..protocol.keys import DEFAULT_QUEUE, QueueKeys
from .feed import CALL_TIMEOUT_S, Feed, View, feed_of
from .page import page, plain
from .queues import overview, overview_text

LOOK_EVERY_S = 1.0
ALL = "*"
"""In place of names: all queues that the server has."""


class Several:
    """Rows of several queues, and which of them is chosen.

    ``queues`` are their names, or ``"*"``. The first that is named is chosen, or of all the worst.
    ``rows`` are those of the last look, and ``trouble`` says why there are no newer ones.
    """

    def __init__(self, address: Address, queues: str | Iterable[str], group: str) -> None:
        names = _names(queues)
        self.rows: tuple[QueueRow, ...] = ()
        self.trouble = ""
        self.chosen = names[0] if names else ""
        self._queues = Queues(address, names, group, CALL_TIMEOUT_S)
        self._asked_at = -LOOK_EVERY_S
        self._lock = threading.Lock()
        if names:
            self.chosen = self._queues.names[0]  # on a Cluster it has a hash tag
        weakref.finalize(self, self._queues.close)

    def refresh(self) -> None:
        """Look at all queues, unless that was just done; that there is no answer is kept."""
        with self._lock:
            if time.monotonic() - self._asked_at < LOOK_EVERY_S:
                return
            try:
                self.rows = tuple(self._queues.look())
                self.trouble = ""
            except RedistqError as error:
                self.trouble = str(error)
            self._asked_at = time.monotonic()
            if not self.chosen:
                self.chosen = next((row.name for row in worst_first(self.rows)), "")

    def choose(self, name: str) -> None:
        """Show that queue from now on. Raises ConfigurationError for one that is not here."""
        names = self.names()
        if name not in names:
            raise ConfigurationError(
                f"queue {name!r} is none of this dashboard's: {', '.join(names) or 'it has none'}"
            )
        self.chosen = name

    def names(self) -> list[str]:
        """Return the names of the queues, in the order of the alphabet."""
        return sorted(row.name for row in self.rows) or sorted(self._queues.names)

    def feed(self) -> Feed:
        """Return what is known of the queue that is chosen."""
        address = self._queues.address
        keys = QueueKeys(self.chosen or DEFAULT_QUEUE, clustered=address.clustered)
        return feed_of(address, keys.stream, self._queues.group, keys.delayed)

    def html(self) -> Html:
        """Return the rows of all queues, and why there are no newer ones."""
        if not self.trouble:
            return tag("div", overview(self.rows, chosen=self.chosen), style="margin-bottom:10px")
        style = f"border-left:4px solid {WARNING};padding:3px 10px;margin:6px 0"
        said = tag("div", f"⚠ {clean(self.trouble, 300)}", style=style)
        return join([overview(self.rows, chosen=self.chosen), block([said])])

    def text(self) -> str:
        """Return the same as lines of text."""
        said = f"\n  ⚠ {clean(self.trouble, 300)}" if self.trouble else ""
        return overview_text(self.rows) + said


def _names(queues: str | Iterable[str]) -> list[str] | None:
    if isinstance(queues, str):
        if queues != ALL:
            raise ConfigurationError(
                f"queues is a list of names, or '*' for all there are, not {queues!r}; for one "
                f"queue: queue={queues!r}"
            )
        return None
    names = list(queues)
    if not names:
        raise ConfigurationError("queues names at least one queue, or is '*' for all there are")
    return names


def look(several: Several | None, feed: Feed) -> Feed:
    """Look at all queues and at the one that is shown; return its feed, another where another one
    was chosen."""
    if several is not None:
        several.refresh()
        if several.chosen and several.chosen != feed.monitor.queue:
            feed = several.feed()
    feed.refresh()
    return feed


def whole_page(several: Several | None, view: View) -> Html:
    """Return a dashboard without buttons: the rows of several queues, and the one that is shown."""
    return page(view) if several is None else join([several.html(), page(view)])


def whole_text(several: Several | None, view: View) -> str:
    """Return the same as lines of text."""
    return plain(view) if several is None else f"{several.text()}\n{plain(view)}"

"""The live dashboard without widgets: HTML that takes its own place, and no buttons.

Made by Dashboard. All of it but ``show`` and ``released`` runs in the refresher's thread.
"""

from __future__ import annotations

import time
from typing import Any

from ..display.notebook import Outlet
from .feed import Feed
from .page import page
from .refresher import refresher
from .view import plain

LIFE_S = 6 * 3600.0


class HtmlPanel:
    """One live picture in one place: whether it is seen cannot be known, so it ends in time."""

    def __init__(self, feed: Feed, refresh: float) -> None:
        self.feed = feed
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
        return {"text/html": str(page(view)), "text/plain": plain(view)}

    def step(self) -> float | None:
        """Put the newest picture in place."""
        if self.ended:
            return None
        if why := self._reason_to_end():
            self._end(why)
            return None
        self.feed.refresh()
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
        return "it was live for six hours" if time.monotonic() - self._born > LIFE_S else ""

    def on_error(self, error: Exception) -> None:
        """Do nothing: the refresher has logged it, and there is no line to show it on."""

    def released(self) -> None:
        """Note that the handle is gone: it ends with its cell, since nobody can tell whether it is
        seen. Called by the garbage collector, in any thread: it only sets a flag."""
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

"""What the buttons of one queue's pages do, one at a time, and what is said of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..dashboard.actions import Actions, Progress
from ..dashboard.feed import Feed
from ..errors import RedistqError

FRESH_S = 0.45
"""A look at the queue younger than this is shared: pages look every half a second."""
SAID_FOR_S = 60.0
"""So long is what an action did said on the pages of its queue."""


class Desk:
    """The actions of one queue; all who look at it see what was done last."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.actions = Actions(feed)
        self._notice = ""
        self._said_at = 0.0
        self._turn = threading.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether an action is under way."""
        return self._turn.locked()

    @property
    def notice(self) -> str:
        """The sentence about the last action; '' when it is old."""
        is_old = not self.is_busy and time.monotonic() - self._said_at > SAID_FOR_S
        return "" if is_old else self._notice

    def refresh(self) -> None:
        """Ask the server for what is new, unless another page has just done so."""
        self.feed.refresh(FRESH_S)

    def carry_out(self, work: Progress) -> str:
        """Carry out an action, with calls that block, and return what it did. One that comes
        while another is under way is not begun."""
        if not self._turn.acquire(blocking=False):
            return "Another action is under way: try again when it has ended."
        try:
            return said_by(work, self._say)
        finally:
            self._turn.release()
            self.feed.forget_age()

    def _say(self, sentence: str) -> None:
        self._notice = sentence
        self._said_at = time.monotonic()


def said_by(work: Progress, say: Callable[[str], None] = lambda _: None) -> str:
    """Carry out an action, with calls that block, and return what it says at its end, which is
    told to ``say`` like all that it says on the way."""
    try:
        while True:
            say(next(work))
    except StopIteration as done:
        said = str(done.value)
    except RedistqError as error:
        said = f"That did not work: {error}"
    say(said)
    return said

"""Pictures that are drawn while somebody looks at them, once for all who look at the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Hashable, Mapping

from ..errors import RedistqError
from ..logger import logger
from .streams import event

log = logger("redistq.web")

MOST_VIEWERS = 100
"""Most pages that are live at a time."""

Parts = Mapping[str, str]
"""The sections of a page, as HTML."""
Draw = Callable[[], tuple[Parts, float]]
"""Draw a picture, with calls that block; return it, and in how many seconds to draw the next."""


class Picture:
    """One picture and those who look at it; each is sent the sections that changed.

    Who is slow is sent the newest next: nothing is kept for anybody.
    """

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._parts: Parts = {}
        self._drawn = asyncio.Event()
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.viewers = 0

    def hurry(self) -> None:
        """Draw the next one at once: something was just done."""
        self._hurry.set()

    async def watch(self) -> AsyncGenerator[str, None]:
        """Yield events ``parts`` of the sections that changed; at first, of all."""
        self.viewers += 1
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._go_on())
        sent: Parts = {}
        try:
            while True:
                drawn = self._drawn
                parts = self._parts
                changed = {name: text for name, text in parts.items() if sent.get(name) != text}
                if changed:
                    yield event("parts", json.dumps(changed))
                    sent = parts
                await drawn.wait()
        finally:
            self.viewers -= 1
            if not self.viewers:
                self._task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._task

    async def _go_on(self) -> None:
        while True:
            rest_s = 1.0
            try:
                self._parts, rest_s = await asyncio.to_thread(self._draw)
            except RedistqError as error:
                log.info("a picture was not drawn: %s", error)
            except Exception:  # any error: the next picture may be drawn again
                log.exception("a picture could not be drawn")
            drawn, self._drawn = self._drawn, asyncio.Event()
            drawn.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), rest_s)
            self._hurry.clear()


class Gallery:
    """The pictures of one app that are looked at now."""

    def __init__(self) -> None:
        self._pictures: dict[Hashable, Picture] = {}

    @property
    def viewers(self) -> int:
        """How many pages are live."""
        return sum(picture.viewers for picture in self._pictures.values())

    async def watch(self, key: Hashable, draw: Draw) -> AsyncGenerator[str, None]:
        """Yield the events of the picture of that key, which is drawn by ``draw``."""
        picture = self._pictures.setdefault(key, Picture(draw))
        try:
            async with contextlib.aclosing(picture.watch()) as events:
                async for text in events:
                    yield text
        finally:
            if not picture.viewers and self._pictures.get(key) is picture:
                del self._pictures[key]

    def hurry(self) -> None:
        """Draw all of them at once."""
        for picture in self._pictures.values():
            picture.hurry()

"""Server-sent events: what happens in a queue, for programs that speak HTTP alone.

``/events`` of the served dashboard, behind its token. An ``EventSource`` that lost its connection
names the last event it got, and is told what came after it.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import cache
from typing import Any

from ..connection.address import Address
from ..errors import ConfigurationError, RedistqError
from ..logger import logger
from ..monitor.events import TaskEvent
from ..monitor.monitor import TaskMonitor

log = logger("redistq.serve")

MOST_LISTENERS = 32
"""Most programs that listen at a time; each looks at the queue by itself."""
COMMENT_S = 15.0
"""Seconds after which a line without meaning shows that the connection still stands."""


def message_of(event: TaskEvent) -> str:
    """Return an event as it is sent."""
    return f"id: {event.cursor}\ndata: {event.json()}\n\n"


@cache
def handler() -> type:
    """Return the class that answers requests for events; it is told ``address`` and ``queue``."""
    from jupyter_server.base.handlers import APIHandler
    from tornado.iostream import StreamClosedError
    from tornado.web import HTTPError, authenticated

    class Events(APIHandler):
        """One program that listens."""

        SUPPORTED_METHODS = ("GET",)
        listeners = 0

        def initialize(self, address: Address, queue: str) -> None:
            self.address = address
            self.queue_name = queue
            self.told: asyncio.Task[None] | None = None

        @authenticated
        async def get(self) -> None:
            since = self.request.headers.get("Last-Event-ID") or self.get_argument("since", None)
            if Events.listeners >= MOST_LISTENERS:
                raise HTTPError(503, "too many programs listen already")
            with TaskMonitor(address=self.address, stream=self.queue_name) as monitor:
                try:
                    events = monitor.aevents(since)
                except ConfigurationError as error:
                    raise HTTPError(400, str(error)) from None
                Events.listeners += 1
                try:
                    await self.tell(events)
                finally:
                    Events.listeners -= 1

        async def tell(self, events: Any) -> None:
            """Send what happens until the other side has gone."""
            self.set_header("Content-Type", "text/event-stream")
            self.set_header("Cache-Control", "no-store")
            self.set_header("X-Accel-Buffering", "no")
            self.told = asyncio.ensure_future(self.pass_on(events))
            try:
                while True:
                    await self.send(": here\n\n")
                    done, _ = await asyncio.wait({self.told}, timeout=COMMENT_S)
                    if done:
                        self.told.result()
                        return
            except RedistqError as error:
                log.warning("the events of a listener end: %s", error)
            except (StreamClosedError, asyncio.CancelledError):
                pass  # it has gone
            finally:
                self.told.cancel()
                with contextlib.suppress(BaseException):
                    await self.told

        async def pass_on(self, events: Any) -> None:
            async for event in events:
                await self.send(message_of(event))

        async def send(self, text: str) -> None:
            self.write(text)
            await self.flush()

        def on_connection_close(self) -> None:
            if self.told is not None:
                self.told.cancel()

    return Events

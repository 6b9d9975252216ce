"""Server-sent events: answers that go on, with an end for those that nobody reads.

Also the events of a queue for programs, at ``/events``: an ``EventSource`` that lost its
connection names the last event that it got, and is told what came after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

from starlette.responses import StreamingResponse

from ..errors import RedistqError
from ..logger import logger

log = logger("redistq.web")

COMMENT_S = 15.0
"""Seconds after which a line without meaning shows that the connection still stands."""
SLOW_S = 20.0
"""A reader that takes nothing for so long is dropped."""
LOOK_S = 0.25
"""How often it is looked whether the server of this app is to end."""


class EventStream(StreamingResponse):
    """What an iterator of events yields, as server-sent events; it ends with the server."""

    def __init__(self, events: AsyncIterator[str]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(kept_alive(events), media_type="text/event-stream", headers=headers)

    async def stream_response(self, send: Any) -> None:
        """Send them; a reader that is too slow is dropped."""

        async def in_time(message: MutableMapping[str, Any]) -> None:
            await asyncio.wait_for(send(message), SLOW_S)

        try:
            await super().stream_response(in_time)
        except TimeoutError:
            log.info("a reader of events took nothing for %.0f s: it is dropped", SLOW_S)


def event(kind: str, data: str, place: str | int | None = None) -> str:
    """Return an event as it is sent; ``place`` is told when a reader comes again."""
    head = "" if place is None else f"id: {place}\n"
    return f"{head}event: {kind}\ndata: {data}\n\n"


def is_ending() -> bool:
    """Return whether the uvicorn that runs this app was told to end. It waits for answers that go
    on, and does not tell them."""
    with contextlib.suppress(ValueError, AttributeError):
        handler: Any = signal.getsignal(signal.SIGTERM)
        return bool(handler.__self__.should_exit)
    return False


async def kept_alive(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield events, and between them a line without meaning now and then, until the server ends;
    an error of ours is the last event."""
    waiting: asyncio.Task[str] | None = None
    quiet = 0.0
    try:
        while not is_ending():
            if waiting is None:
                waiting = asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({waiting}, timeout=LOOK_S)
            if not done:
                quiet += LOOK_S
                if quiet >= COMMENT_S:
                    quiet = 0.0
                    yield ": here\n\n"
                continue
            try:
                text = waiting.result()
            except StopAsyncIteration:
                return
            except RedistqError as error:
                log.warning("the events of a listener end: %s", error)
                yield event("error", json.dumps({"message": str(error)}))
                return
            waiting = None
            quiet = 0.0
            yield text
    finally:
        if waiting is not None:
            waiting.cancel()
            with contextlib.suppress(BaseException):
                await waiting
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()

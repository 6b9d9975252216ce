"""redistq in FastAPI: a producer for each app, and routes that tell how a task stands.

    queue = RedistqFastAPI(url="redis://localhost:6379/0")
    app = FastAPI(lifespan=queue.lifespan)
    app.include_router(queue.router(), prefix="/tasks")

    @app.post("/resize")
    async def resize(image: str, producer: Annotated[AsyncTaskProducer, Depends(queue)]):
        return {"task": await producer.add_task("resize", {"image": image})}

``task.adelay(...)`` in a request uses that producer, too. docs/fastapi.md is the guide.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, HTTPException
from fastapi.responses import JSONResponse

from ..errors import ItemsGone, RedistqError, ResultTimeout, TaskCancelled, TaskFailed, UnknownTask
from ..producer import AsyncTaskProducer
from ..producer.active import use
from ..producer.results import TaskStatus
from ..web.streams import EventStream, event

LOOK_S = 0.5
"""Seconds between two looks at how far a task is, for those that listen."""
MOST_WAIT_S = 60.0
"""How long a request for a result may wait."""


class RedistqFastAPI:
    """A queue of an app: its producer is opened with the app and closed with it.

    The options are those of AsyncTaskProducer. As a dependency, ``Depends(queue)``, it is the
    producer.
    """

    def __init__(self, url: str | None = None, **options: Any) -> None:
        self._options = {"url": url, **options}
        self._producer: AsyncTaskProducer | None = None

    @property
    def producer(self) -> AsyncTaskProducer:
        """The app's producer; raises RedistqError while the app does not run."""
        if self._producer is None:
            raise RedistqError(
                "the producer is there while the app runs: FastAPI(lifespan=queue.lifespan), or in "
                "a lifespan of your own: async with queue.lifespan(app): yield"
            )
        return self._producer

    async def __call__(self) -> AsyncTaskProducer:
        """Return the producer: for ``Depends(queue)``."""
        return self.producer

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Open the producer, and close it at the end."""
        # Finding the server may start the embedded one, which takes a moment.
        producer = await asyncio.to_thread(lambda: AsyncTaskProducer(**self._options))
        self._producer = producer
        use(producer)
        try:
            yield
        finally:
            self._producer = None
            use(None)
            await producer.close()

    def router(self, **options: Any) -> APIRouter:
        """Return routes that tell how tasks stand, to be included under a prefix of yours.

        ``GET /{id}``, ``GET /{id}/result?timeout=10``, ``DELETE /{id}`` cancels it, ``GET
        /{id}/events`` sends progress, state and result as they come, ``GET /{id}/stream`` what the
        task yields; the last two are server-sent events. Who knows a task's id may ask: give
        ``dependencies=[Depends(...)]`` to say who else has to. The options are those of APIRouter.
        """
        router = APIRouter(**{"tags": ["tasks"], **options})
        routes = _Routes(self)
        router.add_api_route("/{task_id}", routes.status, methods=["GET"])
        router.add_api_route("/{task_id}", routes.cancel, methods=["DELETE"])
        router.add_api_route("/{task_id}/result", routes.result, methods=["GET"])
        router.add_api_route("/{task_id}/events", routes.events, methods=["GET"])
        router.add_api_route("/{task_id}/stream", routes.stream, methods=["GET"])
        return router


def status_json(status: TaskStatus) -> dict[str, Any]:
    """Return how a task stands, as the routes answer it; of an error its type and message, not
    the traceback."""
    found: dict[str, Any] = {"id": status.id, "state": status.state, "name": status.name}
    found |= {"attempt": status.attempt, "settled": status.settled, "why": status.why or None}
    if status.state == "succeeded":
        found["result"] = status.result
    if status.error is not None:
        found["error"] = {name: status.error.get(name) for name in ("type", "message")}
    if status.finished_at is not None:
        found["finished_at"] = status.finished_at.isoformat()
    return found


class _Routes:
    """The routes of one app."""

    def __init__(self, queue: RedistqFastAPI) -> None:
        self._queue = queue

    async def _status(self, task_id: str) -> TaskStatus:
        try:
            return await self._queue.producer.get_task(task_id)
        except UnknownTask as error:
            raise HTTPException(404, str(error)) from None

    async def status(self, task_id: str) -> dict[str, Any]:
        """How a task stands, and its result."""
        found = status_json(await self._status(task_id))
        if found["state"] == "running":
            found["progress"] = await self._progress(task_id)
        return found

    async def _progress(self, task_id: str) -> dict[str, Any] | None:
        said = await self._queue.producer.progress(task_id)
        return None if said is None else {"done": said.done, "total": said.total, "text": said.text}

    async def cancel(self, task_id: str, running: bool = False) -> dict[str, str]:
        """Cancel a task; one that runs, where ``running`` is given."""
        words = await self._queue.producer.cancel(task_id, running="ask" if running else None)
        if words[task_id] == "unknown":
            raise HTTPException(404, f"no task with id {task_id!r}")
        return {"id": task_id, "outcome": words[task_id]}

    async def result(self, task_id: str, timeout: float = 10.0) -> Any:
        """A task's result, as soon as it is there; 202 where it is not there in time."""
        try:
            seconds = min(max(timeout, 0.0), MOST_WAIT_S)
            return {
                "id": task_id,
                "result": await self._queue.producer.get_result(task_id, seconds),
            }
        except UnknownTask as error:
            raise HTTPException(404, str(error)) from None
        except ResultTimeout as error:
            return JSONResponse({"id": task_id, "state": error.state}, 202)
        except TaskFailed as error:
            detail = {"state": "failed", "type": error.type, "message": error.message}
            raise HTTPException(500, detail) from None
        except TaskCancelled as error:
            raise HTTPException(410, {"state": "cancelled", "message": error.reason}) from None

    async def events(self, task_id: str) -> EventStream:
        """Progress, and at the end state and result, as server-sent events."""
        await self._status(task_id)
        return EventStream(self._changes(task_id))

    async def _changes(self, task_id: str) -> AsyncIterator[str]:
        """Yield each change of a task's state or progress; the last is its end."""
        before = ""
        while True:
            status = await self._queue.producer.get_task(task_id)
            found = status_json(status)
            if not status.settled:
                found["progress"] = await self._progress(task_id)
            text = json.dumps(found)
            if text != before:
                before = text
                yield event("end" if status.settled else "progress", text)
            if status.settled:
                return
            with contextlib.suppress(ResultTimeout, TaskFailed, TaskCancelled):
                await self._queue.producer.get_result(task_id, LOOK_S)

    async def stream(
        self,
        task_id: str,
        start: int = 0,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> EventStream:
        """What a task yields, as server-sent events; a listener that comes again is sent what
        came after the last that it got."""
        await self._status(task_id)
        if last_event_id is not None and last_event_id.isdecimal():
            start = int(last_event_id) + 1
        return EventStream(self._items(task_id, start))

    async def _items(self, task_id: str, start: int) -> AsyncIterator[str]:
        at = start
        producer = self._queue.producer
        async with producer.stream(task_id, start, restarts=True) as items:
            try:
                async for item in items:
                    if isinstance(item, RedistqError):  # the task began anew
                        at = 0
                        yield event("restart", "{}")
                        continue
                    yield event("item", json.dumps(item), at)
                    at += 1
            except ItemsGone as error:
                yield event("gone", json.dumps({"message": str(error), "first": error.first}))
                return
            except (TaskFailed, TaskCancelled):
                pass
        yield event("end", json.dumps(status_json(await producer.get_task(task_id))))


__all__ = ["RedistqFastAPI", "status_json"]

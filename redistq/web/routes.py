"""The addresses of the web dashboard, and what is answered there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ..dashboard.actions import ASKED
from ..dashboard.finder import may_edit
from ..display.html import tag, void
from ..errors import ConfigurationError, RedistqError, ServerUnavailable, UnknownTask
from ..monitor.events import TaskEvent
from . import api, drawings, shell
from .desk import Desk, said_by
from .drawings import Drawing
from .graphs import svg_of
from .guard import FULL, ROLE, form_of
from .live import MOST_VIEWERS, Gallery
from .site import Site
from .streams import EventStream

MOST_LISTENERS = 32
"""Most programs that listen to events at a time; each looks at the queue by itself."""
WAIT_S = 2.0
"""So long is the end of an action waited for before it is said that it goes on."""
LONGEST_FORM = 2_000_000
"""Most bytes of a form: of a payload that was edited."""


class Routes:
    """What is answered, for one Site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.gallery = Gallery()
        self.listeners = 0
        self._actions: set[asyncio.Task[str]] = set()

    def app(self) -> Starlette:
        """Return the app, without its guard."""
        routes = [
            Route("/", self.home),
            Route("/queue", self.page),
            Route("/task", self.page),
            Route("/batch", self.page),
            Route("/search", self.search),
            Route("/edit", self.edit),
            Route("/graph.svg", self.graph),
            Route("/live", self.live),
            Route("/act", self.act, methods=["POST"]),
            Route("/send", self.send, methods=["POST"]),
            Route("/events", self.events),
            Route("/health", self.health),
            *api.routes(self.site),
            Mount("/static", Static(directory=shell.STATIC)),
        ]
        handlers: dict[Any, Callable[..., Any]] = {
            RedistqError: _said,
            HTTPException: _http_error,
        }
        return Starlette(routes=routes, exception_handlers=handlers)

    # -- pages -----------------------------------------------------------------------------------

    async def home(self, request: Request) -> Response:
        """All queues; where there is only one, that one."""
        if self.site.only:
            to = shell.address(_root(request), "/queue", q=self.site.only)
            return RedirectResponse(to, 303)
        return await self._page(request, drawings.overview(self.site, _root(request)))

    async def page(self, request: Request) -> Response:
        """One queue, task or batch."""
        return await self._page(request, await asyncio.to_thread(self._drawing, request))

    async def _page(self, request: Request, drawing: Drawing) -> Response:
        parts, _ = await asyncio.to_thread(drawing.draw)
        return HTMLResponse(
            shell.document(
                _root(request),
                drawing.title,
                drawings.sections(drawing, parts),
                live=drawing.live,
                where=drawing.where,
                queue=drawing.queue,
                read_only=not _acts(request),
            )
        )

    def _drawing(self, request: Request) -> Drawing:
        """Return the page that a request is about, by its path, or for ``/live`` by what it
        names."""
        asked = request.query_params
        root = _root(request)
        kind = request.url.path.rpartition("/")[2]
        acts = _acts(request)
        queue = asked.get("q", "")
        if kind == "live" and not queue:
            return drawings.overview(self.site, root)
        task_id = asked.get("task", "") or (asked.get("id", "") if kind == "task" else "")
        if task_id:
            return drawings.task(self.site, root, queue, task_id, acts=acts)
        batch_id = asked.get("batch", "") or (asked.get("id", "") if kind == "batch" else "")
        if batch_id:
            first = asked.get("first", "0")
            at = int(first) if first.isdecimal() and len(first) < 10 else 0
            return drawings.batch(self.site, root, queue, batch_id, at, acts=acts)
        return drawings.queue(self.site, root, queue, acts=acts)

    async def search(self, request: Request) -> Response:
        """Tasks that have a text, in a state or in any."""
        root = _root(request)
        asked = request.query_params
        queue, text, state = (asked.get(name, "") for name in ("q", "text", "state"))
        text = text[:200]
        look = await asyncio.to_thread(drawings.found, self.site, root, queue, text, state)
        body = [
            tag("h1", "Find tasks"),
            shell.search_form(root, queue, text, state),
            await asyncio.to_thread(look),
        ]
        where = ((queue, shell.address(root, "/queue", q=queue)),)
        page = shell.document(root, "Find tasks", body, where=where, read_only=not _acts(request))
        return HTMLResponse(page)

    async def graph(self, request: Request) -> Response:
        """The picture of a graph; where matplotlib is missing there is none."""
        desk = await asyncio.to_thread(self.site.desk, request.query_params.get("q", ""))
        graph_id = request.query_params.get("id", "")
        try:
            picture = await asyncio.to_thread(svg_of, desk.feed.monitor, graph_id)
        except ImportError as error:
            raise HTTPException(404, str(error)) from None
        return Response(picture, media_type="image/svg+xml")

    async def live(self, request: Request) -> Response:
        """The sections of a page as they change."""
        if self.gallery.viewers >= MOST_VIEWERS:
            raise HTTPException(503, "Too many pages are live: this one is, when others are left.")
        drawing = await asyncio.to_thread(self._drawing, request)
        return EventStream(self.gallery.watch(drawing.key, drawing.draw))

    # -- actions ---------------------------------------------------------------------------------

    async def act(self, request: Request) -> Response:
        """Start what a button says; what cannot be undone is asked first."""
        form = await form_of(request, LONGEST_FORM)
        queue = request.query_params.get("q", "")
        what = form.get("what", "").replace("\r\n", "\n")
        desk = await asyncio.to_thread(self.site.desk, queue)
        await asyncio.to_thread(desk.refresh)
        if what.partition(" ")[0] in ASKED and not form.get("sure"):
            question, yes = desk.actions.question(what)
            if not question:
                raise ServerUnavailable("nothing is known of the queue now: try again")
            if _wants_json(request):
                return JSONResponse({"question": question, "yes": yes})
            page = shell.question_page(_root(request), queue, what, question, yes)
            return HTMLResponse(page)
        work = desk.actions.start(what)
        if work is None:
            raise HTTPException(400, "there is no such action")
        said = await self._carry_out(desk, work)
        if _wants_json(request):
            return JSONResponse({"said": said})
        return RedirectResponse(_back(request, queue, what), 303)

    async def _carry_out(self, desk: Desk, work: Any) -> str:
        """Return what an action did, or that it goes on."""
        task = asyncio.ensure_future(asyncio.to_thread(desk.carry_out, work))
        self._actions.add(task)
        task.add_done_callback(self._actions.discard)
        done, _ = await asyncio.wait({task}, timeout=WAIT_S)
        self.gallery.hurry()
        return task.result() if done else desk.notice or "It is under way."

    async def edit(self, request: Request) -> Response:
        """The form that sends a failed task again with other arguments."""
        queue, task_id = (request.query_params.get(name, "") for name in ("q", "id"))
        if not _acts(request):
            raise HTTPException(403, "This address is for looking only.")
        desk = await asyncio.to_thread(self.site.desk, queue)
        task = await asyncio.to_thread(desk.feed.monitor.records.task, task_id)
        if not may_edit(task):
            raise HTTPException(400, "only a failed task whose arguments are JSON can be edited")
        offered: list[str] = []
        work = desk.actions.of_task("task-edit", task_id, "", offered.append)
        said = await asyncio.to_thread(said_by, work)  # nothing is done: no other page hears of it
        return HTMLResponse(self._edit_page(request, task_id, "".join(offered), said))

    def _edit_page(self, request: Request, task_id: str, payload: str, said: str) -> str:
        root = _root(request)
        queue = request.query_params.get("q", "")
        to_task = shell.address(root, "/task", q=queue, id=task_id)
        form = tag(
            "form",
            tag("label", "Arguments, as JSON", for_="payload"),
            tag("textarea", "\n" + payload, id="payload", name="payload", rows="14"),
            void("input", type="hidden", name="id", value=task_id),
            tag("button", "Send"),
            " ",
            tag("a", "Back to the task", href=to_task),
            method="post",
            action=shell.address(root, "/send", q=queue),
            class_="edit",
        )
        body = [tag("h1", "Edit and retry"), tag("p", said, role="status"), form]
        where = ((queue, shell.address(root, "/queue", q=queue)), (task_id, to_task))
        return shell.document(root, "Edit and retry", body, where=where)

    async def send(self, request: Request) -> Response:
        """Add a task with arguments that were edited; what is no JSON comes back, untouched."""
        form = await form_of(request, LONGEST_FORM)
        queue = request.query_params.get("q", "")
        task_id, payload = form.get("id", ""), form.get("payload", "")
        desk = await asyncio.to_thread(self.site.desk, queue)
        try:
            json.loads(payload)
        except ValueError as error:
            said = f"These arguments are no JSON: {error}"
            return HTMLResponse(self._edit_page(request, task_id, payload, said), 400)
        await self._carry_out(
            desk, desk.actions.of_task("task-send", task_id, payload, lambda _: None)
        )
        return RedirectResponse(shell.address(_root(request), "/task", q=queue, id=task_id), 303)

    # -- for programs ----------------------------------------------------------------------------

    async def events(self, request: Request) -> Response:
        """What happens in a queue, as server-sent events."""
        asked = request.query_params
        since = request.headers.get("last-event-id") or asked.get("since")
        if self.listeners >= MOST_LISTENERS:
            raise HTTPException(503, "too many programs listen already")
        queue = asked.get("q", "") or self.site.only
        if not queue:
            raise HTTPException(400, "which queue? /events?q=NAME")
        desk = await asyncio.to_thread(self.site.desk, queue)
        return EventStream(self._told(desk.feed.monitor.aevents(since)))

    async def _told(self, events: AsyncIterator[TaskEvent]) -> AsyncIterator[str]:
        self.listeners += 1
        try:
            yield ": here\n\n"
            async for event in events:
                yield f"id: {event.cursor}\ndata: {event.json()}\n\n"
        finally:
            self.listeners -= 1
            if isinstance(events, AsyncGenerator):
                await events.aclose()

    async def health(self, request: Request) -> Response:
        """Whether the server of the queues answers."""
        await asyncio.to_thread(self.site.ping)
        return Response(status_code=200)


class Static(StaticFiles):
    """Files of the package, which browsers keep: their addresses change with their content."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file that is kept for long."""
        answer = super().file_response(*args, **kwargs)
        answer.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return answer


def _root(request: Request) -> str:
    root: str = request.scope.get("root_path", "")
    return root


def _acts(request: Request) -> bool:
    return bool(request.scope.get(ROLE) == FULL)


def _wants_json(request: Request) -> bool:
    return "application/json" in request.headers.get("accept", "")


def _back(request: Request, queue: str, what: str) -> str:
    """Return the page to come back to after an action without JavaScript."""
    verb, _, name = what.partition(" ")
    root = _root(request)
    if verb.startswith("task-"):
        return shell.address(root, "/task", q=queue, id=name)
    return shell.address(root, "/queue", q=queue)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(request, error.status_code, error.detail)


def _said(request: Request, error: Exception) -> Response:
    """Return the answer for an error of ours."""
    status = 503
    if isinstance(error, UnknownTask):
        status = 404
    elif isinstance(error, ConfigurationError):
        status = 400
    return _error(request, status, str(error))


def _error(request: Request, status: int, said: str) -> Response:
    if request.url.path.endswith("/health"):
        return Response(status_code=status)
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"error": said}, status)
    titles = {400: "This cannot be shown", 403: "For looking only", 404: "Not found"}
    title = titles.get(status, "No answer")
    return HTMLResponse(shell.notice_page(_root(request), title, said), status)

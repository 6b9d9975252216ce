"""Figures as JSON, for programs: read-only, behind the same tokens.

The fields are those of ``redistq monitor ... --json``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..cli.tables import facts_of_stats, facts_of_task
from ..errors import ServerUnavailable
from ..monitor.queues import QueueRow
from ..monitor.tick import STATS_EVENTS, stats_of
from .site import Site


def routes(site: Site) -> list[Route]:
    """Return the addresses: ``/api/queues``, ``/api/queue?q=NAME``, ``/api/task?q=NAME&id=ID``."""

    def queues(asked: Any) -> Any:
        rows = site.look()
        if site.trouble:
            raise ServerUnavailable(site.trouble)
        return [facts_of_row(row) for row in rows]

    def queue(asked: Any) -> Any:
        monitor = site.desk(asked.get("q", "") or site.only).feed.monitor
        tick = monitor.tick(events=STATS_EVENTS, dead=1, running=1, batches=1)
        return facts_of_stats(stats_of(tick, monitor.queue))

    def task(asked: Any) -> Any:
        monitor = site.desk(asked.get("q", "") or site.only).feed.monitor
        return facts_of_task(monitor.records.task(asked.get("id", "")))

    found = {"/api/queues": queues, "/api/queue": queue, "/api/task": task}
    return [Route(path, _answer(of)) for path, of in found.items()]


def _answer(facts: Callable[[Any], Any]) -> Any:
    async def answer(request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(facts, request.query_params))

    return answer


def facts_of_row(row: QueueRow) -> dict[str, Any]:
    """Return the figures of one queue among others; those that are not known are null."""
    shot = row.snapshot
    return {
        "queue": row.name,
        "health": row.health,
        "problem": row.problem or None,
        "queued": shot.ready if shot else None,
        "running": row.running if shot else None,
        "delayed": shot.delayed if shot else None,
        "waiting": row.waiting if shot else None,
        "succeeded": row.count("succeeded") if shot else None,
        "failed": row.count("failed") if shot else None,
        "dead": shot.dead if shot else None,
        "workers": row.workers if shot else None,
        "paused": shot.paused if shot else None,
        "per_second": None if row.rate is None else round(row.rate, 3),
    }

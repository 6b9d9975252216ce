"""What each page shows: its sections, drawn from what a Site knows. Their calls block.

The sections are those of notebooks (``dashboard.page.SECTIONS``), with anchors and buttons.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..dashboard import page
from ..dashboard.actions import is_of_batch
from ..dashboard.failed import letter
from ..dashboard.feed import View
from ..dashboard.finder import (
    FOUND_SHOWN,
    may_cancel,
    may_edit,
    may_retry,
    search,
    task_page,
)
from ..dashboard.layout import unstarted
from ..dashboard.queues import overview as overview_table
from ..dashboard.tables import LINE, batch_buttons, batch_line, with_buttons
from ..dashboard.words import place_of
from ..display.html import MUTED, TABLE_PX, Html, block, caption, join, state_mark, table, tag
from ..display.text import FAILED, RUNNING, clean, duration, plural
from ..errors import ServerUnavailable
from ..monitor.queues import QueueRow
from ..monitor.rows import TaskHistory
from ..monitor.tick import is_unused
from ..protocol.keys import ENDED
from . import shell
from .anchors import Anchors
from .desk import Desk
from .graphs import GraphPictures
from .live import Draw, Parts
from .site import Site

REFRESH_S = 0.5
"""Seconds between two pictures, at the least."""
TASK_S = 1.0
"""Seconds between two looks at a task or batch that goes on, and between others' five times."""
TIMELINE_S = 2.0
"""The timeline is the largest part of the page."""
TASKS_A_PAGE = 100
LETTERS_SHOWN = 25
LETTERS_LOOKED_AT = 1_000
HEADINGS = {
    "buttons": "Actions",
    "queues": "Queues",
    "batches": "Batches and graphs",
    "failed": "Failed tasks",
    "functions": "By function",
    "timeline": "Worker timeline",
    "workers": "Workers",
    "priorities": "By priority",
    "limits": "Limits",
    "schedules": "Schedules",
    "recent": "Recent attempts",
    "task": "Task",
    "batch": "Batch",
    "tasks": "Tasks",
}


LEFT = frozenset(("batches", "failed", "functions", "recent"))
RIGHT = frozenset(page.SECTIONS) - LEFT
"""The sections of a queue that stand side by side on a wide page."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A page: ``where`` is the way to it below the overview, ``draw`` makes its sections, ``live``
    is where they come from while it is looked at."""

    title: str
    draw: Draw
    live: str
    queue: str = ""
    where: tuple[tuple[str, str], ...] = ()
    key: tuple[str, ...] = field(default=())


def overview(site: Site, root: str) -> Drawing:
    """Return the page of all queues."""

    def draw() -> tuple[Parts, float]:
        rows = site.look()
        where = tag("div", clean(str(site.address), 80), style=MUTED)
        table = overview_table(rows, lambda name: shell.address(root, "/queue", q=name))
        if not site.trouble:
            return {"head": block([where]), "queues": table}, _rest(rows)
        said = f"{site.trouble} What you see is from before." if rows else site.trouble
        shown = table if rows else Html("")
        return {"head": block([where, _alert(said)]), "queues": shown}, 4 * REFRESH_S

    return Drawing("Queues", draw, f"{root}/live", key=("", root))


def _rest(rows: list[QueueRow]) -> float:
    return REFRESH_S if any(row.running for row in rows) else 2 * REFRESH_S


def _alert(sentence: str) -> Html:
    return tag("p", f"{FAILED.glyph} {clean(sentence, 300)}", class_="alert")


def queue(site: Site, root: str, name: str, *, acts: bool) -> Drawing:
    """Return the page of one queue; raises ConfigurationError for one that is not shown."""
    site.desk(name)
    anchors = Anchors(root, name, acts=acts)
    timeline: list[tuple[float, Html]] = []

    def draw() -> tuple[Parts, float]:
        desk = site.desk(name)
        desk.refresh()
        view = _view(desk, anchors)
        usual = [(RUNNING.color, f"{RUNNING.glyph} {view.tick.health[1]}.")] if view.tick else ()
        parts = {"head": join([_unknown(site, view), page.head(view, usual)])}
        if acts:
            parts["buttons"] = _buttons(view, desk)
        parts["notice"] = page.notice(view)
        for section, drawn in page.SECTIONS.items():
            if section != "timeline":
                parts[section] = drawn(view)
                continue
            now = time.monotonic()
            if not timeline or now - timeline[0][0] > TIMELINE_S:
                timeline[:] = [(now, drawn(view))]
            parts[section] = timeline[0][1]
        return parts, desk.feed.rest_s(REFRESH_S)

    return Drawing(
        title=f"Queue {name}",
        draw=draw,
        live=shell.address(root, "/live", q=name),
        queue=name,
        where=(_to_queue(root, name),),
        key=("queue", root, name, str(acts)),
    )


def _unknown(site: Site, view: View) -> Html:
    """Return what is said of a queue in which there has never been anything."""
    if view.tick is None or view.tick.snapshot.workers_total or not is_unused(view.tick.snapshot):
        return Html("")
    others = [clean(row.name, 40) for row in site.look() if row.name != view.queue]
    there = f" There are: {', '.join(others[:10])}." if others else ""
    return _alert(f"Nothing has ever been in a queue of this name.{there}")


def _view(desk: Desk, anchors: Anchors) -> View:
    return desk.feed.view(live=True, notice=desk.notice, links=anchors)


def _to_queue(root: str, name: str) -> tuple[str, str]:
    return name, shell.address(root, "/queue", q=name)


def _buttons(view: View, desk: Desk) -> Html:
    tick = view.tick
    is_off = tick is None or bool(view.problem) or desk.is_busy
    dead = tick.snapshot.dead if tick else 0
    waiting = unstarted(tick.snapshot) if tick else 0
    pause = ("pause", "Pause", "Let no worker start another task")
    if tick and tick.paused:
        pause = ("resume", "Resume", "Let the workers start tasks again")
    retry = ("retry", f"Retry failed ({dead:,})", "Send every failed task that is kept again")
    cancel = f"Cancel not started ({waiting:,})"
    tip = "Cancel every task that is queued, delayed or waiting"
    offered = (
        (pause, is_off),
        (retry, is_off or not dead),
        (("cancel", cancel, tip), is_off or not waiting),
    )
    return tag("div", *(_button(*button, off=off) for button, off in offered), class_="buttons")


def _button(what: str, text: str, tip: str, *, off: bool) -> Html:
    return shell.action(what, text, tip, **({"disabled": "disabled"} if off else {}))


# -- one task ------------------------------------------------------------------------------------


def task(site: Site, root: str, name: str, task_id: str, *, acts: bool) -> Drawing:
    """Return the page of one task; its drawing raises UnknownTask."""
    site.desk(name)
    anchors = Anchors(root, name, acts=acts)

    def draw() -> tuple[Parts, float]:
        desk = site.desk(name)
        records = desk.feed.monitor.records
        found = records.task(task_id)
        parts = {"buttons": _task_buttons(root, name, found, desk)} if acts else {}
        parts["notice"] = page.notice(_view(desk, anchors))
        parts["task"] = task_page(found, records.log(task_id))
        return parts, TASK_S * (5 if found.state in (*ENDED, "settled") else 1)

    place = place_of(task_id)
    of_batch = (_to_batch(root, name, place[0]),) if place else ()
    return Drawing(
        title=f"Task {task_id}",
        draw=draw,
        live=shell.address(root, "/live", q=name, task=task_id),
        queue=name,
        where=(_to_queue(root, name), *of_batch),
        key=("task", root, name, task_id, str(acts)),
    )


def _to_batch(root: str, queue: str, batch: str) -> tuple[str, str]:
    return batch, shell.address(root, "/batch", q=queue, id=batch)


def _task_buttons(root: str, queue: str, found: TaskHistory, desk: Desk) -> Html:
    offered = []
    if may_retry(found):
        tip = "Send this task again, as it was"
        offered.append(_button(f"task-retry {found.id}", "Retry", tip, off=desk.is_busy))
    if may_edit(found):
        to = shell.address(root, "/edit", q=queue, id=found.id)
        offered.append(tag("a", "Edit and retry", href=to, class_="button"))
    if may_cancel(found):
        tip = "Cancel it; a running one is asked to end"
        offered.append(_button(f"task-cancel {found.id}", "Cancel", tip, off=desk.is_busy))
    return tag("div", *offered, class_="buttons") if offered else Html("")


# -- one batch or graph --------------------------------------------------------------------------


def batch(site: Site, root: str, name: str, batch_id: str, first: int, *, acts: bool) -> Drawing:
    """Return the page of one batch or graph, with its tasks from position ``first`` on; its drawing
    raises UnknownBatch."""
    site.desk(name)
    anchors = Anchors(root, name, acts=acts)
    pictures = GraphPictures()

    def draw() -> tuple[Parts, float]:
        desk = site.desk(name)
        monitor = desk.feed.monitor
        row = monitor.records.batch(batch_id)
        desk.refresh()
        view = _view(desk, anchors)
        if view.tick is None:
            raise ServerUnavailable(view.problem or "the server gave no figures")
        line = with_buttons(batch_line(row, view), batch_buttons(row, anchors))
        failed = [
            dead
            for dead in (monitor.records.dead(LETTERS_LOOKED_AT, full=False) if row.failed else ())
            if is_of_batch(dead.id, batch_id)
        ]
        letters = [letter(dead, anchors) for dead in failed[:LETTERS_SHOWN]]
        kept = f"Failed tasks: {row.failed:,}, the newest {len(letters):,}"
        last = min(first + TASKS_A_PAGE, row.total)
        rows = monitor.producer.graph(batch_id).rows_at(range(first, last))
        parts = {
            "batch": block([tag("div", line, style=LINE)]),
            "notice": page.notice(view),
            "graph": pictures.of(root, name, row, monitor.records.layers(batch_id)),
            "failed": block([caption(kept), *letters]) if letters else Html(""),
            "tasks": _tasks(root, name, batch_id, rows, (first, last, row.total), anchors),
        }
        return parts, TASK_S * (1 if row.waiting else 5)

    return Drawing(
        title=f"Batch {batch_id}",
        draw=draw,
        live=shell.address(root, "/live", q=name, batch=batch_id, first=first),
        queue=name,
        where=(_to_queue(root, name),),
        key=("batch", root, name, batch_id, str(first), str(acts)),
    )


def _tasks(
    root: str,
    queue: str,
    batch_id: str,
    rows: list[dict[str, object]],
    span: tuple[int, int, int],
    anchors: Anchors,
) -> Html:
    first, last, total = span
    cells = []
    for row in rows:
        run_s = row["run_s"]
        cells.append(
            (
                anchors.task(str(row["id"]), clean(str(row["id"]), 80)),
                state_mark(str(row["state"])),
                str(row["attempt"]),
                duration(run_s * 1000) if isinstance(run_s, float) else "–",
                clean(str(row["worker"]), 30),
                clean(str(row["reason"]), 60),
            )
        )
    heading = f"Tasks: {plural(total, 'task')}"
    if total > len(rows):
        heading = f"Tasks: {first + 1:,} to {last:,} of {total:,}"

    def more(to: int, text: str) -> Html:
        at = {"first": to} if to else {}
        return tag("a", text, href=shell.address(root, "/batch", q=queue, id=batch_id, **at))

    pages = [more(max(0, first - TASKS_A_PAGE), "Earlier")] if first else []
    pages += [more(last, "Later")] if last < total else []
    columns = ("Task", "State", ">Attempt", ">Ran", "~Worker", "Note")
    return join([table(heading, columns, cells), tag("nav", *pages, class_="pages")])


# -- a search ------------------------------------------------------------------------------------


def found(site: Site, root: str, name: str, text: str, state: str) -> Callable[[], Html]:
    """Return what finds tasks of a queue; called, it returns them as a list of links."""
    desk = site.desk(name)

    def look() -> Html:
        desk.refresh()
        rows = search(desk.feed, text, state)
        if not rows:
            what = f"for {clean(text, 100)!r}" if text.strip() else "in this state"
            said = f"Nothing was found {what}." if text.strip() or state else "What is looked for?"
            return tag("p", said, role="status")
        anchors = Anchors(root, name, acts=False)
        more = ", there may be more" if len(rows) >= FOUND_SHOWN else ""
        items = (tag("li", anchors.task(row.id, row.line)) for row in rows)
        return join(
            [
                tag("p", f"{plural(len(rows), 'task')} found{more}.", role="status"),
                tag("ol", *items, class_="found", style=f"max-width:{TABLE_PX}px"),
            ]
        )

    return look


def sections(drawing: Drawing, parts: Parts) -> list[Html]:
    """Return the body of a page: its heading and its sections, of which some stand in two columns
    where there is room."""
    heading = tag("h1", clean(drawing.title, 120), class_="unseen")
    columns: dict[int, list[Html]] = {0: [], 1: [], 2: []}
    for name, part in parts.items():
        column = 0 if "timeline" not in parts else 1 if name in LEFT else 2 if name in RIGHT else 0
        columns[column].append(shell.section(name, HEADINGS.get(name, ""), Html(part)))
    sides = [tag("div", *columns[side]) for side in (1, 2) if columns[side]]
    return [heading, *columns[0], *([tag("div", *sides, class_="columns")] if sides else [])]

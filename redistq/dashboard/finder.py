"""Finding tasks by name, id, argument or error, and what is shown of one: plain data and HTML.

``search`` asks the server, in calls of bounded length, when someone searches; nothing of this is
part of a tick.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ..display.html import MUTED, RULE, TABLE_PX, Html, block, join, mono, state_mark, table, tag
from ..display.text import clean, clock, duration, look, one_line, plural
from ..errors import RedistqError
from ..monitor.inspector import Inspector
from ..monitor.rows import Attempt, TaskHistory
from ..protocol.keys import ENDED
from .feed import Feed
from .words import CALL_PREFIX, item_said, payload_said, title

LOOKED_AT = 200
"""Tasks in hand, delayed and waiting that are looked at, of each so many."""
LETTERS_LOOKED_AT = 1_000
FOUND_SHOWN = 50
LOG_LINES = 200
ATTEMPTS_SHOWN = 10
_TEXT = 8_000


@dataclass(frozen=True, slots=True)
class Found:
    """A task that was found: its id, a line that says which it is, and its state."""

    id: str
    line: str
    state: str


def search(feed: Feed, text: str, state: str = "") -> list[Found]:
    """Return tasks whose name, id, start of the payload or error has this text, whatever its case:
    a task of that id first, then failed ones, those in hand, delayed, waiting, and such as have
    ended lately; with ``state`` only those in it, without a text all of them. At most FOUND_SHOWN;
    queued tasks are found by their id."""
    wanted = text.strip().lower()
    if not wanted and not state:
        return []
    found: dict[str, Found] = {}
    for task_id, name, now, preview, error in _known(feed, text.strip()):
        said = payload_said(name, preview)
        hay = "\n".join((task_id, name, said, error)).lower()
        if wanted in hay and state in ("", now) and task_id not in found:
            found[task_id] = Found(task_id, _line(task_id, name, now, said, error), now)
            if len(found) >= FOUND_SHOWN:
                break
    return list(found.values())


def _known(feed: Feed, text: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield id, name, state, payload and error of the tasks that are looked at."""
    records: Inspector = feed.monitor.records
    if text and " " not in text:
        with contextlib.suppress(RedistqError):
            task = records.task(text)
            yield task.id, task.name, task.state, task.payload, task.error_type
    for dead in records.dead(LETTERS_LOOKED_AT, full=False):
        error = f"{dead.error_type}: {dead.error}"
        yield dead.id, dead.name, "failed", dead.preview, error
    for held in records.pending(LOOKED_AT):
        yield held.id, held.name, "running", held.preview, ""
    for later in records.delayed(LOOKED_AT):
        yield later.id, later.name, "delayed", later.preview, later.error_type
    for waits in records.waiting(LOOKED_AT):
        yield waits.id, waits.name, "waiting", waits.preview, ""
    previews = feed.view().previews
    for event in list(feed.events):
        yield event.id, event.name, event.state, previews.get(event.id, ""), event.note


def _line(task_id: str, name: str, state: str, preview: str, error: str) -> str:
    face = look(state)
    what = f" · {clean(one_line(error), 60)}" if error.strip(": ") else ""
    return f"{face.glyph} {clean(face.word, 20)} {title(name)} {item_said(task_id, preview)}{what}"


# -- one task ------------------------------------------------------------------------------------


def task_page(task: TaskHistory, log: list[str]) -> Html:
    """Return all that is known of one task: attempts, arguments, error, traceback, output."""
    facts = [f"task {clean(task.id, 80)}", plural(task.attempt, "attempt")]
    facts += [f"worker {clean(task.worker)}"] if task.worker else []
    facts += [clean(task.why, 200)] if task.why else []
    payload = payload_said(task.name, task.payload)
    parts = [
        tag(
            "div",
            tag("strong", title(task.name), style="font-size:14px"),
            " ",
            state_mark(task.state),
        ),
        tag("div", " · ".join(facts), style=f"overflow-wrap:anywhere;{MUTED}"),
    ]
    if payload:
        parts.append(tag("div", "Arguments ", mono(clean(payload, 200))))
    if task.result and not task.name.startswith(CALL_PREFIX):
        parts.append(tag("div", "Result ", mono(clean(task.result, 200))))
    parts.append(_attempts(task))
    if task.error or task.traceback:
        error = clean(one_line(f"{task.error_type}: {task.error}"), 300)
        parts += [tag("div", error, style="overflow-wrap:anywhere"), _text(task.traceback)]
    log = log or list(task.output)
    if log:
        cut = f", the last {LOG_LINES:,}" if len(log) > LOG_LINES else ""
        parts += [tag("div", f"Output: {plural(len(log), 'line')}{cut}")]
        parts += [_text("\n".join(log[-LOG_LINES:]))]
    if line := rerun_line(task):
        # A click selects the whole line.
        said = tag("span", mono(clean(line, 200)), style="user-select:all")
        parts.append(tag("div", "To run it in a notebook: ", said))
    style = f"border-left:3px solid #0072B2;padding:2px 0 2px 10px;max-width:{TABLE_PX}px"
    return block([tag("div", *parts, style=style)])


def rerun_line(task: TaskHistory) -> str:
    """Return the line of code that runs a failed function call in the notebook; '' for others."""
    if not task.name.startswith(CALL_PREFIX) or task.state != "failed":
        return ""
    return f"client.future({task.id!r}).rerun_here(debug=True)"


def _attempts(task: TaskHistory) -> Html:
    attempts = task.attempts()
    rows = [_attempt(each) for each in attempts[-ATTEMPTS_SHOWN:]]
    more = len(attempts) - len(rows)
    heading = f"Attempts: the last {len(rows)} of {len(attempts):,}" if more else "Attempts"
    columns = (">Attempt", "State", "Ended (UTC)", ">Waited", ">Ran", "~Worker", "Note")
    return table(heading, columns, rows)


def _attempt(each: Attempt) -> tuple[str, ...]:
    return (
        str(each.attempt),
        state_mark(each.state),
        clock(each.finished_ms) if each.finished_ms else "–",
        duration(each.wait_ms),
        duration(each.run_ms),
        clean(each.worker, 30),
        clean(each.note, 60),
    )


def _text(text: str) -> Html:
    """Return lines of text in a box that scrolls; of long ones the end."""
    text = text.rstrip()
    if not text:
        return join([])
    text = "…" + text[-_TEXT:] if len(text) > _TEXT else text
    return tag(
        "pre",
        text,
        style="white-space:pre-wrap;overflow-wrap:anywhere;max-height:26em;overflow:auto;"
        f"margin:4px 0;padding:6px 10px;border:{RULE};font-size:12px;line-height:1.4;"
        "background:none;color:inherit;font-family:var(--jp-code-font-family,monospace)",
    )


def may_retry(task: TaskHistory) -> bool:
    """Return whether a task can be sent again."""
    return task.state == "failed"


def may_cancel(task: TaskHistory) -> bool:
    """Return whether a task can be cancelled, or asked to end."""
    return task.state not in ENDED and task.state != "settled"


def may_edit(task: TaskHistory) -> bool:
    """Return whether a task can be sent with another payload: it has one that people can read."""
    return may_retry(task) and not task.name.startswith(CALL_PREFIX)

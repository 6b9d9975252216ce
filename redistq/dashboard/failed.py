"""Failed tasks of a dashboard; pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..display.html import MUTED, RULE, TABLE_PX, Html, block, caption, mark, mono, tag
from ..display.text import FAILED, LINE_CHARS, clean, clock, duration, one_line, plural
from ..monitor.failures import groups_of
from ..monitor.rows import DeadLetter, FailureGroup
from .feed import LETTERS_SHOWN, View
from .links import NO_LINKS, Links
from .tables import with_buttons
from .words import item_said, payload_said, title

GROUPS_SHOWN = 6
_TRACEBACK = 4_000


def failures(view: View) -> Html:
    """Return the failed tasks that are kept, by error and task; each group opens to its newest."""
    heading = failures_heading(view)
    if view.tick is None or not heading:
        return Html("")
    full = {(dead.id, dead.died_ms): dead for dead in view.tick.dead}
    shown = groups_of(view.letters)[:GROUPS_SHOWN]
    return block([heading, *(_group(group, letters, view, full) for group, letters in shown)])


def _group(
    group: FailureGroup,
    letters: Sequence[DeadLetter],
    view: View,
    full: Mapping[tuple[str, int], DeadLetter],
) -> Html:
    assert view.tick is not None
    newest = [full.get((dead.id, dead.died_ms), dead) for dead in letters[:LETTERS_SHOWN]]
    more = group.count - len(newest)
    key = group_key(group.error_type, group.name)
    tip = f"Send all failed tasks {title(group.name)} of this error again"
    opened = tag(
        "details",
        tag("summary", group_line(group, view.tick.now_ms), style="cursor:pointer"),
        tag(
            "div",
            *(letter(dead, view.links) for dead in newest),
            tag("div", f"and {more:,} more", style=f"padding:3px 0;{MUTED}") if more else "",
            style="padding-left:18px",
        ),
        **{"data-key": clean(key, 200)},
    )
    return tag(
        "div",
        with_buttons(opened, view.links.button(f"group-retry {key}", "Retry group", tip)),
        style=f"border-bottom:{RULE};padding:3px 0;margin:0;max-width:{TABLE_PX}px",
        **{"data-key": clean(key, 200)},
    )


def group_key(error_type: str, name: str) -> str:
    """Return the key of a group: its type of error and its task's name, a line feed between."""
    return f"{error_type}\n{name}"


def group_line(group: FailureGroup, now_ms: int) -> Html:
    """Return one group in a line: how many, of what, since when, and the newest message."""
    last = f"{duration(now_ms - group.last_ms)} ago"
    since = f" · first {clock(group.first_ms)}" if group.count > 1 else ""
    return tag(
        "span",
        tag("strong", f"{group.count:,}"),
        " ",
        mark(f"{FAILED.glyph} {clean(group.error_type, 60) or 'failed'}", FAILED.color),
        " in ",
        tag("strong", title(group.name)),
        tag("span", f" · last {last}{since} · ", style=MUTED),
        clean(one_line(group.error), LINE_CHARS),
        style="font-size:13px;line-height:1.5;overflow-wrap:anywhere",
    )


def failures_heading(view: View) -> Html:
    """Return the heading over the groups of failed tasks; '' where none is kept."""
    tick = view.tick
    if tick is None or not tick.snapshot.dead:
        return Html("")
    groups = len(groups_of(view.letters))
    read = len(view.letters)
    of = f", of the newest {read:,}" if read < tick.snapshot.dead else ""
    more = f", {GROUPS_SHOWN} of them shown" if groups > GROUPS_SHOWN else ""
    kept = f"Failed tasks kept for replay: {tick.snapshot.dead:,}"
    return caption(f"{kept} ({plural(groups, 'group')}{of}{more})")


def letter(dead: DeadLetter, links: Links = NO_LINKS) -> Html:
    """Return one failed task; it opens to its payload and traceback."""
    what = f"{dead.error_type}: {dead.error}" if dead.error_type else dead.error
    traceback = dead.traceback.rstrip()
    payload = payload_said(dead.name, dead.preview)
    if len(traceback) > _TRACEBACK:
        traceback = "…" + traceback[-_TRACEBACK:]
    box = (
        "white-space:pre-wrap;overflow-wrap:anywhere;max-height:22em;overflow:auto;margin:4px 0;"
        f"padding:6px 10px;border:{RULE};font-size:12px;line-height:1.4;background:none;"
        "color:inherit;font-family:var(--jp-code-font-family,monospace)"
    )
    facts = (
        "task ",
        links.task(dead.id, clean(dead.id, 80)),
        f" · {plural(dead.attempt, 'attempt')} · ran {duration(dead.run_ms)} · worker "
        f"{clean(dead.worker) or 'unknown'}",
    )
    return block(
        [
            tag(
                "details",
                tag(
                    "summary",
                    tag("span", f"{clock(dead.died_ms)} ", style=MUTED),
                    tag("strong", title(dead.name)),
                    tag("span", f" {item_said(dead.id, payload)} ", style=MUTED),
                    mark(f"{FAILED.glyph} failed", FAILED.color),
                    f" {clean(one_line(what), LINE_CHARS)}",
                    style="cursor:pointer;overflow-wrap:anywhere",
                ),
                tag("div", *facts, style=f"padding:2px 0 0 18px;overflow-wrap:anywhere;{MUTED}"),
                tag("div", "Payload ", mono(clean(payload, 200)), style="padding-left:18px")
                if payload
                else "",
                tag("div", tag("pre", traceback, style=box), style="padding-left:18px")
                if traceback
                else tag("div", "The traceback is with the task.", style="padding-left:18px"),
                style=f"border-bottom:{RULE};padding:3px 0;margin:0",
                **{"data-key": clean(f"{dead.id} {dead.died_ms}", 240)},
            )
        ]
    )

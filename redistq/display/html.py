"""HTML for notebooks and pages: text is escaped here and nowhere else, styles are inline.

Used by the dashboard and by every ``_repr_html_``. Text becomes part of a page only through ``tag``
and ``join``, which escape whatever is not Html already. An untrusted notebook keeps inline styles
and images, but neither style sheets nor inline SVG: hence sparklines are images.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from .text import HIDDEN, clean, look

TRAIL_MS = 60_000
"""How far back a sparkline reaches."""

RULE = "1px solid #7f7f7f59"
MUTED = "color:var(--jp-content-font-color2,inherit)"
_CELL = f"padding:3px 10px 3px 0;border:0;border-bottom:{RULE};vertical-align:top;"


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Html:
    """Return an element. A child that is not Html is text and is escaped, here and nowhere else."""
    said = "".join(
        f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items()
    )
    inside = "".join(child if isinstance(child, Html) else escape(child) for child in children)
    return Html(f"<{name}{said}>{inside}</{name}>")


def escape(text: object) -> Html:
    """Return any text as HTML: what came from a queue is untrusted."""
    return Html(html.escape(HIDDEN.sub("\ufffd", str(text)), quote=False))


def join(parts: Iterable[str]) -> Html:
    """Return elements one after the other; text among them is escaped."""
    return Html("".join(p if isinstance(p, Html) else escape(p) for p in parts))


def block(parts: Iterable[str]) -> Html:
    """Return parts of the page, in its type and width."""
    return tag("div", *parts, style="line-height:1.4;font-size:13px;max-width:1100px")


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """Return a table with its caption; a column whose name begins with '>' is flush right."""
    sides = [
        "text-align:right;font-variant-numeric:tabular-nums;padding-right:18px;"
        if column.startswith(">")
        else "text-align:left;"
        for column in columns
    ]
    header = tag(
        "tr",
        *(
            tag(
                "th",
                column.lstrip(">"),
                scope="col",
                style=_CELL + side + f"font-weight:600;white-space:nowrap;{MUTED}",
            )
            for column, side in zip(columns, sides, strict=True)
        ),
        style="background:none",
    )
    body = (
        tag(
            "tr",
            *(tag("td", cell, style=_CELL + side) for cell, side in zip(row, sides, strict=True)),
            style="background:none",
        )
        for row in rows
    )
    return tag(
        "div",
        tag(
            "table",
            tag(
                "caption",
                caption,
                style="caption-side:top;text-align:left;font-weight:600;padding:8px 0 2px;"
                "color:inherit",
            ),
            tag("thead", header, style="border:0"),
            tag("tbody", *body),
            style="border-collapse:collapse;width:100%;margin:0;table-layout:auto;font-size:13px;"
            "line-height:1.4;border:0",
        ),
        style="overflow-x:auto",
    )


def panel(title: str, aside: str, rows: Iterable[tuple[str, str]]) -> Html:
    """Return a titled table of labels and values, in the notebook's own colours."""
    body = (
        tag(
            "tr",
            tag(
                "th",
                label,
                scope="row",
                style="text-align:left;font-weight:normal;opacity:.75;padding:1px 12px 1px 0",
            ),
            tag("td", value, style="text-align:left;padding:1px 0"),
        )
        for label, value in rows
    )
    return tag(
        "div",
        tag("div", tag("strong", title), Html(" &nbsp;"), aside),
        tag("table", *body, style="border-collapse:collapse;background:none"),
        style="border-left:3px solid #0072B2;padding:2px 0 2px 10px;"
        "color:var(--jp-content-font-color1,inherit)",
    )


def mono(text: str) -> Html:
    """Return text in the type of code."""
    style = "font-family:var(--jp-code-font-family,monospace);font-size:12px;overflow-wrap:anywhere"
    return tag("span", text, style=style)


def bar(parts: Iterable[tuple[float, str]], said: str) -> Html:
    """Return a bar with parts of it, from 0 to 1, in their colours, and what it says beside it."""
    filled = (
        tag("span", style=f"display:block;height:100%;width:{share:.2%};background:{color}")
        for share, color in parts
        if share > 0
    )
    frame = tag(
        "span",
        *filled,
        style="display:inline-flex;width:120px;height:8px;border-radius:2px;overflow:hidden;"
        "background:#7f7f7f40;vertical-align:middle;margin-right:8px",
    )
    return tag("span", frame, said, style="white-space:nowrap")


def mark(text: str, color: str) -> Html:
    """Return words underlined in a colour."""
    return tag("span", text, style=f"border-bottom:2px solid {color};white-space:nowrap")


def state_mark(state: str) -> Html:
    """Return a state of the queue's as glyph and word, underlined in its colour."""
    face = look(state)
    return mark(f"{face.glyph} {clean(face.word, 20)}", face.color)


def badge(state: str) -> Html:
    """Return a state of a future's or batch's as glyph and word, underlined in its colour."""
    face = look("queued" if state == "pending" else state)
    return mark(f"{face.glyph} {state}", face.color)


def spark(title: str, said: str, picture: str) -> Html:
    """Return a sparkline under its title and numbers, which are its alt text too."""
    coded = base64.b64encode(picture.encode()).decode()
    image = Html(
        f'<img src="data:image/svg+xml;base64,{coded}" alt="{html.escape(f"{title}: {said}")}" '
        'style="display:block;width:100%;height:44px;max-width:none;margin:0">'
    )
    return tag(
        "div",
        tag(
            "div",
            tag("span", title),
            tag("span", said, style=MUTED),
            style="display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 12px;"
            "font-size:12px",
        ),
        image,
        style=f"flex:1 1 300px;border:{RULE};border-radius:3px;padding:5px 10px",
    )


def svg(points: Sequence[tuple[int, float]], end_ms: int, color: str) -> str:
    """Return a sparkline of the last minute up to ``end_ms``, with its area filled; never fails."""
    width = 300
    height = 44
    low = 42  # the height of the base line
    start = end_ms - TRAIL_MS
    seen = [(at, value) for at, value in points if at >= start]
    top = max((value for _, value in seen), default=0.0) or 1.0
    placed = [
        f"{round((at - start) / TRAIL_MS * width)},{low - max(0.0, value) / top * (low - 4):.3g}"
        for at, value in seen
    ]
    drawn = ""
    if placed:
        line = " ".join(placed)
        first, last = (place.partition(",")[0] for place in (placed[0], placed[-1]))
        drawn = (
            f'<path d="M{first},{low} L{line} L{last},{low}Z" fill="{color}" fill-opacity=".25"/>'
            f'<path d="M{line}" fill="none" stroke="{color}" stroke-width="2" '
            'vector-effect="non-scaling-stroke" stroke-linejoin="round"/>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'preserveAspectRatio="none"><path d="M0 {low}H{width}" stroke="#7f7f7f" '
        f'stroke-opacity=".5" vector-effect="non-scaling-stroke"/>{drawn}</svg>'
    )

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

SAID_BESIDE = {"aria-hidden": "true"}
"""Of what a screen reader, and the plain text, need not say: it stands beside it in words."""
RULE = "1px solid #7f7f7f59"
MUTED = "color:var(--jp-content-font-color2,inherit)"
TABLE_PX = 860
"""Tables are no wider: a label and its number stay near each other."""
_CAPTION = "caption-side:top;text-align:left;font-weight:600;padding:10px 0 2px;color:inherit"
_CELL = f"padding:3px 14px 3px 0;border:0;border-bottom:{RULE};vertical-align:top;"


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str) -> Html:
    """Return an element. A child that is not Html is text and is escaped, here and nowhere else."""
    inside = "".join(child if isinstance(child, Html) else escape(child) for child in children)
    return Html(f"{void(name, **attributes)}{inside}</{name}>")


def void(name: str, /, **attributes: str) -> Html:
    """Return an element that has no content and no end, as ``input``."""
    said = "".join(
        f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{said}>")


def escape(text: object) -> Html:
    """Return any text as HTML: what came from a queue is untrusted."""
    return Html(html.escape(HIDDEN.sub("\ufffd", str(text)), quote=False))


def join(parts: Iterable[str]) -> Html:
    """Return elements one after the other; text among them is escaped."""
    return Html("".join(p if isinstance(p, Html) else escape(p) for p in parts))


def block(parts: Iterable[str]) -> Html:
    """Return parts of the page, in its type and width."""
    return tag("div", *parts, style="line-height:1.4;font-size:13px;max-width:1100px")


WIDE_FROM = 760
"""A page narrower than so many pixels leaves out the columns that say so (see ``table``)."""
_WIDE_ONLY = f"max-width:clamp(0px,calc((100vw - {WIDE_FROM}px)*999),14em);overflow:hidden"
# No style sheet can be relied on, and so no media query: a width of nothing hides as well.


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """Return a table with its caption.

    A column whose name begins with '>' is flush right, its figures on one line; one that begins
    with '~' is left out of a narrow page.
    """
    header = tag("tr", *map(_heading, columns), style="background:none")
    body = (tag("tr", *map(_cell, row, columns), style="background:none") for row in rows)
    return tag(
        "div",
        tag(
            "table",
            *([tag("caption", caption, style=_CAPTION)] if caption else []),
            tag("thead", header, style="border:0"),
            tag("tbody", *body),
            style="border-collapse:collapse;width:100%;margin:0;table-layout:auto;font-size:13px;"
            "line-height:1.4;border:0",
        ),
        style=f"overflow-x:auto;max-width:{TABLE_PX}px",
    )


def _heading(column: str) -> Html:
    style = _CELL + _side(column) + f"font-weight:600;white-space:nowrap;{MUTED}"
    return tag("th", *_inside(column.lstrip("~>"), column), scope="col", style=style)


def _cell(content: str, column: str) -> Html:
    return tag("td", *_inside(content, column), style=_CELL + _side(column))


def _inside(content: str, column: str) -> list[str]:
    return [tag("div", content, style=_WIDE_ONLY)] if column.startswith("~") else [content]


def _side(column: str) -> str:
    if not column.lstrip("~").startswith(">"):
        return "text-align:left;"
    return "text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums;"


def caption(text: str) -> Html:
    """Return the heading of a part of the page that is no table."""
    return tag("div", text, style=_CAPTION)


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


def line(*parts: Html) -> Html:
    """Return what belongs side by side, in lines where there is no room."""
    return tag(
        "div",
        *parts,
        style="display:flex;flex-wrap:wrap;gap:1px 14px;align-items:baseline;font-size:13px;"
        "line-height:1.5;font-variant-numeric:tabular-nums",
    )


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


def image(picture: Html, said: str, height: int, *, live: bool = False) -> Html:
    """Return a picture in SVG as wide as there is room: as it is where it is ``live``, else as an
    image with its sentence, which an untrusted notebook keeps."""
    size = f"display:block;width:100%;height:{height}px;max-width:none;margin:0"
    if live:
        return tag("div", picture, style=f"{size};line-height:0")
    coded = base64.b64encode(picture.encode()).decode()
    return Html(
        f'<img src="data:image/svg+xml;base64,{coded}" alt="{html.escape(said)}" style="{size}">'
    )


def svg_tag(width: int, height: int, shapes: Iterable[Html], said: str) -> Html:
    """Return shapes as SVG that is stretched to its place."""
    return tag(
        "svg",
        *shapes,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        preserveAspectRatio="none",
        width="100%",
        height="100%",
        role="img",
        **{"aria-label": said},
    )


def spark(title: str, said: str, picture: str) -> Html:
    """Return a sparkline under its title and numbers, which are its alt text too."""
    return tag(
        "div",
        tag(
            "div",
            tag("span", title),
            tag("span", said, style=MUTED),
            style="display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 12px;"
            "font-size:12px",
        ),
        image(Html(picture), f"{title}: {said}", 44),
        _ticks(TRAIL_MS),
        style=f"flex:1 1 300px;border:{RULE};border-radius:3px;padding:5px 10px",
    )


def _ticks(span_ms: int) -> Html:
    """Return the labels below a time axis that ends now."""
    seconds = span_ms // 1000
    labels = (f"{seconds} s ago", f"{seconds // 2} s ago", "now")
    return tag(
        "div",
        *(tag("span", label) for label in labels),
        style=f"display:flex;justify-content:space-between;font-size:11px;{MUTED}",
        **SAID_BESIDE,
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

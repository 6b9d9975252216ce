"""Small HTML panels for notebooks: escaped here, coloured by the notebook's own theme.

Used by the ``_repr_html_`` methods. Inline styles only, since untrusted notebooks keep no others.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape as _escape

PALETTE = {
    "succeeded": "#0072B2",
    "running": "#009E73",
    "queued": "#6B7280",
    "pending": "#6B7280",
    "delayed": "#6B7280",
    "retried": "#8B5CF6",
    "failed": "#D1430A",
    "cancelled": "#8A6D3B",
}
"""One colour a state; each stands out against white and black by 3:1 and for the colour-blind."""

_GLYPHS = {
    "succeeded": "✔",
    "running": "▶",
    "queued": "…",
    "pending": "…",
    "delayed": "⏱",
    "retried": "↻",
    "failed": "✖",
    "cancelled": "⊘",
}


def escape(text: object) -> str:
    """Any text as HTML text: everything that came from a queue is somebody's input."""
    return _escape(str(text), quote=True)


def badge(state: str) -> str:
    """A state as glyph and word, underlined in its colour."""
    colour = PALETTE.get(state, "#6B7280")
    glyph = _GLYPHS.get(state, "")
    return (
        f'<span style="border-bottom:2px solid {colour};white-space:nowrap">{glyph} '
        f"{escape(state)}</span>"
    )


def panel(title: str, aside: str, rows: Iterable[tuple[str, str]]) -> str:
    """A titled table of label and value; ``aside`` and values are HTML already."""
    body = "".join(
        f'<tr><th scope="row" style="text-align:left;font-weight:normal;opacity:.75;padding:1px '
        f'12px 1px 0">{escape(label)}</th><td style="text-align:left;padding:1px 0">{value}</td>'
        "</tr>"
        for label, value in rows
    )
    return (
        '<div style="border-left:3px solid #0072B2;padding:2px 0 2px 10px;color:var('
        f'--jp-content-font-color1,inherit)"><div><strong>{escape(title)}</strong> &nbsp;{aside}'
        f'</div><table style="border-collapse:collapse;background:none">{body}</table></div>'
    )

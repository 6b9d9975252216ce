"""Small HTML panels for notebooks: escaped here, coloured by the notebook's own theme.

Used by the ``_repr_html_`` methods. Inline styles only, since untrusted notebooks keep no others.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape as _escape

from .palette import look


def escape(text: object) -> str:
    """Any text as HTML text: everything that came from a queue is somebody's input."""
    return _escape(str(text), quote=True)


def badge(state: str) -> str:
    """A state as glyph and word, underlined in its colour."""
    looks = look("queued" if state == "pending" else state)
    return (
        f'<span style="border-bottom:2px solid {looks.color};white-space:nowrap">{looks.glyph} '
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

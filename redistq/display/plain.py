"""HTML of ours as plain text: the same facts, for terminals and files. Pure functions.

Used by what has a page and a text of the same thing. It knows the elements that ``html.py`` makes:
a table is columns, a row of boxes is one line, what opens on a click is its first line alone, and
pictures are left out, since their words stand beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

from .html import Html

BETWEEN = " · "
"""Stands between the boxes of a row."""
_BLOCKS = frozenset({"div", "details", "table", "pre"})


@dataclass(slots=True)
class _Element:
    name: str
    style: str = ""
    hidden: bool = False
    children: list[_Element | str] = field(default_factory=list)

    @property
    def is_row(self) -> bool:
        return "display:flex" in self.style or "display:grid" in self.style

    def elements(self, *names: str) -> Iterator[_Element]:
        """Yield the elements in it of some names, those in them left out."""
        for child in self.children:
            if isinstance(child, _Element):
                if child.name in names:
                    yield child
                else:
                    yield from child.elements(*names)


def as_text(page: Html) -> str:
    """Return the text of a page, line by line."""
    tree = _Tree()
    tree.feed(page)
    tree.close()
    return "\n".join(_lines(tree.root))


class _Tree(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = _Element("div")
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        hidden = tag in ("img", "svg", "pre") or found.get("aria-hidden") == "true"
        made = _Element(tag, found.get("style") or "", hidden)
        self._open[-1].children.append(made)
        if tag != "img":
            self._open.append(made)

    def handle_endtag(self, tag: str) -> None:
        if len(self._open) > 1:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def _lines(element: _Element) -> list[str]:
    """Return an element's text as lines."""
    if element.hidden:
        return []
    if element.name == "table":
        return _table(element)
    if element.name == "details":
        return _details(element)
    if element.is_row:
        parts = [_inline(child) for child in element.children]
        return [BETWEEN.join(part for part in parts if part)]
    found: list[str] = []
    words: list[_Element | str] = []
    for child in element.children:
        if isinstance(child, _Element) and _is_block(child):
            found += _flush(words)
            found += _lines(child)
        else:
            words.append(child)
    return [line for line in [*found, *_flush(words)] if line]


def _is_block(element: _Element) -> bool:
    return element.name in _BLOCKS or any(
        isinstance(child, _Element) and _is_block(child) for child in element.children
    )


def _flush(words: list[_Element | str]) -> list[str]:
    text = _one_line("".join(map(_raw, words)))
    words.clear()
    return [text] if text else []


def _details(element: _Element) -> list[str]:
    """Return the heading of what opens on a click, and those of what is in it."""
    heading = next(element.elements("summary"), None)
    inner = [_inline(next(each.elements("summary"), each)) for each in element.elements("details")]
    return [*([] if heading is None else [_inline(heading)]), *(f"  {line}" for line in inner)]


def _table(element: _Element) -> list[str]:
    found = [_inline(each) for each in element.elements("caption")]
    rows = [list(row.elements("th", "td")) for row in element.elements("tr")]
    texts = [["; ".join(_lines(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row, cells in zip(rows, texts, strict=True):
        placed = [
            text.rjust(width) if "text-align:right" in cell.style else text.ljust(width)
            for cell, text, width in zip(row, cells, widths, strict=True)
        ]
        found.append("  " + "  ".join(placed).rstrip())
    return found


def _inline(child: _Element | str) -> str:
    return _one_line(_raw(child))


def _raw(child: _Element | str) -> str:
    """Return text as it stands there, with a space where a block begins."""
    if isinstance(child, str):
        return child
    if child.hidden:
        return ""
    between = BETWEEN if child.is_row else ""
    parts = [_raw(each) for each in child.children]
    inside = between.join(part for part in parts if part) if between else "".join(parts)
    return f" {inside} " if child.name in _BLOCKS else inside


def _one_line(text: str) -> str:
    return " ".join(text.split())

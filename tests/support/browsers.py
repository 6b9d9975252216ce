"""A real browser for the tests of pages: where it is, and how well its text can be read."""

from __future__ import annotations

import shutil
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def contrast(page: Any, area: str, texts: str = "*") -> float:
    """The least contrast of any text in an area of a page with what is behind it; ``area`` and
    ``texts`` are selectors."""
    least: float = page.evaluate(
        """([where, texts]) => {
            const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
            const parse = text => text.match(/[\\d.]+/g).map(Number);
            const part = [0.2126, 0.7152, 0.0722];
            const light = c => part.reduce((sum, p, i) => sum + p * channel(c[i]), 0);
            const over = (top, under) => {
                const a = top.length > 3 ? top[3] : 1;
                return [0, 1, 2].map(i => a * top[i] + (1 - a) * under[i]);
            };
            const ground = node => {
                for (; node; node = node.parentElement) {
                    const c = parse(getComputedStyle(node).backgroundColor);
                    if (c.length < 4 || c[3] > 0.99) return c;
                }
                return [255, 255, 255];
            };
            let least = 21;
            const area = document.querySelector(where);
            for (const node of area.querySelectorAll(texts)) {
                const own = [...node.childNodes].some(n => n.nodeType === 3 && n.data.trim());
                if (!own || !node.offsetParent) continue;
                const back = ground(node);
                const text = over(parse(getComputedStyle(node).color), back);
                const [a, b] = [light(text), light(back)];
                least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
            }
            return least;
        }""",
        [area, texts],
    )
    return least

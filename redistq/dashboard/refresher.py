"""The one thread that refreshes all dashboards of this process.

Used by the dashboard only. The thread exists while there is a panel to refresh and no longer; it
is a daemon and never holds a process back.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import Protocol

from ..logger import logger

log = logger("redistq.dashboard")

THREAD_NAME = "redistq-ui"


class Panel(Protocol):
    """What the refresher steps."""

    def step(self) -> float | None:
        """Do what is due; return in how many seconds to come back, or None: never again."""

    def on_error(self, error: Exception) -> None:
        """Show an unexpected error of a step."""

    def end(self, why: str) -> None:
        """Stop, and leave a still picture that says why."""


class Refresher:
    """Steps panels, each when it is due, in one thread that ends with the last panel."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all panels and the thread: in a forked child neither exists."""
        self._panels: dict[Panel, float] = {}
        self._lock = threading.Lock()
        self._stepping = threading.RLock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, panel: Panel) -> None:
        """Step this panel from now on; harmless when it is stepped already."""
        with self._lock:
            self._panels.setdefault(panel, 0.0)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
                self._thread.start()
        self._wake.set()

    def remove(self, panel: Panel) -> None:
        """Do not step this panel again; when this returns it is not being stepped either, and a
        thread that has no panel left has ended."""
        with self._stepping, self._lock:
            self._panels.pop(panel, None)
            thread = self._thread
            empty = not self._panels
        self._wake.set()
        if empty and thread is not None and thread is not threading.current_thread():
            thread.join(10)

    def hurry(self, panel: Panel) -> None:
        """Step this panel at once."""
        with self._lock:
            if panel in self._panels:
                self._panels[panel] = 0.0
        self._wake.set()

    def panels(self) -> list[Panel]:
        """Return those that are stepped."""
        with self._lock:
            return list(self._panels)

    def _run(self) -> None:
        while True:
            self._wake.clear()
            with self._lock:
                if not self._panels:
                    self._thread = None
                    return
                now = time.monotonic()
                due = [panel for panel, at in self._panels.items() if at <= now]
            for panel in due:
                self._step(panel)
            with self._lock:
                next_at = min(self._panels.values(), default=0.0)
            self._wake.wait(max(0.0, next_at - time.monotonic()))

    def _step(self, panel: Panel) -> None:
        with self._stepping:
            with self._lock:
                if panel not in self._panels:
                    return
                self._panels[panel] = float("inf")
            seconds: float | None = 1.0
            try:
                seconds = panel.step()
            except Exception as error:  # any error: one faulty panel must not end the others
                log.exception("a dashboard could not be refreshed")
                panel.on_error(error)
            with self._lock:
                if seconds is None:
                    self._panels.pop(panel, None)
                elif panel in self._panels:
                    # Unless ``hurry`` was called while it was stepped.
                    due = time.monotonic() + seconds
                    self._panels[panel] = min(self._panels[panel], due)


refresher = Refresher()


def _end_all() -> None:
    for panel in refresher.panels():
        refresher.remove(panel)


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=refresher.reset)

"""The notebook around us: whether there is one, how to show things in it, and its interrupts.

Used by whatever shows or says something to people. IPython is imported only where it is there
already. ``say`` is the one way to say a line that is no error.
"""

from __future__ import annotations

import logging
import sys
import threading
import uuid
import weakref
from typing import Any

from ..logger import Logger
from .html import tag


def shell() -> Any:
    """Return the running IPython, or None; it never is the first to import it."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module is not None else None


def in_kernel() -> bool:
    """Return whether this process is a kernel, so that what is displayed can be replaced later."""
    return getattr(shell(), "kernel", None) is not None


def show_bundle(bundle: dict[str, Any]) -> None:
    """Display a bundle for good."""
    publish(data=bundle)


def say(
    text: str, log: logging.Logger | Logger | None = None, level: int = logging.WARNING
) -> None:
    """Say one line to the people who work with this program, from any thread; it never raises.

    In a notebook it is a muted line below the cell, where what is logged would be a red box.
    Elsewhere it goes to ``log``, which a program without logging shows on standard error; without
    a ``log`` it goes there directly: standard output stays the program's own. A logger whose
    level passes over warnings keeps it quiet, in a notebook too.
    """
    if log is not None and not log.isEnabledFor(max(level, logging.WARNING)):
        return
    if in_kernel():
        try:
            show_bundle(_muted(f"redistq: {text}"))
            return
        except Exception:  # no front end, or one that is going away: the line goes where it can
            pass
    if log is not None:
        log.log(level, "%s", text)
    elif sys.stderr is not None:
        print(f"redistq: {text}", file=sys.stderr, flush=True)


def _muted(line: str) -> dict[str, str]:
    shown = tag("div", line, style="color:var(--jp-ui-font-color2,#6b7280)")
    return {"text/plain": line, "text/html": str(shown)}


class Outlet:
    """One place in a cell's output whose content can be replaced, from any thread.

    It also knows whether the cell that showed it has ended, and whether a cell was interrupted.
    """

    def __init__(self) -> None:
        self.display_ids: list[str] = []
        self.cell_ended = not in_kernel()
        self.interrupted = False
        cells.watch(self)

    def show(self, bundle: dict[str, Any]) -> None:
        """Display a bundle here and now."""
        display_id = uuid.uuid4().hex
        self.display_ids.append(display_id)
        self.cell_ended = not in_kernel()
        publish(data=bundle, transient={"display_id": display_id})

    def replace(self, bundle: dict[str, Any]) -> None:
        """Put a bundle in place of all that was shown; a front end that is gone does not mind."""
        for display_id in self.display_ids:
            publish(data=bundle, transient={"display_id": display_id}, update=True)

    def close(self) -> None:
        """Watch no more; the content stays."""
        cells.forget(self)


def publish(**message: Any) -> None:
    """Send a display message to the front end."""
    import IPython.display

    publish: Any = IPython.display.publish_display_data
    publish(**message)


class Cells:
    """Tells outlets of the end of cells; hooked into IPython only while an outlet is open."""

    def __init__(self) -> None:
        self._outlets: weakref.WeakSet[Outlet] = weakref.WeakSet()
        self._hooked: Any = None
        self._lock = threading.Lock()

    def watch(self, outlet: Outlet) -> None:
        """Tell this outlet of the end of cells."""
        with self._lock:
            self._outlets.add(outlet)
            ip = shell()
            if self._hooked is None and ip is not None:
                self._hooked = ip
                ip.events.register("post_run_cell", self.after_cell)

    def forget(self, outlet: Outlet) -> None:
        """Tell it no more; without outlets nothing is hooked into IPython."""
        with self._lock:
            self._outlets.discard(outlet)
            ip = self._hooked
            if ip is not None and not self._outlets:
                self._hooked = None
                try:
                    ip.events.unregister("post_run_cell", self.after_cell)
                except ValueError:
                    pass  # all hooks were cleared

    def after_cell(self, result: Any = None) -> None:
        """Tell the outlets that a cell has ended, and whether by an interrupt; IPython calls it."""
        import asyncio

        error = getattr(result, "error_in_exec", None)
        interrupted = isinstance(error, KeyboardInterrupt | asyncio.CancelledError)
        with self._lock:
            outlets = list(self._outlets)
        for outlet in outlets:
            outlet.cell_ended = True
            outlet.interrupted = outlet.interrupted or interrupted


cells = Cells()

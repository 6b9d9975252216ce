"""The notebook around us: whether there is one, how to show things in it, and its interrupts.

Used by whatever shows or says something to people. IPython is imported only where it is there
already.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import uuid
import weakref
from typing import Any


def shell() -> Any:
    """The running IPython, or None; never the first to import it."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module is not None else None


def in_kernel() -> bool:
    """Whether this process is a kernel, so that what is displayed can be replaced later."""
    return getattr(shell(), "kernel", None) is not None


def show_bundle(bundle: dict[str, Any]) -> None:
    """Display a bundle for good."""
    _publish(data=bundle)


def say(text: str) -> None:
    """One line to whoever works with this program: muted in a notebook, else on standard error;
    standard output stays the program's own."""
    if in_kernel():
        from html import escape

        muted = f'<div style="color:var(--jp-ui-font-color2,#6b7280)">{escape(text)}</div>'
        show_bundle({"text/plain": text, "text/html": muted})
    elif sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


class Outlet:
    """One place in a cell's output whose content can be replaced, from any thread.

    It also knows whether the cell that showed it has ended, and whether a cell was interrupted.
    """

    def __init__(self) -> None:
        self.display_ids: list[str] = []
        self.cell_ended = not in_kernel()
        self.interrupted = False
        _cells.watch(self)

    def show(self, bundle: dict[str, Any]) -> None:
        """Display a bundle here and now."""
        display_id = uuid.uuid4().hex
        self.display_ids.append(display_id)
        self.cell_ended = not in_kernel()
        _publish(data=bundle, transient={"display_id": display_id})

    def replace(self, bundle: dict[str, Any]) -> None:
        """Put a bundle in place of all that was shown; a front end that is gone does not mind."""
        for display_id in self.display_ids:
            _publish(data=bundle, transient={"display_id": display_id}, update=True)

    def close(self) -> None:
        """Watch no more; the content stays."""
        _cells.forget(self)


def _publish(**message: Any) -> None:
    import IPython.display

    publish: Any = IPython.display.publish_display_data
    publish(**message)


class _Cells:
    """Tells outlets of the end of cells; hooked into IPython only while an outlet is open."""

    def __init__(self) -> None:
        self._outlets: weakref.WeakSet[Outlet] = weakref.WeakSet()
        self._hooked: Any = None
        self._lock = threading.Lock()

    def watch(self, outlet: Outlet) -> None:
        with self._lock:
            self._outlets.add(outlet)
            ip = shell()
            if self._hooked is None and ip is not None:
                self._hooked = ip
                ip.events.register("post_run_cell", self._after_cell)

    def forget(self, outlet: Outlet) -> None:
        with self._lock:
            self._outlets.discard(outlet)
            ip, empty = self._hooked, not self._outlets
            if ip is not None and empty:
                self._hooked = None
                try:
                    ip.events.unregister("post_run_cell", self._after_cell)
                except ValueError:
                    pass  # somebody cleared all hooks

    def _after_cell(self, result: Any = None) -> None:
        error = getattr(result, "error_in_exec", None)
        interrupted = isinstance(error, KeyboardInterrupt | asyncio.CancelledError)
        with self._lock:
            outlets = list(self._outlets)
        for outlet in outlets:
            outlet.cell_ended = True
            outlet.interrupted = outlet.interrupted or interrupted


_cells = _Cells()

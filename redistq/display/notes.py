"""Notes: one line for the person in front; grey in a notebook, a log message everywhere else.

Used wherever something is worth a word and is no error. It must never raise, nor import IPython.
"""

from __future__ import annotations

import html
import logging
import sys
from typing import Any

from ..logger import Logger


def in_kernel() -> bool:
    """Whether this process is a notebook's kernel, which can show HTML."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return getattr(shell, "kernel", None) is not None


def say(text: str, log: logging.Logger | Logger, level: int = logging.WARNING) -> None:
    """Say one line, from any thread: below the cell in a notebook (where what is logged would be a
    red box), else by ``log``, which a program without logging shows on standard error. A logger
    that was told to pass over warnings is asked for quiet, in a notebook too."""
    if not log.isEnabledFor(max(level, logging.WARNING)):
        return
    if in_kernel():
        try:
            _show(text)
            return
        except Exception:
            pass  # no front end, or one that is going away: the log is there still
    log.log(level, "%s", text)


def _show(text: str) -> None:
    import IPython.display

    line = f'<div style="opacity:.65">redistq: {html.escape(text)}</div>'
    bundle = {"text/plain": f"redistq: {text}", "text/html": line}
    publish: Any = IPython.display.publish_display_data
    publish(data=bundle)

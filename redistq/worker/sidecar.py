"""The supervisor's process, started by TaskWorker; its orders are a JSON line that says all, then
``stop SECONDS`` or ``kill``, and their end means that the application is gone."""

from __future__ import annotations

import logging
import os
import sys

from ..system.processes import Starter
from .supervisor import run_beside


def begin(starter: Starter) -> None:
    """Keep until the starter says stop or is gone."""
    spec = starter.spec()
    if spec is None:
        os._exit(0)
    logging.basicConfig(
        level=spec.get("log_level", "WARNING"),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    code = run_beside(starter, spec)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)  # not sys.exit: a thread waits for orders, and must not be torn down

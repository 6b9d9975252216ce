"""The keeper's process, started by TaskWorker; its orders are one JSON line on standard input."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.append(str(Path(__file__).resolve().parent.parent))


def main() -> int:
    """Keep until the parent says stop or is gone."""
    from redistq.keeper import run_beside

    # An interrupt of the application (Ctrl-C, a notebook's stop button) is not meant for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    spec = json.loads(line)
    logging.basicConfig(
        level=spec.get("log_level", "WARNING"),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    return run_beside(spec)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)  # not sys.exit: a thread waits on standard input, which must not be torn down

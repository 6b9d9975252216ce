"""``--reload``: the worker's command in a process of its own, started anew when a file changes.
For development; needs watchfiles (``pip install redistq[dev]``).

Here stands the process that watches. It imports nothing of the program, so that a file that cannot
be imported ends the worker alone, which is started again with the next change.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from ..logger import logger
from ..system.interpreter import interpreter, interpreter_flags, require
from ..system.processes import how_it_ended
from ..worker.supervisor import EXIT_OK, EXIT_USAGE

log = logger("redistq.reload")

DRAIN_S = 2.0
"""Seconds that running tasks may take to finish when a file has changed, unless
--shutdown-timeout says less: what has not ended then runs again in the new worker."""
END_S = 3.0
"""Seconds beyond that after which the worker is killed."""
LOOK_MS = 200
"""How often the worker is looked at while no file changes."""
SHOWN = 3
"""Most changed files that are named."""


def serve(argv: Sequence[str], args: argparse.Namespace) -> int:
    """Run the worker with these arguments until a signal; return the exit code."""
    folders = [Path(folder) for folder in args.reload_dir or ["."]]
    try:
        watchfiles = require("watchfiles", "dev", "--reload")
        for folder in folders:
            if not folder.is_dir():
                raise ConfigurationError(f"--reload-dir {folder}: there is no such folder")
    except (ImportError, ConfigurationError) as error:
        log.error("%s", error)
        return EXIT_USAGE
    drain_s = min(args.shutdown_timeout, DRAIN_S)
    worker = Worker([*without_reload(argv), "--shutdown-timeout", f"{drain_s:g}"], drain_s)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    log.info("watching %s", ", ".join(str(folder.resolve()) for folder in folders))
    worker.start()
    try:
        for changed in changes(watchfiles, folders, ended):
            if changed:
                named = ", ".join(changed[:SHOWN]) + (" …" if len(changed) > SHOWN else "")
                log.info("%s changed: the worker starts anew", named)
                worker.end()
                worker.start()
            else:
                worker.look()
    finally:
        worker.end()
    return EXIT_OK


def changes(
    watchfiles: Any, folders: Sequence[Path], ended: threading.Event
) -> Iterator[list[str]]:
    """Yield the names of files that have changed, and nothing now and then, until ``ended``."""
    for found in watchfiles.watch(
        *folders,
        watch_filter=watchfiles.PythonFilter(),
        stop_event=ended,
        rust_timeout=LOOK_MS,
        yield_on_timeout=True,
        debounce=300,
        raise_interrupt=False,
    ):
        yield sorted({os.path.relpath(path) for _, path in found})


def without_reload(argv: Sequence[str]) -> list[str]:
    """Return the arguments without those of this module."""
    left: list[str] = []
    given = iter(argv)
    for argument in given:
        if argument.startswith("--reload-"):  # shortened, perhaps
            if "=" not in argument:
                next(given, None)
        elif argument != "--reload":
            left.append(argument)
    return left


class Worker:
    """The worker's command in a process of its own."""

    def __init__(self, argv: Sequence[str], drain_s: float) -> None:
        self._command = [interpreter(), *interpreter_flags(), "-m", "redistq.worker", *argv]
        self._drain_s = drain_s
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        # A session of its own: Ctrl-C is ours alone, and is passed on once.
        self._process = subprocess.Popen(self._command, start_new_session=True)

    def look(self) -> None:
        """Say, once, when it has ended by itself: it waits for the next change."""
        process = self._process
        if process is not None and process.poll() is not None:
            self._process = None
            log.warning(
                "the worker %s: mend what it says above; the next change of a file starts it again",
                how_it_ended(process.returncode),
            )

    def end(self) -> None:
        """End it: what it runs may finish for a moment, the rest goes back."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(self._drain_s + END_S)
        except subprocess.TimeoutExpired:
            log.warning("the worker does not end and is killed: what it runs will run again")
            process.terminate()  # once more: it kills its own processes
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

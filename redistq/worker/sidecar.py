"""The sidecar: a supervisor in a small process beside an application that has a TaskWorker.

Both ends are here. ``Sidecar`` is what TaskWorker starts, replaces and ends; ``begin`` is what the
process runs, until it is told to stop or the application is gone.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..connection.address import Address, rejoin
from ..errors import ConfigurationError, RedistqError
from ..logger import logger
from ..system.loops import Backoff
from ..system.processes import START_TIMEOUT_S, Starter, how_it_ended
from .copies import CopiedChild, copied_children
from .heartbeat import ManagedProcess
from .pipe import Child, Parent, Report
from .scoreboard import Scoreboard
from .settings import WorkerSettings

log = logger("redistq.worker")

END_GRACE_S = 15.0
"""Seconds beyond the time for draining within which the process ends, or is killed."""


class Sidecar:
    """The supervisor's process as its application sees it; replaced should it die first."""

    def __init__(
        self,
        settings: WorkerSettings,
        address: Address,
        *,
        folder: str | None = None,
        pass_fds: Sequence[int] = (),
        on_report: Callable[[Report], None] | None = None,
        patience: float = 0.0,
    ) -> None:
        """Start the process; it loads its modules while this one loads others.

        ``on_report`` is called, in a thread of its own, with what it reports of the tasks that run
        in this process. ``patience`` is how many seconds its worker processes may take to start,
        beyond the usual.
        """
        self._patience = START_TIMEOUT_S + patience
        self._on_report = on_report
        self._ear: threading.Thread | None = None
        self._settings = settings
        self._address = address
        self._folder = folder
        self._pass_fds = tuple(pass_fds)
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._watch: threading.Thread | None = None
        self._child = self._start()

    @property
    def pid(self) -> int:
        """The id of the process that is the sidecar now."""
        return self._child.pid

    def introduce(self, describe: Callable[[], dict[str, Any]]) -> None:
        """Say what it is to keep, and wait until it does; from then on it is watched.

        ``describe`` returns that, for this process and for each that replaces it. Raises
        ConfigurationError when it cannot do its work.
        """
        self._introduce(self._child, describe())
        self._watch = threading.Thread(
            target=self._replace_the_dead,
            args=(describe,),
            name="redistq-supervisor-watch",
            daemon=True,
        )
        self._watch.start()

    def expect_end(self) -> None:
        """Do not replace it any more when it ends."""
        self._ending.set()

    def end(self, timeout: float) -> int | None:
        """Have it end within ``timeout`` seconds and some; safe to call twice.

        Return its exit code, or None when it was gone already or had to be killed.
        """
        self._ending.set()
        with self._lock:
            child = self._child
        code = _end(child, timeout)
        if self._ear is not None:
            self._ear.join(1)
        child.ignore_reports()
        if self._watch is not None:
            self._watch.join(5)
        return code

    def _start(self) -> Child:
        return Child("redistq.worker.sidecar", self._pass_fds, self._folder)

    def _introduce(self, child: Child, described: dict[str, Any]) -> None:
        child.introduce(
            {
                "settings": self._settings.as_dict(),
                "address": self._address.as_dict(),
                "parent": os.getpid(),
                "log_level": logging.getLevelName(log.getEffectiveLevel()),
                **described,
            }
        )
        report = child.hear(self._patience)
        if report is not None and report.ready:
            if self._on_report is None:
                child.ignore_reports()
            else:
                self._ear = threading.Thread(
                    target=self._hear, args=(child,), name="redistq-supervisor-ear", daemon=True
                )
                self._ear.start()
            return
        code = child.process.poll()
        silent = f"gave no answer for {self._patience:g} s"
        why = silent if code is None else how_it_ended(code)
        _end(child, 0)
        child.ignore_reports()
        raise ConfigurationError(
            "the worker processes could not start: "
            + ((report and report.failure) or f"the supervisor process {why}")
        )

    def _hear(self, child: Child) -> None:
        """Pass on what the process reports until its end, which closes the pipe."""
        while (report := child.hear()) is not None:
            try:
                if self._on_report is not None:
                    self._on_report(report)
            except Exception:  # whatever it is, the others are passed on
                log.exception("a task could not be told to end")

    def _replace_the_dead(self, describe: Callable[[], dict[str, Any]]) -> None:
        """Replace a supervisor that dies while its worker lives, well within the lease."""
        while True:
            code = self._child.process.wait()
            if self._ending.is_set():
                return
            log.warning("the supervisor process %s; starting another", how_it_ended(code))
            self._child.let_go()
            self._replace(describe)

    def _replace(self, describe: Callable[[], dict[str, Any]]) -> None:
        backoff = Backoff(0.5, 30.0)
        while not self._ending.is_set():
            try:
                child = self._start()
                with self._lock:
                    self._child = child
                if self._ending.is_set():  # ``end`` may have ended the one before
                    _end(child, 0)
                    child.ignore_reports()
                    return
                self._introduce(child, describe())
                return
            except (OSError, RedistqError) as error:
                if self._ending.is_set():
                    return
                log.error("no supervisor could be started, tasks here may run twice: %s", error)
                self._ending.wait(backoff.next())


def _end(child: Child, timeout: float) -> int | None:
    """Have a sidecar end; return its exit code, or None when it was gone or had to be killed."""
    child.stop(timeout)
    child.let_go()
    code: int | None = None
    try:
        code = child.process.wait(timeout + END_GRACE_S)
    except subprocess.TimeoutExpired:
        child.process.kill()
        child.process.wait()
    return code if code is not None and code >= 0 else None


# -- in the process --------------------------------------------------------------------------------


def begin(starter: Starter) -> None:
    """Supervise until the application says stop or is gone."""
    parent = Parent(starter)
    spec = parent.spec()
    if spec is None:
        os._exit(0)
    settings = WorkerSettings.of(spec["settings"])
    copies = copied_children(settings, spec.get("children", 0))  # before anything begins here
    logging.basicConfig(
        level=spec.get("log_level", "WARNING"),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    code = _run(parent, spec, settings, copies)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)  # not sys.exit: a thread waits for orders, and must not be torn down


def _run(
    parent: Parent, spec: dict[str, Any], settings: WorkerSettings, copies: list[CopiedChild]
) -> int:
    from .supervisor import Supervisor  # no application needs it, nor do copies of this process

    supervisor = Supervisor(
        settings,
        rejoin(Address(**spec["address"])),
        children=spec.get("children", 0),
        child_spec=spec.get("child_spec"),
        copies=copies,
        member=_member(spec, parent),
        # The last report where nobody is to hear of tasks.
        on_ready=partial(parent.report_ready, last=not spec.get("consumer")),
        parent=spec["parent"],
    )
    parent.listen(supervisor.request_stop, supervisor.on_parent_gone)
    code = supervisor.run()
    if supervisor.failed_boot:
        parent.report_failure(supervisor.failed_boot)
    return code


def _member(spec: dict[str, Any], parent: Parent) -> ManagedProcess | None:
    """Return the application itself as a process to supervise, when its tasks run in its own
    threads."""
    if not spec.get("consumer"):
        return None
    scoreboard = Scoreboard(spec["scoreboard"])
    scoreboard.close()
    return ManagedProcess(
        spec["consumer"],
        scoreboard,
        ready=True,
        details=spec["details"],
        application=parent,
    )

"""A worker's child process, started by its supervisor: runs a processor until told to stop.

It hears from its supervisor what it is for, and when to stop (see pipe.py). While it loads the
handlers it can be ended at once, for nothing was begun.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import email.parser
import encodings.idna
import faulthandler
import logging
import os
import pickle
import secrets
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable
from typing import Any

from .. import slots
from ..connection.address import Address, rejoin
from ..connection.broker import Broker
from ..errors import RedistqError, ServerUnavailable
from ..handlers import Registry
from ..logger import logger
from ..protocol.codec import users_part
from ..protocol.commands import Commands
from ..system.interpreter import use_import_path
from ..system.loops import OUTAGES
from ..system.processes import Starter, handle_signal, leave_fork
from .bootstrap import announce, registry_from, resources_of, with_function_calls
from .heartbeat import sign_off
from .logs import set_up
from .pipe import Parent
from .processor import EXIT_FAULT, Processor
from .provided import StartEnded
from .scoreboard import Scoreboard
from .settings import WorkerSettings

log = logger("redistq.worker")

_USED_LATER = (email.parser, encodings.idna, pickle, secrets, sysconfig)
"""What redis and we load at first use, when a file of the user's that is called so comes first."""

SLOW_IMPORT_S = 30.0
"""Seconds after which the import of handlers is said to be slow, and again after as many."""
ATEXIT_S = 3.0
"""Seconds that exit functions of the handlers' modules may take, together."""


def begin(starter: Starter) -> None:
    """Run one worker process; ends by ``os._exit`` so that no stuck thread can keep it."""
    code = 1
    own = os.getpid()
    parent = Parent(starter)
    try:
        spec = parent.spec()
        code = 0 if spec is None else _run(parent, spec)
    except ServerUnavailable as error:
        log.warning("%s", error)
        parent.report_unavailable()
    except BaseException as error:  # a module that is imported may raise anything, or SystemExit
        if os.getpid() != own:
            leave_fork(error)
        if not isinstance(error, RedistqError | SystemExit):
            tb = users_part(error.__traceback__)
            if tb is None and not isinstance(error, SyntaxError):
                tb = error.__traceback__  # of our own: the whole of it
            log.error("this worker process cannot start", exc_info=(type(error), error, tb))
        parent.report_failure(_reason(error))
    _end(code)


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return (
            f"a module that holds handlers ends the program when it is imported (sys.exit"
            f"({'' if error.code is None else repr(error.code)})): keep what is for a program of "
            'its own under if __name__ == "__main__"'
        )
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _end(code: int) -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a module may have put anything in their place
            stream.flush()
    os._exit(code)


class _Orders:
    """Receives what the supervisor, or a signal, wants of this process from its first moment."""

    def __init__(self, parent: Parent, lease: float, shutdown_timeout: float) -> None:
        self._lease = lease
        self._shutdown_timeout = shutdown_timeout
        self._lock = threading.Lock()
        self._working = False
        self._ended = threading.Event()
        self.timeout = 0.0
        """Seconds within which to stop."""
        self.alone = False
        """Whether its supervisor has gone."""
        self._processor: Processor | None = None
        self._interrupt: Callable[[], None] | None = None
        handle_signal(signal.SIGTERM, self._on_term)
        parent.listen(self._end, self._on_parent_gone, self._on_cancel, self._on_names)

    def start_begins(self, interrupt: Callable[[], None]) -> None:
        """Let the process end by interrupting its start from here on, not at once: what has been
        entered is left."""
        self._interrupt = interrupt

    def work_begins(self, processor: Processor) -> None:
        """Let the process end by stopping in good order from here on, not at once; the processor
        hears what it is told."""
        self._processor = processor
        handle_signal(signal.SIGTERM, self._on_term)  # a module may have taken it
        with self._lock:
            self._working = True

    def wait(self) -> float:
        """Wait until this process is to end; return within how many seconds.

        What a signal handler of the handlers' modules raises strikes here, in the main thread. It
        does not end this process, with all the tasks that have no part in it.
        """
        while not self._ended.is_set():
            try:
                self._ended.wait(3600)
            except BaseException as error:  # a signal handler of the user's may raise anything
                log.warning(
                    "%s, raised by a signal handler, reaches no task: those run in other threads, "
                    "and are given time limits by @task(timeout=...)",
                    type(error).__name__,
                )
        return self.timeout

    def _on_parent_gone(self) -> None:
        # Without a supervisor nobody sends our heartbeat: what is not finished within the lease is
        # not ours.
        self.alone = True
        self._end(self._lease / 2)

    def _on_cancel(self, place: int, entry: str) -> None:
        if self._processor is not None:
            try:
                self._processor.cancel(place, entry)
            except Exception:  # whatever it is, the next order is heard
                log.exception("a task could not be told to end")

    def _on_names(self, place: int, names: list[str]) -> None:
        if self._processor is not None:
            self._processor.gate_names(place, names)

    def _on_term(self, *_: Any) -> None:
        self._end_start()
        self.timeout = self._shutdown_timeout
        self._ended.set()

    def _end(self, timeout: float) -> None:
        with self._lock:
            self._end_start()
            if not self._ended.is_set():
                self.timeout = timeout
                self._ended.set()
                return
        # It drains already, perhaps for long: not longer than this.
        watch = threading.Timer(timeout, os._exit, (1,))
        watch.daemon = True
        watch.start()

    def _end_start(self) -> None:
        """End a process that does not work yet: at once, or when it has left what it entered."""
        if not self._working:
            if self._interrupt is None:
                os._exit(0)
            self._interrupt()


def _run(parent: Parent, spec: dict[str, Any]) -> int:
    settings = WorkerSettings.of(spec["settings"])
    orders = _Orders(parent, settings.lease, settings.shutdown_timeout)
    scoreboard = Scoreboard(spec["scoreboard"])
    scoreboard.close()  # mapped; nothing that is started from here shall have it
    ledger = None
    if settings.has:
        from .lots import ledger_of

        ledger = ledger_of(settings.has, spec)
    _prepare(spec)
    own = os.getpid()
    registry = _registry(spec)
    address = rejoin(Address(**spec["address"]))
    commands = settings.commands_for(address)
    broker = Broker(address, slot_key=commands[0].keys.stream)
    registry = _with_calls(registry, settings, broker, commands)
    if os.getpid() != own:
        leave_fork(None)  # a module forked: what took part a second time would lose its tasks
    # At once: whatever could not go on cannot be relied on for a clean end. The supervisor, which
    # outlives this process, gives its tasks back.
    processor = Processor(
        settings,
        registry,
        broker,
        commands,
        spec["consumer"],
        scoreboard,
        on_fault=lambda reason: os._exit(EXIT_FAULT),
        ledger=ledger,
    )

    orders.start_begins(processor.provided.interrupt)
    try:
        processor.open()
    except StartEnded:
        return 0
    try:
        details = announce(
            broker, commands, settings, spec["consumer"], registry, resources_of(ledger)
        )
        orders.work_begins(processor)
        slots.serve_process(processor)
        processor.start()
    except BaseException:  # whatever it is; passed on
        processor.close(settings.shutdown_timeout)
        raise
    parent.report_ready(details)

    finished = processor.stop(orders.wait())
    if orders.alone:
        # Nobody else knows what was started here: without a word, all of it would be charged.
        try:
            sign_off(broker, commands, settings, spec["consumer"], scoreboard.running())
        except OUTAGES as error:
            # The end goes on: its lease then says what it could not.
            log.warning("this worker process could not sign off: %s", error)
    if finished:
        _run_exit_functions()
    return 0 if finished else 1


def _prepare(spec: dict[str, Any]) -> None:
    """Set up logging, faults, threads and imports, before the first module of the user's."""
    how = spec.get("log_format", "plain")
    set_up(spec.get("log_level", "WARNING"), how, with_process=True)
    if not faulthandler.is_enabled():
        # Native code that kills this process is named; a notebook shows it, and our own threads
        # would be ten times as much.
        faulthandler.enable(all_threads=False)
    # A runner that computes gives up the interpreter after 1 ms instead of 5: fetcher and settler
    # wait for it after every answer of the server.
    sys.setswitchinterval(0.001)
    if secret := spec.get("authkey"):
        import multiprocessing

        multiprocessing.current_process().authkey = bytes.fromhex(secret)
    use_import_path(spec["path"])


def _with_calls(
    registry: Registry, settings: WorkerSettings, broker: Broker, commands: list[Commands]
) -> Registry:
    """Return the handlers, and the one for function calls with what its functions need here."""
    complete = with_function_calls(registry, settings, broker, commands)
    if len(complete) > len(registry):
        from ..functions.call import import_local_modules
        from ..functions.output import catch_standard_output

        catch_standard_output()
        import_local_modules()
    return complete


def _registry(spec: dict[str, Any]) -> Registry:
    """Return the handlers, whose modules are imported here."""
    loaded = threading.Event()
    threading.Thread(
        target=_say_when_slow,
        args=(loaded, threading.get_ident()),
        name="redistq-load-watch",
        daemon=True,
    ).start()
    try:
        if pickled := spec.get("handlers"):
            import cloudpickle

            found: Registry = cloudpickle.loads(base64.b64decode(pickled))
            return found
        return registry_from(spec["targets"])
    finally:
        loaded.set()


def _say_when_slow(loaded: threading.Event, thread: int) -> None:
    """Show where an import is that takes long, or will never end."""
    waited = 0.0
    while not loaded.wait(SLOW_IMPORT_S):
        waited += SLOW_IMPORT_S
        frame = sys._current_frames().get(thread)
        log.warning(
            "the handlers' modules are still being imported after %g s, here:\n%s",
            waited,
            "".join(traceback.format_stack(frame)[-5:]).rstrip(),
        )


def _run_exit_functions() -> None:
    """Run what modules registered with ``atexit``, as any program does, in bounded time."""
    done = threading.Event()

    def cut_off() -> None:
        if not done.wait(ATEXIT_S):
            log.warning("exit functions did not end within %g s", ATEXIT_S)
            _end(0)

    threading.Thread(target=cut_off, name="redistq-exit-watch", daemon=True).start()
    atexit._run_exitfuncs()
    done.set()

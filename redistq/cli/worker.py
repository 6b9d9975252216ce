"""``python -m redistq.worker``: its options, its signals, its exit codes.

The process that runs this is the supervisor of one or more child processes and runs no task itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

from ..connection.address import Address, resolve
from ..connection.broker import Broker
from ..errors import ConfigurationError, RedistqError, Refused, ServerUnavailable
from ..logger import logger
from ..protocol.commands import new_consumer_name
from ..protocol.plain_commands import PING
from ..system.interpreter import import_path
from ..system.streams import mend_standard_streams
from ..worker.bootstrap import check_rights, warn_about_server
from ..worker.logs import set_up
from ..worker.settings import WorkerSettings
from ..worker.supervisor import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Supervisor
from .worker_options import parser, settings_of

if TYPE_CHECKING:
    from ..monitor.metrics import MetricsServer

log = logger("redistq.worker")


def _path_of_handlers() -> list[str]:
    """Return where handlers are looked for: in the current folder first, as ``python -m`` does for
    its own module; last with -P or -I, which keep that folder from hiding other modules."""
    path = import_path()
    try:
        here = os.getcwd()
    except OSError:
        return path  # it was deleted
    rest = [entry for entry in path if entry != here]
    return [*rest, here] if sys.flags.safe_path else [here, *rest]


def _metrics(
    args: argparse.Namespace, settings: WorkerSettings, address: Address
) -> MetricsServer | None:
    """Return a server of metrics in this process, which runs no task; None when none is wanted."""
    if args.metrics_port is None:
        return None
    from ..monitor.metrics import MetricsServer
    from ..monitor.monitor import TaskMonitor

    monitors = [
        TaskMonitor(
            address=address,
            stream=queue,
            group=settings.group,
            delayed_key=settings.delayed_key if queue == settings.queue else None,
            timeout=5.0,
        )
        for queue in settings.queues
    ]
    server = MetricsServer(monitors, args.metrics_port, args.metrics_host)
    log.info("metrics at %s", server.url)
    return server


def _wait_while_refused(broker: Broker, told_to_end: threading.Event) -> None:
    """Return when the server takes commands, however long it is loading or busy, say; raises
    ServerUnavailable when there is none, or not the right one."""
    while True:
        try:
            broker.call(PING)
            return
        except ServerUnavailable as error:
            refusal = error.__cause__
            if not isinstance(refusal, Refused) or str(refusal).startswith("MOVED"):
                raise
            log.warning("waiting to start: %s", refusal)
            if told_to_end.is_set():
                # The signal came while the line was written, where no exit gets through.
                sys.exit(EXIT_OK)


def _server_of(
    args: argparse.Namespace, settings: WorkerSettings, told_to_end: threading.Event
) -> Address:
    """Return where the server is, once it takes commands; raises RedistqError when no worker can
    work there."""
    address = resolve(args.url)
    if not (args.targets or settings.allow_pickle or settings.signing_key or address.embedded):
        raise ConfigurationError(
            "name a module with handlers, or say whose functions to run: --signing-key-file or "
            "--allow-pickle"
        )
    commands = settings.commands_for(address)
    broker = Broker(address, slot_key=commands[0].keys.stream, timeout=5.0)
    try:
        _wait_while_refused(broker, told_to_end)
        # What answers PING and then nonsense ends here, before any process is started; what is
        # unavailable just now is tried again by each process.
        with contextlib.suppress(ServerUnavailable):
            check_rights(broker, commands, new_consumer_name(socket.gethostname()))
        warn_about_server(broker)
    finally:
        broker.close()
    return address


def _supervisor(args: argparse.Namespace, settings: WorkerSettings, address: Address) -> Supervisor:
    processes = settings.first_processes(args.processes)

    def on_ready() -> None:
        log.info(
            "ready: %d process%s of %d threads for queue %s at %s",
            processes,
            "" if processes == 1 else "es",
            args.threads,
            ", ".join(settings.queues),
            address,
        )

    return Supervisor(
        settings,
        address,
        children=processes,
        child_spec={
            "targets": args.targets,
            "log_level": args.log_level,
            "log_format": args.log_format,
            "path": _path_of_handlers(),
        },
        on_ready=on_ready,
    )


def _stop_on_signals(supervisor: Supervisor) -> None:
    """Drain at the first signal, end at once at the second."""

    def on_signal(number: int, _: object) -> None:
        again = supervisor.stopping
        log.info(
            "%s: %s",
            signal.Signals(number).name,
            "ending at once" if again else "draining; once more ends at once",
        )
        supervisor.request_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)


def main(argv: list[str] | None = None) -> int:
    """Run until a signal; return the exit code."""
    mend_standard_streams()
    # Until there is something to drain. Process 1 of a container would not even notice otherwise.
    told_to_end = threading.Event()

    def end(*_: object) -> None:
        told_to_end.set()
        sys.exit(EXIT_OK)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    args = parser().parse_args(argv)
    set_up(args.log_level, args.log_format)
    if args.reload:
        from .reload import serve

        return serve(list(sys.argv[1:] if argv is None else argv), args)
    if args.processes < 1:
        parser().error("--processes is 1 or more")
    try:
        settings = settings_of(args)
        if settings.has:
            from ..worker.lots import check_devices

            check_devices(settings.has)
        address = _server_of(args, settings, told_to_end)
        metrics = _metrics(args, settings, address)
    except ImportError as error:
        log.error("%s", error)
        return EXIT_USAGE
    except RedistqError as error:
        log.error("%s", error)
        return EXIT_USAGE if isinstance(error, ValueError) else EXIT_FAILED
    supervisor = _supervisor(args, settings, address)
    _stop_on_signals(supervisor)
    try:
        code = supervisor.run()
    finally:
        if metrics is not None:
            metrics.stop()
    log.info("ended" if code == 0 else f"ended with code {code}")
    return code

"""``python -m redistq.worker``: its options, its signals, its exit codes.

The process that runs this is the supervisor of one or more child processes and runs no task itself.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ..connection.address import Address, resolve
from ..connection.broker import Broker
from ..errors import ConfigurationError, RedistqError, Refused, ServerUnavailable
from ..logger import logger
from ..protocol.commands import new_consumer_name
from ..protocol.keys import DEFAULT_GROUP, DEFAULT_QUEUE
from ..protocol.plain_commands import PING
from ..system.interpreter import import_path
from ..system.private import ENV_KEY, read_given
from ..system.streams import mend_standard_streams
from ..worker.bootstrap import check_rights, warn_about_server
from ..worker.settings import WorkerSettings
from ..worker.supervisor import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Supervisor

if TYPE_CHECKING:
    from ..monitor.metrics import MetricsServer

log = logger("redistq.worker")

_EXAMPLES = """
how to use it:
  Write handlers in a module, say jobs.py:

      from redistq import task

      @task(name="resize", retries=3)
      def resize(payload):
          ...

  and run it from the folder that holds jobs.py:

      python -m redistq.worker jobs --threads 8

  More than one module may be named; package.module:registry takes a Registry (or a mapping of
  names to functions) by its name instead of what @task registered.

where the server is:
  --url, else $REDISTQ_URL, else localhost:6379 when it answers, else an embedded server, which
  other processes of the same user find too. A server that was named is never started.

signals:
  SIGTERM or SIGINT (Ctrl-C) drains: running tasks finish within --shutdown-timeout, unstarted
  ones go back to the queue. A second signal ends at once; what was running is run again.

exit codes: 0 drained, 1 ended with tasks unfinished, 2 a setting or module cannot work
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    d = WorkerSettings()
    p = argparse.ArgumentParser(
        prog="python -m redistq.worker",
        description="Run the tasks of a queue in one or more processes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "targets", nargs="*", metavar="package.module[:registry]", help="where the handlers are"
    )
    p.add_argument(
        "--url", help="redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
    )
    p.add_argument(
        "--queue",
        action="append",
        metavar="NAME",
        help=f"the queue's name ({DEFAULT_QUEUE}); may be repeated, the most urgent first",
    )
    p.add_argument("--group", default=DEFAULT_GROUP, help="the consumer group (%(default)s)")
    p.add_argument("--processes", type=int, default=1, help="worker processes (%(default)s)")
    p.add_argument("--threads", type=int, default=d.threads, help="threads a process (%(default)s)")
    p.add_argument(
        "--low-share",
        type=float,
        default=d.low_share,
        metavar="SHARE",
        help="of the tasks read while a more urgent queue has work, the share of each less urgent "
        "one, such as 0.1 (default: 0, the order is strict)",
    )
    p.add_argument(
        "--async-concurrency",
        type=int,
        default=d.async_concurrency,
        help="async tasks at a time, a process (%(default)s)",
    )
    p.add_argument(
        "--lease",
        type=float,
        default=d.lease,
        help="seconds without a heartbeat after which a worker counts as dead (%(default)g)",
    )
    p.add_argument(
        "--shutdown-timeout",
        type=float,
        default=d.shutdown_timeout,
        help="seconds that running tasks may take to finish after a signal (%(default)g)",
    )
    p.add_argument(
        "--result-ttl",
        type=float,
        default=d.result_ttl,
        help="seconds that results are kept (%(default)g)",
    )
    p.add_argument(
        "--unknown-grace",
        type=float,
        default=d.unknown_grace,
        help="seconds that a task without a handler waits for a worker that has one (%(default)g)",
    )
    p.add_argument(
        "--max-recoveries",
        type=int,
        default=d.max_recoveries,
        help="how often a task may lose its worker before it is a dead letter (%(default)s)",
    )
    p.add_argument(
        "--allow-pickle",
        action="store_true",
        help="run functions that any client sends; all who can write to the server can then run "
        "code here",
    )
    p.add_argument(
        "--signing-key-file",
        type=Path,
        metavar="FILE",
        help="run functions that clients sign with the key in FILE (or in $REDISTQ_SIGNING_KEY)",
    )
    p.add_argument("--delayed-key", help="the sorted set of delayed tasks (delayed:QUEUE)")
    p.add_argument(
        "--no-scheduler", action="store_true", help="do not move delayed tasks; others must"
    )
    p.add_argument(
        "--metrics-port",
        type=int,
        help="serve the queue's figures to Prometheus (redistq[metrics])",
    )
    p.add_argument(
        "--metrics-host", default="127.0.0.1", help="address to serve them at (%(default)s)"
    )
    p.add_argument(
        "--log-level",
        default="INFO",
        type=str.upper,
        choices=["DEBUG", "INFO", "WARNING", "ERROR"],
        help="how much is logged to standard error (%(default)s)",
    )
    return p


def _key_in(path: Path | None) -> str | None:
    """Return the signing key of a file or the environment, in hexadecimal for children."""
    if path is None:
        key = os.environ.get(ENV_KEY, "").encode()
    else:
        key = read_given(path, "the signing key").strip()
    if not key:
        return None
    if len(key) < 16:
        raise ConfigurationError("a signing key has at least 16 bytes")
    return key.hex()


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


def _settings(args: argparse.Namespace) -> WorkerSettings:
    return WorkerSettings(
        queues=tuple(args.queue or [DEFAULT_QUEUE]),
        group=args.group,
        delayed_key=args.delayed_key,
        threads=args.threads,
        async_concurrency=args.async_concurrency,
        low_share=args.low_share,
        lease=args.lease,
        scheduler=not args.no_scheduler,
        max_recoveries=args.max_recoveries,
        result_ttl=args.result_ttl,
        unknown_grace=args.unknown_grace,
        shutdown_timeout=args.shutdown_timeout,
        allow_pickle=args.allow_pickle,
        signing_key=_key_in(args.signing_key_file),
    )


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
    def on_ready() -> None:
        log.info(
            "ready: %d process%s of %d threads for queue %s at %s",
            args.processes,
            "" if args.processes == 1 else "es",
            args.threads,
            ", ".join(settings.queues),
            address,
        )

    return Supervisor(
        settings,
        address,
        children=args.processes,
        child_spec={
            "targets": args.targets,
            "log_level": args.log_level,
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
    logging.basicConfig(
        level=args.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if args.processes < 1:
        parser().error("--processes is 1 or more")
    try:
        settings = _settings(args)
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

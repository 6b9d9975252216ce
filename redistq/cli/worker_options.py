"""The options of ``python -m redistq.worker``, and the settings that they make."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ..codecs.codec import Codec
from ..errors import ConfigurationError
from ..protocol.keys import DEFAULT_GROUP, DEFAULT_QUEUE
from ..system.private import ENV_KEY, read_given
from ..worker.logs import FORMATS
from ..worker.settings import WorkerSettings

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
        "--autoscale",
        metavar="LEAST,MOST",
        help="as many worker processes as the work that waits asks for, such as 2,8",
    )
    p.add_argument(
        "--resources",
        metavar="NAME=N,...",
        help="what this worker has for tasks that need it, such as gpu=2,licence=1",
    )
    p.add_argument(
        "--max-tasks",
        type=int,
        metavar="N",
        help="replace a worker process that has settled so many tasks (and up to a tenth more)",
    )
    p.add_argument(
        "--max-rss",
        metavar="SIZE",
        help="replace a worker process that has so much memory, such as 2GB",
    )
    p.add_argument(
        "--blas-threads",
        type=int,
        metavar="N",
        help="threads of numeric libraries, a process (the cores, shared out among processes)",
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
        "--start-timeout",
        type=float,
        default=d.start_timeout,
        help="seconds within which what @lifespan declares is started (%(default)g)",
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
    p.add_argument(
        "--codec",
        type=Path,
        metavar="FILE",
        help="compress, sign or encrypt payloads and results as FILE says (or $REDISTQ_CODEC): see "
        "docs/codecs.md",
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
    p.add_argument(
        "--reload",
        action="store_true",
        help="for development: start anew when a Python file below this folder changes "
        "(redistq[dev])",
    )
    p.add_argument(
        "--reload-dir",
        action="append",
        metavar="DIR",
        help="with --reload: the folder that is watched instead; may be repeated",
    )
    p.add_argument(
        "--log-format",
        default="plain",
        choices=FORMATS,
        help="json: one object a line, with the task that logged it (%(default)s)",
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


def _codec_in(path: Path | None) -> dict[str, Any] | None:
    """Return the settings of a file's codec, or of the environment's, for children."""
    codec = Codec.from_env() if path is None else Codec.from_file(path)
    return None if codec is None else codec.settings()


def settings_of(args: argparse.Namespace) -> WorkerSettings:
    """Return a worker's settings; raises ConfigurationError."""
    return WorkerSettings(
        queues=tuple(args.queue or [DEFAULT_QUEUE]),
        group=args.group,
        delayed_key=args.delayed_key,
        threads=args.threads,
        async_concurrency=args.async_concurrency,
        low_share=args.low_share,
        autoscale=args.autoscale,
        resources=args.resources,
        max_tasks=args.max_tasks,
        max_rss=args.max_rss,
        blas_threads=args.blas_threads,
        lease=args.lease,
        scheduler=not args.no_scheduler,
        max_recoveries=args.max_recoveries,
        result_ttl=args.result_ttl,
        unknown_grace=args.unknown_grace,
        shutdown_timeout=args.shutdown_timeout,
        start_timeout=args.start_timeout,
        allow_pickle=args.allow_pickle,
        signing_key=_key_in(args.signing_key_file),
        codec=_codec_in(args.codec),
    )

"""``redistq sweep PLACE``: spilled values that nothing on the server names any more are deleted.

The server must be named: beside another one than the queue's, all files would look unneeded.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from ..client.spill import SWEEP_AFTER_S, swept, unneeded
from ..connection.address import ENV_URL, ENV_URL_FILE
from ..errors import ConfigurationError, RedistqError
from ..functions.spill import ENV_SPILL, Spill
from ..producer import TaskProducer
from ..protocol.keys import DEFAULT_QUEUE
from ..protocol.options import seconds
from ..system.streams import written
from .complaint import complain

EXIT_OK = 0
EXIT_UNAVAILABLE = 1
EXIT_USAGE = 2

_EPILOG = """
examples:
  redistq sweep /shared/folder --url redis://host:6379
  redistq sweep s3://bucket/prefix --dry-run

exit codes:
  0 done, 1 the server or the place is not available, 2 an argument is wrong
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    p = argparse.ArgumentParser(
        prog="redistq sweep",
        description="Delete files of a client's spill that nothing on the server names any more: "
        "daily, say.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "place", nargs="?", help=f"the folder or URL, as of Client(spill=) (${ENV_SPILL})"
    )
    p.add_argument("--url", help=f"the server (${ENV_URL}); it must be the queue's own")
    p.add_argument("--queue", default=DEFAULT_QUEUE, help="the queue's name (%(default)s)")
    p.add_argument(
        "--older-than",
        type=float,
        default=SWEEP_AFTER_S,
        metavar="SECONDS",
        help="younger files stay, for the server may not have heard of them yet (%(default)g)",
    )
    p.add_argument("--storage-options", metavar="JSON", help="fsspec's, as of Spill")
    p.add_argument("--dry-run", action="store_true", help="print their names, and delete nothing")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Sweep once; return the exit code."""
    return written(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    logging.getLogger("redistq").addHandler(logging.NullHandler())
    try:
        policy = _policy_of(args)
        least = seconds("--older-than", args.older_than)
        with TaskProducer(url=args.url, stream=args.queue) as producer:
            if args.dry_run:
                for file in unneeded(producer.broker, producer.keys, policy, least):
                    print(file)
                return EXIT_OK
            count = swept(producer.broker, producer.keys, policy, least)
    except ConfigurationError as error:
        return complain(error, EXIT_USAGE)
    except RedistqError as error:
        return complain(error, EXIT_UNAVAILABLE)
    print(f"{count} files of queue {args.queue} deleted in {policy.url}")
    return EXIT_OK


def _policy_of(args: argparse.Namespace) -> Spill:
    """Return where to sweep; raises ConfigurationError where it, or the server, is not named."""
    if not args.url and not any(os.environ.get(name) for name in (ENV_URL, ENV_URL_FILE)):
        raise ConfigurationError(
            f"name the server, by --url or {ENV_URL}: beside another one than the queue's all "
            "files would be deleted"
        )
    place = args.place or os.environ.get(ENV_SPILL)
    if not place:
        raise ConfigurationError(f"name the place: redistq sweep /shared/folder, or {ENV_SPILL}")
    return Spill(place, storage_options=_options_of(args.storage_options))


def _options_of(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        options = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"--storage-options is no JSON: {error}") from error
    if not isinstance(options, dict):
        raise ConfigurationError("--storage-options is a JSON object")
    return options

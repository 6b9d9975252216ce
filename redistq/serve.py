"""``redistq dashboard --serve``: the dashboard as a web page, for people without a notebook.

Called by the command line. The web server is Voilà, which runs the cell of
``notebooks/dashboard.ipynb`` in a kernel of its own for each visitor, and ends it when the visitor
has gone; there is no web server of ours.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import RedistqError
from .keys import DEFAULT_QUEUE
from .settings import ENV_URL, resolve

CELL = """\
import os

from redistq.dashboard import Dashboard

Dashboard(queue=os.environ.get("REDISTQ_QUEUE", "tasks"))"""
"""What each visitor's kernel runs: the one code cell of notebooks/dashboard.ipynb."""

GONE_AFTER_S = 60
"""A visitor who was not connected for so long has gone."""
EXIT_FAILED, EXIT_USAGE = 1, 2


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="redistq dashboard --serve",
        description="Show a queue's dashboard as a web page.",
        epilog="Whoever can open the page can pause the queue, retry and cancel tasks. It is "
        "served to this machine only unless --host says otherwise; then the page asks for the "
        "token that is printed at the start, and traffic should pass a proxy that adds TLS.",
    )
    p.add_argument("--url", help="the server (else $REDISTQ_URL, localhost, or the embedded one)")
    p.add_argument("--queue", default=DEFAULT_QUEUE, help="the queue's name (%(default)s)")
    p.add_argument("--host", default="127.0.0.1", help="the address to serve at (%(default)s)")
    p.add_argument("--port", type=int, default=8866, help="the port to serve at (%(default)s)")
    p.add_argument("--theme", default="light", choices=["light", "dark"], help="(%(default)s)")
    p.add_argument("--open", action="store_true", help="open the page in a browser")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal; answers the exit code (2: a setting or package is missing or wrong)."""
    args = parser().parse_args(argv)
    try:
        from voila.app import Voila
    except ImportError:
        print("voila is needed for a web page: pip install redistq[serve]", file=sys.stderr)
        return EXIT_USAGE
    try:
        address = resolve(args.url)
    except RedistqError as error:
        print(f"redistq: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ValueError) else EXIT_FAILED
    # Visitors' kernels inherit the environment. They find and join the embedded server by
    # themselves, which keeps it alive as long as one of them lives.
    if not address.embedded:
        os.environ[ENV_URL] = address.url
    os.environ["REDISTQ_QUEUE"] = args.queue
    os.environ["REDISTQ_DASHBOARD"] = "widget"
    with tempfile.TemporaryDirectory(prefix="redistq-") as folder:
        page = Path(folder) / "redistq.ipynb"
        page.write_text(json.dumps(_notebook()), encoding="utf-8")
        print(
            f"redistq: the dashboard of queue {args.queue} at {address}: "
            f"http://{args.host}:{args.port}/ (Ctrl-C ends it)",
            flush=True,
        )
        Voila.launch_instance(argv=_voila(args, page), config=_config())
        Voila.clear_instance()
    return 0


def _voila(args: argparse.Namespace, page: Path) -> list[str]:
    """The arguments of Voilà."""
    return [
        str(page),
        f"--Voila.ip={args.host}",
        f"--port={args.port}",
        "--Voila.port_retries=0",
        f"--theme={args.theme}",
        "--strip_sources=True",
        *([] if args.open else ["--no-browser"]),
        *([] if is_loopback(args.host) else ["--auto-token"]),
    ]


def _config() -> Any:
    """Settings of Voilà that its command line cannot say.

    A kernel whose visitor left without a goodbye (a laptop that was shut) ends too: it counts as
    idle although its dashboard goes on, because the dashboard's messages do not count.
    """
    from jupyter_server.services.kernels.kernelmanager import MappingKernelManager
    from traitlets.config import Config

    uncounted: Any = MappingKernelManager.untracked_message_types
    return Config(
        {
            "MappingKernelManager": {
                "cull_idle_timeout": GONE_AFTER_S,
                "cull_interval": max(1, GONE_AFTER_S // 4),
                "untracked_message_types": [
                    *uncounted.default(),
                    "comm_open",
                    "comm_msg",
                    "comm_close",
                ],
            }
        }
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _notebook() -> dict[str, Any]:
    cell: dict[str, Any] = {
        "cell_type": "code",
        "id": "dashboard",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
        "source": CELL,
    }
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {
        "cells": [cell],
        "metadata": {"kernelspec": kernel, "title": "redistq dashboard"},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


if __name__ == "__main__":
    sys.exit(main())

"""The commands: ``redistq``, with the worker, the monitor and the dashboard under it.

This one only hands over: ``redistq worker`` is ``python -m redistq.worker``, ``redistq monitor`` is
``python -m redistq.cli_monitor``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..system.streams import written

_USAGE = """usage: redistq COMMAND ...

  worker      run the tasks of a queue              (redistq worker --help)
  monitor     look at a queue, pause it, replay     (redistq monitor --help)
  dashboard   a live screen in this terminal
  web         the dashboard for browsers            (redistq web --help)
  events      what happens to tasks, event by event (redistq events --help)
  schedules   periodic tasks: seen, set, run now    (redistq schedules --help)
  trigger     add one task, wait for its result     (redistq trigger --help)
  sweep       delete spilled values that nothing needs any more (redistq sweep --help)
  health      say by the exit code how a queue is   (redistq health --help)
  script      the Lua text of a script, for programs in other languages
  schema      the JSON schema of what stands on the server

  --version   say which redistq this is
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Hand over to the command that is named; return the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    command = args[0] if args else ""
    rest = args[1:]
    if command == "worker":
        from .worker import main as worker

        return worker(rest)
    if command == "monitor":
        from .monitor import main as monitor

        return monitor(rest, prog="redistq monitor")
    if command == "dashboard":
        if "--serve" in rest:
            rest.remove("--serve")
            from ..web.command import main as web

            return web(rest, prog="redistq dashboard --serve")
        from .monitor import main as monitor

        return monitor(["dashboard", *rest], prog="redistq")
    if command == "web":
        from ..web.command import main as web

        return web(rest)
    if command in ("events", "schedules"):
        from .monitor import main as monitor

        return monitor(args, prog="redistq")
    if command in ("script", "schema"):
        from .texts import main as texts

        return texts(command, rest)
    if command == "trigger":
        from .trigger import main as trigger

        return trigger(rest)
    if command == "sweep":
        from .sweep import main as sweep

        return sweep(rest)
    if command == "health":
        from .health import main as health

        return health(rest)
    if command in ("-h", "--help", "help"):
        return written(lambda: _say(_USAGE))
    if command == "--version":
        from .. import __version__

        return written(lambda: _say(f"redistq {__version__}\n"))
    print(_USAGE, end="", file=sys.stderr)
    if command:
        print(f"redistq: there is no command {command!r}", file=sys.stderr)
    return 2


def _say(text: str) -> int:
    print(text, end="")
    return 0

"""``python manage.py redistq_worker``: a worker of the project's tasks.

Its options are those of ``python -m redistq.worker``, and ``--autoreload``. Where the server is and
which queue it takes from stand in ``settings.REDISTQ``.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
from typing import Any

from django.core.management.base import (
    BaseCommand,
    CommandError,
    CommandParser,
    handle_default_options,
)

from redistq.contrib.django.options import options, queue_name

TARGET = "redistq.contrib.django.handlers:project"
RELOAD = "--autoreload"
STOPS_WITHIN_S = 10.0
"""How long a worker may drain before another takes its place."""
LOOK_S = 0.5
"""Seconds between two looks at whether this command still runs."""


class Command(BaseCommand):  # type: ignore[misc]
    """Runs the tasks of the installed apps, until a signal."""

    help = "Run the tasks of the installed apps. Takes the options of python -m redistq.worker."
    requires_system_checks: tuple[str, ...] = ()
    _interrupted = False

    def run_from_argv(self, argv: list[str]) -> None:
        """Hand the options on as they are: they are the worker's own."""
        self._called_from_command_line = True
        known, rest = self.create_parser(argv[0], argv[1]).parse_known_args(argv[2:])
        handle_default_options(known)
        code = self.execute(*rest, **{**vars(known), "args": ()})
        if code:
            sys.exit(int(code))

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the one option that is not the worker's."""
        parser.add_argument(
            RELOAD, action="store_true", help="start the worker anew when the code changes"
        )

    def handle(self, *args: str, **given: Any) -> str | None:
        """Run a worker; ``args`` are its options."""
        argv = [*self._usual(args), *args]
        if given.get("autoreload"):
            from django.utils import autoreload

            signal.signal(signal.SIGINT, self._on_interrupt)
            autoreload.autoreload_started.connect(self._before_the_first_look)
            autoreload.run_with_reloader(self._beside, argv)
            return None
        from redistq.cli.worker import main

        code = main([TARGET, *argv])
        if code and not getattr(self, "_called_from_command_line", False):
            raise CommandError(f"the worker ended with code {code}", returncode=code)
        return str(code) if code else None

    @staticmethod
    def _usual(args: tuple[str, ...]) -> list[str]:
        said = {arg.partition("=")[0] for arg in args}
        usual = [] if "--queue" in said else ["--queue", queue_name()]
        if "--url" not in said and options().get("URL"):
            usual += ["--url", str(options()["URL"])]
        return usual

    @staticmethod
    def _on_interrupt(number: int, frame: Any) -> None:
        Command._interrupted = True
        signal.default_int_handler(number, frame)

    @staticmethod
    def _before_the_first_look(**_: Any) -> None:
        """Import the tasks: a module that comes after the first look at the files, and changes
        before the next, would never be seen to change. `_beside` shows what is wrong with them."""
        from django.utils.module_loading import autodiscover_modules

        with contextlib.suppress(Exception):  # whatever a module of the project raises
            autodiscover_modules("tasks")

    @staticmethod
    def _beside(argv: list[str]) -> None:
        """Run the worker in a process of its own, which ends with this one: that is started anew
        when the code changes, of those modules that it has imported."""
        from django.utils.module_loading import autodiscover_modules

        autodiscover_modules("tasks")
        command = [sys.executable, *sys.argv[:2], *argv]
        environment = {name: v for name, v in os.environ.items() if name != "RUN_MAIN"}
        worker = subprocess.Popen(command, env=environment)

        def stop() -> None:
            if not Command._interrupted:  # else it was told by the same Ctrl-C, and drains
                worker.terminate()
            try:
                worker.wait(STOPS_WITHIN_S)
            except subprocess.TimeoutExpired:
                worker.kill()

        atexit.register(stop)
        parent = os.getppid()
        while os.getppid() == parent:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(LOOK_S)
                return
        stop()  # the command was killed
        os._exit(1)

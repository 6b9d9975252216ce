"""The table of figures that a benchmark prints: each beside its target, as soon as it is known."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import redis
from support.servers import Server


class Table:
    """The rows of one run; figures are shown with so many ``digits``."""

    def __init__(self, digits: int) -> None:
        self._digits = digits
        self._rows: list[dict[str, Any]] = []

    def row(
        self, name: str, value: float, unit: str, most: float | None = None, note: str = ""
    ) -> None:
        """One line of the table, printed as soon as it is known; a target below 0 is the least."""
        met = None if most is None else value <= most if most >= 0 else value >= -most
        target = "" if most is None else f"{'<=' if most >= 0 else '>='} {abs(most):,g}"
        self._rows.append(
            {"name": name, "value": value, "unit": unit, "target": target, "met": met, "note": note}
        )
        mark = {True: "ok  ", False: "MISS", None: "    "}[met]
        figure = f"{value:,.{self._digits}f}"
        print(f"{mark} {name:<52} {figure:>11} {unit:<8} {target:<10} {note}", flush=True)

    def spread(self, values: list[float]) -> str:
        """What stands beside a median."""
        return f"{min(values):,.{self._digits}f} to {max(values):,.{self._digits}f}"

    def write(self, file: Path | None) -> None:
        """Write the rows as JSON, where that was asked for."""
        if file:
            file.write_text(json.dumps(self._rows, indent=1) + "\n")


def arguments(document: str | None) -> argparse.Namespace:
    """What the command was given: ``only``, ``json`` and ``quick``."""
    parser = argparse.ArgumentParser(description=(document or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of scenarios")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    args = parser.parse_args()
    logging.getLogger("redistq").setLevel(logging.ERROR)  # that these servers keep nothing
    return args


def run(
    args: argparse.Namespace, server: Server, scenarios: Mapping[str, Callable[[], None]]
) -> None:
    """Say on what it runs, and run the scenarios that were asked for."""
    print(
        f"valkey {server.version}, Python {platform.python_version()}, redis-py "
        f"{redis.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n"
    )
    for name, scenario in scenarios.items():
        if not args.only or name in args.only:
            scenario()

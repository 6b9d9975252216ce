"""Resources: what tasks need and workers declare, such as graphics cards and licences.

Amounts are counted in thousandths, as whole numbers: 0.5 is 500. Used by options, workers, and
whatever says why a task waits. Never talks to a server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigurationError
from .checks import shown

Resources = tuple[tuple[str, int], ...]
"""Names and amounts in thousandths, in the order of the names."""
GPU = "gpu"
"""The resource whose units are the devices that CUDA shows."""
NO_ROOM = "room for "
"""How it begins what a task lacks (see park.lua) that waits for room."""
WHOLE = 1000
MOST_UNITS = 1000
"""Most of one resource that a worker can declare, and a task can need."""
MOST_NAMES = 16
_NAME = re.compile(r"[A-Za-z_][\w.-]{0,49}")


def needed(what: str, value: Any) -> Resources:
    """Return what a task needs, given as ``{"gpu": 1, "licence": 0.5}``.

    Part of a resource is taken of one unit; more than one are whole ones. Raises
    ConfigurationError that names the option ``what``.
    """
    if not isinstance(value, Mapping) or not value or len(value) > MOST_NAMES:
        raise ConfigurationError(
            f"{what} is a mapping of names to amounts, such as {{'gpu': 1}} or {{'gpu': 0.5}}, not "
            f"{shown(value)}; leave it out for a task that needs none"
        )
    return tuple(sorted((_name(what, name), _amount(what, value[name])) for name in value))


def declared(what: str, value: Any) -> Resources:
    """Return what a worker has, given as ``{"gpu": 2}`` or as text, ``"gpu=2,licence=1"``.

    Raises ConfigurationError that names the option ``what``.
    """
    if isinstance(value, str):
        parts = [part.partition("=") for part in value.split(",") if part.strip()]
        value = {name.strip(): count.strip() or "1" for name, _, count in parts}
    wrong = f"{what} is what this worker has, in whole numbers up to {MOST_UNITS:,}, such as "
    if not isinstance(value, Mapping) or len(value) > MOST_NAMES:
        raise ConfigurationError(f"{wrong}'gpu=2,licence=1', not {shown(value)}")
    found = []
    for name, count in value.items():
        text = str(count)
        if isinstance(count, bool) or not text.isdigit() or not 0 < int(text) <= MOST_UNITS:
            raise ConfigurationError(f"{wrong}'gpu=2,licence=1', not {shown(value)}")
        found.append((_name(what, name), int(text) * WHOLE))
    return tuple(sorted(found))


def as_mapping(resources: Iterable[tuple[str, int]]) -> dict[str, float]:
    """Return amounts as they are given and written: 1, 0.5."""
    return {name: n // WHOLE if n % WHOLE == 0 else n / WHOLE for name, n in resources}


def in_words(resources: Iterable[tuple[str, int]]) -> str:
    """Return amounts as text: "gpu=1, licence=0.5"."""
    return ", ".join(f"{name}={amount:g}" for name, amount in as_mapping(resources).items())


def lacking(needs: str, workers: Iterable[str]) -> str:
    """Return what of a task's needs no worker has, where each says what it has, all as text;
    '' where one of them has room for it when it does nothing else."""
    wanted = _read(needs)
    largest: dict[str, float] = {}
    for text in workers:
        has = _read(text)
        if all(has.get(name, 0) >= amount for name, amount in wanted.items()):
            return ""
        for name, amount in has.items():
            largest[name] = max(amount, largest.get(name, 0))
    return (
        ", ".join(
            f"{name}={amount:g} (the most here is {largest.get(name, 0):g})"
            for name, amount in wanted.items()
            if largest.get(name, 0) < amount
        )
        or ", ".join(f"{name}={amount:g}" for name, amount in wanted.items()) + " together"
    )


def _read(text: str) -> dict[str, float]:
    found = {}
    for part in text.split(","):
        name, _, amount = part.strip().partition("=")
        if name and re.fullmatch(r"\d{1,4}(\.\d{1,3})?", amount):
            found[name] = float(amount)
    return found


def _name(what: str, name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{what} names a resource by a word of up to 50 letters and digits, not {shown(name)}"
        )
    return name


def _amount(what: str, value: Any) -> int:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    thousandths = round(value * WHOLE) if number and abs(value) <= MOST_UNITS else 0
    if thousandths < 1 or (thousandths > WHOLE and thousandths % WHOLE):
        raise ConfigurationError(
            f"{what} has amounts above 0 and up to {MOST_UNITS:,}, in whole numbers or a part of "
            f"one, such as 2, 1 or 0.25, not {shown(value)}"
        )
    return thousandths

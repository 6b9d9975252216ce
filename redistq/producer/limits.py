"""``producer.limits``: what holds for each key, looked at and changed while everything runs.

``LimitOperations`` is written once, without I/O; ``Limits`` and ``AsyncLimits`` carry it out. A
change is in force when the call returns: what has room by then has been let in.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..connection.broker import Broker
from ..errors import ConfigurationError, RedistqError
from ..protocol.commands import Commands
from ..protocol.limits import (
    Limit,
    LimitState,
    Rule,
    check_key,
    check_rule_key,
    fields_of,
    state_of,
    states_of,
)
from ..protocol.options import Seconds, milliseconds, seconds
from .sansio import Operation, run, run_async

if TYPE_CHECKING:
    from ..connection.async_broker import AsyncBroker

PAGE = 2000
"""Entries that are looked at in one step when slots are counted."""
MOST_PAGES = 100_000
MOST_COUNTED = 100_000
"""Tasks that wait, and facts about limits, that are looked at in one step."""
LOOK_AGAIN_S = 30.0
"""Seconds after which a producer sees whether the queue still has a rule that its code declares."""


class LimitOperations:
    """What can be done with the limits of one queue, as operations."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._declared: dict[Limit, float] = {}
        """Those declared in code, and when the queue was last seen to have the rule."""

    def set(self, key: str, rule: Rule) -> Operation[Rule | None]:
        """Let a rule hold for a key; return the one before."""
        return _rule((yield self._commands.limit(check_rule_key(key), rule.written())))

    def delete(self, key: str) -> Operation[bool]:
        """Let no rule hold for a key; return whether there was one."""
        return bool((yield self._commands.limit(check_rule_key(key), "-")))

    def pause(self, key: str, paused: bool) -> Operation[None]:
        """Let nothing in under a key, or let it go on."""
        yield self._commands.limit(check_rule_key(key), paused="1" if paused else "0")

    def penalize(self, key: str, duration: Seconds) -> Operation[None]:
        """Let nothing in under a key for so long."""
        check_key("the key to penalize", key)
        for_ms = milliseconds(seconds("the time of a penalty", duration, positive=True))
        yield self._commands.limit(key, penalty_ms=for_ms)

    def get(self, key: str) -> Operation[LimitState | None]:
        """Return how a key stands; None where nothing is known of it."""
        check_rule_key(key)
        names = fields_of(key)
        values = yield self._commands.limit_fields(names)
        found = _texts(pair for pair in zip(names, values, strict=True) if pair[1] is not None)
        return state_of(key, found) if found else None

    def all(self) -> Operation[dict[str, LimitState]]:
        """Return how every key stands that has a rule, slots in use, or tasks that wait."""
        found: dict[str, str] = {}
        cursor: bytes = b"0"
        while True:
            cursor, flat = yield self._commands.limits_page(cursor)
            found |= _texts(zip(flat[::2], flat[1::2], strict=True))
            if cursor == b"0":
                return states_of(found)

    def recount(self, most: int) -> Operation[dict[str, tuple[int, int]]]:
        """Count the slots in use; return keys of which another count stood: it, and the true one.
        Raises RedistqError where it cannot be counted now."""
        places, counted = [b"", b"", b""], dict[bytes, int]()
        for _ in range(MOST_PAGES):
            said = yield self._commands.recount(places, counted, PAGE, most)
            if said[0] != 0:
                break
            places, flat = said[1:]
            counted = {key: int(n) for key, n in zip(flat[::2], flat[1::2], strict=True)}
        if said[0] == 0:
            raise RedistqError("tasks are added faster than they are counted: recount again later")
        if said[0] == 2:
            raise RedistqError(
                f"{said[1]:,} tasks that wait, and facts about limits, are more than are looked at "
                f"in one step, {most:,}: recount(most=...) looks at more, and the server does "
                "nothing else meanwhile, a second for about 500,000"
            )
        if said[0] == 3:
            raise RedistqError(
                f"workers still run tasks whose entries were deleted ({said[1]:,}), and give the "
                "slots back when these end: recount again then"
            )
        rows = iter(said[1])
        return {key.decode("utf-8", "replace"): (next(rows), next(rows)) for key in rows}

    def declare(self, limits: Iterable[Limit]) -> Operation[None]:
        """See to it that the queue has the rules of limits declared in code: those that are missing
        are set, also where the server has lost its memory meanwhile. Raises ConfigurationError
        where another rule stands when this producer first asks."""
        now = time.monotonic()
        for limit in limits:
            seen = self._declared.get(limit)
            if limit.rule is None or (seen is not None and now - seen < LOOK_AGAIN_S):
                continue
            key = limit.rule_key
            (text,) = yield self._commands.limit_fields(["r" + key])
            if text is None:
                text = yield self._commands.limit(key, limit.rule.written())
                if text and _rule(text) != limit.rule:  # another producer was faster: it stays
                    yield self._commands.limit(key, text.decode("utf-8", "replace"))
            if text and seen is None and (rule := _rule(text)) != limit.rule:
                raise ConfigurationError(
                    f"two rules for the limit {key!r}: the code declares ({limit.rule}), and on "
                    f"the server stands ({rule}). Change the one in the code, or set the server's: "
                    f"producer.limits.set({key!r}, {limit.rule}); to change limits while "
                    "everything runs, declare none in the code: redistq.limit"
                    f"({limit.template!r})"
                )
            self._declared[limit] = now


class Limits:
    """The limits of a producer's queue, all its priorities together; see docs/gate.md.

    A key is what tasks were given in ``limits``, ``order`` or ``group`` (``group:NAME``);
    ``tenant:*`` stands for all keys that begin with ``tenant:`` and have no rule of their own.
    """

    def __init__(self, operations: LimitOperations, broker: Broker) -> None:
        self.operations = operations
        self._broker = broker

    def set(
        self,
        key: str,
        at_most: int | None = None,
        rate: float | None = None,
        per: Seconds = 1.0,
        burst: int | None = None,
        excess: str = "wait",
        weight: int | None = None,
        on_failure: str = "skip",
    ) -> Rule | None:
        """Let this hold for a key from now on, in place of its rule; return the one before.

        ``at_most`` slots in use at a time; ``rate`` tasks each ``per`` seconds, ``burst`` of them
        at once. ``excess``: what has no room has to "wait", or is ended ("drop", "cancel_new"), or
        the oldest that runs is asked to end ("cancel_running"). ``weight`` is the share of a group,
        ``on_failure="pause"`` pauses a key of strict order when one of its tasks has failed.

        Raises ConfigurationError.
        """
        rule = Rule.of(key, at_most, rate, per, burst, excess, weight, on_failure)
        return run(self._broker, self.operations.set(key, rule))

    def get(self, key: str) -> LimitState | None:
        """Return the rule of a key, slots in use, tasks that wait, and whether it is paused; None
        where nothing is known of it."""
        return run(self._broker, self.operations.get(key))

    def all(self) -> dict[str, LimitState]:
        """Return the same of every key that has a rule, slots in use, or tasks that wait."""
        return run(self._broker, self.operations.all())

    def delete(self, key: str) -> bool:
        """Take the rule of a key away, so that nothing limits it; return whether there was one."""
        return run(self._broker, self.operations.delete(key))

    def pause(self, key: str) -> None:
        """Let nothing in under a key until ``resume``; what is in goes on."""
        run(self._broker, self.operations.pause(key, True))

    def resume(self, key: str) -> None:
        """End a pause."""
        run(self._broker, self.operations.pause(key, False))

    def penalize(self, key: str, seconds: Seconds) -> None:
        """Let nothing in under a key for so long, as when a service answers 429."""
        run(self._broker, self.operations.penalize(key, seconds))

    def recount(self, most: int = MOST_COUNTED) -> dict[str, tuple[int, int]]:
        """Give back slots that no task has any more, because entries were trimmed or deleted by
        other hands, and let in what has room; return the keys that were wrong, each with its slots
        in use before and after.

        The stream is looked at in small steps; what waits, in one: ``most`` tasks and facts about
        limits, in which the server does nothing else. Raises RedistqError where there are more, and
        while workers still run tasks whose entries were deleted.
        """
        return run(self._broker, self.operations.recount(most))


class AsyncLimits:
    """Limits for ``await``: the same methods, the same promises."""

    def __init__(self, operations: LimitOperations, broker: AsyncBroker) -> None:
        self.operations = operations
        self._broker = broker

    async def set(
        self,
        key: str,
        at_most: int | None = None,
        rate: float | None = None,
        per: Seconds = 1.0,
        burst: int | None = None,
        excess: str = "wait",
        weight: int | None = None,
        on_failure: str = "skip",
    ) -> Rule | None:
        """As Limits.set."""
        rule = Rule.of(key, at_most, rate, per, burst, excess, weight, on_failure)
        return await run_async(self._broker, self.operations.set(key, rule))

    async def get(self, key: str) -> LimitState | None:
        """As Limits.get."""
        return await run_async(self._broker, self.operations.get(key))

    async def all(self) -> dict[str, LimitState]:
        """As Limits.all."""
        return await run_async(self._broker, self.operations.all())

    async def delete(self, key: str) -> bool:
        """As Limits.delete."""
        return await run_async(self._broker, self.operations.delete(key))

    async def pause(self, key: str) -> None:
        """As Limits.pause."""
        await run_async(self._broker, self.operations.pause(key, True))

    async def resume(self, key: str) -> None:
        """As Limits.resume."""
        await run_async(self._broker, self.operations.pause(key, False))

    async def penalize(self, key: str, seconds: Seconds) -> None:
        """As Limits.penalize."""
        await run_async(self._broker, self.operations.penalize(key, seconds))

    async def recount(self, most: int = MOST_COUNTED) -> dict[str, tuple[int, int]]:
        """As Limits.recount."""
        return await run_async(self._broker, self.operations.recount(most))


def _rule(text: bytes) -> Rule | None:
    return Rule.read(text.decode("utf-8", "replace")) if text else None


def _texts(pairs: Iterable[tuple[Any, bytes]]) -> dict[str, str]:
    return {
        name if isinstance(name, str) else name.decode("utf-8", "replace"): value.decode(
            "utf-8", "replace"
        )
        for name, value in pairs
    }

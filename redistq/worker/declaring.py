"""Schedules declared in code, set by the first worker that starts with them.

Used at the start of a worker process. A deploy (REDISTQ_DEPLOY, or else what is declared itself) is
done once for each module: its schedules are set, and those of earlier deploys that it does not
declare any more are deleted. A worker of the same deploy that starts later changes nothing, and one
of an earlier deploy neither sets nor deletes anything.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..codecs.codec import Codec
from ..codecs.sealing import seal_of
from ..connection.broker import Broker
from ..errors import RedistqError
from ..handlers import Handler, OfFunction
from ..logger import logger
from ..producer.limits import LimitOperations
from ..producer.sansio import run
from ..producer.schedules import ScheduleOperations
from ..protocol.codec import DEFAULT_MAX_BYTES, encode_payload
from ..protocol.commands import Commands
from ..protocol.declared import Declared, deploy_of
from ..protocol.keys import PRIORITY_MARK
from ..protocol.schedules import Definition

log = logger("redistq.worker")

ENV_DEPLOY = "REDISTQ_DEPLOY"
"""Names the deploy whose code this is: another name, another deploy."""


def declare_schedules(
    broker: Broker,
    queues: Sequence[Commands],
    handlers: Mapping[str, Handler],
    codec: Codec | None = None,
) -> None:
    """Set the schedules that handlers declare in the first of these queues, where their deploy is
    new, their payloads sealed by ``codec``; it never raises, but logs."""
    programs = _programs(handlers)
    commands = next((c for c in queues if PRIORITY_MARK not in c.keys.stream), queues[0])
    try:
        known = broker.call(commands.deploys(programs)) if programs else ()
        for (program, declared), deploys in zip(programs.items(), known, strict=True):
            if declared or deploys:
                _Deploy(broker, commands, program, declared, handlers, codec).do()
    except (RedistqError, ValueError) as error:
        log.warning(
            "schedules declared in code are not set, and are tried at the next start: %s", error
        )


def _programs(handlers: Mapping[str, Handler]) -> dict[str, dict[str, Declared]]:
    """Return what each module declares; nothing for one that does not."""
    found: dict[str, dict[str, Declared]] = {}
    for name, handler in handlers.items():
        if handler.raw:
            continue  # ours
        function: Any = inspect.unwrap(handler.function)
        module = found.setdefault(str(getattr(function, "__module__", "") or "?"), {})
        if handler.declared is not None:
            module[name] = handler.declared
    return found


class _Deploy:
    """What one module declares, and the queue that it is declared to."""

    def __init__(
        self,
        broker: Broker,
        commands: Commands,
        program: str,
        declared: Mapping[str, Declared],
        handlers: Mapping[str, Handler],
        codec: Codec | None,
    ) -> None:
        self._broker = broker
        self._commands = commands
        self._program = program
        self._declared = declared
        self._handlers = handlers
        self._name = os.environ.get(ENV_DEPLOY, "").strip().replace("\n", " ")[:100]
        self._name = self._name or deploy_of(declared)
        self._schedules = ScheduleOperations(
            commands,
            LimitOperations(commands),
            seals=None if codec is None else seal_of(codec, commands.keys.stream),
        )

    def do(self) -> None:
        """Set what is declared and delete what is not any more, unless that was done, or a newer
        deploy has taken its place."""
        word = self._ask("ask")
        if word == b"old":
            log.warning(
                "the schedules that %s declares (deploy %s) are left as they are: a newer deploy "
                "has set others. For a rollback give the deploy another name, in %s",
                self._program,
                self._name,
                ENV_DEPLOY,
            )
        if word != b"new":
            return
        there = run(self._broker, self._schedules.all())
        for name in sorted(self._declared):
            self._set(name)
        for name, schedule in there.items():
            if schedule.source.startswith(self._source("")) and name not in self._declared:
                run(self._broker, self._schedules.delete(name))
                log.info("schedule %s is deleted: %s declares it no more", name, self._program)
        self._ask("done")

    def _ask(self, step: str) -> Any:
        return self._broker.call(self._commands.deploy(self._program, self._name, step))

    def _source(self, deploy: str) -> str:
        return f"code {self._program} {deploy}"

    def _set(self, name: str) -> None:
        declared, handler = self._declared[name], self._handlers[name]
        task = OfFunction.of(handler, declared.payload, {})
        definition, limits = Definition.of(
            name,
            name,
            task.named,
            task.given,
            stream=self._commands.keys.stream,
            missed=declared.missed,
            overlap=declared.overlap,
        )
        data = encode_payload(name, task.payload, DEFAULT_MAX_BYTES)
        run(self._broker, LimitOperations(self._commands).declare(limits))
        put = self._schedules.put(
            name, declared.timing, definition, data, source=self._source(self._name)
        )
        made = run(self._broker, put)
        log.info("schedule %s: %s, declared by %s", name, made.rule, self._program)

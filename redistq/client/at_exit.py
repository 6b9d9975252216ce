"""The end of a program whose client was not shut down: its work is done, or it is said what stays.

Used by clients. A program that has workers of its own waits for what it submitted, as it would
with the executors of the standard library; nobody else would be there to do it. It never waits for
ever: not for workers that are gone, nor for a server that is away, nor for what is due much later.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import os
import sys
import time
import weakref
from typing import TYPE_CHECKING

from ..display.notebook import in_kernel, say
from ..errors import ConnectionLost, RedistqError, UnknownTask
from ..functions.call import CALL
from ..logger import logger
from ..producer.diagnosis import Wait
from ..protocol.commands import Commands

if TYPE_CHECKING:
    from .client import Client

log = logger("redistq.client")

AWAY_S = 15.0
"""Seconds without a server after which the end is not held up any longer."""
DUE_S = 30.0
"""What is due later than in so many seconds, with nothing else to do, is not waited for."""
STEP_S = 0.2

_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def watch(client: Client) -> None:
    """Look after this client's work when the program ends."""
    if not _clients:
        # After all that is registered already, which therefore lives on while we wait: embedded
        # servers, logging, and what lets go of clients.
        atexit.unregister(_finish)
        atexit.register(_finish)
    _clients.add(client)


def forget(client: Client) -> None:
    """It is a part of another, which is looked after."""
    _clients.discard(client)


def _finish() -> None:
    if in_kernel():
        return  # a notebook's kernel is told to end and has seconds to do it
    for client in list(_clients):
        try:
            _end(client, os.getpid())
        except KeyboardInterrupt:
            _say_what_stays(client, "")
        except Exception:
            log.debug("the end of a client's work could not be waited for", exc_info=True)


def _end(client: Client, pid: int) -> None:
    if client.pid != pid or client.sender.ended.is_set() or not _unfinished(client):
        return
    # A program that was interrupted is to end.
    interrupted = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
    if interrupted or not client.has_workers():
        _say_what_stays(client, "")
        return
    why = _wait(client)
    if why:
        _say_what_stays(client, why)
    else:
        client.close()


def _wait(client: Client) -> str:
    """Wait until all is done; else why there is no use in it."""
    wait, doubts, told = Wait(), 0, False
    while left := _unfinished(client):
        now = time.monotonic()
        if not client.has_workers():
            return "its workers were stopped"
        away = max(part.sender.away_s() for part in client.parts())
        if away > AWAY_S:
            return "the server is away"
        if not away and wait.due(now):
            wait.heard(now)
            reason = _no_use(client)
            # Twice: a worker that has just died is replaced in a moment.
            doubts = doubts + 1 if reason else 0
            if doubts > 1:
                return reason
            if not told:
                told = True
                say(f"the program waits for {left}; Ctrl-C leaves them in the queue", log)
        futures = [f for part in client.parts() for f in part.sender.outstanding()]
        if futures:
            concurrent.futures.wait(futures, STEP_S, return_when=concurrent.futures.FIRST_COMPLETED)
        else:
            time.sleep(STEP_S)
    return ""


def _no_use(client: Client) -> str:
    for part in client.parts():
        if not (part.sender.pending or part.open_batches):
            continue
        if reason := part.diagnosis.ask({*part.sender.wanted(), CALL}):
            return reason
        try:
            shot = Commands.read_snapshot(part.broker.call(part.commands.snapshot()))
        except (RedistqError, ConnectionLost) as error:
            return str(error)
        later = shot.next_due_ms is not None and shot.next_due_ms > shot.now_ms + DUE_S * 1000
        if later and not shot.ready and not shot.pending:
            return "what is left is due later"
    return ""


def _unfinished(client: Client) -> str:
    """What has not ended, in words; '' when all has."""
    from .batch import Batch

    calls = sum(len(part.sender.outstanding()) for part in client.parts())
    batches: list[str] = []
    for part in client.parts():
        for name in sorted(part.open_batches):
            try:
                if not Batch.find(part, name).done:
                    batches.append(name)
                    continue
            except UnknownTask:
                pass
            except (RedistqError, ConnectionLost):
                batches.append(name)  # without a server nobody knows
                continue
            part.open_batches.discard(name)
    words = [f"{calls:,} call{'s' if calls > 1 else ''}"] if calls else []
    words += [f"batch {name!r}" for name in batches[:3]]
    if len(batches) > 3:
        words.append(f"{len(batches) - 3} more batches")
    return " and ".join(words)


def _say_what_stays(client: Client, why: str) -> None:
    with contextlib.suppress(Exception):
        say(
            f"the program ends and {_unfinished(client)} {'have' if why else 'had'} not ended"
            f"{f' ({why})' if why else ''}: they stay in queue {client.keys.stream!r} of "
            f"{client.address} for its workers; client.shutdown() before the end waits for them",
            log,
        )

"""The end of a program whose client was not shut down: its work is done, or a line says what stays.

Used by sessions. A program that has workers of its own waits for what it submitted, as it would
with the executors of the standard library; without it no worker would do that work. It does not
wait for workers that are gone, for a server that is unavailable, or for what is due much later.
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
from ..functions.written import CALL
from ..logger import logger
from ..producer.diagnosis import Wait

if TYPE_CHECKING:
    from .session import Session

log = logger("redistq.client")

AWAY_S = 15.0
"""Seconds without a server after which the end is not held up any longer."""
DUE_S = 30.0
"""What is due later than in so many seconds, with nothing else to do, is not waited for."""
STEP_S = 0.2

_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def watch(session: Session) -> None:
    """Finish this client's work when the program ends, or say what stays."""
    if not _sessions:
        # After all that is registered already, which therefore lives on while we wait: embedded
        # servers, logging, and what lets go of sessions.
        atexit.unregister(_finish)
        atexit.register(_finish)
    _sessions.add(session)


def _finish() -> None:
    if in_kernel():
        return  # a notebook's kernel that must end has seconds for it
    for session in list(_sessions):
        try:
            _end(session, os.getpid())
        except KeyboardInterrupt:
            _say_what_stays(session, "")
        except Exception:  # broad: the program ends, and its own error, if any, is what counts
            log.debug("the end of a client's work could not be waited for", exc_info=True)


def _end(session: Session, pid: int) -> None:
    if session.pid != pid or session.exchange.pending.ended.is_set() or not _unfinished(session):
        return
    # A program that was interrupted is to end.
    interrupted = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
    if interrupted or not session.workers.running:
        _say_what_stays(session, "")
        return
    why = _wait(session)
    if why:
        _say_what_stays(session, why)
    else:
        session.close()


def _wait(session: Session) -> str:
    """Wait until all is done; return '', else why there is no use in it."""
    exchange = session.exchange
    wait = Wait()
    doubts = 0
    is_said = False
    while left := _unfinished(session):
        now = time.monotonic()
        if not session.workers.running:
            return "its workers were stopped"
        away = exchange.listener.away_s()
        if away > AWAY_S:
            return "the server is away"
        if not away and wait.due(now):
            wait.restart(now)
            reason = _no_use(session)
            # Twice: a worker that has just died is replaced in a moment.
            doubts = doubts + 1 if reason else 0
            if doubts > 1:
                return reason
            if not is_said:
                is_said = True
                say(f"the program waits for {left}; Ctrl-C leaves them in the queue", log)
        futures = exchange.pending.outstanding()
        if futures:
            concurrent.futures.wait(futures, STEP_S, return_when=concurrent.futures.FIRST_COMPLETED)
        else:
            time.sleep(STEP_S)
    return ""


def _no_use(session: Session) -> str:
    """Return why what is left will not run; '' when it will."""
    wanted = session.exchange.pending.wanted()
    for priority, _ in list(session.open_batches):
        wanted.setdefault(session.queue(priority), set())
    for queue, names in wanted.items():
        if reason := queue.diagnosis.ask({*names, CALL}):
            return reason
        try:
            shot = queue.snapshot()
        except (RedistqError, ConnectionLost) as error:
            return str(error)
        later = shot.next_due_ms is not None and shot.next_due_ms > shot.now_ms + DUE_S * 1000
        if later and not shot.ready and not shot.pending:
            return "what is left is due later"
    return ""


def _unfinished(session: Session) -> str:
    """Return what has not ended, in words; '' when all has."""
    calls = len(session.exchange.pending.outstanding())
    batches: list[str] = []
    for priority, name in sorted(session.open_batches):
        try:
            waits = bool(session.queue(priority).batch_counts(name)["waiting"])
        except UnknownTask:
            waits = False
        except (RedistqError, ConnectionLost):
            waits = True  # without a server it is not known
        if waits:
            batches.append(name)
        else:
            session.open_batches.discard((priority, name))
    words = [f"{calls:,} call{'s' if calls > 1 else ''}"] if calls else []
    words += [f"batch {name!r}" for name in batches[:3]]
    if len(batches) > 3:
        words.append(f"{len(batches) - 3} more batches")
    return " and ".join(words)


def _say_what_stays(session: Session, why: str) -> None:
    with contextlib.suppress(Exception):
        say(
            f"the program ends and {_unfinished(session)} {'have' if why else 'had'} not ended"
            f"{f' ({why})' if why else ''}: they stay in queue {session.keys.stream!r} of "
            f"{session.broker.address} for its workers; client.shutdown() before the end waits "
            "for them",
            log,
        )

"""``python -m redistq.elsewhere.there``: what runs on the other machine, told by standard input.

It answers what is installed, is told then where the server is and by which key, starts a
TaskWorker, and drains when it is told to, or when its starter is silent or gone. Its own standard
output carries reports; what tasks print goes to standard error with the logs.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import threading
import time
from typing import Any

from .. import __version__
from ..codecs.codec import Codec
from ..connection.address import Address
from ..connection.broker import Broker
from ..errors import RedistqError
from ..handlers import Registry
from ..protocol.plain_commands import PING
from ..system.cores import cores
from ..system.streams import mend_standard_streams
from ..worker.worker import TaskWorker
from .environment import versions_of
from .place import MARK

SILENCE_S = 300.0
"""Seconds without a word after which the starter counts as gone."""
CHECK_S = 5.0
"""Seconds within which the server has to answer."""


class Starter:
    """The other end: lines of JSON come from it, and reports go to it."""

    def __init__(self) -> None:
        self._reports = os.dup(1)
        self._heard = b""
        os.dup2(2, 1)  # what is printed goes with the logs; mended, it outlives its reader

    def line(self, patience_s: float | None = None) -> dict[str, Any] | None:
        """Return what it says next; None when it has gone, or was silent that long."""
        deadline = None if patience_s is None else time.monotonic() + patience_s
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            while b"\n" not in self._heard:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not selector.select(left):
                    return None
                chunk = os.read(0, 65536)
                if not chunk:
                    return None
                self._heard += chunk
        line, _, self._heard = self._heard.partition(b"\n")
        return dict(json.loads(line))

    def report(self, **what: Any) -> None:
        """Tell it something; one that has gone hears nothing."""
        data = f"{MARK}{json.dumps(what)}\n".encode()
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self._reports, data) :]


def main() -> int:
    """Run workers until the starter says stop, or is gone; return the exit code."""
    mend_standard_streams()
    for number in (signal.SIGPIPE, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    starter = Starter()
    asked = starter.line()
    if asked is None:
        return 0
    starter.report(
        redistq=__version__, packages=versions_of(asked["packages"]), host=socket.gethostname()
    )
    spec = starter.line()
    if spec is None:
        return 0
    logging.basicConfig(
        level=spec["log_level"], format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        return _work(starter, spec)
    finally:
        if spec["socket"]:
            with contextlib.suppress(OSError):
                os.unlink(spec["socket"])


def _work(starter: Starter, spec: dict[str, Any]) -> int:
    address = Address(spec["url"])
    if why := _unreachable(address):
        starter.report(unreachable=why)
        return 1
    life = _Life(spec["settings"]["shutdown_timeout"], tunnel=bool(spec["socket"]))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: life.end())
    try:
        worker = _worker(spec, address)
        worker.start()
    except Exception as error:  # what handlers raise when they are loaded is theirs
        starter.report(failure=f"{type(error).__name__}: {error}")
        return 1
    starter.report(ready=worker.processes)
    threading.Thread(target=life.listen, args=(starter,), daemon=True).start()
    while not life.ended.wait(1.0) and worker.running:
        pass
    drained = worker.stop(life.timeout)
    starter.report(ended=worker.fault or ("" if drained else "with tasks unfinished"))
    return 0 if drained else 1


class _Life:
    """When this is to end, and how long tasks may take to finish then."""

    def __init__(self, timeout: float, tunnel: bool) -> None:
        self.ended = threading.Event()
        self.timeout = timeout
        self._tunnel = tunnel

    def end(self) -> None:
        """End: running tasks finish within ``timeout`` seconds."""
        self.ended.set()

    def listen(self, starter: Starter) -> None:
        """Wait for the order to stop, or for the starter's end."""
        while (said := starter.line(SILENCE_S)) is not None:
            if "stop" in said:
                self.timeout = said["stop"]
                self.end()
                return
        if self._tunnel:  # the way to the server went with it: no result can be told
            self.timeout = 0.0
        self.end()


def _unreachable(address: Address) -> str:
    """Return why the server does not answer from here; empty when it does."""
    broker = Broker(address, timeout=CHECK_S)
    try:
        broker.call(PING)
        return ""
    except (RedistqError, OSError) as error:
        return str(error)
    finally:
        broker.close()


def _worker(spec: dict[str, Any], address: Address) -> TaskWorker:
    settings = dict(spec["settings"])
    codec = settings.pop("codec")
    return TaskWorker(
        task_handlers=_handlers(spec["handlers"]),
        group=settings.pop("group"),
        processes=cores() if spec["processes"] is None else spec["processes"],
        address=address,
        codec=None if codec is None else Codec.of(codec),
        **settings,
    )


def _handlers(pickled: str) -> Registry:
    if not pickled:
        return Registry()
    import cloudpickle

    try:
        found: Registry = cloudpickle.loads(base64.b64decode(pickled))
    except ImportError as error:
        raise ImportError(
            f"the named tasks cannot be loaded here ({error}): install their module, start in its "
            "folder (folder=...), or start_workers(..., handlers={}) for functions alone",
            name=error.name,
        ) from error
    return found


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # not sys.exit: threads wait for what will not come

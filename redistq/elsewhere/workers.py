"""RemoteWorkers: what ``client.start_workers(on=...)`` returns for SSH and Slurm."""

from __future__ import annotations

import base64
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ..connection.address import Address
from ..display.html import escape, panel
from ..display.notebook import say
from ..errors import ConfigurationError, RedistqError
from ..functions.pickling import by_value
from ..handlers import Registry, default_registry
from ..logger import logger
from ..protocol.options import wait_seconds
from ..worker.bootstrap import Handlers, registry_from
from ..worker.settings import WorkerSettings
from .environment import imported_packages
from .place import Place
from .remote import GRACE_S, Remote

log = logger("redistq.elsewhere")

SIGN_S = 15.0
"""Seconds between two signs of life."""
KEPT = 10_000
"""Lines of logs that are kept."""
SAID = 20
"""Lines of logs said in a minute; the others are only kept."""
_GRAVE = (" WARNING ", " ERROR ", " CRITICAL ")


class RemoteWorkers:
    """Worker processes on other machines: ``processes``, ``running``, ``logs()``, ``stop()``.

    They drain and end when they are stopped, when the client is closed, when this program ends in
    any way, and when the connection to them breaks. One that ends by itself is said at once, and
    its ``fault`` is in ``faults``; the tasks it had go to other workers.
    """

    def __init__(
        self,
        place: Place,
        address: Address,
        settings: WorkerSettings,
        processes: int | None,
        handlers: Handlers | Registry | None = None,
    ) -> None:
        self.place = place
        self.settings = settings
        self.faults: dict[str, str] = {}
        """Why machines ended that nobody had asked to, by their names."""
        self.remotes: list[Remote] = []
        self._launches = place.launches(address, processes)
        self._spec: dict[str, Any] = {
            "settings": settings.as_dict(),
            "processes": processes,
            "handlers": _pickled(default_registry if handlers is None else handlers),
            "log_level": "INFO",
        }
        self._lines: deque[tuple[str, str]] = deque(maxlen=KEPT)
        self._allowance = _Allowance()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> RemoteWorkers:
        """Start them everywhere at once; returns when all are ready.

        Raises ConfigurationError or ServerUnavailable when one cannot work: none is left then.
        """
        deadline = time.monotonic() + self.place.timeout
        packages = imported_packages()
        failed: dict[str, Exception] = {}
        differing: dict[str, str] = {}

        def begin(remote: Remote) -> None:
            try:
                differing[remote.name] = remote.begin(self._spec, packages, deadline)
            except Exception as error:  # told by the thread that waits for all
                failed[remote.name] = error

        try:
            for launch in self._launches:
                self.remotes.append(Remote(launch, self.place, self._hear))
            self._each(begin)
            if failed:
                raise _together(failed)
        except BaseException:  # whatever it is, an interrupt too: no process is left behind
            self.stop(0)
            raise
        for name, text in sorted(differing.items()):
            if text:
                say(f"{name}: {text}", log)
        self._watch()
        return self

    def _watch(self) -> None:
        for remote in self.remotes:
            self._thread("watch", self._wait_for_end, remote)
        self._thread("sign", self._give_signs)

    def _thread(self, role: str, run: Callable[..., None], *args: Any) -> None:
        name = f"redistq-elsewhere-{role}"
        thread = threading.Thread(target=run, args=args, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _wait_for_end(self, remote: Remote) -> None:
        if why := remote.wait_for_end():
            self.faults[remote.name] = why
            say(
                f"the workers on {remote.name} have ended: {why}; what they ran goes to other "
                "workers",
                log,
            )

    def _give_signs(self) -> None:
        while not self._stopped.wait(SIGN_S):
            for remote in self.remotes:
                remote.give_sign()

    def stop(self, timeout: float | None = None) -> bool:
        """Have them drain and end: running tasks finish within ``timeout`` seconds (default:
        ``shutdown_timeout``). Return whether every started task came to its end."""
        asked = wait_seconds(timeout)
        patience = self.settings.shutdown_timeout if asked is None else asked
        deadline = time.monotonic() + patience + GRACE_S
        self._stopped.set()
        for remote in self.remotes:
            remote.ask_to_stop(patience)
        ended: list[bool] = []
        self._each(lambda remote: ended.append(remote.end(deadline)))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(GRACE_S)
        return all(ended)

    def _each(self, act: Callable[[Remote], None]) -> None:
        threads = [
            threading.Thread(target=act, args=(remote,), daemon=True) for remote in self.remotes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def __enter__(self) -> RemoteWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- looks -----------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether any of them runs."""
        return not self._stopped.is_set() and any(remote.running for remote in self.remotes)

    @property
    def processes(self) -> int:
        """How many worker processes run, on all machines together."""
        return sum(remote.processes for remote in self.remotes if remote.running)

    def logs(self, machine: str | None = None) -> list[str]:
        """Return what they have logged and printed last, of one machine or of all: of these each
        line begins with its machine's name."""
        lines = list(self._lines)
        if machine is None:
            return [f"{name}: {line}" for name, line in lines]
        if machine not in [remote.name for remote in self.remotes]:
            names = ", ".join(remote.name for remote in self.remotes)
            raise ConfigurationError(f"there are workers on {names}, not on {machine!r}")
        return [line for name, line in lines if name == machine]

    def _hear(self, name: str, line: str) -> None:
        self._lines.append((name, line))
        if self.place.show == "nothing" or self._stopped.is_set():
            return
        if self.place.show == "all" or any(word in line for word in _GRAVE):
            if (left := self._allowance.take()) > 0:
                say(f"{name}: {line}", log)
            elif left == 0:
                say("there is more to read: workers.logs()", log)

    def _state(self, remote: Remote) -> str:
        if remote.name in self.faults:
            return f"ended: {self.faults[remote.name]}"
        return f"{remote.processes} processes" if remote.running else "stopped"

    def __repr__(self) -> str:
        states = ", ".join(f"{remote.name}: {self._state(remote)}" for remote in self.remotes)
        return f"<RemoteWorkers queue={self.settings.queue!r} {states or 'none'}>"

    def _repr_html_(self) -> str:
        rows = [(escape(remote.name), escape(self._state(remote))) for remote in self.remotes]
        return panel("Workers elsewhere", escape(self.settings.queue), rows)


class _Allowance:
    """How many lines may be said in a minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._left = SAID

    def take(self) -> int:
        """Return how many were left: positive, the line may be said; 0, that was the first too
        many."""
        with self._lock:
            now = time.monotonic()
            if now >= self._until:
                self._until, self._left = now + 60, SAID
            self._left -= 1
            return self._left + 1


def _pickled(handlers: Handlers | Registry) -> str:
    registry = registry_from(handlers)
    if not registry:
        return ""
    try:
        return base64.b64encode(by_value(registry)).decode()
    except Exception as error:  # what is pickled is the user's, and may raise anything
        raise ConfigurationError(
            f"the handlers cannot be sent to other machines: {error}; define them in a module that "
            "is installed there, or start_workers(..., handlers={}) for functions alone"
        ) from error


def _together(failed: Mapping[str, Exception]) -> Exception:
    """Return one error for all machines that failed."""
    errors = [failed[name] for name in sorted(failed)]
    kind = type(errors[0])
    if len(errors) == 1 or not issubclass(kind, RedistqError):
        return errors[0]
    return kind("\n".join(map(str, errors)))

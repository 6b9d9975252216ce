"""Schedules of functions: ``client.every(...)`` and ``client.schedules``.

A function from a cell runs every morning: it is stored on the server with its source, signed, for
as long as a schedule names it; the kernel may be gone. Sent again it is another version of the same
schedule. What fires it is any scheduler of the queue's workers, as for named tasks.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..display.notebook import say, shell
from ..errors import ConfigurationError, PayloadTooLarge, UnknownSchedule
from ..functions.blobs import MAX_BLOB_BYTES, Blobs
from ..functions.function import load_function
from ..functions.packing import Packer, label
from ..functions.scheduled import call_and_source, packed
from ..functions.signing import Kind
from ..functions.written import CALL, Call
from ..logger import logger
from ..producer.diagnosis import ANY_NAME
from ..producer.sansio import run
from ..producer.schedules import ScheduleOperations, Schedules
from ..protocol.codec import dumps, loads
from ..protocol.keys import PRIORITY_MARK
from ..protocol.options import CallOptions, Seconds
from ..protocol.schedules import Definition, Schedule, check_name
from ..protocol.timing import ZONE, Timing
from .futures import TaskFuture
from .submission import check_function, queue_and_call

if TYPE_CHECKING:
    from .client import Client
    from .session import Session

log = logger("redistq.client")

Function = TypeVar("Function", bound=Callable[..., Any])
STORED_S = 86_400
"""Seconds that a function is kept which its client has stored and not yet scheduled."""
LONGEST_SOURCE = 64 * 1024
_TRIES = 3


class _Kept(Blobs):
    """Stores what one schedule needs, under names that nobody else's things have: it stays as long
    as the schedule names it, and goes with it."""

    def __init__(self, session: Session, schedule: str) -> None:
        super().__init__(session.broker, session.keys, session.signer)
        self._session = session
        self._owner = hashlib.blake2b(schedule.encode(), digest_size=8).hexdigest()

    def put(
        self,
        kind: Kind,
        data: Any,
        keep_s: float = STORED_S,
        needs: list[str] | None = None,
        known: str = "",
    ) -> str:
        """Store it unless it is there; return its name, which is added to ``needs``."""
        session = self._session
        name = f"{session.signer.name_of(kind, data)}-{self._owner}"
        packet = session.signer.pack(kind, name, bytes(data))
        if len(packet) > MAX_BLOB_BYTES:
            hint = "a schedule's function brings less: let it read its data where it runs"
            raise PayloadTooLarge(len(packet), MAX_BLOB_BYTES, hint)
        session.broker.call(session.queue().commands.store_blob(name, packet, int(keep_s)))
        if needs is not None:
            needs.append(name)
        return name


def set_function(
    session: Session,
    options: CallOptions,
    name: str,
    timing: Timing,
    fn: Callable[..., Any],
    missed: str,
    overlap: str | None,
    paused: bool | None,
) -> Schedule:
    """Let a function be called at those times; return the schedule as it stands."""
    queue, _ = queue_and_call(session, options, "")
    task = f"{CALL}:{options.name or label(fn)}"
    made, limits = Definition.of(
        name,
        task,
        {},
        options.of_schedule(),
        stream=queue.keys.stream,
        missed=missed,
        overlap=overlap,
    )
    if not session.settings.shared:
        home = session.settings.home.name
        made = replace(made, opts=_at_home(made.opts, home), catch_up=_at_home(made.catch_up, home))
    operations = ScheduleOperations(queue.commands, queue.limits)
    run(session.broker, queue.limits.declare(limits))
    source = _source_of(fn)
    for tried in range(_TRIES):
        needs: list[str] = []
        # A packer of its own: what the client's has sent may be another's, and go.
        packer = Packer(_Kept(session, name), session.signer, session.settings.max_payload_bytes)
        function = packer.store_function(fn, STORED_S, needs)
        setup = packer.store_setup(options, STORED_S, needs)
        _, data = queue_and_call(session, options, function, setup)
        packet = packed(session.signer, queue.keys.stream, name, data, source)
        try:
            return run(
                session.broker,
                operations.put(
                    name, timing, made, packet, paused=paused, source="function", keeps=needs
                ),
            )
        except LookupError:  # it has expired just now, as what an earlier version needed
            if tried == _TRIES - 1:
                raise
    raise AssertionError


def _source_of(fn: Any) -> str:
    """Return the source of a function; '' where it is not known, or long."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    try:
        text = textwrap.dedent(inspect.getsource(inspect.unwrap(fn)))
    except (OSError, TypeError):
        return ""
    return text if len(text) <= LONGEST_SOURCE else ""


def _at_home(opts: str, home: str) -> str:
    found: dict[str, Any] = loads(opts.encode()) if opts else {}
    return dumps({**found, "home": home}).decode()


@dataclass(frozen=True, slots=True)
class ClientSchedule(Schedule):
    """A schedule as a client sees it: what it is, its function, and what can be done with it."""

    client: Client | None = field(default=None, repr=False, compare=False)

    @property
    def function(self) -> Callable[..., Any]:
        """The function that it calls, as it was sent: loaded from the server, by its signature.

        Raises ConfigurationError where it runs a named task, whose code is the workers'.
        """
        call, _ = self._unpacked()
        session = self._session
        called = Call.unpickled(call, session.blobs.argument)
        return load_function(session.blobs.get("function", called.function))

    @property
    def code(self) -> str:
        """The source of its function, as it was when it was sent; empty where it was not known."""
        return self._unpacked()[1]

    def _unpacked(self) -> tuple[bytes, str]:
        """Return its call and the source of that, their signature checked."""
        if not self.task.startswith(CALL):
            raise ConfigurationError(
                f"schedule {self.name!r} runs the task {self.task!r}, whose code its workers have"
            )
        session = self._session
        return call_and_source(session.signer, session.keys.stream, self.name, self.payload)

    def open(self) -> str:
        """Bring the source of its function back: as the next cell of a notebook, whose run makes
        the next version of it. Returns the source."""
        rule = f"{self.timing.cron!r}" if self.timing.cron else f"{self.timing.every_ms / 1000:g}"
        zone = f", tz={self.timing.tz!r}" if self.timing.tz != ZONE else ""
        text = self.code or f"# the source of {self.name} is not known\n"
        if ".every(" not in text:
            text = f"@client.every({rule}{zone}, name={self.name!r})\n{text}"
        here = shell()
        if here is not None:
            here.set_next_input(text.rstrip())
        return text

    def run_now(self) -> TaskFuture:
        """Call it at once; return the future of the task that stands."""
        return self._future(self._all.run_now(self.name))

    @property
    def last(self) -> TaskFuture | None:
        """The future of its last task; None before the first."""
        return self._future(self.last_id) if self.last_id else None

    def pause(self) -> None:
        """Let it fire no more until ``resume``."""
        self._all.pause(self.name)

    def resume(self) -> None:
        """End a pause."""
        self._all.resume(self.name)

    def delete(self) -> bool:
        """Let it fire no more, for good; return whether it was there."""
        return self._all.delete(self.name)

    def _future(self, task_id: str) -> TaskFuture:
        session = self._session
        queue = session.queue(self.queue.partition(PRIORITY_MARK)[2] or "normal")
        future = TaskFuture(session, queue, task_id, self.task.partition(":")[2] or self.task)
        future.origin = "call" if self.task.startswith(CALL) else "named"
        future.task_name = ANY_NAME
        session.exchange.expect(future)
        return future

    @property
    def _all(self) -> ClientSchedules:
        assert self.client is not None
        return self.client.schedules

    @property
    def _session(self) -> Session:
        assert self.client is not None
        return self.client._session


class ClientSchedules(Schedules):
    """The schedules of a client's queue: ``client.schedules["report"]``; as a producer's, and their
    functions."""

    def __init__(self, client: Client) -> None:
        session = client._session
        queue = session.queue()
        operations = ScheduleOperations(
            queue.commands, queue.limits, session.settings.max_payload_bytes
        )
        super().__init__(operations, session.broker)
        self._client = client

    def __getitem__(self, name: str) -> ClientSchedule:
        found = self.get(name)
        if found is None:
            raise UnknownSchedule(name)
        return self._of_client(found)

    def __iter__(self) -> Iterator[ClientSchedule]:
        return map(self._of_client, self.all().values())

    def _of_client(self, schedule: Schedule) -> ClientSchedule:
        known = {f.name: getattr(schedule, f.name) for f in fields(Schedule)}
        return ClientSchedule(**known, client=self._client)


class Scheduling:
    """What can be scheduled with a Client and with ``client.options(...)`` alike."""

    _options: CallOptions

    @property
    def _client(self) -> Client:
        raise NotImplementedError

    @property
    def schedules(self) -> ClientSchedules:
        """The queue's schedules, and their functions: see ``every``."""
        return ClientSchedules(self._client)

    def every(
        self,
        when: Seconds,
        *,
        tz: str = ZONE,
        name: str | None = None,
        missed: str = "once",
        overlap: str | None = None,
        paused: bool | None = None,
    ) -> Callable[[Function], Function]:
        """Let a function be called at those times, from now on, whoever is there: a decorator.

        ``when`` is a cron expression of five fields, or six with the seconds first, in the zone
        ``tz``: ``"0 6 * * mon"``; or an interval: 300, ``"15m"``. The function takes no arguments,
        and travels by value: the server keeps it until the schedule is deleted. The schedule has
        the function's name, or ``name``; set again, as by running the cell anew, it is changed to
        what is given now. ``client.schedules[name]`` finds it; ``missed`` and ``overlap`` are those
        of TaskProducer.schedules.set.

        A worker has to be there when it is due: one of the command, or of a client in this folder.
        Raises ConfigurationError for what is no time, and PayloadError for what cannot be sent.
        """
        if isinstance(when, str) and (" " in when.strip() or when.strip().startswith("@")):
            timing = Timing.of(when, None, tz)
        else:
            timing = Timing.of(None, when, tz)

        def schedule(fn: Function) -> Function:
            check_function(fn, "every")
            _check_arguments(fn)
            chosen = name or self._options.name or label(fn).rpartition(".")[2]
            if name is None and "<lambda>" in chosen:
                raise ConfigurationError("a lambda needs a name: client.every(..., name='report')")
            check_name(chosen)
            session = self._client._session
            made = set_function(session, self._options, chosen, timing, fn, missed, overlap, paused)
            say(f"schedule {chosen!r}: {made.rule}; {made.when}", log, logging.INFO)
            return fn

        return schedule


def _check_arguments(fn: Callable[..., Any]) -> None:
    """Raise ConfigurationError for a function that cannot be called without arguments."""
    try:
        inspect.signature(fn).bind()
    except TypeError as error:
        raise ConfigurationError(
            f"a schedule calls its function without arguments, and {label(fn)} wants some "
            f"({error}): give them with functools.partial"
        ) from None
    except ValueError:
        pass  # a built-in that does not say

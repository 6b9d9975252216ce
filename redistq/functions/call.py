"""The handler for function calls: it makes the calls that clients write down (written.py)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import platform
import re
import reprlib
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from ..connection.address import without_passwords
from ..context import TaskContext
from ..errors import (
    ConfigurationError,
    LeaseLost,
    ModuleMissing,
    PayloadError,
    PayloadTooLarge,
    ResultTooLarge,
    Suspended,
    UntrustedPayload,
    WrongPython,
)
from ..flows import FLOWS, Flow, PackedFlow
from ..handlers import Handler, LooksAhead, Registry, RetryPolicy, Waiting
from ..protocol.codec import DEFAULT_MAX_BYTES
from ..protocol.keys import without_priority
from ..protocol.pieces import Memory, Pieces
from .ahead import KnownCall, Lookahead
from .blobs import CACHE_BYTES, BlobMissing, Blobs
from .function import load_function
from .local_modules import Shipped
from .outband import dumped
from .output import LogSink, TaskOutput, captured
from .pickling import Seen, error_by_value
from .references import Reference, read_by
from .results import ResultReader, TaskResults
from .scheduled import opened
from .setups import Setups
from .signing import Signer, is_old, task_context
from .spill import put, result_file, spill_of
from .steps import SignedSteps
from .streams import CallItems, collected, collected_async, streamed
from .versions import BatchVersions, version_in, versioned
from .written import CALL, Call, is_whole, needs_in, put_in

MAX_PICKLED_ERROR = 64 * 1024
_TO_BE_RUN = CoroutineType, GeneratorType, AsyncGeneratorType
_SECRET = re.compile(r"passw|secret|token|credential|api_?key|private|auth", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class QueueStore:
    """Where the functions, arguments and output of one queue's calls are."""

    blobs: Blobs
    logs_prefix: str
    stream: str
    """The queue's name on the server, to which the signatures of its tasks are bound."""
    results: ResultReader
    """Reads the results of other tasks of the queue."""
    versions: BatchVersions
    """Which versions of their functions the queue's batches are of."""


class CallHandler(LooksAhead):
    """Makes the calls that clients send. What it raises is the function's own error, with a report
    for the post-mortem: locals, versions, and the last lines of output."""

    def __init__(self, signer: Signer, stores: Mapping[str, QueueStore], sink: LogSink) -> None:
        self._signer = signer
        self._stores = stores
        self._sink = sink
        self._functions: OrderedDict[str, tuple[Callable[..., Any], int, str]] = OrderedDict()
        self._functions_bytes = 0
        self._latest: tuple[str, Callable[..., Any], str] | None = None
        """The function of the last call, by its name and with its modules: most calls in a row are
        of one."""
        self._lock = threading.Lock()
        self._ahead: Lookahead | None = None
        self._setups = Setups()

    def __call__(self, payload: bytes, context: TaskContext) -> bytes | Pieces | PackedFlow:
        output = None
        store = self._stores[context.queue]
        # The answer to a call that is bound to no task is bound to none either: else whoever has
        # an old call could make of it the signed result of a task of today.
        task = task_context(store.stream, context.task_id)
        old = is_old(payload)
        if context._steps is not None:
            stream = without_priority(store.stream)
            context._steps.use(SignedSteps(self._signer, stream, task, context.task_id))
        try:
            known = self._open(store, task, payload, context)
            if known.needs.answers:  # what it comes to is that task's result, or its error
                task = task_context(store.stream, known.needs.answers)
            read_by(TaskResults(store.results, known.needs.results, known.found).read)
            fetch, use = store.blobs.argument, partial(self._use, store.blobs)
            call = Call.loaded(known.needs, known.pickled, fetch, use)
            newest = store.versions.newest(context)
            if newest is not None:
                call = replace(call, function=newest.function)
                context._made_by = versioned("", newest.number)
            function = self._function(call.function, store.blobs)
            key = store.logs_prefix + context.task_id if call.logs else None
            output = TaskOutput(
                key, self._sink if call.logs else None, is_alone=call.logs == "only"
            )
            if call.setup:
                load = partial(self._function, call.setup, store.blobs)
                self._setups.give(call.setup, load, partial(captured, output))
            with captured(output):
                result = self._make(call, function, store.blobs, context, task)
            if isinstance(result, FLOWS):
                if old:
                    _no_flow(result)
                answers = known.needs.answers or context.task_id
                return self._packed_flow(result, store, answers, known.needs.spill)
            holder = [result]
            del result  # whoever else holds it may change it: see outband.py
            data = dumped(holder, Seen())
            try:
                if old:
                    return self._signer.pack("result", task, b"".join(data), old=True)
                spill = spill_of(known.needs.spill)
                if spill is not None and spill.takes_result(sum(map(len, data))):
                    file = result_file(store.stream, known.needs.answers or context.task_id)
                    return put(spill, self._signer, "result", task, data, file)
                return self._signer.pack_memory("result", task, data)
            except PayloadTooLarge as error:
                raise ResultTooLarge(error.size, error.limit) from None
        except (Suspended, LeaseLost):
            raise  # no fault: the task goes on later, or elsewhere
        except BaseException as error:  # the user's function; passed on with a report
            with contextlib.suppress(BaseException):  # the error's own methods; it has a traceback
                context._report = self._report(error, output, task, old)
                if context._made_by:
                    context._report["version"] = version_in(context._made_by.encode())
            raise

    def look_by(self, waiting: Callable[[], Iterable[Waiting]]) -> None:
        """See what waits in this process by that function, to read ahead what it needs."""
        self._ahead = Lookahead(self._signer, waiting)

    def _open(
        self, store: QueueStore, task: str, payload: bytes, context: TaskContext
    ) -> KnownCall:
        """Return a call, not loaded yet; what many that wait here need is read together."""
        ahead = self._ahead
        if ahead is not None and (known := ahead.take(context)) is not None:
            return known
        packet = opened(self._signer, store.stream, context.task_id, payload)
        needs, pickled = needs_in(packet)
        found: Mapping[Reference, Memory] = {}
        if ahead is not None and needs.results:
            found = ahead.look(context, needs.results, store.results, store.stream)
        return KnownCall(needs, pickled, found)

    def _packed_flow(
        self, flow: Flow, store: QueueStore, answers: str, spill: Sequence[Any] | None
    ) -> PackedFlow:
        """Return the tasks of a flow, whose calls are signed here as a client would sign them."""
        from .continued import packed
        from .packing import Packer

        packer = Packer(store.blobs, self._signer, DEFAULT_MAX_BYTES, spill)
        return packed(flow, packer, store.blobs, store.stream, answers)

    def _make(
        self,
        call: Call,
        function: Callable[..., Any],
        blobs: Blobs,
        context: TaskContext,
        task: str,
    ) -> Any:
        if not call.chunk:
            fetch = blobs.argument
            if is_whole(call.args) and not call.kwargs:  # the usual
                result = function(*call.args)
            else:
                args = [put_in(a, fetch) for a in call.args]
                kwargs = {name: put_in(a, fetch) for name, a in call.kwargs.items()}
                result = function(*args, **kwargs)
                del args, kwargs
            if call.stream:
                return self._streamed(result, context, task)
            if isinstance(result, GeneratorType | AsyncGeneratorType):
                return _finish(result, context, CallItems(self._signer, task))
            return _finish(result, context)
        shared: dict[Any, Any] = {}
        return [
            _no_flow(
                _finish(
                    function(*[put_in(a, blobs.argument, shared) for a in args], **call.kwargs),
                    context,
                )
            )
            for args in call.args
        ]

    def _streamed(self, result: Any, context: TaskContext, task: str) -> int:
        if isinstance(result, CoroutineType):
            result = _run(context, result)
        how = CallItems(self._signer, task)
        return streamed(result, context, how, partial(_run, context))

    def _function(self, digest: str, blobs: Blobs) -> Callable[..., Any]:
        latest = self._latest
        if latest is not None and latest[0] == digest:
            if latest[2]:  # what the arguments need may have come since
                self._use(blobs, latest[2])
            return latest[1]
        with self._lock:
            known = self._functions.get(digest)
            if known is not None:
                self._functions.move_to_end(digest)
        if known is not None:
            if known[2]:  # another function may have been here since, with other modules
                self._use(blobs, known[2])
            self._latest = digest, known[0], known[2]
            return known[0]
        data = blobs.get("function", digest)
        used = [""]

        def use(modules: str) -> None:
            used[0] = modules
            self._use(blobs, modules)

        function = load_function(data, use)
        with self._lock:
            if digest not in self._functions:
                # A closure may hold a large array: what is kept is bounded by its bytes.
                self._functions[digest] = (function, len(data), used[0])
                self._functions_bytes += len(data)
                while len(self._functions) > 1 and (
                    len(self._functions) > 256 or self._functions_bytes > CACHE_BYTES
                ):
                    self._functions_bytes -= self._functions.popitem(last=False)[1][1]
        return function

    def _use(self, blobs: Blobs, modules: str) -> None:
        """Import the local modules of that bundle from now on; not in an application's process,
        whose modules are its own."""
        if local_modules is not None and local_modules.current != modules:
            local_modules.use(modules, partial(blobs.get, "modules", modules))

    def _report(
        self, error: BaseException, output: TaskOutput | None, task: str, old: bool
    ) -> dict[str, Any]:
        report: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "python": platform.python_version(),
            "locals": _locals(error),
            "output": list(output.tail) if output is not None else [],
        }
        try:
            data = error_by_value(error, MAX_PICKLED_ERROR)
            pickled = self._signer.pack("error", task, data, old=old)
            if len(pickled) <= MAX_PICKLED_ERROR:
                report["pickle"] = base64.b64encode(pickled).decode()
        except BaseException:  # whatever its parts raise: its type and text travel all the same
            pass
        return report


local_modules: Shipped | None = None
"""What imports the local modules of calls in this process; None where it must not."""


def import_local_modules() -> None:
    """From now on calls bring their local modules into this process, which is ours alone."""
    global local_modules
    if local_modules is None:
        local_modules = Shipped()


def _no_flow(result: Any) -> Any:
    """Return the result; raises ConfigurationError for a flow, which would take the place of one
    task."""
    if isinstance(result, FLOWS):
        raise ConfigurationError(
            f"one of several calls in a task cannot return a flow, {result!r:.60}, nor can a call "
            "that was sent by the last release: send them one by one (chunksize=1)"
        )
    return result


def _finish(result: Any, context: TaskContext, how: CallItems | None = None) -> Any:
    if not isinstance(result, _TO_BE_RUN):
        return result
    if isinstance(result, CoroutineType):
        return _run(context, result)
    if isinstance(result, GeneratorType):
        return collected(result, context, how)
    if isinstance(result, AsyncGeneratorType):
        return _run(context, collected_async(result, context, how))
    return result


def _run(context: TaskContext, work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(_interruptible(work, context))


async def _interruptible(work: Coroutine[Any, Any, Any], context: TaskContext) -> Any:
    """Await ``work`` so that it is cancelled when its task is asked to end: a loop that waits runs
    no step at which an exception could be raised in its thread."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def interrupt() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and so has the work
            loop.call_soon_threadsafe(task.cancel)

    context._interrupt = interrupt
    try:
        if context.cancelled:
            task.cancel()
        return await work
    finally:
        context._interrupt = None


def _locals(error: BaseException) -> list[dict[str, Any]]:
    """Return the local variables of the innermost frames, shortened, and hidden where they look
    secret."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 120
    short.maxlist = short.maxdict = 8
    short.maxlevel = 3
    frames = []
    tb = error.__traceback__
    own = os.path.dirname(os.path.dirname(__file__))
    while tb is not None:
        frame = tb.tb_frame
        if not frame.f_code.co_filename.startswith(own):
            values = {}
            for name, value in list(frame.f_locals.items())[:30]:
                if _SECRET.search(name):
                    values[name] = "<hidden>"
                    continue
                try:
                    text = short.repr(value)
                except BaseException as broken:  # the value's own __repr__
                    text = f"<cannot be shown: {type(broken).__name__}>"
                values[name] = without_passwords(text)[:200]
            frames.append(
                {"function": frame.f_code.co_name, "line": tb.tb_lineno, "locals": values}
            )
        tb = tb.tb_next
    return frames[-5:]


def with_calls(
    registry: Registry, signer: Signer, stores: Mapping[str, QueueStore], sink: LogSink
) -> Registry:
    """Return the same handlers, and the one for function calls."""
    wider = Registry()
    wider.include(registry)
    function = CallHandler(signer, stores, sink)
    never = (UntrustedPayload, WrongPython, ModuleMissing, BlobMissing, PayloadError)
    wider.add_handler(
        Handler(
            CALL,
            function,
            policy=RetryPolicy(retries=0, never_retry=never),
            wants_context=True,
            raw=True,
            middleware=registry.layers,
        )
    )
    return wider

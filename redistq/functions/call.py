"""Function calls as tasks: how a call is written down, and the handler that makes it.

The first half is used by clients, the second by workers. A call names its function by a blob, so
that a function used ten thousand times travels once; large arguments do the same.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import linecache
import os
import platform
import re
import reprlib
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..connection.address import without_passwords
from ..errors import (
    ModuleMissing,
    PayloadError,
    PayloadTooLarge,
    ResultTooLarge,
    UntrustedPayload,
    WrongPython,
)
from ..handlers import Handler, Registry, RetryPolicy, TaskContext
from .blobs import CACHE_BYTES, BlobMissing, Blobs
from .output import LogSink, TaskOutput, captured
from .parts import Store, dump_parted, load_whole
from .pickling import PYTHON, Seen, can_be_sent, dump, error_by_value, load, what_cannot
from .shipped_modules import Shipped
from .signing import Signer, is_old, task_context

CALL = "redistq.call"
"""The task name of function calls."""
MAX_PICKLED_ERROR = 64 * 1024
_SECRET = re.compile(r"passw|secret|token|credential|api_?key|private|auth", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for an argument that is stored as a blob."""

    digest: str


@dataclass(frozen=True, slots=True)
class Call:
    """One call, or a chunk of calls of the same function, before it is packed.

    With ``chunk`` set, ``args`` is a list of argument tuples and the result a list of results.
    """

    function: str
    args: Any
    kwargs: dict[str, Any]
    chunk: bool = False
    logs: bool = False

    def pickled(self, store: Store | None = None, seen: Seen | None = None) -> bytes:
        """As bytes; with ``store`` its large parts are left out and stored, see parts.py.

        Raises PayloadError naming what cannot be pickled.
        """
        fields = (self.function, self.args, self.kwargs, self.chunk, self.logs)
        try:
            return dump(fields, seen) if store is None else dump(dump_parted(fields, store, seen))
        except PayloadError as error:
            kind = "call" if self.chunk else "argument"
            parts = {f"{kind} {i}": value for i, value in enumerate(self.args, 1)}
            parts.update((f"argument {name}", value) for name, value in self.kwargs.items())
            for name, value in parts.items():
                if not can_be_sent(value):
                    raise PayloadError(what_cannot(value, error.__cause__, name)) from error
            raise

    @classmethod
    def unpickled(
        cls,
        data: bytes,
        fetch: Callable[[str], bytes],
        use: Callable[[str], None] | None = None,
    ) -> Call:
        """The call again; ``fetch`` finds the parts that were left out, and ``use`` is told first
        which local modules its arguments need."""
        fields = load_here(data, "an argument", fetch)
        if len(fields) == 2:
            modules, data = fields
            if use is not None:
                use(modules)
            fields = load_here(data, "an argument", fetch)
        return cls(*fields)


def with_modules(call: bytes, modules: str) -> bytes:
    """A pickled call whose arguments need local modules: the bundle of that name."""
    return dump((modules, call))


def pickled_function(function: Callable[..., Any], pickled: bytes, modules: str = "") -> bytes:
    """A pickled function with what it needs to be loaded and to be understood: the name of the
    bundle of its local modules, and for readable tracebacks the source lines of its cell."""
    return dump((PYTHON, _cell_sources(function), pickled, modules))


def _cell_sources(function: Any, limit: int = 5) -> dict[str, list[str]]:
    """Source lines that exist in this process only, by the file name tracebacks will show."""
    sources: dict[str, list[str]] = {}
    todo, seen = [function], set()
    while todo and len(sources) < limit:
        item = inspect.unwrap(todo.pop()) if callable(todo[-1]) else todo.pop()
        code = getattr(item, "__code__", None)
        if code is None or code in seen:
            continue
        seen.add(code)
        # Notebooks register their cells without a time of change: such lines are in no file.
        name = code.co_filename
        entry: Any = linecache.cache.get(name)
        cell = entry and len(entry) == 4 and entry[1] is None and len(entry[2]) < 5_000
        if cell and name not in sources:
            sources[name] = entry[2]
        scope = getattr(item, "__globals__", {})
        todo.extend(scope[n] for n in code.co_names if inspect.isfunction(scope.get(n)))
    return sources


def load_function(data: bytes, use: Callable[[str], None] | None = None) -> Callable[..., Any]:
    """The function again; ``use`` is told first which local modules it needs.

    Raises WrongPython or ModuleMissing in words that say what to do.
    """
    python, sources, pickled, *modules = load(data)
    if python != PYTHON:
        raise WrongPython(
            f"the function was sent by Python {python[0]}.{python[1]} and this worker runs "
            f"{PYTHON[0]}.{PYTHON[1]}; use the same minor version on both sides"
        )
    for name, lines in sources.items():
        linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
    if use is not None and any(modules):
        use(modules[0])
    function: Callable[..., Any] = load_here(pickled, "the function")
    return function


def load_here(data: bytes, what: str, fetch: Callable[[str], bytes] | None = None) -> Any:
    """An object again, with the parts that were left out of its pickle where ``fetch`` is given;
    raises ModuleMissing where this process lacks what it is made of."""
    try:
        return load(data) if fetch is None else load_whole(load(data), fetch)
    except ModuleNotFoundError as error:
        raise ModuleMissing(
            f"the worker on {socket.gethostname()} has no module {error.name!r}, which {what} "
            "needs; install it there, or start the worker from the folder that holds it"
        ) from error
    except AttributeError as error:
        raise ModuleMissing(
            f"the worker on {socket.gethostname()} has another version of a module that {what} "
            f"needs ({error}); install the same one there, and restart the worker"
        ) from error


@dataclass(frozen=True, slots=True)
class QueueStore:
    """Where the functions, arguments and output of one queue's calls are."""

    blobs: Blobs
    logs_prefix: str
    stream: str
    """The queue's name on the server, to which the signatures of its tasks are bound."""


class CallHandler:
    """Makes the calls that clients send. What it raises is the function's own error, with a report
    for the post-mortem: locals, versions, and the last lines of output."""

    def __init__(self, signer: Signer, stores: Mapping[str, QueueStore], sink: LogSink) -> None:
        self._signer, self._stores, self._sink = signer, stores, sink
        self._functions: OrderedDict[str, tuple[Callable[..., Any], int, str]] = OrderedDict()
        self._functions_bytes = 0
        self._lock = threading.Lock()

    def __call__(self, payload: bytes, context: TaskContext) -> bytes:
        output, store = None, self._stores[context.queue]
        # The answer to a call that is bound to no task is bound to none either: else whoever has
        # an old call could make of it the signed result of a task of today.
        task, old = task_context(store.stream, context.task_id), is_old(payload)
        try:
            data = self._signer.unpack("call", task, payload, old=True)
            call = Call.unpickled(data, store.blobs.argument, partial(self._use, store.blobs))
            function = self._function(call.function, store.blobs)
            key = store.logs_prefix + context.task_id if call.logs else None
            output = TaskOutput(key, self._sink if call.logs else None)
            with captured(output):
                result = self._make(call, function, store.blobs)
            data = _dump_result(result)
            try:
                return self._signer.pack("result", task, data, old=old)
            except PayloadTooLarge as error:
                raise ResultTooLarge(error.size, error.limit) from None
        except BaseException as error:  # the user's function; passed on with a report
            with contextlib.suppress(BaseException):  # the error's own methods; it has a traceback
                context._report = self._report(error, output, task, old)
            raise

    def _make(self, call: Call, function: Callable[..., Any], blobs: Blobs) -> Any:
        if not call.chunk:
            args = tuple(self._resolve(a, blobs) for a in call.args)
            kwargs = {name: self._resolve(a, blobs) for name, a in call.kwargs.items()}
            return _finish(function(*args, **kwargs))
        shared: dict[str, Any] = {}
        return [
            _finish(function(*(self._resolve(a, blobs, shared) for a in args), **call.kwargs))
            for args in call.args
        ]

    def _resolve(self, argument: Any, blobs: Blobs, shared: dict[str, Any] | None = None) -> Any:
        if type(argument) is not Ref:
            return argument
        if shared is not None and argument.digest in shared:
            return shared[argument.digest]
        # Unpickled anew for every task: one that changes its argument changes its own copy.
        fetch = blobs.argument
        value = load_here(fetch(argument.digest), "an argument", fetch)
        if shared is not None:
            shared[argument.digest] = value
        return value

    def _function(self, digest: str, blobs: Blobs) -> Callable[..., Any]:
        with self._lock:
            known = self._functions.get(digest)
            if known is not None:
                self._functions.move_to_end(digest)
        if known is not None:
            if known[2]:  # another function may have been here since, with other modules
                self._use(blobs, known[2])
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
        if local_modules is not None:
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
        except BaseException:
            pass  # its type and text travel all the same
        return report


local_modules: Shipped | None = None
"""What imports the local modules of calls in this process; None where it must not."""


def import_local_modules() -> None:
    """From now on calls bring their local modules into this process, which is ours alone."""
    global local_modules
    if local_modules is None:
        local_modules = Shipped()


def _finish(result: Any) -> Any:
    if inspect.iscoroutine(result):
        return asyncio.run(result)
    if inspect.isgenerator(result):
        return list(result)
    if inspect.isasyncgen(result):
        return asyncio.run(_collect(result))
    return result


async def _collect(items: Any) -> list[Any]:
    return [item async for item in items]


def _dump_result(result: Any) -> bytes:
    try:
        return dump(result)
    except PayloadError as error:
        raise PayloadError(
            f"the function returned {type(result).__name__}, which cannot be sent back: {error}"
        ) from error


def _locals(error: BaseException) -> list[dict[str, Any]]:
    """The local variables of the innermost frames, shortened, and hidden where they look secret."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 120
    short.maxlist, short.maxdict, short.maxlevel = 8, 8, 3
    frames, tb = [], error.__traceback__
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
                except BaseException as broken:
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
    """The same handlers, and the one for function calls."""
    wider = Registry()
    for name, handler in registry.items():
        wider.add(name, handler)
    function = CallHandler(signer, stores, sink)
    never = (UntrustedPayload, WrongPython, ModuleMissing, BlobMissing, PayloadError)
    wider.add_handler(
        Handler(
            CALL,
            function,
            policy=RetryPolicy(retries=0, never_retry=never),
            wants_context=True,
            raw=True,
        )
    )
    return wider


__all__ = ["CALL", "Call", "CallHandler", "Ref", "load_function", "pickled_function", "with_calls"]

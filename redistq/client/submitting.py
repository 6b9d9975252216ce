"""What is sent with a client, and with options set: ``client.options(retries=3).submit(...)``."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Unpack, overload

from ..errors import RedistqError
from ..flows import Flow
from ..functions.scattered import Scattered
from ..protocol.options import (
    CallKeywords,
    CallOptions,
    listed,
    wait_seconds,
)
from . import submission
from .awaiting import countdown
from .batch import Batch
from .futures import StreamFuture, TaskFuture, flattened, in_order
from .graph import CallGraph, submit_flow
from .schedules import Scheduling
from .scope import BatchScope

if TYPE_CHECKING:
    import pandas as pd

    from .client import Client
    from .lazy import LazyCall, LazyFunction
    from .map_stream import ResultStream
    from .shared_graph import SharedGraph


class Submitting(Scheduling):
    """What can be done with a Client and with ``client.options(...)`` alike."""

    _options: CallOptions

    @property
    def _client(self) -> Client:
        raise NotImplementedError

    def submit(self, fn: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Call ``fn(*args, **kwargs)`` on a worker; return its future at once.

        A future among the arguments, anywhere in lists, dicts and other objects, stands for its
        result: the call runs when that task has succeeded, and takes the result from the server.
        So does a batch, for the list of its results. When such a task fails this one never runs,
        and its error, a TaskCancelled, says why.

        A name instead of a function sends the task of that name, with one JSON payload. Raises
        PayloadError naming what cannot be pickled, and RuntimeError after ``shutdown``.
        """
        try:
            return submission.submit(self._client._session, fn, args, kwargs, self._options)
        except RedistqError as error:  # it says what is wrong; the cell's line is where
            BaseException.with_traceback(error, None)
            raise

    def stream(self, fn: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> StreamFuture:
        """Call a generator function on a worker; return a future whose items can be iterated over
        as they come, ``for item in client.stream(fn, ...)``, or with ``async for``.

        Its result is how many items there are: all of them are in its stream, from any kernel
        (``client.future(task_id).stream()``), as long as a result is kept. The function waits while
        much of what it has yielded was not read by anybody. Otherwise as ``submit``, where a
        generator's result is the list of its items.
        """
        session = self._client._session
        future = submission.submit(session, fn, args, kwargs, self._options, kind=StreamFuture)
        assert isinstance(future, StreamFuture)
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[Any]:
        """Return the results of ``fn`` over the items, in order, as Executor.map.

        All calls are sent before this returns. ``chunksize`` calls travel as one task. A large
        argument that several calls share (the same object) is stored once.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        timeout = wait_seconds(timeout)
        left = countdown(timeout)
        session = self._client._session
        futures = submission.map_calls(session, fn, iterables, chunksize, self._options)
        results = in_order(futures, left, timeout)
        return results if chunksize == 1 else flattened(results)

    def map_stream(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        window: int = 1000,
        timeout: float | None = None,
        chunksize: int = 1,
        ordered: bool = True,
        on_error: str = "raise",
    ) -> ResultStream:
        """Return the results of ``fn`` over the items, for ``for`` or ``async for``, with at most
        ``window`` items under way whose results were not taken yet.

        Items are taken one by one when there is room, where results are asked for, so the iterables
        may be generators without an end, and async ones with ``async for``. Results come in the
        order of the items, or with ``ordered=False`` as they are there. ``on_error``: "raise" an
        error in its place; "skip" it, or "return" it there. ``timeout`` (seconds from now) and
        ``chunksize`` are those of ``map``; a chunk of which a call has failed is sent again call by
        call, unless errors are raised.

        When an error is raised, or this is closed, what has not started is cancelled. For results
        that outlive this process: ``map_batch``.
        """
        timeout = wait_seconds(timeout)
        submission.check_function(fn, "map_stream")
        if not iterables:
            raise TypeError("map_stream takes one iterable or more: client.map_stream(fn, items)")
        from .map_stream import How, ResultStream

        session, options = self._client._session, self._options

        def submit(rows: Sequence[tuple[Any, ...]]) -> TaskFuture:
            if len(rows) == 1:
                return submission.submit(session, fn, rows[0], {}, options)
            return submission.submit(session, fn, tuple(rows), {}, options, chunk=True)

        return ResultStream(submit, iterables, How(window, chunksize, ordered, on_error), timeout)

    def scatter(self, value: Any) -> Scattered:
        """Store a value on the server, once, under its content's name; return what stands for it
        as an argument of any call, anywhere in lists, dicts and other objects.

        ``with client.scatter(df) as data: client.map(fn, [data] * 8, range(8))``: each call gets a
        copy of its own, and a worker process reads it once. It is kept until ``release()``, or
        until nothing holds it, and as long as calls that were sent need it. Raises PayloadError
        naming what cannot be pickled, and PayloadTooLarge for a part above 256 MiB.
        """
        return self._client._session.packer.scatter(value)

    def map_batch(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any],
        *,
        name: str | None = None,
        resume: bool = True,
        progress: bool | None = None,
    ) -> Batch:
        """Call ``fn(item)`` for every item, as a durable batch; see Batch.

        With a ``name`` the batch can be found again from another kernel (``client.batch(name)``),
        and the same call made again sends only what is not there yet. A result is used again where
        function and item are the same as then; other items, and all of another function, run
        anew, which is said. ``resume="items"`` looks at the items alone, so that what a mended
        function did before counts; ``resume=False`` raises ConfigurationError when the name is
        taken. More items than the batch has are added to it, where those that it has come first;
        otherwise another number of items raises ConfigurationError, too, and so does a batch that
        is still at work on other calls. PayloadError names what cannot be compared. ``progress``
        shows a bar while results are waited for (None: when somebody looks at the output).
        """
        session = self._client._session
        try:
            return Batch.start(session, self._options, fn, items, name, resume, progress)
        except RedistqError as error:  # as of submit
            BaseException.with_traceback(error, None)
            raise

    def run(self, flow: Flow) -> Any:
        """Send the tasks of a flow (redistq.chain, group, chord, map_reduce); return the future of
        its end, or a list of futures where it ends in a group.

        Each function takes the result of what comes before it as its last argument.
        """
        return submit_flow(self._client._session, flow, self._options)

    @overload
    def graph(self, name: str) -> CallGraph: ...
    @overload
    def graph(self, name: None = None) -> SharedGraph: ...
    def graph(self, name: str | None = None) -> CallGraph | SharedGraph:
        """Return a graph: to be written, ``with client.graph("etl") as graph``, or one of that name
        that was sent before; see Graph.

        Without a name, each of its calls is named by its code and what it is given: run again, from
        here or from another notebook, it runs only what has changed; see SharedGraph.
        """
        if name is not None:
            return CallGraph(self._client._session, self._options, name)
        from .shared_graph import SharedGraph

        return SharedGraph(self, self._options)

    def _graph_of(self, call: LazyCall, *, send: bool) -> SharedGraph:
        from .shared_graph import SharedGraph

        return SharedGraph.of(self, [call], send=send)

    def lazy(self, fn: Callable[..., Any]) -> LazyFunction:
        """Decorate a function: its calls are written down, and sent when a result is asked for.

        ``a = load("x"); b = clean(a); b.compute()`` sends both, and nothing of ``a`` comes through
        this process. Results are kept for a week, or ``client.options(cache=...)``, and found again
        by whoever makes the same calls of the same code; see LazyCall.
        """
        from .lazy import lazy_function

        return lazy_function(self, self._options, fn)

    def dask_get(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        """Run a Dask graph on workers: ``dask.compute(x, scheduler=client.dask_get)``, or
        ``dask.config.set(scheduler=client.dask_get)`` for all collections.

        Each task of the graph is a call; intermediate results go from worker to worker. Dask's own
        options of schedulers (``num_workers``, ...) have no effect here.
        """
        from .dask import compute_graph

        return compute_graph(self._client._session, self._options, dsk, keys)

    def batch_scope(self) -> BatchScope:
        """Return a block whose work does not outlive it: leaving it by an error or an interrupt
        cancels what has not started; leaving it normally waits for all of it."""
        return BatchScope(self._client._session, self._options)

    def map_frame(
        self, fn: Callable[[pd.DataFrame], Any], df: pd.DataFrame, *, chunks: int | None = None
    ) -> pd.DataFrame:
        """Return one DataFrame of ``fn(part)`` over consecutive parts of ``df``, in their order.

        ``fn`` takes and returns a DataFrame (or Series). ``chunks`` defaults to four a worker.
        """
        from .dataframes import map_frame

        if chunks is None:
            chunks = 4 * self._client.worker_count()
        return map_frame(self.map, fn, df, chunks)

    def map_groups(self, fn: Callable[[pd.DataFrame], Any], groups: Any) -> Any:
        """Return what ``df.groupby(...).apply(fn)`` gives, with ``fn`` called on workers.

        ``fn`` sees its group with the key's columns, and the key as ``group.name``. Rows of a
        function that keeps each group's index come back in the order of the frame that was grouped
        (whatever ``group_keys`` says); everything else is as pandas puts it together.
        """
        from .dataframes import map_groups

        return map_groups(self.map, fn, groups)


class BoundOptions(Submitting):
    """A client with options set: ``client.options(retries=3).submit(...)``."""

    def __init__(self, client: Client, options: CallOptions) -> None:
        self._bound = client
        self._options = options

    @property
    def _client(self) -> Client:
        return self._bound

    @listed(CallKeywords)
    def options(self, **options: Unpack[CallKeywords]) -> BoundOptions:
        """Return the same options with some changed."""
        return BoundOptions(self._bound, self._options.changed(options))

    def __repr__(self) -> str:
        return f"{self._client!r}.options({self._options})"

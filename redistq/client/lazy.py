"""Lazy calls: function calls that are written down first, and sent as one when a result is asked
for. ``client.lazy`` makes them, ``redistq.compute`` asks for several.

Each is a cached call: its task is named by the code and what it is given, the calls among its
arguments included. So a notebook that is run again from the top runs only what has changed, and two
notebooks that want the same share one run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..display.html import badge, escape, panel
from ..errors import ConfigurationError
from ..functions.packing import label
from ..functions.references import Referable, Reference
from ..protocol.options import CallOptions, wait_seconds
from .awaiting import countdown
from .futures import TaskFuture, exception_within
from .outcomes import NotRun
from .submission import Burst, check_function, submit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .session import Session
    from .shared_graph import SharedGraph
    from .submitting import Submitting

_PORTION = 200
"""Calls that are packed before they are sent together."""
KEPT_S = 7 * 86_400.0
"""Seconds that results of lazy calls are kept, and found again, where nothing else is said."""


class LazyCall(Referable):
    """A call that is sent when its result is asked for; until then it costs nothing.

    As an argument of another lazy call, anywhere in lists, tuples, sets and dicts, it stands for
    its result, which goes from worker to worker. ``compute()`` returns the result, ``submit()`` a
    future; ``await call`` does as well. ``graph()`` is all that it is made of, to look at and to
    act on.
    """

    __slots__ = ("_future", "args", "client", "fn", "kwargs", "options", "parents")

    def __init__(
        self,
        client: Submitting,
        options: CallOptions,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        parents: dict[int, LazyCall] = {}
        self.client = client
        self.options = options
        self.fn = fn
        self.args: tuple[Any, ...]
        self.kwargs: dict[str, Any]
        # Lists and dicts that hold other calls are copied: whatever is done to them later.
        note = noting(parents)
        self.args = _replaced(args, note)[0]
        self.kwargs = _replaced(kwargs, note)[0]
        self.parents = tuple(parents.values())
        self._future: TaskFuture | None = None

    @property
    def name(self) -> str:
        """What it is called where it is shown."""
        return self.options.name or label(self.fn)

    # -- sending ---------------------------------------------------------------------------------

    def submit(self) -> TaskFuture:
        """Send it, and before it what it depends on, where that is not done or under way already;
        return its future at once."""
        if self._future is None:
            send_all(in_order([self]))
        assert self._future is not None
        return self._future

    def forget_failed(self) -> bool:
        """Have it sent again, when it is asked for, where it has not succeeded; return whether."""
        future = self._future
        if future is None or not future.done() or future.state == "succeeded":
            return False
        self._future = None
        return True

    def compute(self, timeout: float | None = None) -> Any:
        """Return its result; raises what it raised, or a call that it needs, and ResultTimeout
        after ``timeout`` seconds, while it goes on."""
        __tracebackhide__ = True
        try:
            return self.submit().result(timeout)
        except NotRun as error:
            found = _first_of(error)
        raise found  # not above: its own cause is its traceback on the worker

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self.submit().__await__())
        except NotRun as error:
            found = _first_of(error)
        raise found  # not above: its own cause is its traceback on the worker

    def graph(self) -> SharedGraph:
        """Return what it is made of, sent now: counts(), nodes(), plot(), wait(), cancel()."""
        return self.client._graph_of(self, send=True)

    def visualize(self, *, ax: Axes | None = None) -> Figure:
        """Draw what it is made of, in the colours of the states; nothing is sent for it."""
        return self.client._graph_of(self, send=False).plot(ax=ax)

    # -- as an argument of another call ----------------------------------------------------------

    def reference(self) -> Reference | None:
        """Return what stands for its result."""
        return self.submit().reference()

    def prepare(self, client: Any) -> None:
        """Have it on the server before what depends on it."""
        self.submit().prepare(client)

    def failure(self) -> BaseException | None:
        """Return why it has no result, as far as that is known here."""
        return None if self._future is None else self._future.failure()

    def identity(self) -> str:
        """Return what names its result."""
        return self.submit().identity()

    def known_result(self) -> Any:
        """Return the result that is here."""
        return self.submit().known_result()

    # -- looks -----------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """ "not sent", pending, succeeded, failed or cancelled, as far as this process knows."""
        return "not sent" if self._future is None else self._future.state

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(
            f"how many items the result of {self.name} has is not known before it is computed: "
            "iterate over call.compute(), or call a function that takes the whole"
        )

    def __bool__(self) -> bool:
        raise TypeError(
            f"whether the result of {self.name} is true is not known before it is computed: ask "
            "call.compute(), or decide in a function that runs on a worker"
        )

    def __repr__(self) -> str:
        return f"<LazyCall {self.name} {self.state}>"

    def _repr_html_(self) -> str:
        rows = [("runs after", f"{len(self.parents):,} other calls")] if self.parents else []
        rows.append(("next", escape(".compute(), .submit() or .visualize()")))
        return panel(f"LazyCall {self.name}", badge(self.state), rows)


class LazyFunction:
    """A function whose calls are written down, not sent; see LazyCall. ``fn.__wrapped__`` is the
    function itself, which runs here."""

    def __init__(self, client: Submitting, options: CallOptions, fn: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fn)
        self._client = client
        self._options = options
        self._fn = fn

    def __call__(self, *args: Any, **kwargs: Any) -> LazyCall:
        return LazyCall(self._client, self._options, self._fn, args, kwargs)

    def options(self, **options: Any) -> LazyFunction:
        """Return it with options of its calls changed: those of Client.options."""
        return LazyFunction(self._client, self._options.changed(options), self._fn)

    def __reduce__(self) -> Any:
        # In a function that is sent it is the function itself: workers have no client of ours.
        return _as_it_is, (self._fn,)

    def __repr__(self) -> str:
        return f"<lazy {label(self._fn)}>"


def _as_it_is(value: Any) -> Any:
    return value


def lazy_function(client: Submitting, options: CallOptions, fn: Any) -> LazyFunction:
    """Return a function whose calls are lazy; raises TypeError for what is none."""
    if isinstance(fn, LazyFunction):
        fn = fn._fn
    check_function(fn, "lazy")
    return LazyFunction(client, kept(options), fn)


def kept(options: CallOptions) -> CallOptions:
    """Return options under which results are kept, and found again."""
    if options.delay is not None:
        raise ConfigurationError(
            "a lazy call has no delay: it is sent when its result is asked for; "
            "for a call at a time: client.options(delay=...).submit(fn, ...)"
        )
    return options if options.cache is not None else options.changed({"cache": KEPT_S})


def in_order(calls: Iterable[LazyCall], *, sent_too: bool = False) -> list[LazyCall]:
    """Return these and all that they depend on, each after its parents; of those that are sent
    already nothing, or all as well."""
    found: dict[int, LazyCall] = {}
    stack: list[tuple[LazyCall, bool]] = [(call, False) for call in calls]
    stack.reverse()
    while stack:
        call, is_ready = stack.pop()
        if id(call) in found or (call._future is not None and not sent_too):
            continue
        if is_ready:
            found[id(call)] = call
        else:
            stack.append((call, True))
            stack += [(parent, False) for parent in reversed(call.parents)]
    return list(found.values())


def send_all(calls: Iterable[LazyCall]) -> None:
    """Send calls, each after its parents, in few requests; those that are sent already are not."""
    sending = _Sending()
    try:
        for call in calls:
            if call._future is None:
                sending.add(call)
    finally:  # after an error or an interrupt too: those before it are sent
        sending.hand_over()


class _Sending:
    """Lazy calls on their way. Each has its future once it is on its way: what another thread sends
    that depends on it comes after it."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._burst = Burst()
        self._made: dict[int, tuple[LazyCall, TaskFuture]] = {}

    def add(self, call: LazyCall) -> None:
        """Pack a call, and send it with others."""
        session = call.client._client._session
        if session is not self._session:
            self.hand_over()
            self._session, self._burst = session, Burst()
        # Futures instead of calls: what is pickled has no way back to this process.
        args = _replaced(call.args, self._future_of)[0]
        kwargs = _replaced(call.kwargs, self._future_of)[0]
        future = submit(session, call.fn, args, kwargs, call.options, burst=self._burst)
        self._made[id(call)] = call, future
        if len(self._made) >= _PORTION:
            self.hand_over(more=True)

    def _future_of(self, call: LazyCall) -> TaskFuture:
        made = self._made.get(id(call))
        return call.submit() if made is None else made[1]

    def hand_over(self, *, more: bool = False) -> None:
        """Send what was packed; where ``more`` is to come soon, beside this thread."""
        made, self._made = self._made, {}
        ready, self._burst.ready = self._burst.ready, []
        if self._session is not None and ready:
            self._session.exchange.send_many(ready, more=more)
            for call, future in made.values():
                call._future = future
        if self._session is not None and not more:
            self._session.blobs.drop(self._burst.held)
            self._burst = Burst()


def _first_of(error: NotRun) -> BaseException:
    """Return the error of the call that failed, for want of which another did not run; as far as it
    is known."""
    return error if error.__cause__ is None else error.__cause__


def compute(*values: Any, timeout: float | None = None) -> Any:
    """Return the values with results in place of the lazy calls in them; several as a tuple.

    All calls are sent before any is waited for. Raises what the first call raised that failed, and
    ResultTimeout after ``timeout`` seconds, while they go on.
    """
    __tracebackhide__ = True
    timeout = wait_seconds(timeout)
    left = countdown(timeout)
    found: dict[int, LazyCall] = {}
    copies = [_replaced(value, noting(found))[0] for value in values]
    send_all(in_order(found.values()))

    def result(call: LazyCall) -> Any:
        __tracebackhide__ = True
        exception_within(call.submit(), left, timeout)
        return call.compute()

    results = [_replaced(copy, result)[0] for copy in copies]
    return results[0] if len(results) == 1 else tuple(results)


def noting(found: dict[int, LazyCall]) -> Callable[[LazyCall], LazyCall]:
    """Return what leaves each call as it is, and notes it."""

    def note(call: LazyCall) -> LazyCall:
        found[id(call)] = call
        return call

    return note


def _replaced(value: Any, put: Callable[[LazyCall], Any]) -> tuple[Any, bool]:
    """Return a value with something else in place of the lazy calls in its lists, tuples, sets and
    dicts, which are copied then; and whether there were any."""
    kind = type(value)
    if kind is LazyCall:
        return put(value), True
    if kind in _CONTAINERS:
        kinds = {*map(type, value)}
        if _HOLDERS.isdisjoint(kinds):  # the usual
            if LazyCall not in kinds:
                return value, False
            return kind([put(item) if type(item) is LazyCall else item for item in value]), True
        pairs = [_replaced(item, put) for item in value]
        if any(holds for _, holds in pairs):
            return kind([item for item, _ in pairs]), True
    elif kind is dict:
        items = {key: _replaced(item, put) for key, item in value.items()}
        if any(holds for _, holds in items.values()):
            return {key: item for key, (item, _) in items.items()}, True
    return value, False


_CONTAINERS = frozenset({list, tuple, set, frozenset})
_HOLDERS = _CONTAINERS | {dict}

"""What running tasks yield: what the context of an attempt knows of it.

``AttemptItems`` is made for each context, and costs nothing until a handler yields. Then its items
go by a buffer (item_buffer.py), or, where they are all in the task's result, to readers alone
(collecting.py); the thread of the worker process's writer sends them (item_writer.py).

If this process dies after any line, what the server has is a beginning of what was yielded, with
nothing missing in it; another attempt begins anew, or asks where to go on.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import RedistqError
from ..protocol.items import Standing
from ..protocol.options import count
from .collecting import Collected
from .item_buffer import Encode, Join, Yielded

if TYPE_CHECKING:
    from .item_writer import ItemWriter
    from .queues import WorkerQueue
    from .sealed import TaskSeal

WINDOW = 16 * 1024 * 1024
"""Bytes that nobody has read, with which the next ``yield`` waits."""
KEEP = 64 * 1024 * 1024
"""Bytes that are kept of what was read."""
LIFE_MS = 30 * 86_400_000
"""How long items are kept after the last of them, while their task has not ended."""
COLLECTED_MS = 86_400_000
"""The same, at least, where all of them are in the result."""
ID_TTL_MS = 60_000
"""How long they are kept where the task's result is not: as long as its id."""


class AttemptItems:
    """What one attempt yields, as its context knows it."""

    __slots__ = (
        *(
            "_asked",
            "_collected",
            "_queue",
            "_seal",
            "_standing",
            "_ttl",
            "entry",
            "id",
            "keep",
            "open",
        ),
        "window",
    )

    def __init__(
        self,
        queue: WorkerQueue,
        entry: bytes,
        task_id: str,
        ttl: str,
        seal: TaskSeal | None = None,
    ) -> None:
        """``ttl`` is how long a result of the task is kept, ms; ``seal`` seals what it yields."""
        self._seal = seal
        self._queue = queue
        self.entry = entry
        self.id = task_id
        self._ttl = ttl
        self._asked = False
        self._collected: Collected | None = None
        self._standing: Standing | None = None
        self.window: int | None = WINDOW
        self.keep = KEEP
        self.open: Yielded | None = None
        """Its items, once the handler is known to yield."""

    # -- what handlers say -----------------------------------------------------------------------

    def position(self) -> int:
        """See TaskContext.stream_position."""
        if self._collected is not None:
            return len(self._collected.items)
        if self.open is not None and self.open.generation:
            return self.open.position
        self._asked = True
        return self._load().next

    def bound(self, window: int | None, keep: int) -> None:
        """See TaskContext.stream_bounds."""
        if window is not None:
            window = count("window", window, least=1, most=1 << 40)
        self.keep = max(count("keep", keep, least=0, most=1 << 40), window or 0)
        self.window = window

    # -- for what drains the generator -----------------------------------------------------------

    def begin(self, encode: Encode, join: Join) -> None:
        """Take items from now on; asks the server how far they are."""
        writer = self._writer()
        self._load()
        if self._seal is not None:
            join = self._seal.joined(join)
        self.open = self._yielded(writer, encode, join)

    def collect(self, encode: Encode, join: Join) -> Collected:
        """Take items from now on that are all in the task's result."""
        writer = self._writer()
        open_stream = partial(self._yielded, writer, encode, join)
        self._collected = collected = Collected(self, self._queue, writer, open_stream)
        writer.watch(collected)
        return collected

    def _yielded(self, writer: ItemWriter, encode: Encode, join: Join) -> Yielded:
        return Yielded(self, self._queue, writer, encode, join)

    def _writer(self) -> ItemWriter:
        writer = self._queue.item_writer
        if writer is None:
            raise RedistqError("this worker cannot stream what tasks yield")
        return writer

    def _load(self) -> Standing:
        if self._standing is None:
            broker = self._queue.broker
            if broker is None:
                raise RedistqError("this worker cannot read what the attempt before has yielded")
            self._standing = Standing.read(broker.call(self._queue.commands.items_of(self.id)))
        return self._standing

    def where(self) -> tuple[int, int, bool]:
        """Return the generation and index of this attempt's first item, and whether there are
        items of an attempt before that it has to drop, or follows on."""
        standing = self._load()
        if self._asked and standing.generation and self._collected is None:
            return standing.generation, standing.next, True
        if standing.generation:
            return standing.generation + 1, 0, standing.next > 0
        # Unlike that of an earlier task with this id, of which somebody may have a cursor.
        return int(self.entry.partition(b"-")[0]), 0, False

    def life_ms(self, has_succeeded: bool) -> int:
        """Return how long the items are kept from now on."""
        if self._collected is not None:  # all of them are in the result
            return max(int(self._ttl), COLLECTED_MS)
        if not has_succeeded:
            return LIFE_MS
        return int(self._ttl) or ID_TTL_MS

    def put(self, item: Any) -> None:
        """Take an item; waits while there is no room."""
        assert self.open is not None
        self.open.put(item)

    def put_now(self, item: Any) -> bool:
        """Take an item; return whether there is room for the next."""
        assert self.open is not None
        return self.open.put_now(item)

    async def room(self) -> None:
        """Wait for room, in an event loop."""
        assert self.open is not None
        await self.open.room()

    def end(self, *, failed: bool) -> int:
        """Have all items on the server; return how many there are."""
        assert self.open is not None
        return self.open.end(failed)

    async def aend(self, *, failed: bool) -> int:
        """As ``end``, in an event loop."""
        assert self.open is not None
        return await self.open.aend(failed)

"""Tables of a batch's results: one DataFrame, or a Parquet file.

Used by batches. Results are read page by page, so many that a page holds about PAGE_BYTES; a file
is written as they come. pandas and pyarrow are imported here when they are needed.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, TaskCancelled, TaskExpired, UnknownTask
from ..functions.spill import LONGEST_NOTE
from ..protocol.keys import batch_task_id
from ..system.interpreter import require

if TYPE_CHECKING:
    import pandas as pd

    from .outcomes import BatchEnds
    from .queues import ClientQueue

PAGE = 100
"""Most results that are read together."""
PAGE_BYTES = 32 * 1024 * 1024
"""Bytes of stored results that are read together, about; one that is larger comes alone."""
RESULT = "result"
"""The column of results that are no rows."""
POSITION = "position"
"""What says of which item a row is."""

End = tuple[int, Any, BaseException | None]
"""Position, result, and error of a task that has ended."""


class BatchTables:
    """What a batch can do with its results as a table; the batch itself is batch.py's."""

    id: str
    total: int

    def to_frame(
        self: Any,
        *,
        index: Sequence[Any] | None = None,
        on_error: str = "raise",
        timeout: float | None = None,
    ) -> pd.DataFrame:
        """Return all results as one DataFrame, in the order of the items.

        A dict, a Series, a dataclass or a named tuple is a row; a DataFrame, an Arrow table, or a
        list of dicts is as many rows as it has; anything else stands in the column "result". The
        index is the item's position, as of ``failures()``; ``index`` gives a label of your own for
        each item. What is no plain range in the index of a DataFrame that was returned becomes
        columns.

        ``on_error``: "raise" the first error, "skip" items that failed, or "return" a row for each
        of them: then the columns "state" and "error" say of every row how its task ended. Raises
        ResultTimeout after ``timeout`` seconds.
        """
        __tracebackhide__ = True
        pandas = require("pandas", "notebook", "DataFrames")
        labels = None if index is None else list(index)
        if labels is not None and len(labels) != self.total:
            raise ConfigurationError(
                f"the index has {len(labels):,} labels, and the batch {self.total:,} items"
            )
        parts = [_frame(page, on_error == "return") for page in self._ended(timeout, on_error)]
        parts = [part for part in parts if len(part)] or parts[:1]
        if not parts:
            parts = [pandas.DataFrame(index=pandas.Index([], dtype="int64"))]
        frame: pd.DataFrame = pandas.concat(parts) if len(parts) > 1 else parts[0]
        frame.index.name = POSITION
        if labels is not None:
            frame.index = pandas.Index([labels[i] for i in frame.index], name="item")
        return frame

    def to_parquet(
        self: Any,
        path: str | os.PathLike[str],
        *,
        on_error: str = "raise",
        timeout: float | None = None,
        compression: str = "zstd",
    ) -> int:
        """Write all results to a Parquet file, in the order of the items; return how many rows.

        Rows and ``on_error`` are as of ``to_frame``, with the item's position as the column
        "position". Results are read page by page, and no more than a page is held here. The file is
        there when it is whole; one that was there before is replaced then. Raises TypeError where
        results of one column are of types that no column can hold.
        """
        __tracebackhide__ = True
        arrow = require("pyarrow", "arrow", "Parquet files")
        require("pandas", "notebook", "DataFrames")
        with _ParquetFile(Path(path), compression) as file:
            for page in self._ended(timeout, on_error):
                frame = _frame(page, on_error == "return")
                frame.insert(0, POSITION, frame.index, allow_duplicates=True)
                try:
                    table = arrow.Table.from_pandas(frame, preserve_index=False)
                except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
                    raise TypeError(f"{_MIXED} ({error})") from error
                file.write(table.replace_schema_metadata(None))
            return file.rows

    def _ended(self: Any, timeout: float | None, on_error: str) -> Iterator[list[End]]:
        """Wait for all, then yield what came of them, in their order, page by page."""
        __tracebackhide__ = True
        self._wait_for_all(timeout, on_error)
        for indexes in _pages(self._queue, self.id, self.total):
            yield _read(self, self._ends, indexes, on_error)


def _read(batch: Any, ends: BatchEnds, indexes: Sequence[int], on_error: str) -> list[End]:
    __tracebackhide__ = True
    return [end for end in ends.read(indexes) if not batch._is_left_out(end[2], on_error)]


def _pages(queue: ClientQueue, batch_id: str, total: int) -> Iterator[list[int]]:
    """Yield the positions of results that are read together."""
    session = queue.session()
    spill = session.settings.spill if session is not None else None
    for start in range(0, total, PAGE):
        asked = range(start, min(start + PAGE, total))
        sizes = queue.broker.call_all(
            [queue.commands.result_size(batch_task_id(batch_id, i)) for i in asked]
        )
        page: list[int] = []
        held = 0
        for i, size in zip(asked, sizes, strict=True):
            if spill is not None and 0 < size <= LONGEST_NOTE:
                size = int(spill.above)  # it may be the note of one as large
            if page and held + size > PAGE_BYTES:
                yield page
                page, held = [], 0
            page.append(i)
            held += size
        yield page


# -- rows ------------------------------------------------------------------------------------------


def _frame(page: list[End], with_states: bool) -> pd.DataFrame:
    """Return the rows of a page, by position. Results of one kind that follow each other become
    rows together, which is quicker than one by one."""
    pandas = require("pandas", "notebook", "DataFrames")
    parts: list[Any] = []
    for is_table, group in itertools.groupby(page, lambda end: end[2] is None and _is_table(end)):
        ends = list(group)
        if is_table:
            parts += [_rows_of(value, position) for position, value, _ in ends]
            continue
        rows = [_row_of(value) if error is None else {} for _, value, error in ends]
        parts.append(pandas.DataFrame(rows, index=[position for position, _, _ in ends]))
    if not parts:
        return pandas.DataFrame(index=pandas.Index([], dtype="int64"))
    frame = pandas.concat(parts) if len(parts) > 1 else parts[0]
    if with_states:
        states = {position: _state(error) for position, _, error in page}
        for name, at in (("state", 0), ("error", 1)):
            frame[name] = [states[position][at] for position in frame.index]
    return frame


def _is_table(end: End) -> bool:
    value = end[1]
    if type(value) is list:
        return bool(value) and all(isinstance(row, Mapping) for row in value)
    return hasattr(value, "to_pandas") or (hasattr(value, "iloc") and hasattr(value, "columns"))


def _rows_of(value: Any, position: int) -> Any:
    """Return a result that is several rows."""
    pandas = require("pandas", "notebook", "DataFrames")
    frame = value.to_pandas() if hasattr(value, "to_pandas") else value
    if not isinstance(frame, pandas.DataFrame):
        frame = pandas.DataFrame(frame)
    elif not isinstance(frame.index, pandas.RangeIndex):
        frame = frame.reset_index()
    return frame.set_axis(pandas.Index([position] * len(frame), dtype="int64"), axis=0)


def _row_of(value: Any) -> Mapping[Any, Any]:
    """Return a result that is one row, by column."""
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return dict(value._asdict())
    if hasattr(value, "iloc") and hasattr(value, "to_dict"):  # a Series
        return dict(value.to_dict())
    return {RESULT: value}


def _state(error: BaseException | None) -> tuple[str, str | None]:
    if error is None:
        return "succeeded", None
    words = f"{type(error).__name__}: {error}"
    kinds = ((TaskCancelled, "cancelled"), (TaskExpired, "expired"), (UnknownTask, "unknown"))
    return next((name for kind, name in kinds if isinstance(error, kind)), "failed"), words


# -- Parquet ---------------------------------------------------------------------------------------

_MIXED = "the results of one column are of types that no column of a Parquet file can hold"


class _ParquetFile:
    """A Parquet file that is written table by table, beside its place until it is whole.

    Where a later table has other columns, or wider types, what was written is written again under
    the schema of both, one row group at a time.
    """

    def __init__(self, path: Path, compression: str) -> None:
        self._arrow = require("pyarrow", "arrow", "Parquet files")
        self._parquet = require("pyarrow.parquet", "arrow", "Parquet files")
        self._path = path
        self._compression = compression
        self._schema: Any = None
        self._writer: Any = None
        self._unfinished = self._new_name()
        self.rows = 0

    def _new_name(self) -> Path:
        return self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}.unfinished")

    def write(self, table: Any) -> None:
        """Add the rows of a table; raises TypeError where their types and those before do not go
        into one column."""
        if self._schema is None:
            self._open(table.schema)
        elif not table.schema.equals(self._schema):
            try:
                both = self._arrow.unify_schemas(
                    [self._schema, table.schema], promote_options="permissive"
                )
            except (self._arrow.ArrowInvalid, self._arrow.ArrowTypeError) as error:
                raise TypeError(f"{_MIXED} ({error})") from error
            if not both.equals(self._schema):
                self._widen(both)
        self._writer.write_table(self._as(table))
        self.rows += table.num_rows

    def _open(self, schema: Any) -> None:
        self._schema = schema
        self._writer = self._parquet.ParquetWriter(
            self._unfinished, schema, compression=self._compression
        )

    def _widen(self, schema: Any) -> None:
        self._writer.close()
        before = self._unfinished
        self._unfinished = self._new_name()
        try:
            self._open(schema)
            with self._parquet.ParquetFile(before) as file:
                for group in range(file.num_row_groups):
                    self._writer.write_table(self._as(file.read_row_group(group)))
        finally:
            before.unlink(missing_ok=True)

    def _as(self, table: Any) -> Any:
        """Return a table under the file's schema; what it has not is null."""
        columns = [
            table.column(field.name).cast(field.type)
            if field.name in table.column_names
            else self._arrow.nulls(table.num_rows, field.type)
            for field in self._schema
        ]
        return self._arrow.table(columns, schema=self._schema)

    def __enter__(self) -> _ParquetFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._writer is None:
                self._open(self._arrow.schema([(POSITION, self._arrow.int64())]))
            if self._writer is not None:
                self._writer.close()
            if kind is None:
                os.replace(self._unfinished, self._path)
        finally:
            self._unfinished.unlink(missing_ok=True)

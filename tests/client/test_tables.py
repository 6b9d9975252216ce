"""Results of a batch as a table: a DataFrame, or a Parquet file written page by page."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.clients import KEY, serving

from redistq import Client, ConfigurationError, ResultTimeout
from redistq.client import tables


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


def odd_fails(n: int) -> dict[str, int]:
    if n % 2:
        raise ValueError(f"{n} is odd")
    return {"n": n, "square": n * n}


@dataclasses.dataclass
class Point:
    x: int
    y: int


Pair = collections.namedtuple("Pair", "x y")


def test_scalars_stand_in_a_column_by_position(client: Client) -> None:
    """In the order of the items; or with labels of one's own."""
    batch = client.map_batch(abs, [-3, 2, -1])
    frame = batch.to_frame()
    assert frame.index.name == "position"
    assert frame["result"].to_dict() == {0: 3, 1: 2, 2: 1}
    named = batch.to_frame(index=["a", "b", "c"])
    assert named.index.name == "item"
    assert named["result"].to_dict() == {"a": 3, "b": 2, "c": 1}
    with pytest.raises(ConfigurationError, match="2 labels, and the batch 3 items"):
        batch.to_frame(index=["a", "b"])


@pytest.mark.parametrize("kind", ["dict", "series", "dataclass", "namedtuple"])
def test_a_row_is_a_row(client: Client, kind: str) -> None:
    """Whatever it is written as."""

    def row(n: int) -> object:
        if kind == "dict":
            return {"x": n, "y": -n}
        if kind == "series":
            return pd.Series({"x": n, "y": -n})
        return Point(n, -n) if kind == "dataclass" else Pair(n, -n)

    frame = client.map_batch(row, range(3)).to_frame()
    assert frame.to_dict("list") == {"x": [0, 1, 2], "y": [0, -1, -2]}


@pytest.mark.parametrize("kind", ["frame", "arrow", "dicts"])
def test_several_rows_have_the_position_of_their_item(client: Client, kind: str) -> None:
    """One item may have none."""

    def rows(n: int) -> object:
        if kind == "dicts":
            return [{"n": n, "i": i} for i in range(n)] or pd.DataFrame({"n": [], "i": []})
        frame = pd.DataFrame({"n": [n] * n, "i": range(n)})
        return pa.Table.from_pandas(frame) if kind == "arrow" else frame

    frame = client.map_batch(rows, [2, 0, 1]).to_frame()
    assert list(frame.index) == [0, 0, 2]
    assert frame.to_dict("list") == {"n": [2, 2, 1], "i": [0, 1, 0]}


def test_an_index_that_says_something_becomes_a_column(client: Client) -> None:
    """As what groupby returns."""

    def counted(word: str) -> pd.DataFrame:
        return pd.DataFrame({"letter": list(word)}).groupby("letter").size().to_frame("count")

    frame = client.map_batch(counted, ["abba", "cab"]).to_frame()
    assert list(frame["letter"]) == ["a", "b", "a", "b", "c"]
    assert list(frame["count"]) == [2, 2, 1, 1, 1]


def test_errors_are_raised_skipped_or_rows(client: Client) -> None:
    """With their states and words where they are rows."""
    batch = client.map_batch(odd_fails, range(4)).wait(30)
    with pytest.raises(ValueError, match="is odd"):
        batch.to_frame()
    assert list(batch.to_frame(on_error="skip").index) == [0, 2]
    frame = batch.to_frame(on_error="return")
    assert list(frame["state"]) == ["succeeded", "failed", "succeeded", "failed"]
    assert frame.loc[3, "error"] == "ValueError: 3 is odd"
    assert pd.isna(frame.loc[1, "n"])
    assert pd.isna(frame.loc[0, "error"])
    with pytest.raises(ConfigurationError, match="on_error is"):
        batch.to_frame(on_error="ignore")


def test_an_empty_batch_is_an_empty_table(client: Client, tmp_path: Path) -> None:
    """And an empty file."""
    batch = client.map_batch(abs, [])
    assert len(batch.to_frame()) == 0
    assert batch.to_parquet(tmp_path / "none.parquet") == 0
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0


def test_a_wait_for_a_table_times_out(url: str, tmp_path: Path) -> None:
    """And leaves no file."""
    client = Client(url, signing_key=KEY)
    batch = client.map_batch(abs, [1])
    with pytest.raises(ResultTimeout):
        batch.to_frame(timeout=0.05)
    with pytest.raises(ResultTimeout):
        batch.to_parquet(tmp_path / "a.parquet", timeout=0.05)
    assert not list(tmp_path.iterdir())
    batch.cancel()
    client.close()


def test_a_parquet_file_has_what_the_frame_has(client: Client, tmp_path: Path) -> None:
    """The position is a column of it."""
    batch = client.map_batch(lambda n: pd.DataFrame({"n": [n, n], "w": ["a", None]}), range(250))
    path = tmp_path / "some.parquet"
    assert batch.to_parquet(path) == 500
    table = pd.read_parquet(path)
    expected = batch.to_frame().reset_index()
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)
    assert [each.name for each in tmp_path.iterdir()] == ["some.parquet"]


def test_columns_may_widen_from_page_to_page(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written is written again: nothing is lost, nothing held."""
    monkeypatch.setattr(tables, "PAGE", 2)

    def row(n: int) -> dict[str, object]:
        if n < 2:
            return {"a": n, "b": None}
        return {"a": n + 0.5, "b": "x", "c": n} if n < 4 else {"c": n}

    client.map_batch(row, range(6)).to_parquet(tmp_path / "wide.parquet")
    table = pq.read_table(tmp_path / "wide.parquet").to_pydict()
    assert table == {
        "position": [0, 1, 2, 3, 4, 5],
        "a": [0, 1, 2.5, 3.5, None, None],
        "b": [None, None, "x", "x", None, None],
        "c": [None, None, 2, 3, 4, 5],
    }


def test_types_that_do_not_go_together_leave_the_file_that_was_there(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a page and between two."""
    path = tmp_path / "kept.parquet"
    path.write_text("before")
    batch = client.map_batch(lambda n: {"a": "x" if n else 1}, range(2))
    for page in (2, 1):
        monkeypatch.setattr(tables, "PAGE", page)
        with pytest.raises(TypeError, match="of one column"):
            batch.to_parquet(path)
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["kept.parquet"]


def test_large_results_are_read_a_few_at_a_time(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By their size on the server."""
    import random

    monkeypatch.setattr(tables, "PAGE_BYTES", 250_000)
    read: list[int] = []
    real = tables._read

    def noted(batch: object, ends: object, indexes: list[int], on_error: str) -> object:
        read.append(len(indexes))
        return real(batch, ends, indexes, on_error)  # type: ignore[arg-type]

    monkeypatch.setattr(tables, "_read", noted)
    batch = client.map_batch(lambda n: random.Random(n).randbytes(100_000), range(5))
    assert batch.to_parquet(tmp_path / "large.parquet") == 5
    assert read == [2, 2, 1]

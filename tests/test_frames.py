"""DataFrames fanned out by rows and by groups, and put together in the original order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas
import pytest
from clients import serving
from pandas.testing import assert_frame_equal, assert_series_equal

from redistq import Client


@pytest.fixture(scope="module")
def crew() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


def frame(rows: int = 10) -> pandas.DataFrame:
    return pandas.DataFrame(
        {
            "k": [f"g{n % 3}" for n in range(rows)],
            "n": range(rows),
            "x": [n / 2 for n in range(rows)],
        }
    )


def double(part: pandas.DataFrame) -> pandas.DataFrame:
    return part.assign(n=part["n"] * 2)


@pytest.mark.parametrize("chunks", [None, 1, 3, 10, 50])
def test_map_frame_keeps_the_order_of_the_rows(crew: Client, chunks: int | None) -> None:
    """However many parts; more parts than rows are as many as rows."""
    df = frame()
    assert_frame_equal(crew.map_frame(double, df, chunks=chunks), double(df))


def test_map_frame_with_labels_that_repeat(crew: Client) -> None:
    """Rows are told apart by their place, not by their label."""
    df = frame(6).set_axis(["a", "b", "a", "a", "b", "c"])
    assert_frame_equal(crew.map_frame(double, df, chunks=4), double(df))


def test_map_frame_of_no_rows(crew: Client) -> None:
    """The function still says what the columns are."""
    empty = frame(0)
    out = crew.map_frame(lambda part: part.assign(new=1), empty)
    assert list(out.columns) == ["k", "n", "x", "new"]
    assert len(out) == 0


def test_map_frame_may_filter_and_return_series(crew: Client) -> None:
    """What comes back is put together as it comes."""
    df = frame()
    out = crew.map_frame(lambda part: part[part["n"] % 2 == 0], df, chunks=3)
    assert_frame_equal(out, df[df["n"] % 2 == 0])
    series: Any = crew.map_frame(lambda part: part["n"] + 1, df, chunks=3)
    assert_series_equal(series, df["n"] + 1)


def test_map_frame_needs_frames_back(crew: Client) -> None:
    """A function that returns a number is told so in words."""
    with pytest.raises(TypeError, match=r"returned int.*DataFrame or Series"):
        crew.map_frame(len, frame())
    with pytest.raises(ValueError, match="chunks is 1 or more"):
        crew.map_frame(double, frame(), chunks=-1)
    with pytest.raises(TypeError, match="takes a DataFrame"):
        crew.map_frame(double, [1, 2])  # type: ignore[arg-type]


def centred(group: pandas.DataFrame) -> pandas.DataFrame:
    return group.assign(x=group["x"] - group["x"].mean())


def test_map_groups_gives_rows_back_in_their_place(crew: Client) -> None:
    """A function that keeps its group's index: the frame's own order, as transform has it."""
    df = frame()
    out = crew.map_groups(centred, df.groupby("k"))
    expected = df.assign(x=df["x"] - df.groupby("k")["x"].transform("mean"))
    assert_frame_equal(out, expected)


def test_map_groups_with_labels_that_repeat(crew: Client) -> None:
    """Also when labels repeat within and across groups, and the index has no order."""
    df = frame(8).set_axis([5, 1, 5, 5, 2, 1, 9, 0])
    out = crew.map_groups(centred, df.groupby("k"))
    expected = df.assign(x=df["x"] - df.groupby("k")["x"].transform("mean"))
    assert_frame_equal(out, expected)


@pytest.mark.parametrize("as_index", [True, False])
@pytest.mark.parametrize("by", ["k", ["k", "n"], ["k"]])
def test_map_groups_by_one_or_several_keys(crew: Client, by: Any, as_index: bool) -> None:
    """Lists of keys, one key in a list, and as_index=False."""
    df = frame(9)
    out = crew.map_groups(centred, df.groupby(by, as_index=as_index))
    assert_frame_equal(out, df.assign(x=df["x"] - df.groupby(by)["x"].transform("mean")))


def test_map_groups_with_missing_keys(crew: Client) -> None:
    """Rows without a key are left out as groupby leaves them out, or are a group of their own."""
    df = frame(9)
    df.loc[[1, 4], "k"] = None
    out = crew.map_groups(centred, df.groupby("k"))
    assert list(out.index) == [0, 2, 3, 5, 6, 7, 8]
    kept = crew.map_groups(centred, df.groupby("k", dropna=False))
    assert list(kept.index) == list(range(9))
    assert kept["x"].iloc[1] == pytest.approx(df["x"].iloc[1] - df["x"].iloc[[1, 4]].mean())


def test_map_groups_by_a_category(crew: Client) -> None:
    """Categories without rows are no groups here."""
    df = frame(9)
    df["k"] = pandas.Categorical(df["k"], categories=["g0", "g1", "g2", "unused"])
    out = crew.map_groups(centred, df.groupby("k", observed=True))
    assert list(out["n"]) == list(range(9))
    out = crew.map_groups(centred, df.groupby("k", observed=False))
    assert list(out["n"]) == list(range(9))


def test_map_groups_that_change_the_rows(crew: Client) -> None:
    """A function that gives other rows: group by group, under the groups' keys."""
    df = frame()
    out = crew.map_groups(lambda group: group.head(1)[["n"]], df.groupby("k"))
    assert [key for key, _ in out.index] == ["g0", "g1", "g2"]
    assert list(out["n"]) == [0, 1, 2]
    assert out.index.names[0] == "k"
    by_two = df.groupby(["k", "n"])
    out = crew.map_groups(lambda group: group[["x"]].set_axis(["only"]), by_two)
    assert list(out.index.names)[:2] == ["k", "n"]
    assert len(out) == 10


def test_map_groups_that_return_values(crew: Client) -> None:
    """One value a group: a column named result, indexed by the keys."""
    df = frame()
    out = crew.map_groups(lambda group: int(group["n"].sum()), df.groupby("k"))
    assert out.to_dict() == {"result": {"g0": 18, "g1": 12, "g2": 15}}
    assert out.index.name == "k"
    out = crew.map_groups(len, df.groupby(["k", "x"]))
    assert list(out["result"]) == [1] * 10
    assert list(out.index.names) == ["k", "x"]


def test_map_groups_of_nothing(crew: Client) -> None:
    """No rows, no groups: an empty frame with the columns of what was grouped."""
    out = crew.map_groups(centred, frame(0).groupby("k"))
    assert list(out.columns) == ["k", "n", "x"]
    assert len(out) == 0


def test_map_groups_takes_a_groupby(crew: Client) -> None:
    """Anything else is named."""
    with pytest.raises(TypeError, match=r"df\.groupby"):
        crew.map_groups(centred, frame())


def test_an_error_in_a_part_is_raised(crew: Client) -> None:
    """With its own type, as everywhere."""

    def fail(part: pandas.DataFrame) -> pandas.DataFrame:
        raise KeyError("no such column")

    with pytest.raises(KeyError, match="no such column"):
        crew.map_frame(fail, frame())

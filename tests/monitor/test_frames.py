"""DataFrames fanned out by rows and by groups, and put together in the original order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas
import pytest
from pandas.testing import assert_frame_equal, assert_series_equal
from support.clients import serving

from redistq import Client
from redistq.client.dataframes import map_groups


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
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
def test_map_frame_keeps_the_order_of_the_rows(client: Client, chunks: int | None) -> None:
    """However many parts; more parts than rows are as many as rows."""
    df = frame()
    assert_frame_equal(client.map_frame(double, df, chunks=chunks), double(df))


def test_map_frame_with_labels_that_repeat(client: Client) -> None:
    """Rows are told apart by their place, not by their label."""
    df = frame(6).set_axis(["a", "b", "a", "a", "b", "c"])
    assert_frame_equal(client.map_frame(double, df, chunks=4), double(df))


def test_map_frame_of_no_rows(client: Client) -> None:
    """The function still says what the columns are."""
    empty = frame(0)
    out = client.map_frame(lambda part: part.assign(new=1), empty)
    assert list(out.columns) == ["k", "n", "x", "new"]
    assert len(out) == 0


def test_map_frame_may_filter_and_return_series(client: Client) -> None:
    """What comes back is put together as it comes."""
    df = frame()
    out = client.map_frame(lambda part: part[part["n"] % 2 == 0], df, chunks=3)
    assert_frame_equal(out, df[df["n"] % 2 == 0])
    series: Any = client.map_frame(lambda part: part["n"] + 1, df, chunks=3)
    assert_series_equal(series, df["n"] + 1)


def test_map_frame_needs_frames_back(client: Client) -> None:
    """A function that returns a number is told so in words."""
    with pytest.raises(TypeError, match=r"returned int.*DataFrame or Series"):
        client.map_frame(len, frame())
    for chunks in (-1, 0, 1.5):
        with pytest.raises(ValueError, match=f"chunks is a whole number, 1 or more, not {chunks}"):
            client.map_frame(double, frame(), chunks=chunks)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes a DataFrame"):
        client.map_frame(double, [1, 2])  # type: ignore[arg-type]


def centred(group: pandas.DataFrame) -> pandas.DataFrame:
    return group.assign(x=group["x"] - group["x"].mean())


def test_map_groups_gives_rows_back_in_their_place(client: Client) -> None:
    """A function that keeps its group's index: the frame's own order, as transform has it."""
    df = frame()
    out = client.map_groups(centred, df.groupby("k"))
    expected = df.assign(x=df["x"] - df.groupby("k")["x"].transform("mean"))
    assert_frame_equal(out, expected)


def test_map_groups_with_labels_that_repeat(client: Client) -> None:
    """Also when labels repeat within and across groups, and the index has no order."""
    df = frame(8).set_axis([5, 1, 5, 5, 2, 1, 9, 0])
    out = client.map_groups(centred, df.groupby("k"))
    expected = df.assign(x=df["x"] - df.groupby("k")["x"].transform("mean"))
    assert_frame_equal(out, expected)


@pytest.mark.parametrize("as_index", [True, False])
@pytest.mark.parametrize("by", ["k", ["k", "n"], ["k"]])
def test_map_groups_by_one_or_several_keys(client: Client, by: Any, as_index: bool) -> None:
    """Lists of keys, one key in a list, and as_index=False."""
    df = frame(9)
    out = client.map_groups(centred, df.groupby(by, as_index=as_index))
    assert_frame_equal(out, df.assign(x=df["x"] - df.groupby(by)["x"].transform("mean")))


def test_map_groups_with_missing_keys(client: Client) -> None:
    """Rows without a key are left out as groupby leaves them out, or are a group of their own."""
    df = frame(9)
    df.loc[[1, 4], "k"] = None
    out = client.map_groups(centred, df.groupby("k"))
    assert list(out.index) == [0, 2, 3, 5, 6, 7, 8]
    kept = client.map_groups(centred, df.groupby("k", dropna=False))
    assert list(kept.index) == list(range(9))
    assert kept["x"].iloc[1] == pytest.approx(df["x"].iloc[1] - df["x"].iloc[[1, 4]].mean())


def test_map_groups_by_a_category(client: Client) -> None:
    """Categories without rows are no groups here."""
    df = frame(9)
    df["k"] = pandas.Categorical(df["k"], categories=["g0", "g1", "g2", "unused"])
    out = client.map_groups(centred, df.groupby("k", observed=True))
    assert list(out["n"]) == list(range(9))
    out = client.map_groups(centred, df.groupby("k", observed=False))
    assert list(out["n"]) == list(range(9))


def test_map_groups_that_change_the_rows(client: Client) -> None:
    """A function that gives other rows: group by group, under the groups' keys."""
    df = frame()
    out = client.map_groups(lambda group: group.head(1)[["n"]], df.groupby("k"))
    assert [key for key, _ in out.index] == ["g0", "g1", "g2"]
    assert list(out["n"]) == [0, 1, 2]
    assert out.index.names[0] == "k"
    by_two = df.groupby(["k", "n"])
    out = client.map_groups(lambda group: group[["x"]].set_axis(["only"]), by_two)
    assert list(out.index.names)[:2] == ["k", "n"]
    assert len(out) == 10


def test_map_groups_that_return_values(client: Client) -> None:
    """One value a group: a Series indexed by the keys, as apply has it."""
    df = frame()
    out = client.map_groups(lambda group: int(group["n"].sum()), df.groupby("k"))
    assert out.to_dict() == {"g0": 18, "g1": 12, "g2": 15}
    assert out.index.name == "k"
    out = client.map_groups(len, df.groupby(["k", "x"]))
    assert list(out) == [1] * 10
    assert list(out.index.names) == ["k", "x"]


def test_a_group_knows_its_key_on_the_worker(client: Client) -> None:
    """As ``group.name``, and in its own column."""
    out = client.map_groups(lambda g: (g.name, sorted(set(g["k"]))), frame().groupby("k"))
    assert list(out) == [(key, [key]) for key in ("g0", "g1", "g2")]
    out = client.map_groups(lambda g: g.name, frame().groupby(["k", "n"])["x"])
    assert list(out) == list(out.index)


class Here:
    """A client that calls functions in place, through the pickle that would travel."""

    def map(self, fn: Any, *iterables: Any) -> list[Any]:
        import cloudpickle

        again = cloudpickle.loads(cloudpickle.dumps(fn))
        return [again(*args) for args in zip(*iterables, strict=True)]


DAYS = ("01-05", "01-02", "03-01", "01-03", "02-02", "01-01")
ROWS = pandas.DataFrame(
    {
        "k": ["b", "a", "b", "c", "a", "b"],
        "k2": [1, 2, 1, 1, 2, 2],
        "v": [1.0, 2, 3, 4, 5, 6],
        "w": [1, 2, 3, 4, 5, 6],
        "t": pandas.to_datetime(
            [f"2024-{m}-0{d}" for m, d in zip("113121", "521321", strict=True)]
        ),
    }
)
TABLES = {
    "plain": ROWS,
    "no key for some": ROWS.assign(k=["b", None, "b", None, "a", "b"]),
    "nan keys": ROWS.assign(k=[1.0, None, 1.0, 2.0, None, 2.0]),
    "a category": ROWS.assign(k=pandas.Categorical(ROWS.k, categories=["c", "b", "a", "unused"])),
    "labels that repeat": ROWS.set_axis([0, 1, 1, 0, 2, 2]),
    "a named index": ROWS.rename_axis("rows"),
    "nothing": ROWS.iloc[:0],
}
KEYS: dict[str, Any] = {
    "a column": lambda df: "k",
    "a list of one": lambda df: ["k"],
    "two columns": lambda df: ["k", "k2"],
    "a function": lambda df: lambda label: label % 2,
    "an array": lambda df: [n % 2 for n in range(len(df))],
    "a Series": lambda df: df["w"] % 2,
    "months": lambda df: pandas.Grouper(key="t", freq="MS"),
    "months and a column": lambda df: [pandas.Grouper(key="t", freq="MS"), "k2"],
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"sort": False},
    {"dropna": False},
    {"as_index": False},
    {"group_keys": False},
    {"observed": True},
    {"observed": False},
]
REDUCING: dict[str, Any] = {
    "a Series": lambda g: pandas.Series({"sum": g.v.sum(), "n": len(g)}),
    "means": lambda g: g[["v", "w"]].mean(),
    "a count": len,
    "a number": lambda g: float(g.v.sum()),
    "a list": lambda g: list(g.v),
    "a dict": lambda g: {"n": len(g)},
    "None": lambda g: None,
    "None for some": lambda g: g[["v"]].set_axis(range(9, 9 + len(g))) if len(g) > 1 else None,
    "the first row": lambda g: g[["v", "w"]].head(1).set_axis([7]),
    "no row": lambda g: g[["v"]].iloc[:0].set_axis([]),
    "another frame": lambda g: pandas.DataFrame({"q": [1, 2, 3, 4, 5, 6, 7]}),
}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("by", KEYS)
@pytest.mark.parametrize("table", TABLES)
def test_map_groups_is_apply(table: str, by: str, options: dict[str, Any]) -> None:
    """Whatever the keys and whatever the function gives: what pandas makes of it, or its error."""
    df, key = TABLES[table], KEYS[by](TABLES[table])
    for what, fn in REDUCING.items():
        try:
            expected = df.groupby(key, **options).apply(fn)
        except Exception as error:
            with pytest.raises(type(error)):
                map_groups(Here().map, fn, df.groupby(key, **options))
            continue
        found = map_groups(Here().map, fn, df.groupby(key, **options))
        assert type(found) is type(expected), what
        same = assert_frame_equal if isinstance(found, pandas.DataFrame) else assert_series_equal
        same(found, expected)


@pytest.mark.parametrize("dropna", [True, False])
@pytest.mark.parametrize("by", KEYS)
@pytest.mark.parametrize("table", TABLES)
def test_rows_that_keep_their_index_keep_their_place(table: str, by: str, dropna: bool) -> None:
    """Whatever the keys; those without a key are left out as groupby leaves them out."""
    df, key = TABLES[table], KEYS[by](TABLES[table])
    groups = df.groupby(key, dropna=dropna, observed=True)
    found = map_groups(Here().map, lambda g: g.assign(size=len(g)), groups)
    if not len(df):
        assert len(found) == 0
        return
    sizes = df.assign(row=range(len(df))).groupby(key, dropna=dropna, observed=True)["row"]
    members = {row: len(group) for _, group in sizes for row in group}
    expected = df.iloc[sorted(members)].assign(size=[members[row] for row in sorted(members)])
    assert_frame_equal(found, expected)
    series = map_groups(Here().map, lambda s: s * 2, groups["v"])
    assert_series_equal(series, expected["v"] * 2)


@pytest.mark.parametrize("by", ["k", ["k", "k2"]])
def test_keys_are_not_told_twice(by: Any) -> None:
    """The function sees them as columns; where rows come back under them they are the index."""
    first = map_groups(Here().map, lambda g: g.head(1), ROWS.groupby(by))
    assert_frame_equal(first, ROWS.groupby(by).apply(lambda g: g.head(1)))
    means = map_groups(Here().map, lambda g: g.select_dtypes("number").mean(), ROWS.groupby("k2"))
    assert_frame_equal(means, ROWS[["k2", "v", "w"]].groupby("k2").apply(lambda g: g.mean()))
    other = map_groups(Here().map, lambda g: g.assign(k="new").head(1), ROWS.groupby("k"))
    assert list(other["k"]) == ["new"] * 3


def test_columns_of_two_levels(client: Client) -> None:
    """A frame with a column MultiIndex is grouped by one of them."""
    df = pandas.DataFrame(
        [["a", 1], ["b", 2], ["a", 3]],
        columns=pandas.MultiIndex.from_tuples([("k", ""), ("x", "y")]),
    )
    out = client.map_groups(lambda g: g[("x", "y")].sum(), df.groupby(("k", "")))
    assert out.to_dict() == {"a": 4, "b": 2}
    kept = client.map_groups(lambda g: g, df.groupby(("k", "")))
    assert_frame_equal(kept, df)


def test_map_groups_of_nothing(client: Client) -> None:
    """No rows, no groups: as apply has it, for a frame and for one column."""
    nothing = frame(0)
    assert_frame_equal(
        client.map_groups(centred, nothing.groupby("k")), nothing.groupby("k").apply(centred)
    )
    assert len(client.map_groups(centred, nothing.groupby("k")["n"])) == 0


def test_map_groups_takes_a_groupby(client: Client) -> None:
    """Anything else is named."""
    with pytest.raises(TypeError, match=r"df\.groupby"):
        client.map_groups(centred, frame())


def test_an_error_in_a_part_is_raised(client: Client) -> None:
    """With its own type, as everywhere."""

    def fail(part: pandas.DataFrame) -> pandas.DataFrame:
        raise KeyError("no such column")

    with pytest.raises(KeyError, match="no such column"):
        client.map_frame(fail, frame())

"""JSON as the standard library writes it, and the same complaints, whatever is done for speed."""

from __future__ import annotations

import collections
import json
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistq.errors import PayloadError, ResultError
from redistq.protocol.codec import (
    dumps,
    encode_error,
    encode_payload,
    encode_result,
    loads,
    users_part,
)
from redistq.worker.bootstrap import registry_from

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(plain)
def test_it_writes_what_the_standard_library_writes_and_reads_it_back(value: Any) -> None:
    expected = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    assert dumps(value) == expected.encode("utf-8", "surrogatepass")
    assert loads(dumps(value)) == value


@pytest.mark.parametrize("value", [2**200, float("inf"), "\ud800", {1: 2, None: 3}, (1, (2,))])
def test_odd_values_are_written_as_the_standard_library_does(value: Any) -> None:
    expected = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    assert dumps(value) == expected.encode("utf-8", "surrogatepass")


def test_a_value_that_contains_itself_is_called_circular() -> None:
    circle: list[Any] = []
    circle.append({"again": circle})
    with pytest.raises(PayloadError, match="Circular reference"):
        encode_payload("job", circle, 100)


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes", {"deep": [object()]}, {(1,): 2}])
def test_what_is_no_json_is_refused_by_name_of_the_task(value: Any) -> None:
    with pytest.raises(PayloadError, match="'job' cannot be written as JSON"):
        encode_payload("job", value, 100)


@pytest.mark.parametrize(
    "value",
    [
        {1: "a", "1": "b"},
        {None: 1, "null": 2},
        {True: 1, "true": 2},
        {1.5: 1, "1.5": 2},
        {float("nan"): 1, "NaN": 2},
        {float("nan"): 1, float("-nan"): 2},
        [{"deep": ({"1": 1, 1: 2},)}],
        collections.OrderedDict([("a", {2: 1, "2": 1})]),
    ],
)
def test_keys_that_json_cannot_tell_apart_are_refused(value: Any) -> None:
    """Two keys of a dict that would be written as one name both, in a payload and in a result."""
    with pytest.raises(PayloadError, match="are the same key in JSON"):
        encode_payload("job", value, 100)
    with pytest.raises(ResultError, match="are the same key in JSON"):
        encode_result(value, 100)


@pytest.mark.parametrize("value", [{1: 2, "2": 3}, {None: 1, 0: 2}, {1: {1: 1}}, {}, [], [{}], ()])
def test_keys_that_differ_in_json_are_written(value: Any) -> None:
    """Keys that are no text are written as JSON writes them, while they stay apart."""
    assert encode_payload("job", value, 100) == encode_result(value, 100) == dumps(value)


def test_threads_may_write_the_same_value_at_once() -> None:
    value = {"rows": [[n] * 20 for n in range(200)]}
    expected, wrong = dumps(value), []

    def write() -> None:
        for _ in range(50):
            if dumps(value) != expected:
                wrong.append(1)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- errors ----------------------------------------------------------------------------------------


class _Hostile(Exception):
    """Whatever is asked of it raises what ends threads."""

    def _raise(self, *_: Any) -> Any:
        raise SystemExit("hostile")

    __str__ = __repr__ = __getattr__ = __getattribute__ = __eq__ = __hash__ = _raise  # type: ignore[assignment]
    __setattr__ = __reduce_ex__ = __class__ = _raise  # type: ignore[assignment]


class _Mute(Exception):
    def __str__(self) -> str:
        return ""

    __repr__ = __str__


def raised(error: BaseException) -> BaseException:
    """The error with a traceback of its own."""
    try:
        raise error
    except BaseException as caught:
        return caught


class _Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name == "__qualname__":
            raise RuntimeError("no name")
        return super().__getattribute__(name)


class _Nameless(Exception, metaclass=_Meta):
    pass


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError(""), "ValueError", "ValueError('')"),
        (ValueError("  \n"), "ValueError", "ValueError('  \\n')"),
        (KeyboardInterrupt(), "KeyboardInterrupt", "KeyboardInterrupt()"),
        (_Mute(), "_Mute", "_Mute"),
        (_Hostile(), "_Hostile", "<_Hostile whose text cannot be shown: SystemExit>"),
        (_Nameless("x"), "Exception", "x"),
        (ValueError("\ud800"), "ValueError", "\ud800"),
        (ValueError("x" * 10**6), "ValueError", "x" * 4000),
        (ExceptionGroup("group", [_Hostile(), ValueError()]), "ExceptionGroup", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_error_can_be_written_down(
    error: BaseException, kind: str, message: str | None
) -> None:
    """Its type, a text that is never empty, and where it was raised, whatever its methods do."""
    found = loads(encode_error(raised(error)))
    assert found["type"] == kind
    if message is not None:
        assert found["message"] == message
    assert found["message"].strip()
    assert kind == "_Hostile" or "in raised" in found["traceback"]
    assert len(encode_error(error)) < 50_000


def test_a_report_that_is_no_json_costs_only_itself() -> None:
    """What goes along with an error may be anything; the error is kept."""
    found = loads(encode_error(ValueError("x"), {"locals": object()}))
    assert (found["type"], found["message"]) == ("ValueError", "x")
    assert loads(encode_error(ValueError("x"), {"pid": 5}))["pid"] == 5


def test_a_module_that_breaks_shows_its_own_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was raised while it was imported, neither our frames nor those of the import; what is
    all ours, and a module that is no Python, have none."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "breaks_here.py").write_text("def f():\n    return 1 / 0\n\n\nf()\n")
    (tmp_path / "no_python.py").write_text("def f(:\n")
    with pytest.raises(ZeroDivisionError) as raised:
        registry_from(["breaks_here"])
    tb = users_part(raised.value.__traceback__.tb_next)  # below this test's own frame
    lines = traceback.format_tb(tb)
    assert [line.split('"')[1] for line in lines] == [str(tmp_path / "breaks_here.py")] * 2
    with pytest.raises(SyntaxError) as slip:
        registry_from(["no_python"])
    assert users_part(slip.value.__traceback__.tb_next) is None

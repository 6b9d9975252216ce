"""JSON as the standard library writes it, and the same complaints, whatever is done for speed."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistq.codec import dumps, encode_payload, loads
from redistq.errors import PayloadError

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

"""What a process uses, what its container may have, and what of it a supervisor tells."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from redistq.system.memory import MOST_BYTES, Used, least_limit, memory_limit, used
from redistq.worker.meter import Meter

MB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_is_measured_by_one_file() -> None:
    """Memory and time of a living process; nothing of one that is gone."""
    found = used(os.getpid())
    assert found is not None
    assert found.resident > 5 * MB
    assert found.cpu_s > 0
    assert used(2**22 + 1) is None
    limit = memory_limit()
    assert limit is None or MB < limit < MOST_BYTES


def test_the_smallest_limit_around_a_process_holds(tmp_path: Path) -> None:
    """Of the groups above it too, in both versions of control groups; no limit is none, and a path
    of the machine outside a container falls back to the container's own."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    assert least_limit(tmp_path, ["0::/a/b"]) is None
    (tmp_path / "a" / "memory.max").write_text("3000\n")
    assert least_limit(tmp_path, ["0::/a/b"]) == 3000
    (tmp_path / "memory.max").write_text("2000\n")
    assert least_limit(tmp_path, ["0::/docker/unknown"]) == 2000
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert least_limit(tmp_path, ["4:memory:/x", "2:cpu:/y"]) is None
    (old / "memory.limit_in_bytes").write_text("1000\n")
    assert least_limit(tmp_path, ["4:memory:/x", "0::/", "", "odd"]) == 1000


def test_small_changes_are_not_told() -> None:
    """Memory at once, CPU time from the second look on, over at least a second; and what is near
    what was told last is the same."""
    meter = Meter()
    assert meter.take(Used(100 * MB, 5.0), 10.0) == f"{100 * MB} "
    assert meter.take(Used(105 * MB, 5.5), 10.5) == f"{100 * MB} "  # too soon for a share
    assert meter.take(Used(109 * MB, 6.0), 12.0) == f"{100 * MB} 50"
    assert meter.take(Used(111 * MB, 7.04), 14.0) == f"{111 * MB} 50"
    assert meter.take(Used(111 * MB, 7.04), 16.0) == f"{111 * MB} 0"
    assert meter.take(Used(30 * MB, 3.0), 18.0) == f"{30 * MB} 0"  # never less than nothing

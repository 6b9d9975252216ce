"""Ids of tasks: unique over threads, forks and processes."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from redistq.protocol.keys import is_call, new_call_id, new_task_id

THREADS = 8
EACH = 20_000


def test_threads_share_no_id() -> None:
    """However often threads take turns, taking an id never fails and nobody else has it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # turns in the midst of everything
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            taken = pool.map(lambda _: [new_task_id() for _ in range(EACH)], range(THREADS))
            found = {task_id for ids in taken for task_id in ids}
    finally:
        sys.setswitchinterval(before)
    assert len(found) == THREADS * EACH


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_ids_of_its_own() -> None:
    """It would count on from where its parent stands, and both would name the same tasks."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writer, new_task_id().encode())
        os._exit(0)
    ours = new_task_id()
    os.waitpid(pid, 0)
    theirs = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)
    assert len(theirs) == len(ours) >= 20
    assert theirs[:16] != ours[:16]


def test_an_id_says_that_it_is_a_call() -> None:
    """Whoever asks for a result knows by the id alone what to trust in it."""
    assert is_call(new_call_id())
    assert not is_call(new_task_id())

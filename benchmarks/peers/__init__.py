"""One adapter a peer for the side-by-side benchmark; see ../peers.py, which runs them.

``QUEUES`` and ``FANOUT`` say what is compared and how it is installed, without importing it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One peer: its adapter (or kind), what pip installs, and what it needs."""

    key: str
    label: str
    packages: tuple[str, ...] = ()
    python: tuple[int, int] = (3, 11)
    venv: str = "main"
    """Peers whose dependencies exclude each other's are installed apart."""


QUEUES = (
    Entry("redistq", "redistq"),
    Entry("redistq_async", "redistq (asyncio)"),
    Entry("ardiq", "ardiq", ("ardiq",), (3, 12)),
    Entry("mayu", "mayu", ("mayu",), (3, 13)),
    Entry("streaq", "streaq", ("streaq",)),
    Entry("saq", "saq", ("saq[redis,hiredis]",)),
    Entry("arq", "arq", ("arq",), venv="arq"),  # redis < 6
    Entry("taskiq", "taskiq", ("taskiq", "taskiq-redis")),
    Entry("dramatiq", "dramatiq", ("dramatiq[redis]",)),
    Entry("huey", "huey", ("huey", "redis")),
    Entry("rq", "rq", ("rq",)),
    Entry("celery", "celery", ("celery[redis]",)),
    Entry("docket", "docket", ("pydocket",)),
)
FANOUT = (
    Entry("redistq", "redistq Client"),
    Entry("futures", "concurrent.futures"),
    Entry("joblib", "joblib/loky", ("joblib", "loky")),
    Entry("dask", "dask.distributed", ("distributed",)),
    Entry("ipyparallel", "ipyparallel", ("ipyparallel",)),
)
COMMON = ("redis", "hiredis", "uvloop")
"""What every environment has: the marks' reader, and what peers' users are told to add."""

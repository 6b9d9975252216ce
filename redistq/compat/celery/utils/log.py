"""The logger of tasks, under Celery's name."""

from __future__ import annotations

import logging


def get_task_logger(name: str) -> logging.Logger:
    """Return the logger of that name."""
    return logging.getLogger(name)

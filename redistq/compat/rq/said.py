"""What RQ's callers catch, under its names."""

from __future__ import annotations

from ...errors import ConfigurationError, Fail, TimeLimitExceeded

JobTimeoutException = TimeLimitExceeded
"""Raised in a job whose job_timeout has passed."""


class NoSuchJobError(Exception):
    """No job with this id is known: it was never added, or its result has expired."""


class InvalidJobOperation(Exception):
    """What was asked of a job cannot be done in its state."""


class DuplicateJobError(Exception):
    """A job that is to be the only one of its id is there already."""


class NotAllowed(ConfigurationError, Fail):
    """A worker was not told to allow the module of a job's function; the job ends as failed."""

"""The worker: a supervisor without user code, and processes that run tasks."""

from .worker import TaskWorker as TaskWorker


def main(argv: list[str] | None = None) -> int:
    """Run the command ``python -m redistq.worker``; return its exit code."""
    from ..cli.worker import main as command

    return command(argv)

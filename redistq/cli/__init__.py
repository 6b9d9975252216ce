"""The commands: ``redistq``, ``python -m redistq.worker`` and ``python -m redistq.cli_monitor``."""

from .command import main as main

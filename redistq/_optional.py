"""Optional packages, imported when they are first needed, with an error that says what to install.

Used by the windows (frames, metrics, the command line); never imported by workers' hot path.
"""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, extra: str, purpose: str) -> Any:
    """An optional module. Raises ImportError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{package} is needed for {purpose}: pip install redistq[{extra}]", name=package
        ) from error

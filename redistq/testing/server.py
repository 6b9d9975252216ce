"""The server of a test session: an embedded one in a folder of its own.

It ends with the last process that uses it, so the workers of one ``pytest -n`` run may share it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..connection import embedded

_home: Path | None = None


def session_url(home: Path | None = None) -> str:
    """Return the address of this session's server, started where it does not run. The first call
    says in which folder it keeps its data; a temporary one of this user's, if it does not."""
    global _home
    if _home is None:
        user = os.getuid() if hasattr(os, "getuid") else ""
        _home = home or Path(tempfile.gettempdir()) / f"redistq-test-{user}"
    return embedded.join(_home).url


def leave_session() -> None:
    """Use the session's server no more: it ends with its last user."""
    global _home
    if _home is not None:
        embedded.leave(_home)
    _home = None

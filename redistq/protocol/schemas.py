"""The JSON schemas of what stands on the server, as docs/format.md describes it.

Read by ``redistq schema`` and by tests, which hold what the library writes against them. Nothing
here is loaded by workers or producers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError

NAMES = ("entry", "opts", "call", "record", "error", "notification", "envelope")
"""Every schema there is; a package inside a zip cannot list its files."""


def schema(name: str) -> dict[str, Any]:
    """Return the JSON schema of that name; raises ConfigurationError."""
    if name not in NAMES:
        raise ConfigurationError(f"there is no schema {name!r}: {', '.join(NAMES)}")
    loader: Any = __spec__.loader  # from a folder or out of a zip
    path = Path(__file__).parent / "schema" / f"{name}.json"
    found: dict[str, Any] = json.loads(loader.get_data(str(path)))
    return found

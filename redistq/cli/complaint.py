"""How commands say what is wrong."""

from __future__ import annotations

import sys

from ..display.text import clean


def complain(error: BaseException, code: int) -> int:
    """Say an error in one line on standard error; return the exit code that is given."""
    print(f"redistq: {clean(str(error), 2000)}", file=sys.stderr)
    return code

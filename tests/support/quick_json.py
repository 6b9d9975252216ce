"""jsonschema without the grammar of international addresses: it takes two seconds of each process
to build, and nothing here asks for it. To be imported before whatever loads jsonschema; `RUN` runs
other modules so."""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any, cast

RUN = (sys.executable, __file__)
"""Begins the command of a module, as ``python -m`` would."""

cast("dict[str, Any]", sys.modules).setdefault("rfc3987_syntax", None)

if __name__ == "__main__":
    sys.path[0] = os.getcwd()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

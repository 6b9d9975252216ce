"""``redistq script`` and ``redistq schema``: what programs in other languages need, printed.

See docs/format.md. Nothing here talks to a server.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from ..protocol import schemas, scripts
from ..system.streams import written


def main(command: str, argv: Sequence[str]) -> int:
    """Print the Lua text of a script, or the JSON schema of a record; return the exit code."""
    return written(lambda: _script(argv) if command == "script" else _schema(argv))


def _script(argv: Sequence[str]) -> int:
    p = argparse.ArgumentParser(
        prog="redistq script",
        description="Print a script as a server takes it (EVAL, SCRIPT LOAD): complete, in Lua.",
    )
    p.add_argument("verb", choices=scripts.VERBS, metavar="verb", help=", ".join(scripts.VERBS))
    p.add_argument("--sha", action="store_true", help="print its SHA1 instead, for EVALSHA")
    args = p.parse_args(argv)
    script = scripts.load(args.verb)
    print(script.sha + "\n" if args.sha else script.text, end="")
    return 0


def _schema(argv: Sequence[str]) -> int:
    p = argparse.ArgumentParser(
        prog="redistq schema", description="Print a JSON schema of what stands on the server."
    )
    p.add_argument("name", choices=schemas.NAMES, metavar="name", help=", ".join(schemas.NAMES))
    args = p.parse_args(argv)
    print(json.dumps(schemas.schema(args.name), indent=2))
    return 0

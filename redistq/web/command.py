"""``redistq web``: the dashboard for browsers, served until a signal.

Access: only with a token that is printed at the start as a part of the address, on this machine
too, where every web page in a browser can reach every port. A second token lets its holders look
and change nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..connection.address import resolve
from ..errors import ConfigurationError, RedistqError
from ..protocol.keys import DEFAULT_GROUP
from ..system.interpreter import require
from ..system.private import is_loopback, named_here
from ..system.streams import written

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
ENV_TOKEN = "REDISTQ_WEB_TOKEN"
ENV_VIEWER_TOKEN = "REDISTQ_WEB_VIEWER_TOKEN"
ANY = ("", "0.0.0.0", "::")
"""What means all addresses of this machine."""
GRACE_S = 1
"""So long may answers that go on last after a signal."""

_EPILOG = """
who gets in:
  who has the token, which is part of the printed address, or in $REDISTQ_WEB_TOKEN so that it
  stays the same; it lets them pause queues, retry and cancel tasks. The token of the second
  address ($REDISTQ_WEB_VIEWER_TOKEN) lets them look only. It is served to this machine unless
  --host says otherwise; then traffic should pass a proxy that adds TLS: see docs/web.md.

exit codes:
  0 it was ended by a signal, 1 the server or the port is not available, 2 a setting or an
  optional package is missing or wrong
"""


def parser(prog: str = "redistq web") -> argparse.ArgumentParser:
    """Return the command line's parser."""
    p = argparse.ArgumentParser(
        prog=prog,
        description="Serve the dashboard of a server's queues to browsers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--url", help="the server (else $REDISTQ_URL, localhost, or the embedded one)")
    p.add_argument(
        "--queue",
        action="append",
        metavar="NAME",
        help="only this queue; may be repeated (all that the server has)",
    )
    p.add_argument("--group", default=DEFAULT_GROUP, help="consumer group (%(default)s)")
    p.add_argument("--host", default="127.0.0.1", help="the address to serve at (%(default)s)")
    p.add_argument("--port", type=int, default=8866, help="the port to serve at (%(default)s)")
    p.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name under which browsers reach it, as of a proxy; may be repeated",
    )
    p.add_argument(
        "--root-path", default="", metavar="PATH", help="the prefix that a proxy takes off"
    )
    p.add_argument("--read-only", action="store_true", help="nobody may change anything")
    p.add_argument("--open", action="store_true", help="open the page in a browser")
    return p


def main(argv: Sequence[str] | None = None, prog: str = "redistq web") -> int:
    """Serve until a signal; return the exit code (2: a setting or package is missing or wrong)."""
    return written(lambda: _main(argv, prog))


def _main(argv: Sequence[str] | None, prog: str) -> int:
    args = parser(prog).parse_args(argv)
    try:
        uvicorn = require("uvicorn", "web", "redistq web")
        require("starlette", "web", "redistq web")
        return _serve(args, uvicorn)
    except (ConfigurationError, ImportError) as error:
        print(f"redistq: {error}", file=sys.stderr)
        return EXIT_USAGE
    except RedistqError as error:
        print(f"redistq: {error}", file=sys.stderr)
        return EXIT_FAILED


def _serve(args: argparse.Namespace, uvicorn: Any) -> int:
    from .application import guarded
    from .guard import Tokens
    from .site import Site

    address = resolve(args.url)
    full, viewer = _tokens(args.read_only)
    app = guarded(
        Site(address, args.queue, args.group),
        Tokens(full, viewer),
        is_own_name=named_here(args.host, args.allow_host),
        read_only=args.read_only,
    )
    try:
        listener = _bound(args.host, args.port)
    except OSError as error:
        print(
            f"redistq: port {args.port} of {args.host} cannot be had: {error.strerror or error} "
            "(--port takes another)",
            file=sys.stderr,
        )
        return EXIT_FAILED
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        root_path=args.root_path.rstrip("/"),
        timeout_graceful_shutdown=GRACE_S,
        ws="none",
    )
    server = uvicorn.Server(config)
    with listener, tempfile.TemporaryDirectory(prefix="redistq-") as folder:
        port = listener.getsockname()[1]
        _say(args, str(address), _page_url(args, port), full, viewer)
        if args.open:
            _open(Path(folder), _page_url(args, port), full or viewer)
        with _ended_by_signals(server):
            asyncio.run(server.serve(sockets=[listener]))
    return EXIT_OK


@contextlib.contextmanager
def _ended_by_signals(server: Any) -> Iterator[None]:
    """Let signals end the server from the first moment on, and harm nothing after its end, when
    uvicorn raises them again."""
    before = {
        number: signal.signal(number, server.handle_exit)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tokens(read_only: bool) -> tuple[str | None, str | None]:
    """Return the full token, if there is one, and the viewers'."""
    viewer = os.environ.get(ENV_VIEWER_TOKEN) or secrets.token_urlsafe(24)
    return None if read_only else os.environ.get(ENV_TOKEN) or secrets.token_urlsafe(24), viewer


def _bound(host: str, port: int) -> socket.socket:
    family, _, _, _, where = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(256)
    except BaseException:
        listener.close()
        raise
    return listener


def _page_url(args: argparse.Namespace, port: int) -> str:
    host = socket.gethostname() if args.host in ANY else args.host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{args.root_path.rstrip('/')}/"


def _say(
    args: argparse.Namespace, address: str, page: str, full: str | None, viewer: str | None
) -> None:
    from .guard import with_token

    def at(token: str, name: str) -> str:
        return f"{page} (its token is ${name})" if os.environ.get(name) else with_token(page, token)

    of = f"queue {args.queue[0]}" if args.queue and len(args.queue) == 1 else "the queues"
    if full:
        print(f"redistq: the dashboard of {of} at {address}: {at(full, ENV_TOKEN)}")
    if viewer:
        what = "to look only" if full else f"the dashboard of {of} at {address}, to look only"
        print(f"redistq: {what}: {at(viewer, ENV_VIEWER_TOKEN)}")
    print("redistq: Ctrl-C ends it", flush=True)
    if not is_loopback(args.host):
        print("redistq: the page is not encrypted on its way: let a proxy add TLS", file=sys.stderr)


def _open(folder: Path, page: str, token: str | None) -> None:
    """Open the page by a file, since the arguments of a browser's process can be seen by all."""
    from .guard import with_token

    file = folder / "open.html"
    file.touch(0o600)
    to = with_token(page, token or "")
    file.write_text(f'<meta http-equiv="refresh" content="0; url={to}">')
    webbrowser.open(file.as_uri())

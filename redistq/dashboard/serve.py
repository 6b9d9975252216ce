"""``redistq dashboard --serve``: the dashboard as a web page, for people without a notebook.

Called by the command line. The web server is Voilà, which runs the cell of
``notebooks/dashboard.ipynb`` in a kernel of its own for each visitor, and ends it when the visitor
has gone; there is no web server of ours.

Access: only with the token that is printed at the start, on this machine too,
where every web page in a browser can reach every port. A request has to name this server by a name
of its own (``Host``) and to come from one of its own pages (``Origin``), or a web site elsewhere
could have a visitor's browser ask for it. A visitor presses the dashboard's buttons and runs no
code: Voilà's kernels take no messages but those of widgets.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus, urlsplit

from ..connection.address import ENV_URL, ENV_URL_FILE, Address, resolve
from ..errors import RedistqError
from ..logger import logger
from ..protocol.keys import DEFAULT_QUEUE
from ..system.private import ENV_KEY, is_loopback, named_here
from ..system.streams import written
from . import sse

log = logger("redistq.serve")

CELL = """\
import os

from redistq.dashboard import Dashboard

Dashboard(queue=os.environ.get("REDISTQ_QUEUE", "tasks"))"""
"""What each visitor's kernel runs: the one code cell of notebooks/dashboard.ipynb."""

GONE_AFTER_S = 60
"""A visitor who was not connected for so long has gone."""
EXIT_FAILED = 1
EXIT_USAGE = 2


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    p = argparse.ArgumentParser(
        prog="redistq dashboard --serve",
        description="Show a queue's dashboard as a web page.",
        epilog="All who can open the page can pause the queue, retry and cancel tasks. It is "
        "served to this machine only unless --host says otherwise; then traffic should pass a "
        "proxy that adds TLS. The page asks for the token that is part of the printed address.",
    )
    p.add_argument("--url", help="the server (else $REDISTQ_URL, localhost, or the embedded one)")
    p.add_argument("--queue", default=DEFAULT_QUEUE, help="the queue's name (%(default)s)")
    p.add_argument("--host", default="127.0.0.1", help="the address to serve at (%(default)s)")
    p.add_argument("--port", type=int, default=8866, help="the port to serve at (%(default)s)")
    p.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name under which browsers reach it, as of a proxy; may be repeated",
    )
    p.add_argument("--theme", default="light", choices=["light", "dark"], help="(%(default)s)")
    p.add_argument("--open", action="store_true", help="open the page in a browser")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal; return the exit code (2: a setting or package is missing or wrong)."""
    return written(lambda: _serve(argv))


def _serve(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    try:
        from voila.app import Voila
    except ImportError:
        print("voila is needed for a web page: pip install redistq[serve]", file=sys.stderr)
        return EXIT_USAGE
    try:
        address = resolve(args.url)
    except RedistqError as error:
        print(f"redistq: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ValueError) else EXIT_FAILED
    token = secrets.token_hex(24)
    host = socket.gethostname() if _is_any(args.host) else args.host
    page_url = f"http://{f'[{host}]' if ':' in host else host}:{args.port}/?token={token}"
    with tempfile.TemporaryDirectory(prefix="redistq-") as folder, _kernels_find(address, args):
        page = Path(folder) / "redistq.ipynb"
        page.write_text(json.dumps(_notebook()), encoding="utf-8")
        print(
            f"redistq: the dashboard of queue {args.queue} at {address}: {page_url} "
            "(Ctrl-C ends it)",
            flush=True,
        )
        if not is_loopback(args.host):
            print(
                "redistq: the page is not encrypted on its way: let a proxy add TLS",
                file=sys.stderr,
            )
        is_own = named_here(args.host, args.allow_host)
        server = _server(Voila, token, is_own, page_url, {"address": address, "queue": args.queue})
        try:
            server.launch_instance(argv=voila_arguments(args, page), config=_config())
        finally:
            server.clear_instance()
    return 0


@contextlib.contextmanager
def _kernels_find(address: Address, args: argparse.Namespace) -> Iterator[None]:
    """Let visitors' kernels inherit how to find the server, and no secret.

    The address, which may hold a password, is in a file that only this user can read. They find
    and join the embedded server by themselves, which keeps it alive as long as one of them lives.
    """
    for name in (ENV_URL, ENV_URL_FILE, ENV_KEY):
        os.environ.pop(name, None)
    os.environ["REDISTQ_QUEUE"] = args.queue
    os.environ["REDISTQ_DASHBOARD"] = "widget"
    with tempfile.TemporaryDirectory(prefix="redistq-") as folder:
        if not address.embedded:
            file = Path(folder) / "url"
            file.touch(0o600)
            file.write_text(address.url, encoding="utf-8")
            os.environ[ENV_URL_FILE] = str(file)
        yield


def voila_arguments(args: argparse.Namespace, page: Path) -> list[str]:
    """Return the arguments of Voilà, which all users of this machine can see."""
    return [
        str(page),
        f"--Voila.ip={args.host}",
        f"--port={args.port}",
        "--Voila.port_retries=0",
        f"--theme={args.theme}",
        "--strip_sources=True",
        *([] if args.open else ["--no-browser"]),
    ]


def _token_only(token: str) -> type:
    """Return the class that lets in only those who have the token."""
    from jupyter_server.auth.identity import IdentityProvider

    class TokenOnly(IdentityProvider):
        """The token, compared in constant time; no password, and no change of either."""

        async def get_user_token(self, handler: Any) -> Any:
            given = self.get_token(handler) or ""
            return await super().get_user_token(handler) if _same(given, token) else None

        def process_login_form(self, handler: Any) -> Any:
            given = handler.get_argument("password", default="")
            return self.generate_anonymous_user(handler) if _same(given, token) else None

    return TokenOnly


def _server(
    voila: Any,
    token: str,
    is_own_name: Callable[[str], bool],
    page_url: str,
    queue: dict[str, Any],
) -> Any:
    """Return a class of Voilà that serves nothing but the dashboard, and the events of its queue,
    behind the token."""
    from jupyter_server.services.kernels.handlers import KernelHandler
    from voila.tornado.handler import TornadoVoilaHandler

    token_only = _token_only(token)

    class KernelModel(KernelHandler):
        """Answers that a page's kernel is there, by the name that only this page has."""

        SUPPORTED_METHODS = ("GET",)

    class DashboardServer(voila):  # type: ignore[misc]
        """Voilà behind the guard, which every request passes."""

        name = "voila"
        identity_provider_class = token_only

        def init_settings(self) -> dict[str, Any]:
            # Set here, after every configuration file was read.
            self.token = token
            self.auto_token = False
            self.identity_provider_class = token_only
            return {
                **super().init_settings(),
                "log_function": _log_request,
                "headers": {
                    "Referrer-Policy": "no-referrer",  # the address holds the token
                    "X-Content-Type-Options": "nosniff",
                    "Content-Security-Policy": "frame-ancestors 'self'",
                },
            }

        def init_handlers(self) -> list[Any]:
            # The page, its assets, and its own kernel. Not: the page under every other path, where
            # each request would start a kernel.
            handlers = [(f"{self.server_url.rstrip('/')}/events", sse.handler(), queue)]
            for path, kind, *rest in super().init_handlers():
                if kind is TornadoVoilaHandler:
                    path = path.replace("(.*)", "()")
                handlers.append((path, KernelModel if kind is KernelHandler else kind, *rest))
            return handlers

        def listen(self) -> None:
            _guard(self.app, is_own_name)
            super().listen()

        def launch_browser(self) -> None:
            # By a file, since the arguments of a browser's process can be seen by all users.
            file = Path(self.connection_dir) / "open.html"
            file.touch(0o600)
            file.write_text(f'<meta http-equiv="refresh" content="0; url={page_url}">')
            webbrowser.open(file.as_uri())

    return DashboardServer


def _guard(app: Any, is_own_name: Callable[[str], bool]) -> None:
    """Let each request of a web application pass ``refusal_of`` first, and without its token."""
    from tornado.web import ErrorHandler

    find = app.find_handler

    def guarded(request: Any, **kwargs: Any) -> Any:
        if refused := refusal_of(request, is_own_name):
            log.warning("refused a request: %s", refused)
            return app.get_handler_delegate(request, ErrorHandler, {"status_code": 403})
        _forget_token(request)
        return find(request, **kwargs)

    app.find_handler = guarded


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def refusal_of(request: Any, is_own_name: Callable[[str], bool]) -> str:
    """Return why a request is not answered; empty when it is."""
    host = request.headers.get("Host", "")
    if not is_own_name(request.host_name):
        return f"it asks for {host!r:.100}, which is no name of this server (see --allow-host)"
    origin = request.headers.get("Origin") or request.headers.get("Sec-Websocket-Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return f"it comes from a page of {origin!r:.100}"
    return ""


def _forget_token(request: Any) -> None:
    """Take the token out of the address, which libraries write into logs and kernels' environment;
    among the request's arguments it stays."""
    kept = [
        item for item in request.query.split("&") if unquote_plus(item.partition("=")[0]) != "token"
    ]
    request.query = "&".join(kept)
    request.uri = f"{request.path}?{request.query}" if request.query else request.path


def _log_request(handler: Any) -> None:
    """Log one line a request at most, without what follows the question mark: the token."""
    status = handler.get_status()
    request = handler.request
    level = logging.DEBUG if status < 500 else logging.WARNING
    log.log(level, "%d %s %s", status, request.method, request.path)


def _config() -> Any:
    """Return those settings of Voilà that its command line does not have.

    A kernel whose visitor left without a goodbye (a laptop that was shut) ends too: it counts as
    idle although its dashboard goes on, because the dashboard's messages do not count.
    """
    from jupyter_server.services.kernels.kernelmanager import MappingKernelManager
    from traitlets.config import Config

    uncounted: Any = MappingKernelManager.untracked_message_types
    return Config(
        {
            "MappingKernelManager": {
                "cull_idle_timeout": GONE_AFTER_S,
                "cull_interval": max(1, GONE_AFTER_S // 4),
                "untracked_message_types": [
                    *uncounted.default(),
                    "comm_open",
                    "comm_msg",
                    "comm_close",
                ],
            }
        }
    )


def _is_any(host: str) -> bool:
    """Return whether that means all addresses of this machine."""
    return host in ("", "0.0.0.0", "::")


def _notebook() -> dict[str, Any]:
    cell: dict[str, Any] = {
        "cell_type": "code",
        "id": "dashboard",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
        "source": CELL,
    }
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {
        "cells": [cell],
        "metadata": {"kernelspec": kernel, "title": "redistq dashboard"},
        "nbformat": 4,
        "nbformat_minor": 5,
    }

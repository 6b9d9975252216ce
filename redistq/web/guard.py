"""Who is let in: every request of the web dashboard passes here first.

A request has to name this server by a name of its own (``Host``) and to come from one of its own
pages (``Origin``), or a web site elsewhere could have a visitor's browser ask for it. Then it needs
a token: the full one, or the one of viewers, who look and change nothing. A browser brings it once
in the address and is given a cookie, which holds something made from the token; programs send
``Authorization: Bearer TOKEN``.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, quote_plus, unquote_plus, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from ..errors import ConfigurationError
from ..logger import logger
from ..system.private import host_in
from .shell import moment_page, sign_in_page

log = logger("redistq.web")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ROLE = "redistq.role"
"""Where a request's scope holds who asks: FULL or VIEWER."""
FULL = "full"
VIEWER = "viewer"
LONGEST_SIGN_IN = 4_000
"""Most bytes of the form that asks for the token."""
LEAST_TOKEN = 16
"""Fewest characters of a token."""
OPEN = ("/health", "/static/", "/sign-in")
"""Paths that need no token: they tell nothing of the queues."""
FOR_PROGRAMS = ("/events", "/api/")
"""Paths where a token in the address is taken as it is, without a cookie."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'self'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""What every answer says. Styles are inline, since sections are those of notebooks."""


class Tokens:
    """The tokens of one app; each is None where nobody has that role by a token."""

    def __init__(self, full: str | None, viewer: str | None) -> None:
        """Raises ConfigurationError for tokens that are short or the same."""
        for name, token in (("token", full), ("viewer_token", viewer)):
            if token is not None and (not isinstance(token, str) or len(token) < LEAST_TOKEN):
                raise ConfigurationError(
                    f"{name} is text of at least {LEAST_TOKEN} characters that nobody can guess: "
                    "secrets.token_urlsafe() makes one"
                )
        if full is not None and full == viewer:
            raise ConfigurationError("token and viewer_token are the same: give two, or one")
        self._known = {
            role: token.encode() for role, token in ((FULL, full), (VIEWER, viewer)) if token
        }
        named = hashlib.sha256(b"name\n" + b"\n".join(self._known.values())).hexdigest()
        self.cookie = f"redistq-{named[:12]}"
        """The name of the cookie: its own for each app, since all ports of a host share cookies."""

    def role_of(self, token: str) -> str:
        """Return the role that a token gives; '' for none."""
        return self._match(token, self._known)

    def cookie_of(self, role: str) -> str:
        """Return the cookie of a role: from it nobody learns the token."""
        return hmac.new(self._known[role], b"redistq.web " + role.encode(), "sha256").hexdigest()

    def role_of_cookie(self, cookie: str) -> str:
        """Return the role that a cookie gives; '' for none."""
        made = {role: self.cookie_of(role).encode() for role in self._known}
        return self._match(cookie, made)

    @staticmethod
    def _match(given: str, known: dict[str, bytes]) -> str:
        found = ""
        for role, secret in known.items():  # all of them, in constant time each
            if hmac.compare_digest(given.encode("utf-8", "replace"), secret):
                found = role
        return found


class Guard:
    """An ASGI app that lets requests through to another; with ``tokens`` None all of them, as
    ``outer_role``, since an app around it has let them in. ``is_own_name`` says which names in
    ``Host`` mean this server; None: any."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        tokens: Tokens | None,
        outer_role: str,
        is_own_name: Callable[[str], bool] | None,
        read_only: bool,
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._outer_role = outer_role
        self._is_own_name = is_own_name
        self._read_only = read_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it through."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
                return
            await send({"type": "websocket.close", "code": 1003})
            return
        _make_whole(scope)
        answer = await self._answer(scope, receive)
        sending = _with_headers(send)
        await (self._app if answer is None else answer)(scope, receive, sending)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """Return the answer to a request that is not let through."""
        headers = Headers(scope=scope)
        given = _take_token(scope)
        refused = self._refusal(scope, headers)
        if refused:
            log.warning("refused a request: %s", refused)
            return PlainTextResponse("This request is refused: " + refused, 403)
        path = path_of(scope)
        if path.startswith(OPEN):
            if path != "/sign-in":
                return None
            return await self._sign_in(scope, receive)
        if self._tokens is None:
            return self._let(scope, headers, self._outer_role)
        bearer = headers.get("authorization", "")
        kind, _, value = bearer.partition(" ")
        if kind.lower() in ("bearer", "token"):
            role = self._tokens.role_of(value.strip())
            return self._let(scope, headers, role, by_header=True) if role else _unknown(scope)
        if given and path.startswith(FOR_PROGRAMS):
            role = self._tokens.role_of(given)
            return self._let(scope, headers, role, by_header=True) if role else _unknown(scope)
        is_get = scope["method"] == "GET"
        if given and is_get and (role := self._tokens.role_of(given)):
            return self._with_cookie(scope, role, address_of(scope))
        cookie = HTTPConnection(scope).cookies.get(self._tokens.cookie, "")
        if role := self._tokens.role_of_cookie(cookie):
            return self._let(scope, headers, role)
        if headers.get("sec-fetch-site") == "cross-site" and is_get:
            # A link on another site: the cookie is not sent along. From our own page it is.
            return HTMLResponse(moment_page(address_of(scope)), headers=_NO_STORE)
        return _unknown(scope, wrong=bool(given))

    def _let(
        self, scope: Scope, headers: Headers, role: str, *, by_header: bool = False
    ) -> Response | None:
        scope[ROLE] = VIEWER if self._read_only else role
        if scope["method"] in ("GET", "HEAD"):
            return None
        if scope[ROLE] != FULL:
            return PlainTextResponse("This address is for looking only.", 403)
        if not by_header and not _from_own_page(headers):
            return PlainTextResponse("This request does not come from a page of this server.", 403)
        return None

    def _refusal(self, scope: Scope, headers: Headers) -> str:
        """Return why a request is not answered; '' when it is."""
        host = headers.get("host", "")
        if self._is_own_name is not None and not self._is_own_name(host_in(host)):
            return f"it asks for {host!r:.100}, which is no name of this server (see --allow-host)"
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc.lower() != host.lower():
            return f"it comes from a page of {origin!r:.100}"
        return ""

    async def _sign_in(self, scope: Scope, receive: Receive) -> Response:
        """Answer the form that asks for the token."""
        if self._tokens is None or scope["method"] != "POST":
            return RedirectResponse(scope.get("root_path", "") + "/", 303)
        form = await form_of(Request(scope, receive), LONGEST_SIGN_IN)
        root = scope.get("root_path", "")
        role = self._tokens.role_of(form.get("token", "").strip())
        if not role:
            return _unknown(scope, wrong=True)
        to = form.get("to", "")
        is_ours = to.startswith(root + "/") and not to.startswith(("//", "/\\"))
        return self._with_cookie(scope, role, to if is_ours else root + "/")

    def _with_cookie(self, scope: Scope, role: str, to: str) -> Response:
        assert self._tokens is not None
        answer = RedirectResponse(to, 303, headers=_NO_STORE)
        answer.set_cookie(
            self._tokens.cookie,
            self._tokens.cookie_of(role),
            path=scope.get("root_path", "") or "/",
            httponly=True,
            samesite="strict",
            secure=scope.get("scheme") == "https",
        )
        return answer


_NO_STORE = {"Cache-Control": "no-store"}


async def form_of(request: Request, most: int) -> dict[str, str]:
    """Return the fields of a form of at most so many bytes; nothing of a longer one."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > most:
            return {}
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))


def _make_whole(scope: Scope) -> None:
    """Put a prefix that a proxy has taken off into the path again, as ASGI wants it: otherwise no
    route of an app that is mounted would be found."""
    root: str = scope.get("root_path", "")
    path: str = scope["path"]
    if not root or path == root or path.startswith(root + "/"):
        return
    mounted = root.removeprefix(scope.get("app_root_path", ""))
    below = path.removeprefix(mounted) if path.startswith(mounted) else path
    scope["path"] = root + below


def path_of(scope: Scope) -> str:
    """Return a request's path below the place where this app is mounted."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root) else path


def address_of(scope: Scope) -> str:
    """Return a request's address on this server, without its token."""
    root = scope.get("root_path", "")
    query = scope["query_string"].decode("latin-1")
    path = root + (path_of(scope) or "/")
    return f"{path}?{query}" if query else path


def _take_token(scope: Scope) -> str:
    """Take the token out of the address, which servers write into their logs, and return it."""
    token = ""
    kept = []
    for item in scope["query_string"].decode("latin-1").split("&"):
        name, _, value = item.partition("=")
        if unquote_plus(name) == "token":
            token = unquote_plus(value)
        elif item:
            kept.append(item)
    scope["query_string"] = "&".join(kept).encode("latin-1")
    return token


def _from_own_page(headers: Headers) -> bool:
    """Return whether a browser says that its own page sent this; that Origin is ours is known."""
    return bool(headers.get("origin")) or headers.get("sec-fetch-site") == "same-origin"


def _unknown(scope: Scope, *, wrong: bool = False) -> Response:
    """Return the answer for somebody without a token."""
    headers = Headers(scope=scope)
    if path_of(scope).startswith((*FOR_PROGRAMS, "/live")) or "text/html" not in headers.get(
        "accept", "text/html"
    ):
        said = "a token is needed: Authorization: Bearer TOKEN"
        return PlainTextResponse(said, 401, headers={"WWW-Authenticate": "Bearer", **_NO_STORE})
    root = scope.get("root_path", "")
    to = address_of(scope) if scope["method"] == "GET" else root + "/"
    return HTMLResponse(sign_in_page(root, to, wrong=wrong), 401, headers=_NO_STORE)


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            found = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                found[name] = value
            found.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending


def with_token(address: str, token: str) -> str:
    """Return an address that lets in whoever opens it."""
    return f"{address}?token={quote_plus(token)}"

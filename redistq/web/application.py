"""An app is put together here: a site, what is answered, and the guard before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..connection.address import resolve
from ..dashboard.dashboard import where_of
from ..errors import ConfigurationError
from ..protocol.keys import DEFAULT_GROUP, QueueKeys
from ..system.private import named_here
from .guard import FULL, VIEWER, Guard, Tokens
from .routes import Routes
from .site import Site

AUTHS = ("token", "outer")


def make(
    source: Any,
    *,
    url: str | None,
    queues: str | Iterable[str] | None,
    group: str | None,
    token: str | None,
    viewer_token: str | None,
    auth: str,
    read_only: bool,
    allow_hosts: Iterable[str] | None,
) -> Guard:
    """Return the app; see ``redistq.web.app``."""
    tokens = tokens_of(token, viewer_token, auth)
    site = site_of(source, url, queues, group)
    is_own_name = None if allow_hosts is None else named_here("localhost", [*allow_hosts])
    return guarded(site, tokens, is_own_name=is_own_name, read_only=read_only)


def tokens_of(token: str | None, viewer_token: str | None, auth: str) -> Tokens | None:
    """Return the tokens, or None where the app around asks; raises ConfigurationError."""
    if auth not in AUTHS:
        raise ConfigurationError(f"auth is one of {', '.join(AUTHS)}, not {auth!r}")
    has_token = token is not None or viewer_token is not None
    if auth == "outer":
        if has_token:
            raise ConfigurationError("with auth='outer' no token is asked for: give none")
        return None
    if not has_token:
        raise ConfigurationError(
            "without a token all who reach this could pause queues and read payloads: give "
            "token=secrets.token_urlsafe(), or auth='outer' where your application lets nobody in "
            "who may not"
        )
    return Tokens(token, viewer_token)


def site_of(
    source: Any, url: str | None, queues: str | Iterable[str] | None, group: str | None
) -> Site:
    """Return what is looked at; raises ConfigurationError."""
    if isinstance(source, str):
        url = source
        source = None
    names = [queues] if isinstance(queues, str) else None if queues is None else [*queues]
    if source is None:
        return Site(resolve(url), names, group or DEFAULT_GROUP)
    if names is not None:
        raise ConfigurationError(
            f"a {type(source).__name__} knows its queue: give either it, or url and queues"
        )
    address, queue, group, delayed = where_of(source, url, None, group)
    own = QueueKeys(queue, clustered=address.clustered).delayed
    return Site(address, [queue], group, None if delayed == own else delayed)


def guarded(
    site: Site,
    tokens: Tokens | None,
    *,
    is_own_name: Callable[[str], bool] | None = None,
    read_only: bool = False,
) -> Guard:
    """Return the app of a site, behind its guard."""
    role = VIEWER if read_only else FULL
    return Guard(Routes(site).app(), tokens, role, is_own_name, read_only)

"""The dashboard as a web application: ``redistq web``, or mounted in one of your own.

    fastapi_app.mount("/queue", redistq.web.app(url="redis://localhost", token=TOKEN))

Needs Starlette, and uvicorn for the command: ``pip install redistq[web]``. docs/web.md is the
guide.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from ..system.interpreter import require

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Application = Callable[[Any, Any, Any], Awaitable[None]]


def app(
    source: Any = None,
    *,
    url: str | None = None,
    queues: str | Iterable[str] | None = None,
    group: str | None = None,
    token: str | None = None,
    viewer_token: str | None = None,
    auth: Literal["token", "outer"] = "token",
    read_only: bool = False,
    allow_hosts: Iterable[str] | None = None,
) -> Application:
    """Return the dashboard as an ASGI application, to be run alone or mounted under any prefix.

    ``source`` is a URL, or anything that knows its queue: a TaskMonitor, a TaskProducer, a
    TaskWorker or a Client; without one the server is found as ``settings.resolve`` says, and
    ``queues`` are those that may be looked at (None: all that the server has). Nothing is asked of
    the server before the first request.

    ``token`` lets its holders look and act, ``viewer_token`` look only; each has at least 16
    characters. With ``auth="outer"`` no token is asked for: the application around it must let
    nobody in who may not act. ``read_only`` lets all only look. ``allow_hosts`` are the names under
    which it may be asked for (None: any).

    Raises ConfigurationError without a token and without ``auth="outer"``, and ImportError where
    Starlette is not installed.
    """
    require("starlette", "web", "the web dashboard")
    from .application import make

    return make(
        source,
        url=url,
        queues=queues,
        group=group,
        token=token,
        viewer_token=viewer_token,
        auth=auth,
        read_only=read_only,
        allow_hosts=allow_hosts,
    )

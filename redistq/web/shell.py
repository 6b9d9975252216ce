"""The documents around the sections: head, landmarks, forms; pure functions, HTML out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from urllib.parse import urlencode

from ..display.html import Html, tag, void
from ..display.text import clean

STATIC = Path(__file__).parent / "static"
RELOAD_S = 15
"""Seconds after which a page without JavaScript is loaded again."""
STATES = (
    *("failed", "running", "delayed", "waiting"),
    *("succeeded", "retried", "cancelled", "expired"),
)
"""What a search can be narrowed to."""


@cache
def version_of(name: str) -> str:
    """Return what stands for the content of a static file, so that browsers may keep it."""
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def address(root: str, path: str, **query: str | int) -> str:
    """Return an address of this app: a path below ``root``, with what a question mark separates."""
    asked = urlencode({name: value for name, value in query.items() if value != ""})
    return f"{root}{path}?{asked}" if asked else f"{root}{path}"


# -- pages ---------------------------------------------------------------------------------------


def document(
    root: str,
    title: str,
    body: Sequence[str],
    *,
    live: str = "",
    where: Iterable[tuple[str, str]] = (),
    queue: str = "",
    read_only: bool = False,
) -> str:
    """Return a page: ``live`` is where its sections come from while it is looked at ('': it does
    not move), ``where`` the way to it, as names and addresses, ``queue`` the one that is searched,
    if any."""
    way = [tag("li", tag("a", clean(name, 60), href=to)) for name, to in where]
    header = tag(
        "header",
        tag(
            "nav",
            tag("ol", tag("li", tag("a", "redistq", href=f"{root}/", class_="home")), *way),
            **{"aria-label": "Breadcrumb"},
        ),
        search_form(root, queue) if queue else "",
        tag(
            "div",
            tag("span", "read-only", class_="role") if read_only else "",
            tag("span", "", id="link", role="status"),
            class_="state",
        ),
    )
    form = tag("form", id="act", method="post", action=address(root, "/act", q=queue))
    main = tag("main", *body, **{"id": "main", "data-live": live})
    acts = [] if read_only else [form, _dialog()]
    skip = tag("a", "Skip to the content", href="#main", class_="skip")
    return _page(root, title, [skip, header, *acts, main], moving=bool(live))


def _dialog() -> Html:
    return tag(
        "dialog",
        tag("p", "", id="question"),
        tag("button", "No, leave it", type="button", value="no", class_="no"),
        tag("button", "Yes", type="button", value="yes", class_="danger yes"),
        id="ask",
        **{"aria-labelledby": "question"},
    )


def _page(root: str, title: str, body: Sequence[str], *, moving: bool = False) -> str:
    style = address(root, "/static/page.css", v=version_of("page.css"))
    script = address(root, "/static/page.js", v=version_of("page.js"))
    refresh = void("meta", **{"http-equiv": "refresh", "content": str(RELOAD_S)})
    head = [
        void("meta", charset="utf-8"),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        void("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        void("link", rel="icon", href=_ICON),
        void("link", rel="stylesheet", href=style),
        tag("noscript", refresh) if moving else "",
        tag("script", src=script, defer="defer") if moving else "",
    ]
    return f"<!doctype html>\n{tag('html', tag('head', *head), tag('body', *body), lang='en')}"


_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect x='1' y='2' width='14' height='3' rx='1' fill='%230072B2'/%3E"
    "%3Crect x='1' y='7' width='10' height='3' rx='1' fill='%23009E73'/%3E"
    "%3Crect x='1' y='12' width='6' height='3' rx='1' fill='%23D1430A'/%3E%3C/svg%3E"
)


def section(name: str, heading: str, content: str) -> Html:
    """Return a section whose content is replaced while the page is looked at."""
    return tag(
        "section",
        tag("h2", heading, class_="unseen") if heading else "",
        tag("div", content, **{"data-part": name}),
    )


def search_form(root: str, queue: str, text: str = "", state: str = "") -> Html:
    """Return the form that finds tasks."""
    options = [("", "any state"), *((name, name) for name in STATES)]
    chosen = {True: {"selected": "selected"}, False: {}}
    return tag(
        "form",
        void("input", type="hidden", name="q", value=queue),
        void(
            "input",
            type="search",
            name="text",
            value=text,
            placeholder="Name, id, argument or error",
            **{"aria-label": "Find tasks by name, id, argument or error"},
        ),
        tag(
            "select",
            *(tag("option", said, value=name, **chosen[name == state]) for name, said in options),
            name="state",
            **{"aria-label": "State"},
        ),
        tag("button", "Find", type="submit"),
        role="search",
        action=f"{root}/search",
        class_="search",
    )


def action(what: str, text: str, tip: str, **more: str) -> Html:
    """Return the button of an action (see Actions.start)."""
    return tag(
        "button", text, type="submit", form="act", name="what", value=what, title=tip, **more
    )


# -- small pages ---------------------------------------------------------------------------------


def sign_in_page(root: str, to: str, *, wrong: bool = False) -> str:
    """Return the page that asks for the token; from it one comes to ``to``."""
    said = "This is not the token." if wrong else "This page needs its token."
    form = tag(
        "form",
        tag("label", "Token", for_="token"),
        void(
            "input",
            type="password",
            name="token",
            id="token",
            autocomplete="current-password",
            required="required",
            autofocus="autofocus",
        ),
        void("input", type="hidden", name="to", value=to),
        tag("button", "Open"),
        method="post",
        action=f"{root}/sign-in",
        class_="sign-in",
    )
    where = tag("p", "It is part of the address that redistq web printed at its start.")
    return _page(root, "redistq", [tag("main", tag("h1", "redistq"), tag("p", said), form, where)])


def moment_page(to: str) -> str:
    """Return a page that leads on to an address of this server, from this server."""
    go = void("meta", **{"http-equiv": "refresh", "content": f"0;url={to}"})
    link = tag("a", "Go on", href=to)
    return f"<!doctype html>\n{tag('html', tag('head', go), tag('body', link), lang='en')}"


def notice_page(root: str, title: str, sentence: str, *more: str) -> str:
    """Return a page that says one thing, and has links or a form."""
    back = tag("p", tag("a", "All queues", href=f"{root}/"))
    return _page(root, title, [tag("main", tag("h1", title), tag("p", sentence), *more, back)])


def question_page(root: str, queue: str, what: str, question: str, yes: str) -> str:
    """Return the page that asks before an action, for browsers without JavaScript."""
    to = address(root, "/queue", q=queue)
    form = tag(
        "form",
        void("input", type="hidden", name="what", value=what),
        tag("button", yes, name="sure", value="1", class_="danger"),
        " ",
        tag("a", "No, leave it", href=to),
        method="post",
        action=address(root, "/act", q=queue),
    )
    return notice_page(root, "Are you sure?", question, form)

"""The Lua scripts: found, their fragments put in, and named by their SHA1.

Used by the typed calls and by the broker (which needs the text when a server does not know the
SHA1). It never talks to a server.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

_INCLUDE = re.compile(r"^--@include (\w+)\n", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """One verb: its name, its full text as the server gets it, and that text's SHA1."""

    name: str
    text: str
    sha: str


@functools.cache
def folder() -> Path:
    """Where the Lua files are: beside this module in a wheel, in ``lua/`` of a checkout.

    Raises FileNotFoundError naming both places when the installation is broken.
    """
    here = Path(__file__).resolve().parent
    for place in (here / "_lua", here.parent / "lua"):
        if (place / "enqueue.lua").is_file():
            return place
    raise FileNotFoundError(
        f"redistq's Lua scripts are in neither {here / '_lua'} nor {here.parent / 'lua'}; "
        "install the package again"
    )


@functools.cache
def load(name: str) -> Script:
    """The script of one verb, with its fragments expanded and whole-line comments left out."""
    source = (folder() / f"{name}.lua").read_text(encoding="utf-8")
    text = _INCLUDE.sub(lambda m: _fragment(m[1]), source)
    text = _COMMENT.sub("", text)
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    script = Script(name, text, sha)
    _texts[sha] = text
    return script


_texts: dict[str, str] = {}


def text_of(sha: str) -> str:
    """The text of a script that was loaded in this process."""
    return _texts[sha]


@functools.cache
def _fragment(name: str) -> str:
    return (folder() / "lib" / f"{name}.lua").read_text(encoding="utf-8")


def names() -> list[str]:
    """The verbs there are."""
    return sorted(path.stem for path in folder().glob("*.lua"))

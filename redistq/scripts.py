"""The Lua scripts: found, their fragments put in, and named by their SHA1.

Used by the typed calls and by the broker (which needs the text when a server does not know the
SHA1). It never talks to a server.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigurationError

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

    Both may be inside a zip from which the package is imported. Raises ConfigurationError naming
    both places when the installation is broken.
    """
    here = Path(__file__).parent  # as it is: a loader knows its zip by the path it was given
    places = (here / "_lua", here.resolve().parent / "lua")
    for place in places:
        with contextlib.suppress(OSError):
            _read(place / "enqueue.lua")
            return place
    raise ConfigurationError(
        f"redistq's Lua scripts are in neither {places[0]} nor {places[1]}: install the package "
        "again, or put its folder _lua into the zip that it is imported from"
    )


def _read(path: Path) -> str:
    """A file of the package's, by whatever has imported it: from a folder or out of a zip."""
    loader: Any = __spec__.loader
    return bytes(loader.get_data(str(path))).decode()


@functools.cache
def load(name: str) -> Script:
    """The script of one verb, with its fragments expanded and whole-line comments left out."""
    source = _read(folder() / f"{name}.lua")
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
    return _read(folder() / "lib" / f"{name}.lua")


def names() -> list[str]:
    """The verbs there are."""
    return sorted(path.stem for path in folder().glob("*.lua"))

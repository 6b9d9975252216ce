"""The Lua scripts: found, their fragments put in, named by their SHA1, and called by their headers.

A header names the keys and the arguments of its script, in order, and nothing else names them:
``QueueScripts`` makes a function of each header. Used by the typed calls and by the broker (which
needs the text when a server does not know the SHA1). It never talks to a server.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from .pieces import Large

VERBS = (
    "enqueue",
    "enqueue_gated",
    "limit",
    "recount",
    "set_schedule",
    "promote",
    "fire",
    "settle",
    "retry",
    "report",
    "suspend",
    "step",
    "recall",
    "expect",
    "send_event",
    "release",
    "park",
    "regate",
    "quarantine",
    "rights",
    "register",
    "heartbeat",
    "recover",
    "adopt",
    "create_group",
    "cancel",
    "watch",
    "find",
    "replay",
    "resubmit",
    "resubmit_gated",
    "purge",
    "deploy",
    "open_batch",
    "update_batch",
    "grow_batch",
    "hold",
    "drop",
    "snapshot",
    "tick",
    "browse",
    "events",
    "why",
    "append_items",
    "read_items",
)
"""Every script there is; a package inside a zip cannot list its files."""
PARTS = ("KEYS", "ARGV", "RETURN", "COST", "WHY")
"""The parts of a header, in this order."""

_INCLUDE = re.compile(r"^--@include (\w+)\n", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*\n", re.MULTILINE)
_SLOT = re.compile(r"(\d+) ([a-z_]+)(?::.*)?")
_REPEATED = re.compile(r"for each [\w ]+ \((\d+)\): (.+)")


@dataclass(frozen=True, slots=True)
class Header:
    """What the comment above a script says."""

    verb: str
    purpose: str
    parts: dict[str, str]
    """The text of each part, on one line."""
    keys: tuple[str, ...]
    args: tuple[str, ...]
    """The arguments that come once."""
    repeated: tuple[str, ...]
    """What is sent for each item, with its explanation; empty where nothing is repeated."""


@dataclass(frozen=True, slots=True)
class Script:
    """One verb: its name, its file, its text as the server gets it, and that text's SHA1."""

    name: str
    source: str
    text: str
    sha: str


@functools.cache
def folder() -> Path:
    """Where the Lua files are: inside the package in a wheel, in ``lua/`` of a checkout.

    Both may be inside a zip from which the package is imported. Raises ConfigurationError naming
    both places when the installation is broken.
    """
    here = Path(__file__).parent.parent  # as it is: a loader knows its zip by the path it was given
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
    script = Script(name, source, text, sha)
    remember(script)
    return script


_texts: dict[str, str] = {}


def remember(script: Script) -> None:
    """Keep a script's text, for servers that do not know its SHA1."""
    _texts[script.sha] = script.text


def text_of(sha: str) -> str:
    """Return the text of a script that was loaded in this process."""
    return _texts[sha]


def with_text(command: Sequence[Any]) -> tuple[Any, ...]:
    """Return a script's command with its text, for a server that does not know its SHA1."""
    made = ("EVAL", text_of(command[1]), *command[2:])
    return Large(made) if type(command) is Large else made


@functools.cache
def _fragment(name: str) -> str:
    return _read(folder() / "lib" / f"{name}.lua")


# -- headers -------------------------------------------------------------------------------------


@functools.cache
def header_of(verb: str) -> Header:
    """Return the header of a verb."""
    return parse(verb, load(verb).source)


def parse(verb: str, source: str) -> Header:
    """Return the header of a script; raises ValueError naming the line that is none."""
    lines = _header_lines(source)
    named, _, purpose = next(iter(lines), "").partition(": ")
    if named != verb:
        raise ValueError(f"{verb}.lua: its header does not begin with '-- {verb}: '")
    parts: dict[str, str] = {}
    items: dict[str, list[str]] = {"KEYS": [], "ARGV": []}
    part = ""
    for line in lines[1:]:
        title, colon, rest = line.partition(":")
        if colon and title in PARTS[len(parts) :]:
            part = title
            parts[part] = rest.strip()
        elif part and line.startswith("  "):
            parts[part] = f"{parts[part]} {line.strip()}".strip()
            if part in items and re.match(r"  (\d+ |for each )", line):
                items[part].append(line.strip())
            elif items.get(part):
                items[part][-1] += f" {line.strip()}"
        else:
            raise ValueError(f"{verb}.lua: this is no part of a header: {line!r}")
    if tuple(parts) != PARTS:
        raise ValueError(f"{verb}.lua: its header has {', '.join(parts)}, not {', '.join(PARTS)}")
    repeated: tuple[str, ...] = ()
    if items["ARGV"] and (found := _REPEATED.fullmatch(items["ARGV"][-1])):
        items["ARGV"].pop()
        repeated = tuple(re.split(r", (?![^(]*\))", found[2]))
        if len(repeated) != int(found[1]):
            raise ValueError(f"{verb}.lua: of {found[1]} repeated values {len(repeated)} are named")
    keys = _slots(verb, items["KEYS"])
    args = _slots(verb, items["ARGV"])
    return Header(verb, purpose, parts, keys, args, repeated)


def _header_lines(source: str) -> list[str]:
    lines = []
    for line in source.splitlines():
        if not line.startswith("--") or line.startswith("--@"):
            break
        lines.append(line.removeprefix("--").removeprefix(" "))
    return lines


def _slots(verb: str, lines: list[str]) -> tuple[str, ...]:
    names: list[str] = []
    for line in lines:
        found = _SLOT.fullmatch(line)
        if not found or int(found[1]) != len(names) + 1:
            raise ValueError(f"{verb}.lua: this is not slot {len(names) + 1}: {line!r}")
        if keyword.iskeyword(found[2]) or found[2] in names:
            raise ValueError(f"{verb}.lua: {found[2]!r} cannot be the name of slot {found[1]}")
        names.append(found[2])
    return tuple(names)


# -- calls by header -----------------------------------------------------------------------------

Call = Callable[..., tuple[Any, ...]]
"""A script of one queue. Its first argument, where the header repeats something, is the values of
all items one after the other; the others go by the names in the header."""


@functools.cache
def _maker(verb: str, own: tuple[str, ...]) -> Callable[..., Call]:
    """Return what makes a script's function once the queue's keys and ``own`` arguments are known.

    A function is written from the header, as ``namedtuple`` does from its fields: Python itself
    then refuses a missing or an unknown argument, and a call costs no look at any name.
    """
    header = header_of(verb)
    given = [name for name in header.args if name not in own]
    parameters = (["items"] if header.repeated else []) + ["*"] * (len(given) > 1) + given
    first = tuple(itertools.takewhile(own.__contains__, header.args))
    values = ["*head", *header.args[len(first) :]] + (["*items"] if header.repeated else [])
    source = (
        f"def make(head, {', '.join(own)}):\n"
        f"    head = ({', '.join(['*head', *first])},)\n"
        f"    def {verb}({', '.join(parameters)}):\n"
        f"        return ({', '.join(values)},)\n"
        f"    return {verb}\n"
    )
    scope: dict[str, Any] = {}
    exec(compile(source, f"<header of {verb}.lua>", "exec"), scope)
    made: Callable[..., Call] = scope["make"]
    return made


class QueueScripts:
    """Every script of one queue, as a function of its name: ``scripts.cancel(ids, ttl=1000)``."""

    def __init__(
        self,
        keys: object,
        own: Mapping[str, Any],
        loader: Callable[[str], Script] = load,
        more_keys: Sequence[str] = (),
    ) -> None:
        """``keys`` has an attribute for each key that headers name; ``own`` are the arguments that
        are the same in all calls of the queue, by their names in the headers. ``loader`` finds the
        script of a verb, which is given ``more_keys`` after those of its header."""
        self._keys = keys
        self._own = own
        self._loader = loader
        self._more_keys = more_keys
        for verb in VERBS:  # all at once: another release may be installed over this one later
            loader(verb)

    def __getattr__(self, verb: str) -> Call:
        """Make a script's function when it is first wanted."""
        if verb not in VERBS:
            raise AttributeError(f"there is no script {verb!r}")
        keys = [getattr(self._keys, name) for name in header_of(verb).keys]
        keys.extend(self._more_keys)
        head = ("EVALSHA", self._loader(verb).sha, len(keys), *keys)
        call = _maker(verb, tuple(self._own))(head, **self._own)
        setattr(self, verb, call)
        return call


def check(command: Sequence[Any]) -> None:
    """Raise ValueError when a script's command has not as many keys and values as its header says.

    Names are checked with every call; how many values an iterable holds is asked in tests only.
    """
    header = next(header_of(verb) for verb in VERBS if load(verb).sha == command[1])
    if command[2] != len(header.keys):
        raise ValueError(f"{header.verb} has {len(header.keys)} keys, not {command[2]}")
    values = len(command) - 3 - command[2] - len(header.args)
    each = len(header.repeated)
    if values < 0 or (values % each if each else values):
        raise ValueError(f"{header.verb}: {values} values, where each item has {each}")

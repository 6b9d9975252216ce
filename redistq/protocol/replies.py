"""Replies: whether an answer has the shape that its command's answers have.

Used by brokers for every call, before the answer is read. So an error of what is no Redis server,
or of a proxy that changes or mixes up answers, does not look like a fault of redistq.
"""

from __future__ import annotations

import functools
import math
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..errors import RedistqError, UnexpectedReply
from . import scripts

T = TypeVar("T")
Shape = Callable[[Any, Sequence[Any]], bool]
"""Return whether a reply can be the answer to a command."""

UNREADABLE = (TypeError, ValueError, LookupError, AttributeError, OverflowError)
"""What reading a reply of another shape raises."""

_STATES = frozenset(
    b"unknown waiting delayed queued running succeeded failed cancelled expired".split()
)
_FIGURES = frozenset(
    b"now_ms length pending delayed next_due_ms next_timer_ms waiting waiting_since_ms dead "
    b"oldest_ms lease_ms paused history workers_total".split()
)
"""The figures of a snapshot that are numbers."""


def checked(command: Sequence[Any], reply: Any) -> Any:
    """Return the reply to a command; raises UnexpectedReply for one that cannot be its answer."""
    name = command[0]
    shape = _of_script(command[1]) if name == "EVALSHA" else _SHAPES.get(name)
    if shape is None or shape(reply, command):
        return reply
    raise unexpected(command, reply)


def read(command: Sequence[Any], reply: Any, reader: Callable[[Any], T]) -> T:
    """Return what ``reader`` makes of the reply to a command; raises UnexpectedReply when it
    cannot."""
    try:
        return reader(reply)
    except RedistqError:
        raise
    except UNREADABLE as error:
        raise unexpected(command, reply) from error


def messages(command: Sequence[Any], reply: Any) -> list[tuple[str, list[bytes]]]:
    """Return the entries that XREAD found in one stream; raises UnexpectedReply."""
    found = reply[0][1] if type(reply) is list and reply and _row(reply[0], _text, _any) else reply
    if found is None:
        return []
    if not _list(found, _message):
        raise unexpected(command, reply)
    return [(entry.decode(), flat) for entry, flat in found]


def is_pushed(message: Any) -> bool:
    """Return whether this is what a server sends to subscribers of a channel."""
    return _row(message, _text, _text, _text) or _row(message, _text, _text, _int)


def unexpected(command: Sequence[Any], reply: Any) -> UnexpectedReply:
    """Return the error that says which command was answered with what."""
    name = str(command[0])
    if name in ("EVALSHA", "EVAL"):
        name = f"the script {_verb_of(command[1]) or '?'}"
    return UnexpectedReply(name, _shown.repr(reply)[:200])


_shown = reprlib.Repr()
_shown.maxlist = _shown.maxtuple = _shown.maxdict = 4
_shown.maxlevel = 3
_shown.maxother = _shown.maxstring = 40


@functools.cache
def _verb_of(sha: Any) -> str:
    return next((verb for verb in scripts.VERBS if scripts.load(verb).sha == sha), "")


@functools.cache
def _of_script(sha: Any) -> Shape | None:
    return _SCRIPTS.get(_verb_of(sha))


# -- what replies are made of --------------------------------------------------------------------


def _int(x: Any) -> bool:
    return type(x) is int


def _text(x: Any) -> bool:
    return type(x) is bytes


def _any(x: Any) -> bool:
    return True


def _number(x: Any) -> bool:
    """A whole number, as itself or as text."""
    return type(x) is int or (type(x) is bytes and x.removeprefix(b"-").isdigit() and len(x) < 21)


def _score(x: Any) -> bool:
    """The score of a sorted set, which is text."""
    try:
        return type(x) is bytes and math.isfinite(float(x))
    except ValueError:
        return False


def _entry(x: Any) -> bool:
    """The id of a stream's entry."""
    return type(x) is bytes and x.partition(b"-")[0].isdigit()


def _list(x: Any, of: Callable[[Any], bool]) -> bool:
    return type(x) is list and all(map(of, x))


def _texts(x: Any) -> bool:
    return _list(x, _text)


def _wishes(x: Any) -> bool:
    """Positions, entries and words in turn."""
    return (
        type(x) is list
        and not len(x) % 3
        and all(map(_number, x[::3]))
        and all(map(_entry, x[1::3]))
        and all(map(_text, x[2::3]))
    )


def _flat(x: Any) -> bool:
    """Names and values in turn."""
    return type(x) is list and not len(x) % 2 and all(map(_text, x))


def _row(x: Any, *of: Callable[[Any], bool]) -> bool:
    return type(x) is list and len(x) == len(of) and all(f(v) for f, v in zip(of, x, strict=True))


def _message(x: Any) -> bool:
    """An entry of a stream with its fields."""
    return _row(x, _entry, _flat)


def _letter(x: Any) -> bool:
    """A member of a sorted set with its score and details."""
    return _row(x, _text, _score, _flat)


def _pending(x: Any) -> bool:
    return _row(x, _entry, _text, _int, _int, *(_text,) * 6)


def _information(x: Any) -> bool:
    """A row of XINFO: names with texts, numbers or nothing in turn."""
    return (
        type(x) is list
        and not len(x) % 2
        and all(map(_text, x[::2]))
        and all(v is None or type(v) in (bytes, int) for v in x[1::2])
    )


def _consumers(x: Any) -> bool:
    """A row of XINFO CONSUMERS or XINFO GROUPS."""
    if not _information(x):
        return False
    row = dict(zip(x[::2], x[1::2], strict=True))
    known = _text(row.get(b"name")) and _int(row.get(b"pending")) and _int(row.get(b"inactive", 0))
    return known and (_int(row.get(b"idle")) or _text(row.get(b"last-delivered-id")))


def _worker(x: Any) -> bool:
    return _row(x, _text, _int, _int, _flat)


def _snapshot(x: Any) -> bool:
    if type(x) is not list or len(x) % 2 or not all(map(_text, x[::2])):
        return False
    raw = dict(zip(x[::2], x[1::2], strict=True))
    counters = raw.get(b"counters")
    return (
        all(_int(raw.get(name)) for name in _FIGURES)
        and _text(raw.get(b"group"))
        and type(counters) is list
        and _flat(counters)
        and all(map(_number, counters[1::2]))
        and _list(raw.get(b"workers"), _worker)
    )


def _refused(x: Any, command: Sequence[Any], named: bool = False) -> bool:
    """Positions of items, or lists of one, an error's words and, if ``named``, the item's id; most
    often none."""
    if type(x) is not list:
        return False
    if not x:
        return True
    most = _items(command)
    for item in x:
        if type(item) is list:
            if len(item) < 2 + named or not all(map(_text, item[1:])):
                return False
            item = item[0]
        if type(item) is not int or not 0 < item <= most:
            return False
    return True


def _gated(x: Any, command: Sequence[Any]) -> bool:
    """As ``_stored``; some with four parts, which say what happened instead."""
    return _refused(x, command, named=True) and all(
        type(item) is int or len(item) in (3, 4) for item in x
    )


def _fired(x: Any, command: Sequence[Any]) -> bool:
    """A word, an error's words, and what was not simply added."""
    return _row(x, _text, _text, lambda others: _gated(others, command))


def _stored(x: Any, command: Sequence[Any]) -> bool:
    """As ``_refused``, with names; most often nothing, which costs each task that is added."""
    return x == [] or _refused(x, command, named=True)


def _items(command: Sequence[Any]) -> int:
    """How many items a script's command has."""
    header = scripts.header_of(_verb_of(command[1]))
    values: int = len(command) - 3 - command[2] - len(header.args)
    return values // len(header.repeated)


def _words(x: Any, command: Sequence[Any]) -> bool:
    """A word for each item, or a list that ends with an error's words."""
    return (
        type(x) is list
        and len(x) == _items(command)
        and all(_text(w) or (type(w) is list and len(w) > 1 and _text(w[1])) for w in x)
    )


def _watched(x: Any) -> bool:
    """A state, the record, who runs the task; the record of one in the stream names its entry."""
    return (
        _row(x, _text, _flat, _text)
        and x[0] in _STATES
        and (x[0] not in (b"queued", b"running") or b"entry" in x[1][::2])
    )


def _steps(x: Any) -> bool:
    """Numbers, steps and sizes in turn."""
    return (
        type(x) is list
        and not len(x) % 3
        and all(map(_int, x[::3]))
        and all(map(_text, x[1::3]))
        and all(map(_int, x[2::3]))
    )


def _page(x: Any, command: Sequence[Any]) -> bool:
    """A page of browse; its kind is the script's second argument."""
    kind = {"pending": _pending, "history": _message}.get(command[3 + command[2] + 1], _letter)
    return _row(x, _int, lambda rows: _list(rows, kind), _text)


def _recount(x: Any) -> bool:
    """How far it is, and what was counted."""
    if type(x) is not list or not x:
        return False
    if x[0] == 0:
        return _row(x, _int, lambda at: _list(at, _text), lambda flat: not len(flat) % 2)
    return _row(x, _int, lambda flat: not len(flat) % 3) if x[0] == 1 else _row(x, _int, _int)


def _limit(x: Any) -> bool:
    """A limit key: key, whose rule, rule, in use, waiting, arrival time, paused since."""
    return _list(x, _text) and len(x) == 7 and _number(x[3]) and _number(x[4])


def _tick(x: Any) -> bool:
    return _row(
        x,
        _snapshot,
        lambda events: _list(events, _message),
        lambda running: _list(running, _pending),
        lambda dead: _list(dead, _letter),
        lambda batches: _list(batches, lambda batch: _row(batch, _text, _flat)),
        _flat,
        lambda keys: _list(keys, _limit),
        lambda rows: _list(rows, lambda row: _row(row, _text, _text, _text)),
    )


def _events(x: Any) -> bool:
    """Time, ends, the oldest of the history, entries, entries handed over, progress, places."""
    return _row(
        x,
        _int,
        lambda ends: _list(ends, lambda end: _row(end, _entry, _flat, _text, _text)),
        _text,
        lambda new: _list(new, lambda row: _row(row, _entry, *(_text,) * 5)),
        lambda got: _list(got, lambda row: _row(row, _entry, _text, _int, *(_text,) * 3)),
        _flat,
        lambda places: _row(places, _entry, _entry, _entry),
    )


def _range(x: Any, command: Sequence[Any]) -> bool:
    """Members of a sorted set, or a part of a stream."""
    return _list(x, _message if command[0].startswith("X") else _text)


_VALUES = frozenset({bytes, bytearray, type(None)})


def _values(x: Any, command: Sequence[Any]) -> bool:
    """A value, or nothing, for each field."""
    return type(x) is list and len(x) == len(command) - 2 and _VALUES.issuperset(map(type, x))


def _only(of: Callable[[Any], bool]) -> Shape:
    """A shape that does not depend on the command's arguments."""
    return lambda x, command: of(x)


_count = _only(lambda x: type(x) is int and x >= 0)
_value = _only(lambda x: x is None or type(x) is bytes or type(x) is bytearray)
_three = _only(lambda x: _list(x, _int) and len(x) == 3)

_SHAPES: dict[str, Shape | None] = {
    "TIME": _only(lambda x: _row(x, _number, _number)),
    "GET": _value,
    "HGET": _value,
    "SET": _value,
    "HGETALL": _only(_flat),
    "HSCAN": _only(lambda x: _row(x, _text, _flat)),
    "SCAN": _only(lambda x: _row(x, _text, _texts)),
    "HMGET": _values,
    "INFO": _only(_text),
    "PING": _only(lambda x: x == b"PONG"),
    "XRANGE": _range,
    "XREVRANGE": _range,
    "ZRANGE": _range,
    "ZREVRANGE": _range,
    "ZRANGEBYSCORE": _range,
    "XINFO": lambda x, command: command[1] == "STREAM" or _list(x, _consumers),
    **dict.fromkeys(
        ("EXISTS", "EXPIRE", "HSET", "HSTRLEN", "PUBLISH", "UNLINK", "XTRIM", "ZCARD", "ZREM"),
        _count,
    ),
}
"""The replies of plain commands; those of others are not looked at."""

_SCRIPTS: dict[str, Shape] = {
    **dict.fromkeys(("settle", "retry", "suspend", "report"), _refused),
    **dict.fromkeys(("enqueue", "resubmit", "resubmit_gated"), _stored),
    "enqueue_gated": _gated,
    "limit": _only(_text),
    "recount": _only(_recount),
    **dict.fromkeys(("cancel", "park", "regate"), _words),
    **dict.fromkeys(("release", "adopt", "create_group", "purge", "hold", "drop"), _count),
    "step": _only(lambda x: x in (0, 1)),
    "recall": _only(lambda x: _row(x, _int, _steps)),
    "expect": _only(lambda x: _row(x, _text, _int, _text)),
    "send_event": _only(lambda x: _row(x, _int, _text)),
    "find": _only(lambda x: _row(x, _texts, _text, _int)),
    "quarantine": _only(lambda x: _int(x) or _text(x)),
    "rights": _only(lambda x: _texts(x) and not len(x) % 3),
    "register": _only(lambda x: _row(x, _text, _int)),
    "heartbeat": _only(
        lambda x: _row(x, _int, _int, _int, lambda at: _list(at, _int), _wishes, _text)
    ),
    "recover": _only(lambda x: _row(x, _int, _int, _int, _text, _flat)),
    "promote": _only(lambda x: _row(x, _int, _int, _int, _flat, _flat)),
    "set_schedule": _only(lambda x: _row(x, _text, _text)),
    "fire": _fired,
    "watch": _only(_watched),
    "replay": _three,
    "update_batch": _only(_int),
    "grow_batch": _only(_int),
    "deploy": _only(_text),
    "open_batch": _only(lambda x: _row(x, _int, _int)),
    "snapshot": _only(_snapshot),
    "tick": _only(_tick),
    "browse": _page,
    "append_items": _words,
    "read_items": _only(lambda x: _row(x, _text, _text, _text, lambda c: _list(c, _message))),
    "events": _only(_events),
    "why": _only(
        lambda x: (
            _row(x, _int, _text, _text, _int, _any, _int, _int, _texts)
            and (x[4] == [] or _limit(x[4]))
        )
    ),
}
"""The replies of scripts."""

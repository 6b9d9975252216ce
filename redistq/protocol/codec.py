"""JSON in and out, and an exception as JSON. Used by producers and workers; holds no state.

The standard library's encoder, because it keeps what others change silently: integers of any
size and NaN survive the round trip.
"""

from __future__ import annotations

import importlib
import json
import json.encoder
import os
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from ..errors import ItemTooLarge, PayloadError, PayloadTooLarge, ResultError, ResultTooLarge
from .pieces import Pieces

DEFAULT_MAX_BYTES = 8 * 1024 * 1024
MAX_TRACEBACK_CHARS = 16_000
MAX_MESSAGE_CHARS = 4_000
CHECKED_PARTS = 200
"""Most dicts and lists of one payload that are looked through for keys that are one in JSON."""
_NESTED = (dict, list, tuple)
_TEXT = frozenset({str})
_SCALARS = frozenset({str, int, float, bool, type(None)})

_encoder = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def _prepared() -> Callable[[Any], str]:
    """``_encoder.encode`` without a new C encoder each time, which took longer than the writing.

    What that one could not finish (a value that contains itself) is left to the original, which
    knows the better words; so is everything where there is no C encoder.
    """
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return _encoder.encode
    write = make(
        None,  # no record of what it is in: threads share it
        _encoder.default,
        json.encoder.encode_basestring,
        None,  # no indent
        ":",
        ",",
        False,  # keys in their order
        False,  # no key is skipped
        True,  # NaN is allowed
    )
    join = "".join

    def encode(value: Any) -> str:
        try:
            return join(write(value, 0))
        except RecursionError:
            return _encoder.encode(value)

    return encode


_encode = _prepared()
_decoder: Any = json.JSONDecoder()


def dumps(value: Any) -> bytes:
    """Return ``value`` as compact JSON in UTF-8; raises TypeError, ValueError or RecursionError."""
    return _encode(value).encode("utf-8", "surrogatepass")


def loads(data: bytes) -> Any:
    """Return the value that ``dumps`` was given; raises ValueError for what is no JSON."""
    text = data.decode("utf-8", "surrogatepass")
    try:
        # What ``dumps`` wrote ends where its value ends: no search for blanks around it.
        value, end = _decoder.scan_once(text, 0)
        if end == len(text):
            return value
    except StopIteration:
        pass
    return _decoder.decode(text)


def _check_keys(value: Any) -> None:
    """Raise ValueError when keys of a dict, such as 1 and "1", would be one and the same in JSON.

    What was written would not come back whole, without an error. It is looked for in the first
    CHECKED_PARTS dicts and lists: usual payloads are seen whole, and large ones are not held up.
    """
    parts = [value]
    for part in parts:
        inner = part
        if isinstance(part, dict):
            inner = part.values()
            if not _TEXT.issuperset(map(type, part)):
                texts: dict[str, Any] = {}
                for key in part:
                    text = _encode({key: 0})
                    if text in texts:
                        raise ValueError(
                            f"its keys {texts[text]!r:.40} and {key!r:.40} are the same key in JSON"
                        )
                    texts[text] = key
        if len(parts) < CHECKED_PARTS and not _SCALARS.issuperset(map(type, inner)):
            parts.extend(item for item in inner if isinstance(item, _NESTED))


def _is_flat(value: Any) -> bool:
    """Return whether ``value`` is a plain one, or a dict of such whose keys are text."""
    kind = type(value)
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or type(item) not in _SCALARS:
                return False
        return True
    return kind in _SCALARS


def encode_payload(name: str, payload: Any, limit: int) -> bytes:
    """Return a task's payload as JSON; raises PayloadError or PayloadTooLarge before anything is
    stored. One that has the method ``__redistq_plain__`` is asked for what JSON can hold, where it
    is none."""
    try:
        data = _plain(payload)
    except (TypeError, ValueError, RecursionError) as error:
        plain = getattr(payload, "__redistq_plain__", None)
        if plain is not None:
            return encode_payload(name, plain(), limit)
        raise PayloadError(
            f"the payload of task {name!r} cannot be written as JSON: {error}; pass plain values "
            "(dict, list, str, numbers, bool, None)"
        ) from error
    if len(data) > limit:
        raise PayloadTooLarge(len(data), limit)
    return data


def _made_plain(value: Any, plain: Callable[[Any], Any]) -> bytes:
    try:
        return _plain(value)
    except (TypeError, ValueError, RecursionError):
        return _plain(plain(value))


def encode_result(result: Any, limit: int, plain: Callable[[Any], Any] | None = None) -> bytes:
    """Return a handler's result as JSON; ``plain`` makes that of one that is none.

    Raises ResultError or ResultTooLarge, which end the task as failed.
    """
    if result is None:
        return b"null"
    data = _of_handler(result, "return", plain)
    if len(data) > limit:
        raise ResultTooLarge(len(data), limit)
    return data


def encode_item(item: Any, limit: int, plain: Callable[[Any], Any] | None = None) -> bytes:
    """Return what a handler yields as JSON; raises ResultError or ItemTooLarge."""
    data = _of_handler(item, "yield", plain)
    if len(data) > limit:
        raise ItemTooLarge(len(data), limit)
    return data


def _of_handler(value: Any, verb: str, plain: Callable[[Any], Any] | None = None) -> bytes:
    try:
        return _plain(value) if plain is None else _made_plain(value, plain)
    except (TypeError, ValueError, RecursionError, NotImplementedError) as error:
        raise ResultError(
            f"the handler {verb}ed {type(value).__name__}, which cannot be written as JSON: "
            f"{error}; {verb} plain values, or say in the function's annotation what it {verb}s, "
            f"as in -> {type(value).__name__}"
        ) from error


def _plain(value: Any) -> bytes:
    """Return a value as JSON; raises TypeError, ValueError or RecursionError for what is none."""
    data = dumps(value)
    if not _is_flat(value):
        _check_keys(value)
    return data


def check_size(result: bytes | Pieces, limit: int) -> bytes | Pieces:
    """Return a result that is bytes already; raises ResultTooLarge, which fails the task."""
    if len(result) > limit:
        raise ResultTooLarge(len(result), limit)
    return result


def encode_error(error: BaseException, report: Mapping[str, Any] | None = None) -> bytes:
    """Return an exception as ``{"type", "message", "traceback"}``, each part bounded in length.

    It never raises, and no part is empty where there is something to say, whatever the exception's
    own methods do. The worker's own frames, which say little, are left out of the traceback; what
    is in ``report`` is added.
    """
    kind = kind_of(error)
    message = message_of(error)
    whole = {"type": kind, "message": message, "traceback": _traceback_of(error), **(report or {})}
    for part in (whole, {"type": kind, "message": message, "traceback": ""}):
        try:
            return dumps(part)
        except BaseException:  # a report that is no JSON; or there is no memory for a long one
            continue
    return b'{"type":"Exception","message":"an error that cannot be written down","traceback":""}'


def kind_of(error: BaseException) -> str:
    """Return the name of an exception's type, as a line that any server and reader can take."""
    try:
        name = type(error).__qualname__
        return name[:200].encode("utf-8", "replace").decode() or "Exception"
    except BaseException:  # a metaclass of its own
        return "Exception"


def message_of(error: BaseException) -> str:
    """Return what an exception says, bounded; never empty: its repr, or at least its type."""
    try:
        text = str(error)[:MAX_MESSAGE_CHARS]
        if text.strip():
            return text
        return repr(error)[:MAX_MESSAGE_CHARS] or kind_of(error)
    except BaseException as broken:  # its own __str__ or __repr__
        return f"<{kind_of(error)} whose text cannot be shown: {kind_of(broken)}>"


def _traceback_of(error: BaseException) -> str:
    try:
        tb = error.__traceback__
        while tb is not None and tb.tb_next is not None and _is_ours(tb):
            tb = tb.tb_next
        try:
            text = "".join(traceback.format_exception(type(error), error, tb))
        except BaseException:  # its text, notes, cause, or the members of a group
            text = "".join(traceback.format_tb(tb)) + f"{kind_of(error)}: {message_of(error)}\n"
    except BaseException:  # its attributes
        return ""
    if len(text) > MAX_TRACEBACK_CHARS:
        half = MAX_TRACEBACK_CHARS // 2
        text = (
            f"{text[:half]}\n  ... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
        )
    return text


def users_part(tb: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first frame on that is neither of this package nor of an import;
    None where there is none."""
    while tb is not None and (_is_ours(tb) or _imports(tb)):
        tb = tb.tb_next
    return tb


def _imports(tb: TracebackType) -> bool:
    name = tb.tb_frame.f_code.co_filename
    return name == importlib.__file__ or name.startswith("<frozen importlib")


_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep


def _is_ours(tb: TracebackType) -> bool:
    name = tb.tb_frame.f_code.co_filename
    return name.startswith(_OWN)

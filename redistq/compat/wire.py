"""Arguments and results of the bridges, as JSON: plain values, and a few types in an envelope.

The envelope, ``{"__type__": "date", "__value__": "2026-01-31"}``, is that of Celery's JSON since
kombu 5.3. Used at both ends of each bridge; nothing here is ever unpickled.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from ..protocol.codec import DEFAULT_MAX_BYTES, encode_payload, encode_result, loads

_PLAIN = (str, int, float, bool, type(None))
_WRITERS: tuple[tuple[type, str, Callable[[Any], Any]], ...] = (
    (datetime, "datetime", datetime.isoformat),  # before date, of which it is one
    (date, "date", date.isoformat),
    (time, "time", time.isoformat),
    (Decimal, "decimal", str),
    (uuid.UUID, "uuid", lambda value: {"hex": value.hex}),
)
_READERS: dict[str, Callable[[Any], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": lambda text: datetime.fromisoformat(text).date(),
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": lambda parts: uuid.UUID(hex=parts["hex"]),
    "bytes": lambda text: text.encode(),
    "base64": lambda text: base64.b64decode(text.encode()),
}


def to_wire(value: Any) -> Any:
    """Return a value as JSON takes it; what is no such value is left for JSON to refuse."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return {key: to_wire(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_wire(item) for item in value]
    for kind, mark, write in _WRITERS:
        if isinstance(value, kind):
            return {"__type__": mark, "__value__": write(value)}
    if isinstance(value, bytes):
        try:
            return {"__type__": "bytes", "__value__": value.decode()}
        except UnicodeDecodeError:
            return {"__type__": "base64", "__value__": base64.b64encode(value).decode()}
    written = getattr(value, "__json__", None)
    return to_wire(written()) if callable(written) else value


def from_wire(value: Any) -> Any:
    """Return the value that ``to_wire`` was given."""
    if type(value) is list:
        return [from_wire(item) for item in value]
    if type(value) is dict:
        if value.keys() == {"__type__", "__value__"}:
            read = _READERS.get(value["__type__"])
            if read is None:
                raise ValueError(f"unknown type of a value: {value['__type__']!r:.40}")
            return read(value["__value__"])
        return {key: from_wire(item) for key, item in value.items()}
    return value


def payload_round_trip(name: str, payload: Any) -> Any:
    """Return a payload as a worker would read it: written and read by the codec of tasks."""
    return loads(encode_payload(name, payload, DEFAULT_MAX_BYTES))


def result_round_trip(result: Any) -> Any:
    """Return a result as who waits for it would read it; raises as a worker's codec does."""
    return from_wire(loads(encode_result(to_wire(result), DEFAULT_MAX_BYTES)))

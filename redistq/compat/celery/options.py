"""The options of apply_async and of tasks, as redistq takes them for one task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError
from ...protocol.limits import Limit, limit
from ...protocol.timing import zone_of
from ..unsupported import NotSupported

if TYPE_CHECKING:
    from .app import Celery

_TAKEN = frozenset(
    {
        *("countdown", "eta", "expires", "queue", "priority", "task_id", "link", "link_error"),
        *("ignore_result", "time_limit", "soft_time_limit", "serializer"),
    }
)
_IGNORED = frozenset(
    {
        *("retry", "retry_policy", "compression", "add_to_parent", "connection", "producer"),
        *(
            "delivery_mode",
            "root_id",
            "parent_id",
            "group_id",
            "group_index",
            "chord",
            "max_retries",
        ),
        *("argsrepr", "kwargsrepr", "ignored", "mandatory", "immediate", "shadow", "publisher"),
        *("exchange_type", "declare", "replaced_task_nesting", "origin"),
    }
)
"""What changes nothing here: calls are safe to repeat and are, and the rest is of AMQP, or names of
things that are known anyway."""
_REFUSED = {
    "headers": "give it as an argument",
    "reply_to": "wait for the result: AsyncResult.get()",
    "exchange": "name the queue: queue=...",
    "routing_key": "name the queue: queue=...",
    "stamped_headers": "give it as an argument",
}
_RATE = re.compile(r"\s*(\d+(?:\.\d*)?)\s*(?:/\s*([smh]))?\s*")
_PER = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def options_of(
    app: Celery, name: str, given: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of one task as ``add_task`` takes them, ``queue`` among them, and what of
    ``given`` is for others: link, link_error, ignore_result."""
    for option, value in given.items():
        if option in _REFUSED and value is not None:
            raise NotSupported(f"{option} of {name}", _REFUSED[option])
        if option not in _TAKEN and option not in _IGNORED and option not in _REFUSED:
            raise NotSupported(f"the option {option!r} of {name}", "leave it out")
    if given.get("serializer") not in (None, "json"):
        app.conf["task_serializer"] = given["serializer"]  # raises, with the next step
    task = app.tasks.get(name)
    options: dict[str, Any] = {}
    if (countdown := given.get("countdown")) is not None:
        options["delay"] = max(0.0, float(countdown))
    elif (eta := given.get("eta")) is not None:
        options["execute_at"] = _moment(app, eta)
    if (expires := given.get("expires", getattr(task, "expires", None))) is not None:
        options["expires"] = _expires(app, expires)
    if given.get("time_limit") is not None:
        options["hard_timeout"] = given["time_limit"]
    if given.get("soft_time_limit") is not None:
        options["timeout"] = given["soft_time_limit"]
    ignored = given.get("ignore_result")
    if ignored is None:
        ignored = app.ignores_result(task)
    if ignored:
        options["result_ttl"] = 0
    if (number := _priority(app, name, given.get("priority", _default(app, task)))) is not None:
        options["priority"] = number
    if (rule := rate_of(app, name, task)) is not None:
        options["limits"] = rule
    if given.get("task_id"):
        options["task_id"] = given["task_id"]
    options["queue"] = given.get("queue") or app.queue_of(name, args, kwargs)
    beside = {one: given[one] for one in ("link", "link_error") if given.get(one)}
    return options, {**beside, "ignore_result": ignored}


def _default(app: Celery, task: Any) -> Any:
    own = getattr(task, "priority", None)
    return app.conf.task_default_priority if own is None else own


def _priority(app: Celery, name: str, given: Any) -> int | None:
    if given is None:
        return None
    if not isinstance(given, int) or not 0 <= given <= 10:
        raise ConfigurationError(f"the priority of {name} is 0 to 10, not {given!r:.40}")
    return given if app.conf.redistq_priority_order == "amqp" else -given


def rate_of(app: Celery, name: str, task: Any) -> Limit | None:
    """Return the limit that a task's rate_limit is; raises ConfigurationError."""
    given = getattr(task, "rate_limit", None)
    if given is None:
        given = app.conf.task_default_rate_limit
    if given is None or given == 0 or given == "":
        return None
    found = _RATE.fullmatch(str(given))
    if found is None or not float(found[1]):
        raise ConfigurationError(
            f"the rate_limit of {name} is a number a second, '10/m' or '100/h', not {given!r:.40}"
        )
    return limit(f"rate:{name}".replace("{", "{{"), rate=float(found[1]), per=_PER[found[2]])


def _moment(app: Celery, eta: Any) -> float:
    if not isinstance(eta, datetime):
        raise ConfigurationError(f"eta is a datetime, not {eta!r:.40}")
    if eta.tzinfo is None:
        eta = eta.replace(tzinfo=UTC if app.conf.enable_utc else zone_of(app.timezone))
    return float(eta.timestamp())


def _expires(app: Celery, expires: Any) -> float:
    """Seconds until then; a task that has expired already gets the shortest time there is."""
    if isinstance(expires, timedelta):
        return max(expires.total_seconds(), 0.001)
    if isinstance(expires, str):
        expires = datetime.fromisoformat(expires)
    if isinstance(expires, datetime):
        return max(_moment(app, expires) - datetime.now(UTC).timestamp(), 0.001)
    return max(float(expires), 0.001)

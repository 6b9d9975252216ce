"""What a worker process does before its first task: load handlers, decide whom to trust, register.

Used by TaskWorker for tasks in its own threads, and by child processes. Function calls are run only
where their senders can be trusted: unpickling runs whatever their writer chose.
"""

from __future__ import annotations

import importlib
import os
import platform
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..codecs.codec import Codec, what_it_has
from ..connection.broker import Broker, check_server
from ..errors import ConfigurationError
from ..handlers import Handler, Registry, default_registry
from ..handlers.batching import MOST_TOGETHER
from ..logger import logger
from ..middleware import Layers
from ..protocol.commands import Commands
from ..protocol.keys import QueueKeys, without_priority
from ..protocol.resources import in_words
from ..system.memory import memory_limit
from ..system.private import ENV_KEY
from .declaring import declare_schedules
from .settings import WorkerSettings

if TYPE_CHECKING:
    from .ledger import Ledger

log = logger("redistq.worker")

Handlers = Mapping[str, Callable[..., Any]]


def registry_from(source: Handlers | Registry | list[str]) -> Registry:
    """Return handlers by name, from a mapping, a registry or ``package.module[:registry]`` targets.

    Raises ConfigurationError when a target cannot be imported or holds no handler.
    """
    if isinstance(source, Registry):
        source.warn_of_skipped()
        return source
    if isinstance(source, Mapping):
        registry = Registry()
        for name, function in source.items():
            registry.add(name, function)
        return registry
    registry = Registry()
    layers: Layers = ()
    for target in source:
        source = _load_target(target)
        registry.include(source)
        layers = (*layers, *(one for one in source.layers if one not in layers))
    registry.layers = layers  # for function calls; each handler has its own
    return registry


def _load_target(target: str) -> Registry:
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigurationError(
                f"there is no module {module_name!r} here; run from the folder that holds it, or "
                "install it"
            ) from error
        raise
    if not attribute:
        if not default_registry:
            raise ConfigurationError(
                f"{module_name} registers no task: decorate a function with @task (from redistq "
                f"import task), or name its registry: {module_name}:registry"
            )
        default_registry.warn_of_skipped()
        return default_registry
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if callable(made := getattr(found, "__redistq_registry__", None)):  # an app of another kind
        found = made()
    if isinstance(found, Registry):
        found.warn_of_skipped()
        return found
    if isinstance(found, Mapping) and found:
        return registry_from(found)
    raise ConfigurationError(f"{target} is no Registry and no mapping of names to functions")


def with_function_calls(
    registry: Registry, settings: WorkerSettings, broker: Broker, queues: Sequence[Commands]
) -> Registry:
    """Return the handlers, and the one for functions of clients where those can be trusted.

    They can when they sign with our key, when the server is the embedded one (whose users share a
    key of their own), or when ``allow_pickle`` says that everybody on this server can.
    """
    key = bytes.fromhex(settings.signing_key) if settings.signing_key else None
    embedded = broker.address.embedded
    if key is None and not embedded and not settings.allow_pickle and ENV_KEY not in os.environ:
        return registry
    from ..functions.blobs import Blobs
    from ..functions.call import QueueStore, with_calls
    from ..functions.output import LogSink
    from ..functions.results import ResultReader
    from ..functions.signing import Signer, key_from, user_key
    from ..functions.versions import BatchVersions

    if key is None and (key := key_from(None)) is None and embedded:
        from ..connection.embedded import default_home

        key = user_key(default_home())
    signer = Signer(key, allow_unsigned=settings.allow_pickle)
    # Tasks of a priority use the functions and arguments of the queue they belong to.
    clustered = broker.address.clustered
    stores: dict[str, QueueStore] = {}
    for queue in settings.queues:
        keys = QueueKeys(without_priority(queue), clustered=clustered)
        blobs = next((s.blobs for s in stores.values() if s.logs_prefix == keys.logs_prefix), None)
        own = QueueKeys(queue, clustered=clustered)
        results = ResultReader(broker, keys.stream, signer)
        blobs = blobs or Blobs(broker, keys, signer)
        versions = BatchVersions(broker, own, signer)
        stores[queue] = QueueStore(blobs, keys.logs_prefix, own.stream, results, versions)
    return with_calls(registry, signer, stores, LogSink(broker, queues[0].keys))


def announce(
    broker: Broker,
    queues: Sequence[Commands],
    settings: WorkerSettings,
    consumer: str,
    handlers: Mapping[str, Handler],
    resources: str = "",
) -> dict[str, Any]:
    """Register a worker process; warn when the queue's other workers have other settings.

    Return the details it registered: its supervisor registers them again should the server lose
    them.
    """
    from .. import __version__

    details = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "version": __version__,
        "threads": settings.threads,
        "slots": slots_of(settings, handlers),
        "group": settings.group,
        "names": "\n".join(sorted(handlers)),
    }
    if limit := memory_limit():
        details["memory_limit"] = limit
    if resources:
        details["resources"] = resources
    if settings.home:
        details["home"] = settings.home
    codec = Codec.of(settings.codec) if settings.codec else None
    if has := "\n".join(what_it_has(codec)):
        details["has"] = has
    check_rights(broker, queues, consumer)
    for queue, commands in zip(settings.queues, queues, strict=True):
        reply = broker.call(commands.register(consumer, settings.lease_ms, details))
        _compare(settings, queue, reply[0].decode(), int(reply[1]))
    declare_schedules(broker, queues, handlers, codec)
    return details


def resources_of(ledger: Ledger | None) -> str:
    """Return the most that one task can have in this process, in words; '' nothing."""
    return "" if ledger is None else in_words(ledger.most)


def check_rights(broker: Broker, queues: Sequence[Commands], consumer: str) -> None:
    """Raise ConfigurationError when the server's ACL forbids what a worker does.

    Raises UnexpectedReply when the server runs no scripts as Redis does. ``consumer`` is a name
    that nobody else has; nothing of it stays on the server.
    """
    for commands in queues:
        if missing := Commands.read_rights(broker.call(commands.rights(consumer))):
            raise ConfigurationError(
                "the server's ACL forbids what a worker does: "
                + ", ".join(missing[:10])
                + ("" if len(missing) <= 10 else f" and {len(missing) - 10} more")
                + "; allow its user these commands on these keys and channels (ACL SETUSER)"
            )


def slots_of(settings: WorkerSettings, handlers: Mapping[str, Handler]) -> int:
    """Return how many tasks a worker process runs at a time."""
    found = 0
    for is_async, runners in ((False, settings.threads), (True, settings.async_concurrency)):
        own = [h.batching for h in handlers.values() if h.is_async is is_async]
        if own:
            together = max((batching.size for batching in own if batching is not None), default=1)
            found += min(runners * together, runners + MOST_TOGETHER)
    return found


def _compare(settings: WorkerSettings, queue: str, group: str, lease_ms: int) -> None:
    """Warn when a queue's other workers have another group or lease."""
    if group != settings.group:
        log.warning(
            "this worker's group is %r, the other workers of queue %r use %r: each group takes the "
            "other's tasks away; start all with the same group",
            settings.group,
            queue,
            group,
        )
    if lease_ms != settings.lease_ms:
        log.warning(
            "this worker's lease is %g s, the other workers of queue %r use %g s; start all with "
            "the same lease",
            settings.lease,
            queue,
            lease_ms / 1000,
        )


def warn_about_server(broker: Broker) -> None:
    """Log what about the server can lose tasks."""
    for warning in check_server(broker):
        log.warning("%s", warning)

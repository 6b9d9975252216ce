"""Hooks: the methods of middleware that only look on, and how they are called.

What a hook raises is logged, once for each kind, and neither loses nor fails a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..errors import CancelRequested, TimeLimitExceeded
from ..logger import logger
from ..protocol.codec import message_of
from .base import HOOKS, Layers, has

log = logger("redistq.middleware")
Hook = Callable[..., None]


class Hooks:
    """Those of one handler's middleware, by what they hear of."""

    __slots__ = HOOKS

    on_start: tuple[Hook, ...]
    on_success: tuple[Hook, ...]
    on_failure: tuple[Hook, ...]
    on_retry: tuple[Hook, ...]
    on_settled: tuple[Hook, ...]

    def __init__(self, layers: Layers) -> None:
        for name in HOOKS:
            found = tuple(getattr(layer, name) for layer in layers if has(layer, name))
            setattr(self, name, found)

    @classmethod
    def of(cls, layers: Layers) -> Hooks | None:
        """Return the hooks of middleware; None where it has none."""
        made = cls(layers)
        return made if any(getattr(made, name) for name in HOOKS) else None


_complained: set[tuple[str, str]] = set()


def tell(hooks: Iterable[Hook], *about: Any) -> None:
    """Call hooks one after the other; what one raises is logged, the first time that it raises such
    a thing."""
    for hook in hooks:
        try:
            hook(*about)
        except (CancelRequested, TimeLimitExceeded):
            raise  # what strikes in the attempt's thread is meant for the attempt
        except BaseException as error:  # the user's code: it only looks on
            kind = (getattr(hook, "__qualname__", repr(hook)), type(error).__name__)
            if kind not in _complained:
                _complained.add(kind)
                log.error(
                    "%s raised %s: %s; tasks go on without it, and this is not said again",
                    *(kind[0], kind[1], message_of(error)),
                    exc_info=error,
                )


def tell_safely(hooks: Iterable[Hook], *about: Any) -> None:
    """As ``tell``, after the handler's end, where nothing strikes any more."""
    try:
        tell(hooks, *about)
    except BaseException as error:  # raised by the hook itself: no strike comes this late
        log.error("a hook raised %s, which is not for hooks to raise", type(error).__name__)

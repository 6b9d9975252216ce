"""When the calls of a client may run: what their options ask for, written for the server.

Used by submission and graphs, once for each call: keys may be made of its arguments, by their
names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from ..functions.pickling import Parents
from ..producer.sansio import run
from ..protocol.gate import Gate, edges_of, with_parents
from ..protocol.options import CallOptions

if TYPE_CHECKING:
    from .queues import ClientQueue
    from .session import Session


@dataclass(frozen=True, slots=True)
class CallGate:
    """What one call waits for: the gate of its options, and its conditions."""

    text: str
    conditions: Sequence[str]


def gate_of(
    queue: ClientQueue,
    options: CallOptions,
    payload: Any,
    parents: Parents,
    after: Any = (),
    *,
    alone: bool = True,
) -> CallGate | None:
    """Return what a call waits for: its ``parents``, whose results stand in its arguments, those it
    runs ``after``, and what its options say; None where that is nothing.

    One that is not ``alone``, but a part of a batch or graph, can have no unique key. Raises
    ConfigurationError.
    """
    if not parents and not options.gate and not after:
        return None
    if not options.gate and not after:  # the usual
        return CallGate(with_parents(""), [reference.edge for reference in parents])
    stream = queue.keys.stream
    lines = dict.fromkeys(reference.edge for reference in parents)
    if after:
        lines.update(dict.fromkeys(edges_of(after, stream)))
    gate = Gate.of(options.gate, payload, stream) if options.gate else None
    if gate is None:
        return CallGate(with_parents(""), [*lines]) if lines else None
    if not alone and options.gate.get("unique") is not None:
        raise ConfigurationError(
            "a call of a batch or graph has no unique key: it is the only one of its name and place"
        )
    if gate.limits:
        run(queue.broker, queue.limits.declare(gate.limits))
    text = with_parents(gate.text) if lines else gate.text
    lines.update(dict.fromkeys(filter(None, gate.conditions.split("\n"))))
    return CallGate(text, [*lines])


def check_conflict(gate: CallGate | None) -> None:
    """Raise ConfigurationError for a call that is to replace what another one is given."""
    if gate is not None and any(line.startswith(("?replace", "?push")) for line in gate.conditions):
        raise ConfigurationError(
            "what a function call is given is signed for that call alone, and replaces nothing: "
            "conflict is 'keep' or 'again'; named tasks can be replaced"
        )


def prepare(session: Session, parents: Parents) -> None:
    """Have on the server what the next task depends on; raises ConfigurationError for what is in
    another queue."""
    for parent in parents.values():
        parent.prepare(session)

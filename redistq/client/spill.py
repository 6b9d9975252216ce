"""client.spill: where large values of a client's calls go, and what tidies up there, which is
``redistq sweep`` too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ..connection.broker import Broker
from ..errors import ConfigurationError
from ..functions.blobs import DEAD_TTL_S
from ..functions.places import UNFINISHED
from ..functions.spill import ENV_SPILL, LONGEST_NOTE, Spill, files_of, folder_of
from ..protocol.keys import PRIORITIES, QueueKeys, lane_of
from ..protocol.options import seconds
from ..protocol.plain_commands import PlainCommands

if TYPE_CHECKING:
    from .session import Session

SWEEP_AFTER_S = 86_400.0
"""Seconds that a file is kept whatever the server says: its note may be on its way."""


class ClientSpill:
    """What a client has outside the server; ``policy`` is the Spill that it was made with."""

    def __init__(self, session: Session) -> None:
        policy = session.settings.spill
        if policy is None:
            raise ConfigurationError(
                "this client keeps all on the server: make one with "
                f"Client(spill='/shared/folder'), or set {ENV_SPILL}"
            )
        self.policy: Spill = policy
        self._session = session

    def sweep(self, older_than: float = SWEEP_AFTER_S) -> int:
        """Delete files of this client's queue that nothing on the server names any more, and that
        are ``older_than`` so many seconds; return how many.

        An argument is named until the last call has ended that takes it, a result for its
        ``result_ttl``. Safe at any time, from anywhere, and again. Raises SpillError where the
        place cannot be listed.
        """
        least = seconds("older_than", older_than)
        return swept(self._session.broker, self._session.keys, self.policy, least)

    def __repr__(self) -> str:
        return f"<spill to {self.policy.url} from {self.policy.above:,} bytes on>"


def unneeded(broker: Broker, keys: QueueKeys, policy: Spill, older_than: float) -> list[str]:
    """Return those files of a queue that nothing on the server names any more, and that are
    ``older_than`` so many seconds. Raises SpillError where the place cannot be listed."""
    found = files_of(policy).found(folder_of(keys.stream))
    return [file for file, age in found if age >= older_than and _is_gone(broker, keys, file, age)]


def swept(broker: Broker, keys: QueueKeys, policy: Spill, older_than: float) -> int:
    """Delete these files; return how many."""
    gone = unneeded(broker, keys, policy, older_than)
    files = files_of(policy)
    for file in gone:
        files.remove(file)
    return len(gone)


def _is_gone(broker: Broker, keys: QueueKeys, file: str, age: float) -> bool:
    name = file.rpartition("/")[2]
    if name.endswith(UNFINISHED):
        return True
    kind, _, rest = name.partition("-")
    of = rest.partition("-")[2]
    if kind == "argument":
        return not broker.call(("EXISTS", keys.blob(of)))
    if kind != "result":
        return False  # not ours
    if of == "~":
        return age > DEAD_TTL_S
    return not any(file.encode() in note for note in _notes(broker, keys, unquote(of)))


def _notes(broker: Broker, keys: QueueKeys, task_id: str) -> Iterator[Any]:
    """Yield what the records of a task hold as its result, where that may be a note."""
    for priority in PRIORITIES:
        commands = PlainCommands(QueueKeys(lane_of(keys.stream, priority)))
        size = broker.call(commands.result_size(task_id))
        if 0 < size <= LONGEST_NOTE:
            yield broker.call(commands.result_of(task_id))[1] or b""

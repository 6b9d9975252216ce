"""client.spill: where large values of a client's calls go, and what tidies up there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ..errors import ConfigurationError
from ..functions.blobs import DEAD_TTL_S
from ..functions.places import UNFINISHED
from ..functions.spill import ENV_SPILL, LONGEST_NOTE, Spill, files_of, folder_of
from ..protocol.keys import PRIORITIES
from ..protocol.options import seconds

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
        files = files_of(self.policy)
        gone = [
            file
            for file, age in files.found(folder_of(self._session.keys.stream))
            if age >= least and self._is_gone(file, age)
        ]
        for file in gone:
            files.remove(file)
        return len(gone)

    def _is_gone(self, file: str, age: float) -> bool:
        name = file.rpartition("/")[2]
        if name.endswith(UNFINISHED):
            return True
        kind, _, rest = name.partition("-")
        of = rest.partition("-")[2]
        broker, keys = self._session.broker, self._session.keys
        if kind == "argument":
            return not broker.call(("EXISTS", keys.blob(of)))
        if kind != "result":
            return False  # not ours
        if of == "~":
            return age > DEAD_TTL_S
        return not any(file.encode() in note for note in self._notes(unquote(of)))

    def _notes(self, task_id: str) -> Iterator[Any]:
        """Yield what the records of a task hold as its result, where that may be a note."""
        for priority in PRIORITIES:
            commands = self._session.queue(priority).commands
            size = self._session.broker.call(commands.result_size(task_id))
            if 0 < size <= LONGEST_NOTE:
                yield self._session.broker.call(commands.result_of(task_id))[1] or b""

    def __repr__(self) -> str:
        return f"<spill to {self.policy.url} from {self.policy.above:,} bytes on>"

"""Spill: large arguments and results in a folder or an object store instead of on the server.

A ``Spill`` says where, and from which size on. Clients read it; it travels in the calls, so that
workers need no setting. What stands there is the very packet that would be on the server, signed
for its place. The server has a note in its stead (``Signer.pack_note``): the file, its size, and
the hash of what is in it. So a note is as good as its task or argument, and a file that was
changed, or put in another's place, is refused.

A file is whole before its note is written: should we die between the two, it is a file that no note
names. Files are never written a second time; ``client.spill.sweep()`` removes those whose note is
gone.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ..errors import ConfigurationError, UntrustedPayload
from ..protocol.keys import without_priority
from ..protocol.pieces import Memory, Pieces
from ..system.memory import size
from .places import Files, files_at
from .signing import Kind, Signer, is_note

ENV_SPILL = "REDISTQ_SPILL"
ABOVE = "16MB"
LONGEST_NOTE = 4096
"""Most bytes of a note, about, unless its options are long."""
LONGEST_ID = 150
"""Characters of a task's id that stand in the name of a file."""


@dataclass(frozen=True)
class Spill:
    """Where large values go instead of to the server: ``Client(spill=Spill("s3://bucket/x"))``.

    ``url`` is a folder that all machines see under the same path, or any URL of fsspec; ``above``
    the least size of what goes there, in bytes or as "16MB". ``arguments`` and ``results`` say
    whether those do. ``storage_options`` are fsspec's; they travel in the calls, readable by
    whoever reads the server: keep credentials in the environment of clients and workers.

    Raises ConfigurationError for what is none of these.
    """

    url: str
    above: int | str = ABOVE
    arguments: bool = True
    results: bool = True
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.url, str | os.PathLike) or not os.fspath(self.url):
            raise ConfigurationError(f"spill is a folder or a URL such as s3://…, not {self.url!r}")
        url = os.fspath(self.url)
        url = url.removeprefix("file://")
        if "://" not in url:
            url = os.path.abspath(os.path.expanduser(url))
        object.__setattr__(self, "url", url.rstrip("/") or "/")
        object.__setattr__(self, "above", size("above", self.above))
        try:
            json.dumps(dict(self.storage_options or {}))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"storage_options are what JSON can hold, for they travel in the calls ({error})"
            ) from None

    @classmethod
    def given_or_env(cls, given: Spill | str | os.PathLike[str] | None) -> Spill | None:
        """Return the policy of an argument, or else of the environment; None for none."""
        if isinstance(given, Spill):
            return given
        url = given if given is not None else os.environ.get(ENV_SPILL)
        return cls(os.fspath(url)) if url else None

    def takes_argument(self, nbytes: int) -> bool:
        """Return whether an argument of that size goes there."""
        return self.arguments and nbytes >= int(self.above)

    def takes_result(self, nbytes: int) -> bool:
        """Return whether a result of that size goes there."""
        return self.results and nbytes >= int(self.above)

    def written(self) -> list[Any]:
        """Return it as calls say it to workers."""
        return [self.url, self.above, self.arguments, self.results, self.storage_options]


def put(
    spill: Spill, signer: Signer, kind: Kind, context: str, parts: Sequence[Memory], file: str
) -> bytes:
    """Write a packet to a file of that name; return its note. Raises SpillError."""
    packet = signer.pack_memory(kind, context, parts, bounded=False)
    pieces: Sequence[Memory] = packet.buffers if type(packet) is Pieces else (bytes(packet),)
    _files(spill.url, spill.storage_options).write(file, pieces)
    note = {
        "url": spill.url,
        "options": spill.storage_options,
        "file": file,
        "size": len(packet),
        "hash": _hash_in(pieces[0]),
    }
    return signer.pack_note(kind, context, json.dumps(note).encode())


def opened(
    signer: Signer, kind: Kind, context: str, packet: Memory, *, old: bool = False
) -> Memory:
    """Return the data of a packet, wherever it is: as ``Signer.unpack``, and where the packet is a
    note, what is in its file.

    Raises UntrustedPayload, and SpillError where the file cannot be read.
    """
    if not is_note(packet):
        return signer.unpack(kind, context, packet, old=old)
    return signer.unpack(kind, context, fetched(signer, kind, context, packet))


def fetched(signer: Signer, kind: Kind, context: str, packet: Memory) -> Memory:
    """Return the packet that a note stands for, to be unpacked; raises as ``opened``."""
    note = signer.note_in(kind, context, packet)
    assert note is not None, "it is no note"
    said = json.loads(note)
    found = _files(said["url"], said["options"]).read(said["file"], said["size"])
    if len(found) != said["size"] or _hash_in(found) != said["hash"]:
        raise UntrustedPayload(
            f"{said['file']} in {said['url']} is not the {kind} that was written there: somebody "
            "has changed it"
        )
    return found


def _hash_in(packet: Memory) -> str:
    """Return the signature in a packet's head, which is a keyed hash of all of it; nothing where
    its name is the hash, or there is no key."""
    return bytes(packet[4:37]).hex()


def _files(url: str, options: Mapping[str, Any] | None) -> Files:
    return files_at(url, json.dumps(dict(options or {}), sort_keys=True))


def files_of(spill: Spill) -> Files:
    """Return the files of a policy's place."""
    return _files(spill.url, spill.storage_options)


def folder_of(stream: str) -> str:
    """Return the folder of a queue's files, of whatever priority."""
    return quote(without_priority(stream), safe="")


def argument_file(stream: str, name: str) -> str:
    """Return a new name for the file of an argument of that name."""
    return f"{folder_of(stream)}/argument-{secrets.token_hex(8)}-{name}"


def result_file(stream: str, task_id: str) -> str:
    """Return a new name for the file of a task's result."""
    own = quote(task_id, safe="")
    if len(own) > LONGEST_ID:
        own = "~"  # whose it is cannot be told from it
    return f"{folder_of(stream)}/result-{secrets.token_hex(8)}-{own}"


def spill_of(written: Sequence[Any] | None) -> Spill | None:
    """Return the policy that a call says."""
    return Spill(*written) if written else None

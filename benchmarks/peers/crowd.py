"""Many idle workers of one redistq queue, as the server sees them, without their processes.

Each is registered, has a consumer in the group, a subscription to the queue's channel and a
blocked read, and beats every third of its lease. The read blocks on another queue's stream:
on the same one it would take the tasks that are measured.
"""

from __future__ import annotations

import threading
from typing import Any

from redistq.connection.address import Address
from redistq.connection.broker import Broker
from redistq.protocol.commands import Commands
from redistq.protocol.keys import QueueKeys


class Crowd:
    """``count`` idle workers until the block is left."""

    def __init__(self, url: str, count: int, queue: str = "tasks") -> None:
        self.count, self.commands = count, Commands(QueueKeys(queue))
        self.elsewhere = Commands(QueueKeys("elsewhere"))
        self.broker = Broker(Address(url))
        self.names = [f"idle:{n}" for n in range(count)]
        self.end = threading.Event()
        self.wires: list[Any] = []
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Crowd:
        for calls in (self.commands, self.elsewhere):
            try:
                self.broker.call(calls.create_group())
            except Exception as error:
                if "BUSYGROUP" not in str(error):
                    raise
        stream, group = self.commands.keys.stream, self.commands.group
        for name in self.names:
            self.broker.call(self.commands.register(name, 10_000, {"names": "noop"}))
            self.broker.call(("XGROUP", "CREATECONSUMER", stream, group, name))
            reader, listener = self.broker.connection(None), self.broker.connection(None)
            reader.send(*self.elsewhere.fetch(name, 1, 0))
            listener.send("SUBSCRIBE", self.commands.keys.channel)
            self.wires += [reader, listener]
        self.thread.start()
        return self

    def _beat(self) -> None:
        at = 0
        while not self.end.wait(10 / 3 / max(self.count, 1)):
            self.broker.call(self.commands.heartbeat(10_000, [(self.names[at], "=")]))
            at = (at + 1) % self.count

    def __exit__(self, *_: object) -> None:
        self.end.set()
        self.thread.join()
        for connection in self.wires:
            connection.close()
        self.broker.close()

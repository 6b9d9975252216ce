"""Hearing what is published on a queue's channel: due times, and the words paused and resumed.

``Subscription`` is the connection, for one thread; the scheduler sleeps on it. ``Subscriber`` is a
thread that passes on every word: a supervisor without schedulers has one for each queue.

Words may be lost, as whenever a connection is. So the first word after each (re)connection is
``LISTENING``: its reader looks at what holds, and relies on no word from before. A user without the
right to listen is no error: nothing is heard then, and the reader looks by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ..connection.broker import Broker
from ..connection.connection import Connection
from ..errors import ConfigurationError
from ..logger import logger
from ..protocol.keys import QueueKeys
from ..protocol.replies import is_pushed, unexpected
from ..system.loops import Backoff, run_forever

log = logger("redistq.scheduler")

LISTENING = "listening"
"""The word that says that words are heard from now on: earlier ones were missed."""
PAUSED = "paused"
RESUMED = "resumed"
NAMES = "names"
"""The word that says that other names of tasks have rules, or are paused."""
ASKED = "asked"
"""Begins the word that says of which worker something is wished; its name follows a blank."""
POLL_S = 0.5
"""Seconds after which a reader should look by itself where nothing can be heard: the server's user
has no right to the channel, or the server has no channels."""
LISTEN_AGAIN_S = 300.0
"""Seconds after which listening is tried again there."""


class Subscription:
    """What is published on a queue's channel, for the one thread that calls ``hear``."""

    def __init__(self, broker: Broker, keys: QueueKeys, *, name: str, otherwise: str) -> None:
        """Make one that logs that ``name`` does ``otherwise`` where nothing can be heard."""
        self._broker = broker
        self._keys = keys
        self._name = name
        self._otherwise = otherwise
        self._connection: Connection | None = None
        self._interrupted = threading.Event()
        self._deaf_until = 0.0

    def open(self) -> None:
        """Subscribe, unless that is done: whatever is published from now on is heard."""
        if self._connection is not None or time.monotonic() < self._deaf_until:
            return
        self._connection = self._broker.connection(None)
        try:
            self._connection.send("SUBSCRIBE", self._keys.channel)
        except BaseException:  # broad: raised again
            self.close()
            raise

    def hear(self, seconds: float) -> str | None:
        """Return the next word, or None after ``seconds``, or sooner where nothing can be heard.

        Raises ConnectionLost, or what connecting raises, when the connection fails or was
        interrupted; the next call subscribes again.
        """
        self.open()
        if self._connection is None:
            self._interrupted.wait(min(max(seconds, 0.0), POLL_S))
            return None
        deadline = time.monotonic() + seconds
        try:
            while (left := deadline - time.monotonic()) > 0:
                message: Any = self._connection.receive(left)
                if message is None:
                    return None
                if not is_pushed(message):
                    raise unexpected(("SUBSCRIBE",), message)
                if message[0] == b"subscribe":
                    return LISTENING
                if message[0] == b"message":
                    return str(message[2].decode("utf-8", "replace"))
        except ConfigurationError as error:
            self._refused(error)
        except BaseException:  # broad: raised again
            self.close()
            raise
        return None

    def _refused(self, error: ConfigurationError) -> None:
        self.close()
        if not self._deaf_until:
            log.warning(
                "%s cannot listen to the channel %s (%s) and %s instead; allow it to the server's "
                "user: &%s",
                self._name,
                self._keys.channel,
                error,
                self._otherwise,
                self._keys.channel,
            )
        self._deaf_until = time.monotonic() + LISTEN_AGAIN_S

    def serve(self, step: Callable[[], object], stopping: threading.Event) -> None:
        """Call ``step``, which hears, until ``stopping`` is set, past errors; then close the
        connection. The body of the thread that has this subscription."""
        run_forever(step, stopping, name=self._name, log=log, backoff=Backoff(0.1, 5.0))
        self.close()

    def interrupt(self) -> None:
        """End ``hear`` in another thread, for good; to be repeated until that has noticed."""
        self._interrupted.set()
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def close(self) -> None:
        """Close the connection; ``hear`` opens another."""
        connection = self._connection
        self._connection = None
        if connection is not None:
            connection.close()


class Subscriber:
    """A thread that passes on every word of a queue's channel."""

    def __init__(self, broker: Broker, keys: QueueKeys, on_word: Callable[[str], None]) -> None:
        """``on_word`` is called in the subscriber's thread."""
        self._on_word = on_word
        self._subscription = Subscription(
            broker,
            keys,
            name=f"subscriber of {keys.stream}",
            otherwise="sees pauses with the next heartbeat",
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"redistq-subscriber-{keys.stream}", daemon=True
        )

    def start(self) -> Subscriber:
        """Begin to listen."""
        self._thread.start()
        return self

    def stop(self, timeout: float = 5.0) -> None:
        """End; safe to call twice."""
        self._stopping.set()
        join_interrupted(self._thread, self._subscription, timeout)

    def _run(self) -> None:
        self._subscription.serve(self._step, self._stopping)

    def _step(self) -> None:
        word = self._subscription.hear(LISTEN_AGAIN_S)
        if word is not None:
            self._on_word(word)


def join_interrupted(thread: threading.Thread, subscription: Subscription, timeout: float) -> None:
    """Wait for the end of a thread that may be in ``hear``, for at most ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while thread.is_alive() and time.monotonic() < deadline:
        # Repeated, for a connection that was being made when the last one was interrupted.
        subscription.interrupt()
        thread.join(0.05)

"""What the buttons of a dashboard do: each action is a generator that yields how far it is, and
returns what it did. Nothing here knows a widget."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator

from ..display.text import clock, plural
from ..monitor.monitor import TaskMonitor
from ..monitor.rows import DeadLetter
from ..producer.limits import Limits
from ..producer.schedules import Schedules
from .failed import group_key
from .feed import Feed
from .layout import unstarted
from .words import place_of, title

Progress = Generator[str, None, str]
LETTERS_LOOKED_AT = 10_000
"""Most dead letters, the newest, among which those of a group or batch are looked for."""
REPLAYED_AT_ONCE = 200
ASKED = frozenset(("retry", "cancel", "batch-retry", "batch-cancel", "group-retry"))
"""Actions that are started when a question was answered: see ``question``."""


class Actions:
    """What can be done with the queue of a feed."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    # -- questions -------------------------------------------------------------------------------

    def question(self, what: str) -> tuple[str, str]:
        """Return what is asked before an action, and the words of the answer that starts it; ''
        where nothing is known of the queue."""
        tick = self.feed.tick
        verb, _, name = what.partition(" ")
        if tick is None:
            return "", ""
        if verb == "cancel":
            waiting = plural(unstarted(tick.snapshot), "task")
            return f"Cancel {waiting} not started? This cannot be undone.", "Yes, cancel them"
        if verb == "batch-cancel":
            return (
                f"Cancel what of {name} has not started? This cannot be undone.",
                "Yes, cancel it",
            )
        if verb == "batch-retry":
            return f"Send the failed tasks of {name} to the workers again?", "Yes, retry"
        if verb == "group-retry":
            error, _, task = name.partition("\n")
            return f"Send the tasks {title(task)} that failed by {error} again?", "Yes, retry"
        dead = plural(tick.snapshot.dead, "failed task")
        return f"Send {dead} to the workers again?", "Yes, retry"

    def start(self, what: str) -> Progress | None:
        """Return an action to be stepped; None for what is none.

        ``pause``, ``resume``, ``retry``, ``cancel``; and, with a name after a blank,
        ``batch-retry``, ``batch-cancel``, ``group-retry``, ``key-pause``, ``key-resume``,
        ``schedule-pause``, ``schedule-resume``, ``run``, ``task-retry``, ``task-cancel``. Those of
        ASKED want a question first.
        """
        verb, _, name = what.partition(" ")
        if verb in ("pause", "resume"):
            return self.pause(verb == "pause")
        if verb in ("key-pause", "key-resume"):
            return self.toggle_key(name, verb == "key-resume")
        if verb in ("schedule-pause", "schedule-resume"):
            return self.toggle_schedule(name, verb == "schedule-resume")
        if verb == "run":
            return self.run_now(name)
        if verb in ("task-retry", "task-cancel"):
            return self.of_task(verb, name, "", lambda _: None)
        if verb == "retry":
            return self._retry_all()
        if verb == "cancel":
            return self._cancel_all()
        if verb == "batch-cancel":
            return self._cancel_batch(name)
        if verb == "batch-retry":
            return self._retry_batch(name)
        if verb == "group-retry":
            return self._retry(
                lambda dead: group_key(dead.error_type, dead.name) == name,
                "failed task",
                self.feed.monitor,
            )
        return None

    # -- actions ---------------------------------------------------------------------------------

    def toggle_pause(self) -> Progress:
        """Pause the queue, or end its pause."""
        return self.pause(not (self.feed.tick and self.feed.tick.paused))

    def pause(self, wanted: bool) -> Progress:
        """Pause the queue; or, where that is not wanted, end its pause."""
        yield ""
        if wanted:
            self.feed.monitor.pause()
        else:
            self.feed.monitor.resume()
        return f"{self._now()} {'Paused' if wanted else 'Resumed'}."

    def toggle_key(self, key: str, paused: bool) -> Progress:
        """Pause a limit key, or end its pause."""
        return self._toggle(self.feed.monitor.producer.limits, key, paused, key)

    def toggle_schedule(self, name: str, paused: bool) -> Progress:
        """Pause a schedule, or end its pause."""
        schedules = self.feed.monitor.producer.schedules
        return self._toggle(schedules, name, paused, f"Schedule {name}")

    def _toggle(self, of: Limits | Schedules, name: str, paused: bool, said: str) -> Progress:
        yield ""
        if paused:
            of.resume(name)
        else:
            of.pause(name)
        return f"{self._now()} {said} is {'resumed' if paused else 'paused'}."

    def run_now(self, name: str) -> Progress:
        """Add the task of a schedule now."""
        yield ""
        task_id = self.feed.monitor.producer.schedules.run_now(name)
        if task_id.outcome == "joined":
            return f"{self._now()} {task_id} has not ended, and no other runs beside it."
        return f"{self._now()} {task_id} is added."

    def _retry_all(self) -> Progress:
        yield "Sending failed tasks again …"
        count = self.feed.monitor.replay()
        return f"{self._now()} {plural(count, 'failed task')} sent again."

    def _cancel_all(self) -> Progress:
        count = 0
        for part in self.feed.monitor.cancel_waiting_by_parts():
            count += part
            yield f"Cancelling: {plural(count, 'task')} so far …"
        return f"{self._now()} {plural(count, 'task')} cancelled."

    def _cancel_batch(self, name: str) -> Progress:
        yield f"Cancelling {name} …"
        words = self.feed.monitor_of(name).producer.cancel_where(batch=name)
        return f"{self._now()} {plural(words.get('cancelled', 0), 'task')} of {name} cancelled."

    def _retry_batch(self, name: str) -> Progress:
        yield f"Sending failed tasks of {name} again …"
        monitor = self.feed.monitor_of(name)
        if monitor.records.layers(name):
            count = monitor.producer.graph(name).resume()
            return f"{self._now()} {plural(count, 'task')} of {name} run again."
        what = f"task of {name}"
        return (yield from self._retry(lambda dead: is_of_batch(dead.id, name), what, monitor))

    # -- one task --------------------------------------------------------------------------------

    def of_task(
        self, verb: str, task_id: str, edited: str, offer: Callable[[str], None]
    ) -> Progress:
        """Retry or cancel one task; ``task-edit`` gives its payload to ``offer``, and ``task-send``
        adds a task of its name with the payload that was edited."""
        yield ""
        producer = self.feed.monitor.producer
        if verb == "task-retry":
            count = producer.replay(task_id)
            return f"{self._now()} {task_id} " + ("sent again." if count else "is not failed.")
        if verb == "task-cancel":
            word = producer.cancel(task_id, running="ask")[task_id]
            return f"{self._now()} {task_id}: {word}."
        status = producer.get_task(task_id)
        if verb == "task-edit":
            offer(json.dumps(status.payload, ensure_ascii=False, indent=1))
            return "Edit the arguments, then Send: a new task is added; the failed one is kept."
        try:
            payload = json.loads(edited)
        except ValueError as error:
            return f"These arguments are no JSON: {error}"
        added = producer.add_task(status.name or "", payload)
        return f"{self._now()} {added} is added, with other arguments than {task_id}."

    def _retry(
        self, is_wanted: Callable[[DeadLetter], bool], what: str, monitor: TaskMonitor
    ) -> Progress:
        yield "Sending failed tasks again …"
        letters = monitor.records.dead(LETTERS_LOOKED_AT, full=False)
        ids = [dead.id for dead in letters if is_wanted(dead)]
        count = 0
        for part in _parts(ids):
            count += monitor.replay(*part)
            yield f"Sending again: {count:,} of {len(ids):,} so far …"
        word, _, rest = what.partition(" of ")
        of = f" of {rest}" if rest else ""
        return f"{self._now()} {plural(count, word)}{of} sent again."

    def _now(self) -> str:
        tick = self.feed.tick
        return f"{clock(tick.now_ms)} UTC:" if tick else ""


def is_of_batch(task_id: str, batch: str) -> bool:
    """Return whether a task is one of a batch."""
    place = place_of(task_id)
    return place is not None and place[0] == batch


def _parts(ids: list[str]) -> Iterator[list[str]]:
    for at in range(0, len(ids), REPLAYED_AT_ONCE):
        yield ids[at : at + REPLAYED_AT_ONCE]

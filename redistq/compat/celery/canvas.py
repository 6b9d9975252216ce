"""Signatures, and chain, group and chord: tasks that are written before they are sent.

Each is a dict of JSON, as in Celery, so it may be an argument of a task. plan.py makes tasks of
them; eager.py runs them here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..unsupported import NotSupported
from .shared import current_app, late

if TYPE_CHECKING:
    from .app import Celery
    from .result import Result

Errback = Any


class Signature(dict[str, Any]):
    """One task that is not sent yet: its name, arguments and options."""

    _app: Celery | None = None

    def __init__(
        self,
        task: Any = None,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        type: Any = None,
        subtask_type: str | None = None,
        immutable: bool = False,
        app: Celery | None = None,
        **more: Any,
    ) -> None:
        if isinstance(task, Mapping):
            super().__init__(task)
        else:
            super().__init__(
                task=task if isinstance(task, str) or task is None else task.name,
                args=tuple(args or ()),
                kwargs=dict(kwargs or {}),
                options={**(options or {}), **more},
                subtask_type=subtask_type,
                immutable=immutable,
            )
        self._app = app or getattr(task, "app", None)

    @property
    def app(self) -> Celery:
        """The app whose task it is, or the current one."""
        return self._app or current_app()

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self["task"])

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task

    @property
    def args(self) -> tuple[Any, ...]:
        """Its arguments."""
        return tuple(self["args"])

    @property
    def kwargs(self) -> dict[str, Any]:
        """Its arguments by name."""
        return self["kwargs"]  # type: ignore[no-any-return]

    @property
    def options(self) -> dict[str, Any]:
        """Its options: those of apply_async."""
        return self["options"]  # type: ignore[no-any-return]

    @property
    def immutable(self) -> bool:
        """Whether it takes nothing of what comes before it."""
        return bool(self["immutable"])

    # -- other ones of it ------------------------------------------------------------------------

    def clone(self, args: Iterable[Any] = (), kwargs: Any = None, **options: Any) -> Signature:
        """Return the same with arguments before its own, and with options."""
        made = type(self)(dict(self))
        made._app = self._app
        given = () if self.immutable else tuple(args)
        made["args"] = (*given, *self["args"])
        made["kwargs"] = {**self["kwargs"], **({} if self.immutable else kwargs or {})}
        made["options"] = {**self["options"], **options}
        return made

    partial = clone

    def set(self, immutable: bool | None = None, **options: Any) -> Signature:
        """Change its options; return it."""
        if immutable is not None:
            self["immutable"] = immutable
        self["options"].update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Let it take what comes before it, or not."""
        self["immutable"] = immutable

    def link(self, callback: Signature) -> Signature:
        """Run another task with its result."""
        self._linked("link", callback)
        return callback

    def link_error(self, errback: Errback) -> Errback:
        """Run another task when it fails."""
        return self._linked("link_error", errback)

    def on_error(self, errback: Errback) -> Signature:
        """Run another task when it fails; return this one."""
        self.link_error(errback)
        return self

    def _linked(self, name: str, other: Any) -> Any:
        have = self["options"].get(name)
        have = [] if have is None else [have] if isinstance(have, Mapping) else list(have)
        if other not in have:
            have.append(other)
        self["options"][name] = have
        return other

    # -- running it ------------------------------------------------------------------------------

    def apply_async(self, args: Any = (), kwargs: Any = None, **options: Any) -> Result:
        """Send it; return its result, to be waited for."""
        sent: Result = late.send(self.app, self.clone(args or (), kwargs, **options))
        return sent

    def delay(self, *args: Any, **kwargs: Any) -> Result:
        """Send it with these arguments before its own."""
        return self.apply_async(args, kwargs)

    def apply(self, args: Any = (), kwargs: Any = None, **options: Any) -> Result:
        """Run it here; return its result."""
        ran: Result = late.run(self.app, self.clone(args or (), kwargs, **options))
        return ran

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the task's function here."""
        merged = self.clone(args, kwargs)
        return merged.type(*merged["args"], **merged["kwargs"])

    @property
    def type(self) -> Callable[..., Any]:
        """The task."""
        return self.app.task_named(self.task)

    def __or__(self, other: Any) -> Signature:  # type: ignore[override]
        if not isinstance(other, Signature):
            return NotImplemented
        return chain(*_parts_of(self), *_parts_of(other), app=self._app)

    def __invert__(self) -> Any:
        return self.apply_async().get()

    def freeze(self, *_: Any, **__: Any) -> Any:
        """Refuse what would name a task before it is sent."""
        raise NotSupported("freeze of a signature", "give it an id: sig.set(task_id=...)")

    def __deepcopy__(self, memo: Any) -> Signature:
        import copy

        made = type(self)(copy.deepcopy(dict(self), memo))
        made._app = self._app
        return made

    def __repr__(self) -> str:
        said = [repr(arg) for arg in self["args"]]
        said += [f"{name}={value!r}" for name, value in self["kwargs"].items()]
        return f"{self['task']}({', '.join(said)})"


class _Flow(Signature):
    """A signature of several tasks."""

    kind = ""

    def __init__(self, tasks: Any, app: Celery | None = None, **options: Any) -> None:
        if isinstance(tasks, Mapping):
            super().__init__(tasks, app=app)
            return
        found = [maybe_signature(task, app) for task in tasks]
        super().__init__(
            f"celery.{self.kind}", kwargs={"tasks": found}, options=options,
            subtask_type=self.kind, app=app,
        )  # fmt: skip

    @property
    def tasks(self) -> list[Signature]:
        """Its tasks."""
        return [maybe_signature(task, self._app) for task in self["kwargs"]["tasks"]]

    def clone(self, args: Iterable[Any] = (), kwargs: Any = None, **options: Any) -> Signature:
        """Return the same with arguments for its first tasks, and with options."""
        made = super().clone(args, None, **options)
        if kwargs:
            made["kwargs"] = {**made["kwargs"], "first": dict(kwargs)}
        return made

    @property
    def app(self) -> Celery:
        """The app of its first task, or the current one."""
        if self._app is None and self.tasks:
            return self.tasks[0].app
        return super().app

    def __repr__(self) -> str:
        return f"{self.kind}({', '.join(map(repr, self.tasks))})"


class chain(_Flow):
    """Tasks one after the other, each with the result of the one before."""

    kind = "chain"

    def __init__(self, *tasks: Any, app: Celery | None = None, **options: Any) -> None:
        super().__init__(_listed(tasks), app, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.apply_async(args, kwargs)


class group(_Flow):
    """Tasks side by side."""

    kind = "group"

    def __init__(self, *tasks: Any, app: Celery | None = None, **options: Any) -> None:
        super().__init__(_listed(tasks), app, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.apply_async(args, kwargs)

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> group:
        """Let its tasks begin one after the other, ``step`` seconds apart."""
        for task, wait in zip(self["kwargs"]["tasks"], itertools.count(start, step), strict=False):
            task.set(countdown=wait if stop is None else min(wait, stop))
        return self

    def __len__(self) -> int:
        return len(self["kwargs"]["tasks"])

    def __bool__(self) -> bool:
        return True


class chord(_Flow):
    """A group, and a task that takes the list of its results."""

    kind = "chord"

    def __init__(
        self, header: Any, body: Any = None, app: Celery | None = None, **options: Any
    ) -> None:
        whole = isinstance(header, Mapping) and header.get("subtask_type") == self.kind
        super().__init__(header if whole else _listed((header,)), app, **options)
        if not whole:
            self["kwargs"]["body"] = None if body is None else maybe_signature(body, app)

    @property
    def body(self) -> Signature:
        """The task that takes the results."""
        if self["kwargs"].get("body") is None:
            raise TypeError("a chord needs a body: chord(header)(body)")
        return maybe_signature(self["kwargs"]["body"], self._app)

    def __call__(self, body: Any = None, **options: Any) -> Any:
        made = self.clone((), None, **options)
        if body is not None:
            made["kwargs"]["body"] = maybe_signature(body, self._app)
        return made.apply_async()

    def link(self, callback: Signature) -> Signature:
        """Run another task with the body's result."""
        self["kwargs"]["body"] = self.body.clone()
        self["kwargs"]["body"].link(callback)
        return callback


_KINDS: dict[str | None, type[Signature]] = {"chain": chain, "group": group, "chord": chord}


def maybe_signature(found: Any, app: Celery | None = None) -> Signature:
    """Return a signature from one, or from its dict."""
    if isinstance(found, Signature):
        if found._app is None:
            found._app = app
        return found
    if not isinstance(found, Mapping) or "task" not in found:
        raise TypeError(f"a signature, such as task.s(), is wanted, not {found!r:.60}")
    kind = found.get("subtask_type")
    if kind is not None and kind not in _KINDS:
        raise NotSupported(f"a signature of kind {kind!r}", "write it as chain, group or chord")
    made: Signature = _KINDS.get(kind, Signature)(dict(found))
    made._app = app
    return made


def signature(task: Any, *args: Any, **kwargs: Any) -> Signature:
    """Return a signature: of a task or its name, with args, kwargs and options, or of a dict."""
    if isinstance(task, Mapping):
        return maybe_signature(task, kwargs.get("app")).clone()
    return Signature(task, *args, **kwargs)


subtask = signature


def _listed(tasks: tuple[Any, ...]) -> Any:
    """Tasks that were given one by one, as one list, as a group, or as the dict of a flow."""
    if len(tasks) != 1:
        return tasks
    only = tasks[0]
    if isinstance(only, group):
        return only.tasks
    if isinstance(only, Signature):
        return tasks
    return only if isinstance(only, Mapping) else list(only)


def _parts_of(signature: Signature) -> list[Signature]:
    if isinstance(signature, chain) and not signature["args"] and not signature["options"]:
        return signature.tasks
    return [signature]

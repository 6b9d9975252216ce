"""Depends: parameters that a worker gives to a handler, made by factories.

A factory is any function: it returns what it makes, or yields it once and tidies up behind its
``yield``; either may be ``async``. It may take what other factories make, and the context of the
task. What calls factories is the worker's (worker/injection.py); nothing here runs one.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError
from ..protocol.options import shown

SCOPES = ("task", "process")
Factory = Callable[..., Any]
_NAMED_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_REST_KINDS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True, eq=False)
class Dependency:
    """What ``Depends`` returns: a factory, and how long what it makes is kept."""

    factory: Factory
    scope: str = "task"


def Depends(factory: Factory, *, scope: str = "task") -> Any:
    """Stand for a parameter that the worker gives: what ``factory`` makes.

    As a default value, ``db: Session = Depends(open_session)``, or in an annotation,
    ``db: Annotated[Session, Depends(open_session)]``. Whoever calls or adds the task does not give
    it. ``scope="task"`` makes it once for each attempt, shared by all that ask for it in that
    attempt, and tidies up at its end; ``scope="process"`` makes it once for each worker process,
    when it is first asked for, and tidies up when the worker has drained. It is shared by all
    threads then.

    Raises ConfigurationError for what is no factory, or no scope.
    """
    if not callable(factory):
        raise ConfigurationError(
            f"Depends takes the factory, not what it makes: Depends(open_session), without a call, "
            f"not Depends({shown(factory)})"
        )
    if scope not in SCOPES:
        raise ConfigurationError(
            f'the scope of a dependency is "task" or "process", not {shown(scope)}'
        )
    return Dependency(factory, scope)


def name_of(factory: Any) -> str:
    """Return a factory's name for messages: its module's and its own."""
    while hasattr(factory, "func"):  # functools.partial
        factory = factory.func
    name = getattr(factory, "__qualname__", None) or type(factory).__qualname__
    module = getattr(factory, "__module__", None)
    return f"{module}.{name}" if module and module != "__main__" else str(name)


def key_of(factory: Factory) -> Any:
    """Return what a factory is found by; equal for methods of one object."""
    try:
        hash(factory)
    except TypeError:
        return id(factory)
    return factory


# -- what a signature asks for ---------------------------------------------------------------------


def injected(function: Callable[..., Any]) -> dict[str, Dependency]:
    """Return the parameters that the worker gives to a function, by name.

    A wrapper that passes on what it gets by name (``**kwargs``) asks for what the function that it
    wraps asks for. Raises ConfigurationError for one that cannot be given by name.
    """
    found: dict[str, Dependency] = {}
    for _ in range(20):
        parameters = _parameters(function)
        scope = _globals(function)
        for parameter in parameters:
            dependency = _dependency(parameter, scope)
            if dependency is None:
                continue
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise ConfigurationError(
                    f"the parameter {parameter.name!r} of {name_of(function)} is given by the "
                    "worker, by its name: put it behind the / of the signature"
                )
            found.setdefault(parameter.name, dependency)
        passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters)
        wrapped = getattr(function, "__wrapped__", None)
        if not passes_on or not callable(wrapped):
            break
        function = wrapped
    return found


def _parameters(function: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):
        return []  # some built-ins have no signature: they take nothing of ours


def _globals(function: Any) -> Mapping[str, Any]:
    """Return the names of the module that a function, a class or an object stands in."""
    while isinstance(function, functools.partial):
        function = function.func
    found = getattr(function, "__globals__", None)
    if found is None:
        found = vars(sys.modules.get(getattr(function, "__module__", None) or "", object))
    return found if isinstance(found, dict) else {}


def _dependency(parameter: inspect.Parameter, scope: Mapping[str, Any]) -> Dependency | None:
    if isinstance(parameter.default, Dependency):
        return parameter.default
    annotation = parameter.annotation
    if isinstance(annotation, str):
        annotation = _evaluated(annotation, parameter.name, scope)
    annotation = getattr(annotation, "__value__", annotation)  # of ``type Name = Annotated[...]``
    for part in getattr(annotation, "__metadata__", ()):
        if isinstance(part, Dependency):
            return part
    return None


def _evaluated(annotation: str, parameter: str, scope: Mapping[str, Any]) -> Any:
    """Return what an annotation stands for that is text (``from __future__ import annotations``);
    None where that cannot be known here, such as of names for type checkers alone."""
    try:
        return eval(annotation, dict(scope))
    except Exception as error:  # whatever its parts raise
        if "Depends(" not in annotation:
            return None
        raise ConfigurationError(
            f"the annotation {annotation} of the parameter {parameter!r} cannot be read: {error}; "
            f"name what stands at the top of its module, or write {parameter}=Depends(...)"
        ) from error


def is_context(parameter: inspect.Parameter) -> bool:
    """Return whether a parameter of a factory is given the context of the task."""
    kind = parameter.annotation
    return (
        parameter.name in ("context", "ctx")
        or getattr(kind, "__name__", "") == "TaskContext"
        or (isinstance(kind, str) and "TaskContext" in kind)
    )


# -- how a factory is called -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How a factory is called: with what, and what becomes of what it returns."""

    factory: Factory
    key: Any
    name: str
    needs: tuple[tuple[str, Dependency], ...] = ()
    """Parameters that other factories make."""
    context: str = ""
    """The parameter that is given the context; '' for none."""
    is_async: bool = False
    opens: Callable[..., Any] | None = None
    """For a factory that yields: returns a context manager of it."""

    def opened(self, given: Mapping[str, Any]) -> Any:
        """Call it; return what it makes, or what is to be entered or awaited for that."""
        return (self.opens or self.factory)(**given)


def recipe_of(factory: Factory) -> Recipe:
    """Return how a factory is called; raises ConfigurationError for one that needs more than a
    worker can give."""
    needs = injected(factory)
    context = ""
    for parameter in _parameters(factory):
        if parameter.name in needs or parameter.kind in _REST_KINDS:
            continue
        if is_context(parameter) and parameter.kind in _NAMED_KINDS:
            context = parameter.name
        elif parameter.default is parameter.empty:
            raise ConfigurationError(
                f"the factory {name_of(factory)} takes {parameter.name!r}, which nothing gives: "
                f"give it a default, or make it by a factory: {parameter.name}=Depends(...)"
            )
    opens: Callable[..., Any] | None = None
    called: Any = factory
    if not isinstance(factory, functools.partial | type) and not inspect.isroutine(factory):
        called = factory.__call__  # type: ignore[operator]
    in_loop = inspect.isasyncgenfunction(called)
    if in_loop:
        opens = contextlib.asynccontextmanager(factory)
    elif inspect.isgeneratorfunction(called):
        opens = contextlib.contextmanager(factory)
    elif is_manager := _makes_manager(factory):
        opens = factory
        in_loop = is_manager == "async"
    return Recipe(
        factory,
        key_of(factory),
        name_of(factory),
        tuple(needs.items()),
        context,
        in_loop or inspect.iscoroutinefunction(called),
        opens,
    )


def _makes_manager(factory: Any) -> str:
    """Return "sync" or "async" for what contextlib made of a function that yields; '' for others:
    a file or a lock is given as it is."""
    wrapped = getattr(factory, "__wrapped__", None)
    maker = getattr(getattr(factory, "__code__", None), "co_filename", "")
    if wrapped is None or maker != contextlib.contextmanager.__code__.co_filename:
        return ""
    if inspect.isasyncgenfunction(wrapped):
        return "async"
    return "sync" if inspect.isgeneratorfunction(wrapped) else ""


class Overrides:
    """Which factories stand in for others, for tests: see Registry.override."""

    def __init__(self) -> None:
        self._maps: list[dict[Any, Factory]] = [{}]

    def include(self, other: Overrides) -> None:
        """Heed those of others too, whatever they are from now on."""
        self._maps.extend(m for m in other._maps if not any(m is known for known in self._maps))

    def of(self, factory: Factory) -> Factory:
        """Return what stands in for a factory, or itself."""
        for one in self._maps:
            if one and (found := one.get(key_of(factory))) is not None:
                return found
        return factory

    @contextlib.contextmanager
    def put(self, factory: Factory, other: Factory) -> Iterator[None]:
        """Let ``other`` stand in for ``factory`` in this block."""
        for one in (factory, other):
            if not callable(one):
                raise ConfigurationError(f"override takes two factories, not {shown(one)}")
        own, key = self._maps[0], key_of(factory)
        before = own.get(key)
        own[key] = other
        try:
            check_dependencies(name_of(factory), [Dependency(factory)], self)
            yield
        finally:
            if before is None:
                del own[key]
            else:
                own[key] = before


def check_dependencies(
    whose: str, wanted: Iterable[Dependency], overrides: Overrides | None = None
) -> None:
    """Raise ConfigurationError where factories wait for each other in a circle, take what nothing
    gives, or where one that is called once a process needs what a task has."""
    overrides = overrides or Overrides()
    cleared: set[tuple[Any, str]] = set()

    def check(dependency: Dependency, path: tuple[Recipe, ...]) -> None:
        recipe = recipe_of(overrides.of(dependency.factory))
        if any(recipe.key == above.key for above in path):
            circle = " -> ".join(r.name for r in (*path, recipe))
            raise ConfigurationError(
                f"the dependencies of {whose} go in a circle: {circle}; let one of these make what "
                "it needs by itself"
            )
        if (recipe.key, dependency.scope) in cleared:
            return
        if dependency.scope == "process":
            if recipe.context:
                raise ConfigurationError(
                    f"{recipe.name} is made once a process and cannot take the context of one task "
                    f'({recipe.context!r}): give it scope="task"'
                )
            for name, inner in recipe.needs:
                if inner.scope != "process":
                    raise ConfigurationError(
                        f"{recipe.name} is made once a process, and its {name!r} for each task: "
                        f'write {name}=Depends({name_of(inner.factory)}, scope="process"), or give '
                        f'{recipe.name} scope="task"'
                    )
        for _, inner in recipe.needs:
            check(inner, (*path, recipe))
        cleared.add((recipe.key, dependency.scope))

    for dependency in wanted:
        check(dependency, ())

"""Depends: parameters that a worker gives to a handler, made by factories.

A factory is any function: it returns what it makes, or yields it once and tidies up behind its
``yield``; either may be ``async``. It may take what other factories make, and the context of the
task. What calls factories is the worker's (worker/injection.py); nothing here runs one.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ConfigurationError
from ..protocol.options import shown
from .signature import annotations_of, injected_by, is_context, is_variable, parameters_of

SCOPES = ("task", "process")
Factory = Callable[..., Any]


@dataclass(frozen=True, slots=True, eq=False)
class Dependency:
    """What ``Depends`` returns: a factory, and how long what it makes is kept."""

    __redistq_injected__: ClassVar[bool] = True
    """See signature.py: the caller does not give such a parameter."""
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
    needs: list[tuple[str, Dependency]] = []
    context = ""
    inner, parameters = parameters_of(factory) or (factory, [])
    annotations = annotations_of(_initialiser(inner))
    for parameter in parameters:
        if is_variable(parameter):
            continue
        annotation = annotations.get(parameter.name, parameter.annotation)
        by = injected_by(parameter, annotation)
        wanted = isinstance(by, Dependency) or is_context(parameter, annotation)
        if wanted and parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigurationError(
                f"{parameter.name!r} of the factory {name_of(factory)} is given by its name: put "
                "it behind the / of the signature"
            )
        if isinstance(by, Dependency):
            needs.append((parameter.name, by))
        elif wanted:
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
        tuple(needs),
        context,
        in_loop or inspect.iscoroutinefunction(called),
        opens,
    )


def _initialiser(factory: Any) -> Any:
    """Return what takes the arguments of a factory: of a class, its ``__init__``."""
    return vars(factory).get("__init__", factory) if isinstance(factory, type) else factory


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

"""IPython magics: ``%load_ext redistq``, then ``%%task``, ``%%batch`` and ``%redistq`` in cells.

A cell becomes a function: what it reads of the notebook travels with it, as with any function that
a client sends. Used by notebooks and IPython; nothing else imports it.
"""

from __future__ import annotations

import ast
import itertools
import linecache
import shlex
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from IPython.core import magic
from IPython.core import magic_arguments as options
from IPython.core.error import UsageError

from .client.client import Client
from .client.futures import TaskFuture
from .errors import ConfigurationError

# They carry no types.
argument: Any = options.argument
magic_arguments: Any = options.magic_arguments
parse_argstring: Any = options.parse_argstring
cell_magic: Any = magic.cell_magic
line_magic: Any = magic.line_magic
magics_class: Any = magic.magics_class

_RESULT = "__result__"
_numbers = itertools.count(1)


def load_ipython_extension(shell: Any) -> None:
    """Register the magics: what ``%load_ext redistq`` does."""
    shell.register_magics(RedistqMagics)


@magics_class
class RedistqMagics(magic.Magics):
    """Cells that run on workers, and a look at the queue."""

    shell: Any

    @magic_arguments()
    @argument("-o", "--out", action="append", default=[], help="names that come back: -o a,b")
    @argument("-f", "--future", default=None, help="do not wait: put the future into this name")
    @argument("-n", "--name", default=None, help="what monitors call it")
    @argument("-t", "--timeout", type=float, default=None, help="seconds after which it is ended")
    @argument("-r", "--retries", type=int, default=0, help="how often it is tried again")
    @argument("--cache", default=None, help="use a stored result of the same cell, such as 1d")
    @argument("-c", "--client", default=None, help="the client's name, where there are several")
    @cell_magic
    def task(self, line: str, cell: str) -> Any:
        """Run the cell on a worker; the value of its last line is shown as if it had run here.

        Names of the notebook that it reads travel with it. What it prints comes as it runs. Names
        that it sets stay there, but those given by ``-o``.
        """
        __tracebackhide__ = True
        given = _parsed(self.task, line)
        client = self._client(given.client)
        out = _names(given.out)
        function = function_of(self.shell, f"%%task {line}", cell, (), out or None)
        # Watched here, lines come by the logs alone: workers of this notebook print into it, too.
        logs: bool | Literal["only"] = "only" if given.future is None else True
        future = _bound(client, given, logs=logs).submit(function)
        if given.future is not None:
            self.shell.user_ns[_name(given.future)] = future
            return None if not out else _says_later(out)
        result = _watched(future)
        if not out:
            return result
        value, *outputs = result
        self.shell.user_ns.update(zip(out, outputs, strict=True))
        return value

    @magic_arguments()
    @argument("-i", "--items", required=True, help="what it runs over: a name or an expression")
    @argument("-v", "--variable", default="item", help="what the cell calls each (%(default)s)")
    @argument("-o", "--out", default=None, help="wait, and put the list of results into this name")
    @argument("-b", "--batch", default=None, help="do not wait: put the batch into this name")
    @argument("-n", "--name", default=None, help="the batch's name, by which it is found again")
    @argument("-t", "--timeout", type=float, default=None, help="seconds for each item")
    @argument("-r", "--retries", type=int, default=0, help="how often each is tried again")
    @argument("-c", "--client", default=None, help="the client's name, where there are several")
    @cell_magic
    def batch(self, line: str, cell: str) -> Any:
        """Run the cell for each of the items, on all workers; the value of its last line is the
        result for one."""
        __tracebackhide__ = True
        given = _parsed(self.batch, line)
        client = self._client(given.client)
        variable = _name(given.variable)
        function = function_of(self.shell, f"%%batch {line}", cell, (variable,), None)
        items = eval(given.items, self.shell.user_global_ns, self.shell.user_ns)
        name, given.name = given.name, None
        batch = _bound(client, given).map_batch(function, items, name=name)
        if given.batch is not None:
            self.shell.user_ns[_name(given.batch)] = batch
            return None
        results = batch.results()
        if given.out is not None:
            self.shell.user_ns[_name(given.out)] = results
            return None
        return results

    @line_magic
    def redistq(self, line: str) -> Any:
        """Look and act: ``%redistq status``, ``workers 4``, ``stop``, ``failures``,
        ``dashboard``."""
        word, *rest = shlex.split(line) or ["status"]
        actions: dict[str, Callable[..., Any]] = {
            "status": self._status,
            "workers": self._workers,
            "stop": self._stop,
            "failures": self._failures,
            "dashboard": self._dashboard,
        }
        if word not in actions or len(rest) > (word == "workers"):
            raise UsageError(
                "%redistq status, %redistq workers [N], %redistq stop, %redistq failures or "
                f"%redistq dashboard, not %redistq {line}"
            )
        return actions[word](*rest)

    # -- what %redistq does ----------------------------------------------------------------------

    def _status(self) -> Any:
        return self._monitor().get_queue_stats()

    def _workers(self, number: str | None = None) -> Any:
        client = self._client(None)
        if number is not None and not number.isdigit():
            raise UsageError(f"%redistq workers takes a number, not {number}")
        return client.start_workers(None if number is None else int(number))

    def _stop(self) -> None:
        client = self._client(None)
        number = client._session.workers.processes
        client.stop_workers()
        print(f"stopped {number} worker process{'' if number == 1 else 'es'} of this notebook")

    def _failures(self) -> Any:
        return self._monitor().get_failures()

    def _dashboard(self) -> Any:
        return self._monitor().dashboard()

    def _monitor(self) -> Any:
        from .monitor.monitor import TaskMonitor

        client = self._client(None)
        return TaskMonitor(address=client.address, stream=client.keys.stream, group=client.group)

    def _client(self, name: str | None) -> Client:
        """Return the client of that name, or the notebook's own; without any, a new one, which is
        called ``client`` from then on."""
        names = self.shell.user_ns
        if name is not None:
            if not isinstance(names.get(name), Client):
                raise UsageError(f"{name} is no Client: {name} = redistq.Client(...)")
            return names[name]  # type: ignore[no-any-return]
        found = {id(value): key for key, value in names.items() if type(value) is Client}
        shown = sorted(key for key in found.values() if not key.startswith("_"))
        if len(shown) > 1 and "client" not in shown:
            raise UsageError(f"which client? -c {' or -c '.join(shown)}")
        if shown:
            return names["client" if "client" in shown else shown[0]]  # type: ignore[no-any-return]
        names["client"] = client = Client()
        return client


# -- cells as functions --------------------------------------------------------------------------


def function_of(
    shell: Any, first: str, cell: str, parameters: Sequence[str], out: Sequence[str] | None
) -> Callable[..., Any]:
    """Return a cell as a function, which returns the value of its last line; with ``out`` a list
    of that and of those names. Its lines are those of the cell, in tracebacks too.

    Raises UsageError for what cannot run on a worker.
    """
    file = f"<cell {next(_numbers)} on a worker>"
    text = f"{first}\n{cell}"
    if "get_ipython()" in (code := shell.transform_cell(cell)) and "get_ipython()" not in cell:
        raise UsageError("a cell that runs on a worker has no magics and no shell commands in it")
    tree = ast.parse(code, file)
    ast.increment_lineno(tree, 1)  # below the magic
    body = tree.body
    if stars := [
        n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"
    ]:
        raise UsageError(f"line {stars[0].lineno}: import names by themselves, not *, for a worker")
    value: ast.expr = ast.Constant(None)
    if body and isinstance(last := body[-1], ast.Expr):
        body.pop()
        if cell.rstrip().endswith(";"):  # as in any cell: not to be shown
            body.append(last)
        else:
            value = last.value
    if out is not None:
        names = [ast.Name(name, ast.Load()) for name in out]
        body.append(ast.Assign([ast.Name(_RESULT, ast.Store())], value))
        value = ast.List([ast.Name(_RESULT, ast.Load()), *names], ast.Load())
    body.append(ast.Return(value))
    is_async = any(_awaits(statement) for statement in body)
    kind = ast.AsyncFunctionDef if is_async else ast.FunctionDef
    arguments = ast.arguments([], [ast.arg(name) for name in parameters], None, [], [], None, [])
    empty = ast.parse("def cell(): pass" if not is_async else "async def cell(): pass").body[0]
    assert isinstance(empty, kind)
    empty.args, empty.body = arguments, body
    module = ast.fix_missing_locations(ast.Module([empty], []))
    made: dict[str, Any] = {}
    exec(compile(module, file, "exec", dont_inherit=True), shell.user_ns, made)
    lines = text.splitlines(keepends=True)
    linecache.cache[file] = (len(text), None, lines, file)
    function: Callable[..., Any] = made["cell"]
    return function


def _awaits(node: ast.AST) -> bool:
    """Return whether code awaits outside of functions of its own."""
    if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
        return True
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return False
    return any(_awaits(child) for child in ast.iter_child_nodes(node))


def _watched(future: TaskFuture) -> Any:
    """Return the result; meanwhile what the task prints is printed here, and nothing of it any more
    when the wait was stopped: it would stand in the next cell."""

    __tracebackhide__ = True
    stopped = threading.Event()

    def follow() -> None:
        for line in future.logs(follow=True):
            if stopped.is_set():
                return
            print(line)

    follower = threading.Thread(target=follow, name="redistq-cell-output", daemon=True)
    follower.start()
    try:
        return future.result()
    except BaseException as error:  # of a cell's error the cell's line is what counts
        BaseException.with_traceback(error, None)
        raise
    finally:
        if future.done():
            follower.join(2)
        stopped.set()


# -- options -------------------------------------------------------------------------------------


def _parsed(magic: Any, line: str) -> Namespace:
    return parse_argstring(magic, line)  # type: ignore[no-any-return]


def _bound(client: Client, given: Namespace, *, logs: bool | Literal["only"] = False) -> Any:
    options = {name: getattr(given, name, None) for name in ("name", "timeout", "cache")}
    try:
        return client.options(
            retries=given.retries, logs=logs, **{k: v for k, v in options.items() if v is not None}
        )
    except ConfigurationError as error:
        raise UsageError(str(error)) from None


def _names(given: list[str]) -> list[str]:
    return [_name(name) for part in given for name in _parts(part)]


def _parts(text: str) -> Iterator[str]:
    return (part for part in text.replace(",", " ").split() if part)


def _name(text: str) -> str:
    if not text.isidentifier():
        raise UsageError(f"{text} is no name of a variable")
    return text


def _says_later(out: Sequence[str]) -> None:
    print(f"the future's result is a list: the last line's value, then {', '.join(out)}")

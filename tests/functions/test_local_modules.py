"""Modules beside a notebook: workers run them as the kernel has them, edits included."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.clients import serving, session

from redistq import Client, PayloadError
from redistq.functions.local_modules import bundle_of, is_local
from redistq.functions.packing import Shared

Edit = Callable[..., None]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with one worker process, which thus sees every change."""
    with serving(1) as client:
        yield client


class Folder:
    """A folder on the import path, whose modules are written as an editor would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._saved = 0

    def write(self, name: str, text: str) -> None:
        """Save a file; each time later than the time before, by more than a clock's tick."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        self._saved += 1
        when = 1_700_000_000 + 10 * self._saved
        os.utime(file, (when, when))
        importlib.invalidate_caches()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """The notebook's folder, the first place where modules are looked for."""
    before = set(sys.modules)
    sys.path.insert(0, str(tmp_path))
    yield Folder(tmp_path)
    sys.path.remove(str(tmp_path))
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "") or ""):
            del sys.modules[name]


def reload(*modules: ModuleType) -> None:
    for module in modules:
        importlib.reload(module)


def test_an_edited_module_is_run_as_edited(client: Client, folder: Folder) -> None:
    """Its own functions, those of the notebook that use it, and those that import it."""
    folder.write("plain_one.py", "RATE = 1\ndef go(x): return ('v1', x * RATE)\n")
    plain_one = importlib.import_module("plain_one")

    def uses(x: int) -> Any:
        return plain_one.go(x)

    def imports(x: int) -> Any:
        import plain_one as inner

        return inner.go(x)

    def imports_from(x: int) -> Any:
        from plain_one import go

        return go(x)

    ways = (uses, imports, imports_from, plain_one.go)
    assert [client.submit(way, 2).result(20) for way in ways] == [("v1", 2)] * 4
    folder.write("plain_one.py", "RATE = 5\ndef go(x): return ('v2', x * RATE)\n")
    reload(plain_one)
    ways = (uses, imports, imports_from, plain_one.go)
    assert [client.submit(way, 2).result(20) for way in ways] == [("v2", 10)] * 4
    assert list(client.map(plain_one.go, [1])) == [("v2", 5)]
    assert client.map_batch(uses, [1], progress=False).results(20) == [("v2", 5)]


def test_what_a_module_imports_is_followed(client: Client, folder: Folder) -> None:
    """Through modules, packages, relative imports, and imports inside functions."""
    folder.write("shop/__init__.py", "")
    folder.write(
        "shop/prices.py",
        "from . import deep\nfrom .deep.taxes import rate\n"
        "def total(x):\n    from .late import extra\n    return x * rate() + extra()\n",
    )
    folder.write("shop/deep/__init__.py", "")
    folder.write("shop/deep/taxes.py", "def rate(): return 2\n")
    folder.write("shop/late.py", "def extra(): return 0\n")
    folder.write("till.py", "import shop.prices\ndef pay(x): return shop.prices.total(x)\n")
    till = importlib.import_module("till")
    assert client.submit(till.pay, 10).result(20) == 20
    folder.write("shop/deep/taxes.py", "def rate(): return 3\n")
    import shop.deep.taxes  # type: ignore[import-not-found]
    import shop.prices  # type: ignore[import-not-found]

    reload(shop.deep.taxes, shop.prices)
    assert till.pay(10) == client.submit(till.pay, 10).result(20) == 30
    folder.write("shop/late.py", "def extra(): return 7\n")
    reload(sys.modules["shop.late"])
    assert till.pay(10) == client.submit(till.pay, 10).result(20) == 37


def test_a_module_that_only_a_function_imports_is_followed_too(
    client: Client, folder: Folder
) -> None:
    """The kernel has never loaded it: then the file counts."""
    folder.write("never_here.py", "def go(): return 'v1'\n")

    def late() -> Any:
        import never_here  # type: ignore[import-not-found]

        return never_here.go()

    assert client.submit(late).result(20) == "v1"
    folder.write("never_here.py", "def go(): return 'v2'\n")
    assert client.submit(late).result(20) == "v2"
    assert "never_here" not in sys.modules


def test_results_and_errors_are_of_the_kernels_own_classes(client: Client, folder: Folder) -> None:
    """isinstance works for what comes back, before and after an edit."""
    text = """
        import dataclasses, enum
        class Trouble(Exception):
            def __init__(self, code): super().__init__(code); self.code = code
        @dataclasses.dataclass
        class Point:
            x: int
            def moved(self): return Point(self.x + STEP)
        class Kind(enum.Enum):
            A = 1
        STEP = 1
        def fail(): raise Trouble(STEP)
    """
    folder.write("shapes.py", text)
    shapes = importlib.import_module("shapes")
    for step in (1, 2):
        moved = client.submit(shapes.Point.moved, shapes.Point(1)).result(20)
        assert type(moved) is shapes.Point
        assert moved == shapes.Point(1 + step)
        assert client.submit(lambda p: p.moved(), shapes.Point(1)).result(20) == shapes.Point(
            1 + step
        )
        assert client.submit(lambda k: k, shapes.Kind.A).result(20) is shapes.Kind.A
        with pytest.raises(shapes.Trouble) as caught:
            client.submit(shapes.fail).result(20)
        assert caught.value.code == step
        big = [shapes.Point(1)] * 30_000
        assert client.submit(lambda ps: ps[0].moved().x, big).result(20) == 1 + step
        folder.write("shapes.py", text.replace("STEP = 1", "STEP = 2"))
        reload(shapes)


def test_only_what_was_edited_is_imported_anew(client: Client, folder: Folder) -> None:
    """The state of other modules stays: what they loaded or counted is still there."""
    folder.write(
        "counter.py",
        "import threading\nlock = threading.Lock()\nseen = []\n"
        "def count():\n    with lock:\n        seen.append(1)\n        return len(seen)\n",
    )
    folder.write("edited.py", "def go(): return 1\n")
    counter, edited = importlib.import_module("counter"), importlib.import_module("edited")

    def both() -> Any:
        return counter.count(), edited.go()

    assert client.submit(both).result(20) == (1, 1)
    assert client.submit(counter.count).result(20) == 2
    folder.write("edited.py", "def go(): return 2\n")
    reload(edited)
    assert client.submit(both).result(20) == (3, 2)


def test_the_order_of_the_import_path_is_the_notebooks(
    client: Client, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper that shadows an installed package is the one that is run, though the worker, and
    the notebook too, have loaded the other before."""
    installed = importlib.import_module("iniconfig")
    assert client.submit(installed.iscommentline, "# so").result(20) is True
    folder.write("iniconfig.py", "def iscommentline(line): return 'mine'\n")
    monkeypatch.delitem(sys.modules, "iniconfig")
    mine = importlib.import_module("iniconfig")
    assert client.submit(mine.iscommentline, "# so").result(20) == "mine"
    assert client.submit(lambda: mine.iscommentline("")).result(20) == "mine"


def test_calls_sent_before_an_edit_run_what_they_were_sent_with(
    client: Client, folder: Folder
) -> None:
    """Also between calls sent after it."""
    folder.write("turns.py", "def go(): return 1\n")
    turns = importlib.import_module("turns")
    old = client.options(delay=0.5).submit(turns.go)
    folder.write("turns.py", "def go(): return 2\n")
    reload(turns)
    new = [client.submit(turns.go), client.options(delay=1.0).submit(turns.go)]
    assert (old.result(20), [f.result(20) for f in new]) == (1, [2, 2])


def test_an_edit_that_was_not_reloaded_does_not_count(client: Client, folder: Folder) -> None:
    """Workers run what the kernel runs, until it is reloaded."""
    folder.write("kept.py", "def go(): return 'v1'\n")
    kept = importlib.import_module("kept")
    assert client.submit(kept.go).result(20) == "v1"
    folder.write("kept.py", "def go(): return 'v2 is longer'\n")
    assert kept.go() == client.submit(kept.go).result(20) == "v1"
    # Some tools replace a function's code instead of reloading.
    scope: dict[str, Any] = {"__name__": "kept"}
    file = str(folder.path / "kept.py")
    exec(compile(Path(file).read_text(), file, "exec"), scope)
    kept.go.__code__ = scope["go"].__code__
    assert kept.go() == client.submit(kept.go).result(20) == "v2 is longer"


def test_a_file_that_is_newer_than_the_module_is_said(client: Client, folder: Folder) -> None:
    """Where the older source is not known any more workers run the file, with a word."""
    folder.write("late_look.py", "def go(): return 'v1'\n")
    late_look = importlib.import_module("late_look")
    folder.write("late_look.py", "def go(): return 'v2 is longer'\n")
    with pytest.warns(UserWarning, match="'late_look' was edited after it was imported") as caught:
        client.submit(late_look.go).result(20)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client.submit(late_look.go).result(20)


def test_what_is_local_is_what_the_user_wrote(folder: Folder, tmp_path: Path) -> None:
    """Not the standard library, not what was installed, not the notebook, not redistq."""
    folder.write("mine.py", "import json, numpy, redistq, mine_too\n")
    folder.write("mine_too.py", "try:\n    import missing_module\nexcept ImportError: pass\n")
    folder.write("spaces/inner.py", "X = 1\n")
    importlib.import_module("mine")
    assert all(map(is_local, ("mine", "mine_too", "spaces", "spaces.inner")))
    for name in ("json", "numpy", "numpy.linalg", "__main__", "redistq", "redistq.client", "sys"):
        assert not is_local(name)
    bundle = bundle_of(["mine", "json"])
    assert bundle is not None
    assert set(bundle.modules) == {"mine", "mine_too"}
    assert bundle_of(["json", "no_such_module"]) is None


def test_a_namespace_package_travels(client: Client, folder: Folder) -> None:
    """A folder without an __init__.py is a package as well."""
    folder.write("loose/part.py", "def go(): return 1\n")
    part = importlib.import_module("loose.part")
    assert client.submit(part.go).result(20) == 1
    folder.write("loose/part.py", "def go(): return 2\n")
    reload(part)
    assert client.submit(part.go).result(20) == 2


def test_a_module_with_files_beside_it_finds_them(client: Client, folder: Folder) -> None:
    """__file__ is that of the notebook's machine, and package data is read as ever."""
    folder.write(
        "withdata/__init__.py",
        "import importlib.resources, pathlib\n"
        "def read(): return importlib.resources.files(__name__)"
        ".joinpath('d.txt').read_text() + (pathlib.Path(__file__).parent / 'd.txt').read_text()\n",
    )
    folder.write("withdata/d.txt", "ab")
    withdata = importlib.import_module("withdata")
    assert client.submit(withdata.read).result(20) == "abab"


def test_a_traceback_shows_the_lines_of_a_local_module(client: Client, folder: Folder) -> None:
    """File, line and text."""
    folder.write("broken.py", "def go():\n    raise ValueError('here')  # the culprit\n")
    broken = importlib.import_module("broken")
    error = client.submit(broken.go).exception(20)
    assert error is not None
    assert "# the culprit" in str(error.__cause__)
    assert str(folder.path / "broken.py") in str(error.__cause__)


def test_functions_without_local_modules_carry_none(client: Client) -> None:
    """Nothing is stored for them but themselves."""
    import numpy

    def own(x: float) -> Any:
        return numpy.float64(x), abs(x)

    before = set(client.server.client().keys("blob:*"))  # type: ignore[attr-defined]
    client.submit(own, 1).result(20)
    new = set(client.server.client().keys("blob:*")) - before  # type: ignore[attr-defined]
    assert len({name for name in new if not name.endswith(":user")}) == 1


def test_each_call_of_a_map_needs_the_modules_of_its_arguments(
    client: Client, folder: Folder
) -> None:
    """The first that is done does not take them away, however long the others wait."""
    folder.write("plain_shared.py", "RATE = 1\n")
    importlib.import_module("plain_shared")
    packer, shared = session(client).packer, Shared()
    needs: list[list[str]] = [[], []]
    names = [packer.store_modules({"plain_shared"}, 600, each, shared) for each in needs]
    assert needs == [[name] for name in names]
    assert len(set(names)) == 1


def test_a_module_whose_file_is_gone_is_sent_as_it_was_known(
    client: Client, folder: Folder
) -> None:
    """Sent once, its source is remembered; a file that cannot be read takes nothing back."""
    folder.write("kept_one.py", "def go(x): return x + 1\n")
    kept_one = importlib.import_module("kept_one")
    assert client.submit(kept_one.go, 1).result(20) == 2
    (folder.path / "kept_one.py").unlink()
    assert client.submit(lambda: kept_one.go(2)).result(20) == 3
    (folder.path / "kept_one.py").mkdir()  # there, and not to be read
    assert client.submit(lambda: kept_one.go(3)).result(20) == 4


@pytest.mark.parametrize("how", ["function", "cell", "import", "map", "batch", "cached"])
def test_a_module_that_was_never_sent_and_is_gone_is_named(
    client: Client, folder: Folder, how: str
) -> None:
    """The error at the call names the module and its file, and says what to do."""
    folder.write(f"gone_{how}.py", "def go(x): return x + 1\n")
    folder.write(f"uses_{how}.py", f"import gone_{how}\ndef go(x): return gone_{how}.go(x)\n")
    uses = importlib.import_module(f"uses_{how}")
    gone = sys.modules[f"gone_{how}"]
    (folder.path / f"gone_{how}.py").unlink()
    calls: dict[str, Callable[[], Any]] = {
        "function": lambda: client.submit(gone.go, 1),
        "cell": lambda: client.submit(lambda: gone.go(1)),
        "import": lambda: client.submit(uses.go, 1),
        "map": lambda: list(client.map(gone.go, [1])),
        "batch": lambda: client.map_batch(gone.go, [1]),
        "cached": lambda: client.options(cache=60).submit(gone.go, 1),
    }
    with pytest.raises(PayloadError, match=rf"'gone_{how}'.*gone_{how}\.py.*put the file back"):
        calls[how]()


def test_a_call_from_within_a_task_sends_what_the_task_was_sent_with(
    client: Client, folder: Folder
) -> None:
    """Not what stands on the worker's disk, which may be newer, older, or nothing."""
    folder.write("nested_one.py", "def go(x): return ('v1', x)\n")
    nested_one = importlib.import_module("nested_one")

    def text_that_would_be_sent() -> str:
        import pathlib

        from redistq.functions.local_modules import bundle_of

        pathlib.Path(nested_one.__file__ or "").unlink()
        bundle = bundle_of(["nested_one"])
        return "" if bundle is None else bundle.data.decode("latin-1")

    assert "('v1', x)" in client.submit(text_that_would_be_sent).result(20)


def test_a_flow_that_a_task_returns_has_the_modules_of_the_task(
    client: Client, folder: Folder
) -> None:
    """Its worker signs and sends what it was sent itself, whatever the file is by then."""
    folder.write(
        "flowing.py",
        """
        from redistq import chain
        def step(x): return x + 1
        def go(x): return chain(lambda: step(x), step)
        """,
    )
    flowing = importlib.import_module("flowing")
    assert client.submit(flowing.go, 1).result(20) == 3
    folder.write("flowing.py", "def step(x): return 'newer'\ndef go(x): return step(x)\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is newer than the module
        assert client.submit(flowing.go, 1).result(20) == 3
    reload(flowing)
    assert client.submit(flowing.go, 1).result(20) == "newer"

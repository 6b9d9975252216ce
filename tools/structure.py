"""Figures of the code's structure: ``python tools/structure.py [--tree]``.

Read from the sources alone: sizes of folders, files, functions and classes, idioms that make lines
hard to read, and the direction of imports. ``--tree`` lists each folder's files with their lines.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "redistq"
COMMAND = re.compile(r"[A-Z]{3,}")
"""What the first element of a raw server command looks like: ``("XRANGE", key, ...)``."""


@dataclass(frozen=True)
class Module:
    """One source file, parsed."""

    path: Path
    tree: ast.Module
    lines: int

    @property
    def name(self) -> str:
        """The dotted name below the package; a package has the name of its folder."""
        parts = self.path.relative_to(PACKAGE).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(folder: Path) -> list[Module]:
    """Every Python file below a folder."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        found.append(Module(path, ast.parse(source), source.count("\n")))
    return found


def code_lines(module: Module) -> int:
    """Lines that are neither blank, comment nor docstring."""
    docs: set[int] = set()
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            docs.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = module.path.read_text(encoding="utf-8").splitlines()
    return sum(
        1
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#") and number not in docs
    )


def functions(module: Module) -> Iterator[tuple[str, int]]:
    """Name and lines of each function."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def attributes(node: ast.ClassDef) -> int:
    """How many attributes a class sets on ``self``."""
    names = set()
    for inner in ast.walk(node):
        if (
            isinstance(inner, ast.Attribute)
            and isinstance(inner.ctx, ast.Store)
            and isinstance(inner.value, ast.Name)
            and inner.value.id == "self"
        ):
            names.add(inner.attr)
    return len(names)


def imports(module: Module, *, nested: bool = True) -> Iterator[str]:
    """Dotted names below the package that a module imports; ``nested``: inside functions too."""
    tree = module.tree if nested else _without_functions(module)
    here = list(module.path.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = here[: len(here) - node.level]
            elif (node.module or "").split(".")[0] == "redistq":
                base = []
            else:
                continue
            tail = (node.module or "").split(".") if node.module else []
            if not node.level:
                tail = tail[1:]
            for alias in node.names:
                yield ".".join([*base, *tail, alias.name])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("redistq."):
                    yield alias.name.removeprefix("redistq.")


def _without_functions(module: Module) -> ast.Module:
    kept = ast.parse(module.path.read_text(encoding="utf-8"))
    for node in ast.walk(kept):
        checked_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if checked_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [ast.Pass()]
    return kept


def target_of(name: str, known: set[str]) -> str:
    """The module in which an imported name stands."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def circles(found: list[Module], *, nested: bool) -> list[str]:
    """The modules of one import circle, or nothing."""
    known = {module.name for module in found}
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for module in found:
        targets = {target_of(name, known) for name in imports(module, nested=nested)}
        sorter.add(module.name, *(targets - {module.name, ""}))
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def count(found: list[Module], wanted: type[ast.AST], test: object) -> int:
    """How many nodes of a kind pass a test."""
    assert callable(test)
    return sum(
        bool(test(node))
        for module in found
        for node in ast.walk(module.tree)
        if isinstance(node, wanted)
    )


def _literal_splat(node: ast.Starred) -> bool:
    return isinstance(node.value, ast.Tuple | ast.List)


def _parallel(node: ast.Assign) -> bool:
    return isinstance(node.value, ast.Tuple) and isinstance(node.targets[0], ast.Tuple)


def _broad(node: ast.ExceptHandler) -> bool:
    return node.type is None or (
        isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
    )


def _unexplained(found: list[Module]) -> list[str]:
    """Broad excepts without a clause that says why: a comment on their line or the line below."""
    places = []
    for module in found:
        comments = _comment_lines(module)
        places += [
            f"{module.path.relative_to(ROOT)}:{node.lineno}"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ExceptHandler)
            and _broad(node)
            and comments.isdisjoint((node.lineno, node.lineno + 1))
        ]
    return places


def _comment_lines(module: Module) -> set[int]:
    with module.path.open(encoding="utf-8") as file:
        tokens = tokenize.generate_tokens(file.readline)
        return {token.start[0] for token in tokens if token.type == tokenize.COMMENT}


def _raw_command(node: ast.Tuple) -> bool:
    first = node.elts[0] if len(node.elts) > 0 else None
    return (
        isinstance(first, ast.Constant)
        and isinstance(first.value, str)
        and COMMAND.fullmatch(first.value) is not None
        and isinstance(node.ctx, ast.Load)
        and len(node.elts) > 1
        and not all(isinstance(e, ast.Constant) and isinstance(e.value, str) for e in node.elts)
    )


def private_accesses(found: list[Module]) -> int:
    """How often tests reach for a private attribute of something that is not ``self``."""
    return sum(
        1
        for module in found
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute)
        and re.match(r"_[a-z]", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", action="store_true", help="list the files with their lines")
    tree = parser.parse_args().tree
    found, tests = modules(PACKAGE), modules(ROOT / "tests")
    code = sum(code_lines(module) for module in found)
    folders: dict[str, list[Module]] = defaultdict(list)
    for module in found:
        folders[str(module.path.parent.relative_to(ROOT))].append(module)
    if tree:
        for folder, inside in sorted(folders.items()):
            print(f"{folder}/")
            for module in inside:
                print(f"    {module.path.name:<28} {module.lines:>5}")
    largest = max(folders, key=lambda folder: len(folders[folder]))
    longest = max(found, key=lambda module: module.lines)
    classes = [
        (attributes(node), node.name)
        for module in found
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    ]
    long = [
        f"{name} {lines}" for module in found for name, lines in functions(module) if lines > 60
    ]
    elsewhere = [m for m in found if "protocol" not in m.path.parts]
    cases = sum(
        1
        for module in tests
        for name, _ in functions(module)
        if name.startswith("test_") and module.path.name.startswith("test_")
    )
    private = private_accesses(tests)
    unexplained = _unexplained(found)
    parallel = count(found, ast.Assign, _parallel)
    rows = [
        ("modules, without __init__", sum(m.path.stem != "__init__" for m in found)),
        ("lines of code", code),
        ("largest folder", f"{largest}: {len(folders[largest])}"),
        ("longest file", f"{longest.path.name}: {longest.lines}"),
        ("files above 450 lines", sum(m.lines > 450 for m in found)),
        ("most attributes of a class", "{1}: {0}".format(*max(classes))),
        ("functions above 60 lines", f"{len(long)} ({', '.join(long)})"),
        ("splats of literals", count(found, ast.Starred, _literal_splat)),
        ("parallel assignments", f"{parallel}, {parallel * 1000 / code:.1f} in 1,000 lines"),
        ("broad excepts", count(found, ast.ExceptHandler, _broad)),
        ("... that do not say why", f"{len(unexplained)} {' '.join(unexplained)}"),
        ("raw commands outside protocol/", count(elsewhere, ast.Tuple, _raw_command)),
        ("circles at module level", " -> ".join(circles(found, nested=False)) or 0),
        ("circles with nested imports", " -> ".join(circles(found, nested=True)) or 0),
        ("test functions", cases),
        ("private accesses of tests", f"{private}, {private * 100 / cases:.0f} in 100 tests"),
    ]
    for label, value in rows:
        print(f"{label:<32} {value}")


if __name__ == "__main__":
    main()

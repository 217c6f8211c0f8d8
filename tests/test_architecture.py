"""docs/architecture.md against the disk: its tree, and who imports whom."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def block(title: str) -> list[str]:
    """The lines of the first code block of a section."""
    section = PAGE.split(f"\n## {title}\n", 1)[1]
    return section.split("```\n", 2)[1].splitlines()


# --- the tree ------------------------------------------------------------------------------------

PATH = re.compile(r"[\w.]+/|[\w.]+\.(?:py|txt|h|cpp)(?=\s|$)")


def named_paths() -> list[Path]:
    """The paths that the tree names, relative to the root: a line's first words."""
    found: list[Path] = []
    above: list[str] = []
    for line in block("The tree"):
        depth = (len(line) - len(line.lstrip())) // 2
        names = list(itertools.takewhile(PATH.fullmatch, line.split()))
        if depth > len(above) or not names:
            continue  # the words of the line before go on
        above = [*above[:depth], names[0]] if names[0].endswith("/") else above[:depth]
        found += [Path(*above[:depth], name) for name in names]
    return found


def test_the_tree_names_what_there_is() -> None:
    missing = [path for path in named_paths() if not (ROOT / path).exists()]
    assert missing == []


@pytest.mark.parametrize("folder", ["csrc", "csrc/cuda", "rnnfast"])
def test_the_tree_names_all_of_it(folder: str) -> None:
    named = {str(path) for path in named_paths()}
    there = {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).iterdir()
        if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")
    }
    assert there - named == set()
    assert len(named) > 30


# --- imports -------------------------------------------------------------------------------------


def modules() -> dict[str, Path]:
    found = {}
    for path in (ROOT / "rnnfast").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> set[str]:
    """The modules of rnnfast that it imports, at the top, in a function or for types."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*base, *([node.module] if node.module else [])])
            source = source if node.level else str(node.module)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in MODULES else source)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return {name for name in found if name in MODULES} - {module}


def room(module: str) -> str:
    """The name in the list that stands for a module: of its file or folder in rnnfast."""
    return module.split(".")[1] if "." in module else "__init__"


def floors() -> dict[str, int]:
    """The line of each name in the list, the top one 0."""
    lines = [line.split(":")[1].split() for line in block("Who imports whom")]
    return {name: floor for floor, names in enumerate(lines) for name in names}


def test_the_list_has_every_module() -> None:
    assert {room(module) for module in MODULES} == set(floors())


def upward(module: str) -> Iterator[str]:
    floor = floors()
    for other in imports(module):
        if floor[room(other)] < floor[room(module)]:
            yield f"{module} imports {other}"


def test_imports_go_down() -> None:
    assert [one for module in MODULES for one in upward(module)] == []


def test_there_are_no_circles() -> None:
    graph = {module: imports(module) for module in MODULES}
    while graph:  # take away what imports nothing that is left
        free = [module for module, others in graph.items() if not others & graph.keys()]
        assert free, f"these import one another: {', '.join(sorted(graph))}"
        for module in free:
            del graph[module]


def test_these_tests_can_fail() -> None:
    assert imports("rnnfast.functional") >= {"rnnfast.direct", "rnnfast.problem"}
    assert imports("rnnfast.backends.triton") >= {"rnnfast.triton.run", "rnnfast.triton.plan"}
    assert Path("rnnfast/problem.py") in named_paths()
    assert Path("rnnfast/direct.py") in named_paths()

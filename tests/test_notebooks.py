"""The notebooks run, and put out what stands in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rnnfast import library

from . import notebook

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
AGAIN = "other output; if it should be so: python -m tests.notebook"


@pytest.mark.skipif(library.why_not() is not None, reason=f"nothing compiles: {library.why_not()}")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_puts_out_what_stands_in_it(path: Path) -> None:
    kept = notebook.read(path)
    found = notebook.outputs_of(kept, path.name)
    for number, (cell, outputs) in enumerate(zip(notebook.code_cells(kept), found, strict=True), 1):
        if notebook.varies(cell):  # numbers of this machine: as much of them
            assert list(map(shape, outputs)) == list(map(shape, cell["outputs"])), f"cell {number}"
        else:
            assert outputs == cell["outputs"], f"{AGAIN} {path.relative_to(ROOT)} (cell {number})"


def shape(output: dict) -> tuple[str, int]:
    return output["output_type"], len(output.get("text", ()))


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["own_cell"]


def test_what_a_cell_prints_and_shows_are_its_outputs() -> None:
    cells = ["x = 2\nprint(x)\nx + 1", "x = x * 2", "x"]
    made = {"cells": [{"cell_type": "code", "source": [c], "metadata": {}} for c in cells]}
    first, second, third = notebook.outputs_of(made, "made")
    assert first[0] == {"name": "stdout", "output_type": "stream", "text": ["2\n"]}
    assert first[1]["data"] == {"text/plain": ["3"]}
    assert second == []
    assert third[0]["data"] == {"text/plain": ["4"]}
    assert third[0]["execution_count"] == 3

"""The notebooks run, and put out what stands in them."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from rnnfast import library
from rnnfast.text import data

from . import notebook

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
AGAIN = "other output; if it should be so: python -m tests.notebook"


LARGEST = 200_000  # bytes of a notebook with its outputs
MARKS = {"time_machine": [pytest.mark.needs_data]}


@pytest.fixture
def given_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The book is found where the tests' data lie, and not downloaded."""
    monkeypatch.setenv(
        "RNNFAST_DATA", os.environ.get("RNNFAST_DATA") or str(ROOT / "../shared/data")
    )
    monkeypatch.setenv("RNNFAST_OFFLINE", "1")


def why_not_here(name: str) -> str | None:
    """Why the notebook cannot run on this machine; None where it can."""
    if name == "own_cell":
        why = library.why_not()
        return why and f"nothing compiles: {why}"
    if name == "time_machine":
        try:
            data.find(data.TIME_MACHINE)
        except data.DataCorrupt:
            raise
        except data.DataUnavailable as error:
            return f"needs the real text: {error}"
    return None


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=MARKS.get(p.stem, [])) for p in NOTEBOOKS]
)
def test_a_notebook_puts_out_what_stands_in_it(path: Path, given_data: None) -> None:
    why = why_not_here(path.stem)
    if why is not None:
        pytest.skip(why)
    if path.stem != "own_cell":
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert path.stat().st_size < LARGEST
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
    assert [path.stem for path in NOTEBOOKS] == ["dp_sgd", "own_cell", "time_machine"]


def test_what_a_cell_prints_and_shows_are_its_outputs() -> None:
    cells = ["x = 2\nprint(x)\nx + 1", "x = x * 2", "x"]
    made = {"cells": [{"cell_type": "code", "source": [c], "metadata": {}} for c in cells]}
    first, second, third = notebook.outputs_of(made, "made")
    assert first[0] == {"name": "stdout", "output_type": "stream", "text": ["2\n"]}
    assert first[1]["data"] == {"text/plain": ["3"]}
    assert second == []
    assert third[0]["data"] == {"text/plain": ["4"]}
    assert third[0]["execution_count"] == 3


def test_a_figure_is_shown_as_a_picture() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    source = "from matplotlib.figure import Figure\nFigure(figsize=(2, 1))"
    made = {"cells": [{"cell_type": "code", "source": [source], "metadata": {}}]}
    ((output,),) = notebook.outputs_of(made, "made")
    picture = base64.b64decode(output["data"]["image/png"])
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20], "big") == 2 * notebook.PIXELS_PER_INCH
    assert output["data"]["text/plain"] == ["<Figure size 200x100 with 0 Axes>"]

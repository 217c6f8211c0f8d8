"""Runs a notebook without Jupyter:  python -m tests.notebook docs/notebooks/own_cell.ipynb

The command writes what the cells put out into the file; test_notebooks.py compares. A code cell
is Python without magics, and shows its last expression: by ``_repr_svg_`` where that is there, a
figure of matplotlib as a small PNG. A cell that ends with a figure closes it before, since Jupyter
would show it twice.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

Cell = dict[str, Any]
PIXELS_PER_INCH = 80
VARIES = "varies"  # tag of a cell whose numbers are another machine's: it is run, not compared


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def code_cells(notebook: dict[str, Any]) -> list[Cell]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def varies(cell: Cell) -> bool:
    return VARIES in cell["metadata"].get("tags", [])


def outputs_of(notebook: dict[str, Any], name: str) -> list[list[dict[str, Any]]]:
    """What each code cell puts out, as nbformat 4 has it; all run in one namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    return [
        _run("".join(cell["source"]), namespace, number, f"{name}, cell {number}")
        for number, cell in enumerate(code_cells(notebook), start=1)
    ]


def write(path: Path) -> None:
    """Runs the notebook and puts the outputs in it."""
    notebook = read(path)
    for number, (cell, outputs) in enumerate(
        zip(code_cells(notebook), outputs_of(notebook, path.name), strict=True), start=1
    ):
        cell["outputs"], cell["execution_count"] = outputs, number
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _run(source: str, namespace: dict[str, Any], number: int, name: str) -> list[dict[str, Any]]:
    tree = ast.parse(source, name)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    printed, shown = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), namespace)
        if last is not None:
            shown = eval(compile(last, name, "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        text = _lines(printed.getvalue())
        outputs.append({"name": "stdout", "output_type": "stream", "text": text})
    if shown is not None:
        outputs.append(
            {
                "data": _shown(shown),
                "execution_count": number,
                "metadata": {},
                "output_type": "execute_result",
            }
        )
    return outputs


def _shown(value: Any) -> dict[str, str | list[str]]:
    found: dict[str, str | list[str]] = {}
    if (svg := getattr(value, "_repr_svg_", None)) is not None:
        found["image/svg+xml"] = _lines(svg())
    elif _is_figure(value):
        picture = io.BytesIO()
        value.savefig(picture, format="png", dpi=PIXELS_PER_INCH)
        found["image/png"] = base64.b64encode(picture.getvalue()).decode()
    return found | {"text/plain": _lines(repr(value))}


def _is_figure(value: Any) -> bool:
    """Nobody has one before its module is imported."""
    module = sys.modules.get("matplotlib.figure")
    return module is not None and isinstance(value, module.Figure)


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        write(Path(argument))

"""``python -m rnnfast compile``: which cell, what is compiled, what is kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rnnfast import _ext, cli, library
from rnnfast._build import host
from rnnfast.cells import CELLS
from rnnfast.library import LibraryError, compiler

MODULE = """
import torch
import rnnfast

@rnnfast.cell(gates=1, settings={"heads": 4})
def mine(gx, states, w):
    return (torch.tanh(gx + torch.nn.functional.linear(states[0], w.w_hh, w.b_hh)),)

class inside:
    other = mine
number = 3
"""
needs_compiler = pytest.mark.skipif(
    host.find_compiler(names=compiler.NAMES)[0] is None or _ext.why_no_cpu() is not None,
    reason="no compiler, or no extension",
)


@pytest.fixture(autouse=True)
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module ``lib_cells`` with a cell, and a cache of its own."""
    (tmp_path / "lib_cells.py").write_text(MODULE)
    (tmp_path / "lib_broken.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RNNFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RNNFAST_COMPILE", raising=False)
    before = dict(CELLS)
    library.forget()
    yield
    library.forget()
    sys.modules.pop("lib_cells", None)
    CELLS.clear()
    CELLS.update(before)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was asked for; the stand-in's code depends on the cell and the dtype, not on H."""
    asked: list[tuple[Any, ...]] = []

    def ahead(spec: Any, hidden_size: int, dtype: torch.dtype, target: str) -> None:
        assert target == library.HOST
        asked.append((spec.name, dict(spec.settings), hidden_size, dtype))
        library.load(f"// {spec.name} {dtype}\nint x;\n", name=spec.name)

    steps = ModuleType("rnnfast.steps")
    steps.compile_ahead = ahead  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rnnfast.steps", steps)
    return asked


@needs_compiler
def test_it_compiles_lists_and_clears(
    compiled: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compile", "lib_cells:mine", "--hidden", "8", "16", "--dtype", "float32", "float64"]
    assert cli.main(command) == 0
    assert compiled == [
        ("lib_cells:mine", {"heads": 4}, size, dtype)
        for dtype in (torch.float32, torch.float64)
        for size in (8, 16)
    ]
    lines = capsys.readouterr().out.splitlines()
    kept = [str(entry.path) for entry in library.listed()]
    assert len(kept) == 2
    assert sorted(line.strip() for line in lines if line.startswith("  ")) == sorted(kept)
    said = [line for line in lines if not line.startswith("  ")]
    assert said[0].startswith("lib_cells:mine H8 float32: compiled in ")
    assert said[1] == "lib_cells:mine H16 float32: was there already"

    assert cli.main(["compile", "lib_cells:inside.other", "--set", "heads=2"]) == 0
    assert compiled[-1] == ("lib_cells:mine[heads=2]", {"heads": 2}, 256, torch.float32)
    capsys.readouterr()

    os.utime(kept[0], (1e9, 1e9))
    assert cli.main(["compile", "--list"]) == 0
    *listed, last = capsys.readouterr().out.splitlines()
    assert last.startswith("3 compiled, 0.")
    assert [line.split()[-1] for line in listed] == [str(e.path) for e in library.listed()]
    (old,) = (line for line in listed if line.endswith(kept[0]))
    assert old.split()[1:4:2] == ["KiB", "d"]
    assert all(line.split()[3] == "s" for line in listed if line != old)

    assert cli.main(["compile", "--clear"]) == 0
    assert capsys.readouterr().out == "deleted 3 compiled cells\n"
    assert library.listed() == []
    assert cli.main(["compile", "--clear"]) == 0
    assert cli.main(["compile", "--list"]) == 0
    assert capsys.readouterr().out == "nothing is kept\n0 compiled, 0.0 MiB\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which cell? such as mymodule:mycell"),
        (["lib_cells"], "expected module:cell, got: lib_cells"),
        (["lstm"], "lstm is built in: there is nothing to compile"),
        (["no_such_module:mine"], "there is no module no_such_module"),
        (["lib_cells:nobody"], "should be a cell made by rnnfast.cell; there is none"),
        (["lib_cells:number"], "should be a cell made by rnnfast.cell; it is int"),
        (["rnnfast.cells.lstm:LSTM"], "rnnfast.cell; it is a built-in cell"),
        (["lib_cells:mine", "--hidden", "0"], "--hidden should be 1 or more"),
        (["lib_cells:mine", "--set", "heads"], "--set takes NAME=NUMBER, got: heads"),
        (["lib_cells:mine", "--set", "feet=2"], "has no setting 'feet'; there are: heads"),
        (["lib_cells:mine", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["--list", "--clear"], "not allowed with argument"),
    ],
)
def test_bad_calls(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["compile", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_what_cant_be_deleted_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "a file")

    monkeypatch.setattr(library, "clear", refuse)
    assert cli.main(["compile", "--clear"]) == 1
    assert capsys.readouterr().err == "rnnfast compile: [Errno 13] Permission denied: 'a file'\n"


def test_what_its_module_lacks_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile", "lib_broken:mine"]) == 1
    assert "No module named 'no_such_package'" in capsys.readouterr().err


def test_where_nothing_can_be_compiled(
    compiled: list[tuple[Any, ...]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "why_not", lambda **_: "no C++ compiler")
    assert cli.main(["compile", "lib_cells:mine"]) == 1
    expected = "rnnfast compile: nothing can be compiled here: no C++ compiler\n"
    assert capsys.readouterr().err == expected
    assert compiled == []


def test_a_failure_is_an_exit_status(
    compiled: list[tuple[Any, ...]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any) -> None:
        raise LibraryError("cell 'a' can't be compiled: g++ ended with status 1")

    monkeypatch.setattr(library, "why_not", lambda **_: None)
    monkeypatch.setattr(sys.modules["rnnfast.steps"], "compile_ahead", fail)
    assert cli.main(["compile", "lib_cells:mine"]) == 1
    expected = "rnnfast compile: cell 'a' can't be compiled: g++ ended with status 1\n"
    assert capsys.readouterr().err == expected


def test_for_gpus_it_asks_for_their_architectures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    steps = ModuleType("rnnfast.steps")
    steps.compile_ahead = lambda *given: asked.append(given[1:])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rnnfast.steps", steps)
    monkeypatch.setattr(library, "why_not", lambda **_: None)
    assert cli.main(["compile", "lib_cells:mine", "--gpu", "sm_80", "sm_90"]) == 0
    assert asked == [(256, torch.float32, "sm_80"), (256, torch.float32, "sm_90")]
    assert "lib_cells:mine H256 float32 sm_90: was there already" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["compile", "lib_cells:mine", "--gpu", "H100"])
    assert "such as sm_90" in capsys.readouterr().err

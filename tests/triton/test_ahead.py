"""Every kernel compiled ahead of time, without a GPU, and judged from its machine code."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import triton

from rnnfast import CELLS
from rnnfast.cells import Product
from rnnfast.inspect import triton as inspect_triton
from rnnfast.inspect.cli import main
from rnnfast.inspect.sass import class_of, parse
from rnnfast.inspect.table import Row
from rnnfast.triton.cells import FILES, cell_of, why_not
from rnnfast.triton.limits import FILE, table
from rnnfast.triton.plan import Device

from ..cases import BUILT_IN

ARCHITECTURES = ("80", "90", "100", "gfx942")
MATHS = tuple(inspect_triton.DTYPES)
EVERY = [(c, m, a) for a in ARCHITECTURES for c in BUILT_IN for m in MATHS]
SAMPLE = [("lstm", "bf16", "90"), ("gru", "fp32", "80"), ("gru_reset_before", "fp16", "gfx942")]

MEASURED_BY = json.loads(FILE.read_text(encoding="utf-8"))["triton"]

needs_compiler = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="in this process Triton interprets"
)


def check_products(row: Row, math: str) -> None:
    if math == "fp32":
        assert row.products == 0 or row.arch.startswith("gfx"), f"{row}: not strict fp32"
    else:
        assert row.products > 0, f"{row}: no tensor cores"


def check_resident(cell: str, math: str, arch: str) -> None:
    limits = [table()[arch, math, cell, d] for d in ("forward", "backward")]
    forward, backward = (
        inspect_triton.resident_tiling(limit.block_h, limit.block_h, num_warps=limit.num_warps)
        for limit in limits
    )
    found = list(inspect_triton.rows(cell, math, arch, (forward, backward)))
    assert [row.kernel.split("_")[1] for row in found] == ["forward", "backward"]
    for row, limit in zip(found, limits, strict=True):
        assert inspect_triton.is_clean(row), row
        assert row.shared <= limit.shared, f"{row}: limits.json says {limit.shared}"
        if triton.__version__ == MEASURED_BY:
            assert row.shared == limit.shared, f"{row}: limits.json says {limit.shared}"
        check_products(row, math)


def check_stepwise(cell: str, math: str, arch: str) -> None:
    tilings = inspect_triton.tilings_for(cell, math, arch, 1000, 500, 64, "stepwise")
    for row in inspect_triton.rows(cell, math, arch, tilings):
        assert row.shared <= inspect_triton.SHARED_MEMORY[arch], row
        check_products(row, math)


@needs_compiler
@pytest.mark.parametrize(("cell", "math", "arch"), SAMPLE)
def test_a_resident_kernel_at_the_limit_that_it_claims(cell: str, math: str, arch: str) -> None:
    check_resident(cell, math, arch)


@needs_compiler
@pytest.mark.parametrize(("cell", "math", "arch"), [("lstm_proj", "tf32", "100")])
def test_a_stepwise_kernel(cell: str, math: str, arch: str) -> None:
    check_stepwise(cell, math, arch)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("cell", "math", "arch"), EVERY)
def test_every_resident_kernel(cell: str, math: str, arch: str) -> None:
    check_resident(cell, math, arch)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("cell", "math", "arch"), EVERY)
def test_every_stepwise_kernel(cell: str, math: str, arch: str) -> None:
    check_stepwise(cell, math, arch)


def check_own(cell: str, math: str, arch: str, H: int = 64, B: int = 32) -> None:
    shared = inspect_triton.SHARED_MEMORY[arch]
    rows = list(inspect_triton.own_rows(cell, math, Device(arch, arch, shared), H, B))
    assert {row.kernel.split("_")[0] for row in rows} == {"forward", "backward"}
    for row in rows:
        assert inspect_triton.is_clean(row), row
    if math != "fp32" and CELLS[cell].recurrent not in (None, "H"):
        assert sum(row.products for row in rows) > 0, f"{cell}: no tensor cores"


@needs_compiler
@pytest.mark.parametrize(
    ("cell", "math", "arch"),
    [("peephole_lstm", "bf16", "90"), ("indrnn_relu", "fp16", "gfx942"), ("ligru", "tf32", "100")],
)
def test_a_cell_of_ones_own(cell: str, math: str, arch: str) -> None:
    check_own(cell, math, arch)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("cell", [name for name, s in CELLS.items() if s.own and ":" not in name])
def test_every_cell_of_the_family(cell: str, math: str, arch: str) -> None:
    for B in (32, 256):
        check_own(cell, math, arch, 256, B)


@needs_compiler
def test_a_kernel_beyond_its_limit_is_seen_to_spill_or_not_to_fit() -> None:
    """The checks can fail: an LSTM of four times the limit's weights."""
    limit = table()["90", "bf16", "lstm", "forward"]
    tiling = inspect_triton.resident_tiling(2 * limit.block_h, 2 * limit.block_h)
    row = next(inspect_triton.rows("lstm", "bf16", "90", (tiling, tiling)))
    assert not inspect_triton.is_clean(row)


@needs_compiler
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cell", "rnn_relu", "--hidden", "40", "--dtype", "bf16", "--arch", "80"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "forward: resident (one launch), 16 sequences a program"
    header = next(line for line in shown if line.startswith("kernel"))
    assert header.split() == [
        "kernel", "warps", "registers", "shared", "stack", "spills", "products", "seconds"
    ]  # fmt: skip
    figures = next(line for line in shown if line.startswith("resident_forward")).split()
    assert 0 < int(figures[2]) <= 255
    assert int(figures[5]) == 0
    assert any(line.startswith("tensor core") for line in shown)


@needs_compiler
def test_the_command_for_a_cell_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cell", "tests.own_cells:peephole", "--hidden", "16", "--batch", "3"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("tests.own_cells:peephole, H 16: launches of a step")
    assert [line.split()[0] for line in shown[3:6]] == ["forward_0", "backward_0", "backward_1"]
    for unknown in ("elman", "no_such_module:cell", "tests.own_cells:nothing"):
        with pytest.raises(SystemExit):
            main(["--cell", unknown])


def test_the_command_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--hidden", "4096", "--strategy", "resident"]) == 1
    assert "no resident forward kernel of lstm in bf16 has H = 4096" in capsys.readouterr().err
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["--hidden", "16"]) == 1
    assert "TRITON_INTERPRET=1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--hidden", "0"])


def test_the_list_of_cells_is_everybodys() -> None:
    assert list(FILES) == list(BUILT_IN)
    for name in BUILT_IN:
        spec = CELLS[name]
        assert why_not(spec) is None
        assert sum(phase.gates for phase in cell_of(name).phases) == spec.gates


def test_a_cell_that_the_kernels_do_not_know_is_refused_with_the_reason() -> None:
    gru, u = CELLS["gru"], Product("w_hh", "u", (2,))
    for change, reason in (
        ({"name": "another"}, "no functions for the cell another"),
        ({"products": (Product("w_hh", "h", (0,)), Product("w_hh", "u", (1,)), u)}, "two phases"),
        ({"products": (Product("w_hh", "h", (1, 0)), u)}, "in the order of the phases"),
        ({"own_product_gate": 0}, "the last gate apart"),
    ):
        refused = why_not(replace(gru, **change))
        assert refused is not None
        assert reason in refused


# --- reading machine code ------------------------------------------------------------------------

USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function one:
  REG:40 STACK:16 SHARED:1024 LOCAL:8 CONSTANT[0]:376 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """
\t.section\t.text.one,"ax",@progbits
.text.one:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDL.LU R2, [R1+0x4] ;
        /*0020*/                   STL.64 [R1], R4 ;
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0040*/             @!UP1 BRA `(.L_1) ;
        /*0050*/                   FFMA R4, R8, R12, R4 ;
"""


def test_reading_sass() -> None:
    (code,) = parse(USAGE, SASS)
    assert (code.name, code.registers, code.stack, code.local, code.shared) == (
        "one", 40, 16, 8, 1024
    )  # fmt: skip
    assert code.spills == 2
    assert code.tensor_core == 1
    assert code.classes()["float32"] == 1
    assert code.classes()["branch"] == 1
    assert sum(code.classes().values()) == 6


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("HMMA", "tensor core"),
        ("HGMMA", "tensor core"),
        ("UTCHMMA", "tensor core"),
        ("LDSM", "shared load"),
        ("LDG", "global load"),
        ("MUFU", "special function"),
        ("IMAD", "integer and other"),
    ],
)
def test_classes_of_instructions(opcode: str, kind: str) -> None:
    assert class_of(opcode) == kind

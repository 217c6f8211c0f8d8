"""The latency model's program: step loops found in machine code, and what is made of the counts."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.latency import __main__ as program
from benchmarks.latency import counts, loops, output
from benchmarks.latency.published import FIGURES
from benchmarks.latency.steps import PARTS, Candidate, Model, Point, points
from rnnfast import _ext
from rnnfast._build.nvcc import find_nvcc
from rnnfast.inspect import cuda
from rnnfast.inspect.sass import ToolError, find_tool, read_cubin

EXTENSION: Any = _ext.load()
needs_extension = pytest.mark.skipif(
    not hasattr(EXTENSION, "cuda_model"),
    reason=f"needs the extension with its model: {_ext.why_missing() or _ext.REBUILD}",
)
POINT = Point("H100", "lstm", "bf16", "forward", 128, 64, 1024)


def sass(lines: str, name: str = "kernel") -> str:
    """nvdisasm's text: a line is an instruction, or a label and a colon."""
    text = [f'\t.section\t.text.{name},"ax",@progbits']
    for place, line in enumerate(lines.split("\n")):
        line = line.strip()
        if line.endswith(":"):
            text.append(line)
        elif line:
            text.append(f"        /*{16 * place:04x}*/                   {line} ;")
    return "\n".join(text) + "\n"


# A start with a loop of its own; a step of 4 products, a loop over the slabs that are not in
# registers with 2 a turn, and one that polls; an end.
STEP = """
    .L_x_0:
    LDG.E R0, [R2]
    @!P0 BRA `(.L_x_0)
    .L_x_1:
    IMAD R1, R2, R3, R4
    LDSM.16.M88.4 R4, [R8]
    HMMA.16816.F32.BF16 R8, R4, R5, R8
    @P1 HMMA.16816.F32.BF16 R8, R4, R5, R8
    LDSM.16.M88.4 R4, [R8]
    HMMA.16816.F32.BF16 R8, R4, R5, R8
    HMMA.16816.F32.BF16 R8, R4, R5, R8
    @!P2 BRA `(.L_x_3)
    .L_x_2:
    LDS.128 R4, [R9]
    HMMA.16816.F32.BF16 R8, R4, R5, R8
    HMMA.16816.F32.BF16 R8, R4, R5, R8
    @P3 BRA `(.L_x_2)
    .L_x_3:
    MUFU.EX2 R1, R1
    BAR.SYNC.DEFER_BLOCKING 0x0
    .L_x_4:
    LDG.E.STRONG.GPU R1, [R2]
    @P4 BRA `(.L_x_4)
    @!UP0 BRA `(.L_x_1)
    EXIT
    .L_x_5:
    BRA `(.L_x_5)
"""


def step_of(text: str) -> loops.StepLoop:
    return loops.step_loop(loops.kernels(sass(text))["kernel"])


def test_the_step_loop_is_found_among_others() -> None:
    step = step_of(STEP)
    assert step.product == "HMMA"
    assert step.straight == Counter(
        {"HMMA": 4, "LDSM": 2, "BRA": 3, "IMAD": 1, "MUFU": 1, "BAR": 1, "LDG": 1}
    )
    assert step.inner == (Counter({"HMMA": 2, "LDS": 1, "BRA": 1}),)
    assert (step.products, step.copies) == (6, 1)


def test_inner_loops_turn_as_often_as_the_products_need() -> None:
    step = step_of(STEP)
    none, three = step.executed(4), step.executed(10)
    assert none["tensor core"] == 4
    assert three["tensor core"] == 10
    assert three - none == Counter({"tensor core": 6, "shared load": 3, "branch": 3})


def test_products_of_slabs_that_are_not_there_are_skipped() -> None:
    found = step_of(STEP).executed(2)
    assert (found["tensor core"], found["shared load"]) == (2, 1)
    assert found["branch"] == 3


def test_a_product_that_the_loop_cannot_do_is_an_error() -> None:
    text = STEP.replace("HMMA.16816.F32.BF16 R8, R4, R5, R8\n    @P3", "NOP\n    @P3")
    text = text.replace("LDS.128 R4, [R9]\n    HMMA.16816.F32.BF16 R8, R4, R5, R8", "NOP")
    assert step_of(text).executed(4)["tensor core"] == 4
    with pytest.raises(loops.LoopError, match="a step needs 5 products, its loop has 4"):
        step_of(text).executed(5)


def test_without_a_barrier_or_a_product_there_is_no_step() -> None:
    for missing in ("BAR.SYNC.DEFER_BLOCKING 0x0", "HMMA.16816.F32.BF16 R8, R4, R5, R8"):
        with pytest.raises(loops.LoopError, match="no loop has both"):
            step_of(STEP.replace(missing, "NOP"))


def test_strict_fp32_counts_ffma() -> None:
    step = step_of(STEP.replace("HMMA.16816.F32.BF16", "FFMA"))
    assert step.product == "FFMA"
    assert step.executed(8)["float32"] == 8


TILE = """
    {label}:
    HMMA.16816.F32.BF16 R8, R4, R5, R8
    BAR.SYNC.DEFER_BLOCKING 0x0
    {extra}
    @!P0 BRA `({label})
"""


def test_two_phases_of_a_step_are_added_up() -> None:
    tiles = [TILE.format(label=f".L_x_{n}", extra=extra) for n, extra in ((11, "NOP"), (12, "MOV"))]
    step = step_of(f".L_x_10:\n{tiles[0]}{tiles[1]}\nIMAD R1, R1, R1, R1\n@P1 BRA `(.L_x_10)\n")
    assert step.copies == 2
    assert step.straight == Counter({"HMMA": 2, "BAR": 2, "BRA": 2, "NOP": 1, "MOV": 1})


def test_of_two_versions_of_a_loop_the_larger_is_taken() -> None:
    large = TILE.format(label=".L_x_2", extra="HMMA.16816.F32.BF16 R8, R4, R5, R8")
    step = step_of(TILE.format(label=".L_x_1", extra="NOP") + large)
    assert (step.copies, step.products) == (1, 2)


def test_kernels_are_told_apart() -> None:
    both = sass(STEP, "one") + sass("EXIT", "two")
    assert {name: len(code) for name, code in loops.kernels(both).items()} == {"one": 21, "two": 1}


def test_a_shipped_kernel_has_the_loop_that_the_model_expects() -> None:
    if counts.why_not():
        pytest.skip(f"needs nvcc: {counts.why_not()}")
    try:
        find_tool("nvdisasm")
    except ToolError as error:
        pytest.skip(f"needs a disassembler: {error}")
    step = counts.count(counts.Kernel("resident", "forward", "lstm", "bf16", 1, 2), 90)
    # a group is 2 tiles, of 2 slabs in registers, of 2 products each; others a slab or two a turn
    assert step.straight["HMMA"] == 8
    assert [turn["HMMA"] for turn in step.inner] in ([8], [4], [4, 4])
    assert step.straight["BAR"] == 1
    # 2 (unit, sequence) pairs of a thread, 5 activations each, an exponential and a reciprocal
    assert step.straight["MUFU"] == 2 * 5 * 2
    with pytest.raises(loops.LoopError):
        loops.step_loop([loops.Instruction("HMMA", -1)])


# ---- the page of the kernels

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cuda.md"
ROW = re.compile(
    r"^\| (?P<cell>RNN|LSTM|GRU(?:, reset before)?), (?P<pass_name>forward|backward), bf16, "
    r"H = (?P<H>\d+) \| [\d,]+ \| (?P<counted>[\d,]+) \| \d+ \| (?P<registers>\d+) \| [\d.]+ "
    r"\| (?P<us>[\d.]+) \|$",
    re.MULTILINE,
)
ROWS = [row.groupdict() for row in ROW.finditer(PAGE.read_text(encoding="utf-8"))]
NAMES = {"RNN": "rnn_tanh", "GRU, reset before": "gru_reset_before"}
NVCC = "13.0."  # the page's numbers are of its ptxas


def check_row(row: dict[str, str]) -> None:
    search = find_nvcc(torch.version.cuda)
    if search.nvcc is None or not search.nvcc.version.startswith(NVCC):
        pytest.skip(f"needs nvcc {NVCC}*: {search.nvcc or search.why_not()}")
    cell = NAMES.get(row["cell"], row["cell"].lower())
    point = Point("H100", cell, "bf16", row["pass_name"], int(row["H"]), 16, 1024)
    model = Model(EXTENSION)
    choice = model.best(point, "resident")
    assert choice is not None
    assert choice.kernel is not None
    try:
        step = model.step(point, choice, counts.count(choice.kernel, 90))
        cubin = cuda.compile_cubin(counts.source(choice.kernel), 90)
        (code,) = (code for code in read_cubin(cubin) if code.tensor_core)
    except ToolError as error:
        pytest.skip(f"needs a disassembler: {error}")
    found = f"{step.instructions:,.0f}", str(code.registers), f"{step.total / 1000:.2f}"
    assert found == (row["counted"], row["registers"], row["us"])


@needs_extension
def test_the_page_s_first_kernel_is_what_it_says() -> None:
    assert len(ROWS) == 9
    assert (ROWS[0]["cell"], ROWS[0]["pass_name"], ROWS[0]["H"]) == ("LSTM", "forward", "128")
    assert int(ROWS[0]["counted"]) <= 450
    check_row(ROWS[0])


@needs_extension
@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(list(row.values())[:3]))
def test_the_page_s_kernels_are_what_it_says(row: dict[str, str]) -> None:
    check_row(row)


def test_a_count_is_kept_until_a_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts, "CACHE", tmp_path / "cache")
    compiled: list[str] = []

    def compile_cubin(source: str, arch: int) -> bytes:
        compiled.append(source)
        return b""

    csrc = tmp_path / "csrc"
    header = csrc / "cuda" / "team" / "team.h"
    header.parent.mkdir(parents=True)
    header.write_text("// one\n")
    monkeypatch.setattr(counts.cuda, "CSRC", csrc)
    monkeypatch.setattr(counts.cuda, "compile_cubin", compile_cubin)
    monkeypatch.setattr(counts, "run_tool", lambda *_: sass(STEP))
    kernel = counts.Kernel("grid", "backward", "gru", "tf32", 1, 16)
    first = counts.count(kernel, 90)
    assert counts.count(kernel, 90) == first == step_of(STEP)
    assert len(compiled) == 1
    assert "team_backward<Gru, MmaTf32, GridTeam, 1, 16>" in compiled[0]
    assert "WithTeam<BackwardArgs>" in compiled[0]
    counts.count(kernel, 80)
    header.write_text("// two\n")
    counts.count(kernel, 90)
    assert len(compiled) == 3


# ---- the model


@needs_extension
def test_the_parts_of_a_step_add_up_to_it() -> None:
    model = Model(EXTENSION)
    for strategy in ("resident", "cluster", "grid"):
        choice = model.best(POINT, strategy)
        assert choice is not None
        step = model.step(POINT, choice)
        part = step.parts
        busy = max(part["mma"], part["weights_from_shared"] + part["operands"])
        if strategy == "grid":
            busy = max(part["mma"], part["weights_from_shared"], part["operands"])
        busy = max(busy + part["partials"] + part["specials"], part["issue"])
        chain = ("latency", "barrier", "exchange", "fetch", "load", "launch")
        assert step.total == pytest.approx(busy + sum(part[name] for name in chain))
        assert part["issue"] > 0
        assert math.isnan(step.instructions)


@needs_extension
def test_counted_instructions_make_a_step_longer() -> None:
    model = Model(EXTENSION)
    choice = model.best(POINT, "resident")
    assert choice is not None
    many = loops.StepLoop("HMMA", Counter({"HMMA": 32, "IMAD": 9968}), (), 1)
    step = model.step(POINT, choice, many)
    assert step.instructions == 10_000
    clock = model.numbers("H100")[4]
    assert step.parts["issue"] == pytest.approx(10_000 * 8 / 4 / clock)
    assert step.bottleneck == "issue"
    few = loops.StepLoop("HMMA", Counter({"HMMA": 8}), (), 1)
    with pytest.raises(loops.LoopError, match="needs 32 products"):
        model.step(POINT, choice, few)


@needs_extension
def test_measured_rates_take_the_place_of_assumed_ones() -> None:
    assumed, measured = Model(EXTENSION), Model(EXTENSION, {"grid_barrier_ns": 2000.0})
    choice = Candidate("grid", (("blocks", 16), ("tiles", 1), ("held_slabs", 4)))
    longer = measured.step(POINT, choice).total - assumed.step(POINT, choice).total
    assert longer == pytest.approx(2000 - assumed.rates("H100")["grid_barrier_ns"][0])
    assert assumed.rates("H100")["grid_barrier_ns"][2] == ""
    assert measured.rates("H100")["grid_barrier_ns"][2] == "measured"
    assert measured.step(POINT, choice).assumed < assumed.step(POINT, choice).assumed
    with pytest.raises(ValueError, match=r"no rate is called 'barrier'; there are: .*grid_barrier"):
        Model(EXTENSION, {"barrier": 1.0})


@needs_extension
def test_a_step_without_assumed_constants_says_so() -> None:
    names = {name: value for name, (value, _, by) in Model(EXTENSION).rates("H100").items()}
    step = Model(EXTENSION, names).step(POINT, Candidate("stepwise"))
    assert step.assumed == 0
    assert Model(EXTENSION).step(POINT, Candidate("stepwise")).assumed > 0.9


@needs_extension
def test_a_measured_device_is_described_by_its_numbers() -> None:
    slow = Model(EXTENSION, None, [90, 132, 227 * 1024, 65536, 1.0])
    point = POINT._replace(device="measured")
    ours = slow.best(point, "resident")
    assert ours is not None
    assert slow.cost(point, ours)["mma"] > slow.cost(POINT, ours)["mma"]
    with pytest.raises(ValueError, match="no device is called 'measured'"):
        Model(EXTENSION).best(point, "resident")


@needs_extension
def test_only_what_runs_there_is_chosen() -> None:
    model = Model(EXTENSION)
    large, old = POINT._replace(H=1024), POINT._replace(device="A100")
    assert model.best(large, "resident") is None
    assert model.best(old, "cluster") is None
    assert model.best(POINT._replace(math="fp32"), "grid") is None
    best = model.best(large, "grid")
    assert best is not None
    numbers = dict(best.numbers)
    assert numbers["blocks"] * math.ceil(8 / numbers["tiles"]) <= 132


# ---- the program


@needs_extension
def test_the_program_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    asked = ["--no-count", "--cells", "lstm", "--maths", "bf16", "--hidden", "128", "768"]
    assert program.main([*asked, "--batch", "16", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for words in (output.NOTICE, "--no-count", "ASSUMED", "FlashRNN's README", "grid_barrier_ns"):
        assert words in shown
    rows = list(csv.DictReader((tmp_path / "latency.csv").open()))
    assert {(row["H"], row["pass_name"], row["strategy"]) for row in rows} >= {
        ("128", "forward", "resident"),
        ("768", "backward", "grid"),
        ("768", "forward", "stepwise"),
    }
    assert all(float(row["total_ns"]) > 0 for row in rows)
    assert set(rows[0]) >= {f"{part}_ns" for part in PARTS}
    assert (tmp_path / "latency-H100-lstm.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "latency-H100-lstm.svg").read_bytes()
    assert "H100,launch_ns,4000,ns,ASSUMED" in (tmp_path / "rates.csv").read_text()


@needs_extension
def test_without_nvcc_the_program_says_so_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(counts, "why_not", lambda: "there is no nvcc: none on PATH")
    asked = ["--cells", "gru", "--maths", "bf16", "--hidden", "64", "--batch", "8"]
    assert program.main([*asked, "--out", str(tmp_path)]) == 0
    assert "Instructions are not counted: there is no nvcc" in capsys.readouterr().out
    assert not (tmp_path / "instructions.csv").exists()


def test_rates_are_read_as_gpu_check_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    entry = {"value": 650.0, "low": 600.0, "high": 700.0}
    numbers = [90, 132, 232448, 65536, 1.7]
    path.write_text(
        json.dumps({"rates": {"grid_barrier_ns": entry}, "device_numbers": numbers, "skipped": {}})
    )
    assert program.load_rates(path) == ({"grid_barrier_ns": 650.0}, numbers)
    path.write_text('{"mma_cycles": 1.2}')
    assert program.load_rates(path) == ({"mma_cycles": 1.2}, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no object of constants"),
        ('{"mma_cycles": "fast"}', "mma_cycles has no number"),
        ('{"rates": {}, "dry_run": true}', "is of a dry run"),
    ],
)
def test_other_files_of_rates_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rates.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        program.load_rates(path)


def test_published_figures_are_a_step_of_their_call() -> None:
    cudnn = next(f for f in FIGURES if (f.system, f.pass_name, f.H) == ("cuDNN", "forward", 768))
    assert cudnn.step_us == pytest.approx(1.963, abs=1e-3)
    assert all("not stated" in figure.machine for figure in FIGURES)
    assert output.published_for(POINT) == [cudnn]


def test_points_are_all_combinations() -> None:
    made = points(["H100", "A100"], ["lstm"], ["bf16", "tf32"], [64, 128, 256], [1], 100)
    assert len(made) == len(set(made)) == 2 * 2 * 2 * 3

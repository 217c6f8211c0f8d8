"""Cells of one's own in CUDA C++, executed on the CPU, against the loop in torch in float64."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rnnfast
from rnnfast import _ext
from rnnfast._build import host
from rnnfast.cells import CELLS, CellSpec
from rnnfast.cells.masked import masked_cell
from rnnfast.steps import cuda_text
from rnnfast.steps.code import Needs

from .. import own_cells
from ..steps import test_own_cpu as own
from . import own_faults
from .build import INCLUDES, ROOT
from .own import FLAGS, WIDE, executing
from .own_cases import (
    BLOCKS,
    CELLS_HERE,
    MANY,
    check,
    check_lengths,
    many_heads,
    name_of,
    shuffled,
)

pytestmark = pytest.mark.skipif(
    _ext.why_no_cpu() is not None, reason=f"no extension: {_ext.why_no_cpu()}"
)


@pytest.fixture
def executed() -> Iterator[ctypes.CDLL]:
    with executing(WIDE) as settings:
        yield settings


@pytest.fixture(autouse=True)
def _poisoned(poisoned: object) -> None:
    """What a kernel forgets to write shows."""


@pytest.mark.parametrize("call", list(own.CALLS))
@pytest.mark.parametrize("spec", CELLS_HERE, ids=name_of)
@pytest.mark.usefixtures("executed")
def test_a_cell_is_the_loop(spec: CellSpec, call: str) -> None:
    check(spec, **own.CALLS[call])


@pytest.mark.parametrize("sizes", [(1, 3, 2), (33, 2, 3), (34, 37, 2), (68, 9, 2)], ids=str)
@pytest.mark.parametrize("spec", CELLS_HERE, ids=name_of)
@pytest.mark.usefixtures("executed")
def test_sizes_that_fill_no_tile(spec: CellSpec, sizes: tuple[int, int, int]) -> None:
    """Of units, of sequences, few of which have tiles of their own, and of what is summed."""
    H, B, T = sizes
    grain = {"everything": 2, "slstm": 4, BLOCKS.name: 4}.get(name_of(spec), 1)
    check(spec, H=-(-H // grain) * grain, B=B, T=T)


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reversed"])
@pytest.mark.parametrize("spec", [own_cells.three_states, CELLS["layer_norm_lstm"]], ids=name_of)
@pytest.mark.usefixtures("executed")
def test_lengths_count_within_the_steps(spec: CellSpec, reverse: bool) -> None:
    check_lengths(spec, "executed", reverse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("executed")
def test_16_bit_storage(dtype: torch.dtype) -> None:
    for spec in (own_cells.gru, CELLS["layer_norm_lstm"]):
        check(spec, dtype, ends=True, all_states=True)


@pytest.mark.parametrize("B", [7, 37])
def test_narrow_tiles_where_a_gpu_would_be_idle(B: int) -> None:
    with executing():
        for spec in (own_cells.lstm, CELLS["slstm"]):
            check(spec, H=36, B=B, T=2)


@pytest.mark.usefixtures("executed")
def test_every_function_is_torchs() -> None:
    scan = own.scan_of(own.functions, torch.float32, T=2, B=3, H=37)
    own.assert_close(own.results(scan, "executed"), own.results(scan, "loop"), 2e-6)


@pytest.mark.usefixtures("executed")
def test_a_projection_with_masks() -> None:
    check(CELLS[masked_cell("lstm_proj", 5, True, True, (False, True))], ends=True)


@pytest.mark.usefixtures("executed")
def test_neighbouring_operands_are_one() -> None:
    check(many_heads, H=3 * MANY, ends=True)


@pytest.mark.usefixtures("executed")
def test_more_operands_than_a_launch_takes_are_refused() -> None:
    layer = rnnfast.Recurrent(shuffled, 3, MANY)
    x = torch.randn(2, 3, 3)
    expected = f"a product of {MANY} operands that do not lie side by side takes"
    with rnnfast.use_backend("executed"):
        assert expected in str(rnnfast.explain(layer, x))
        with pytest.raises(rnnfast.BackendError, match=expected):
            layer(x)


def test_what_a_launch_takes_is_what_python_counts(tmp_path: Path) -> None:
    lines = ['#include "cuda/steps/product.h"', "using namespace rnnfast::cuda::steps;"]
    for buffers, weights, constants, planes, terms in [(3, 1, 0, 1, 1), (9, 4, 3, 6, 5)]:
        needs = Needs(8, ["w"] * weights, [], [0.0] * constants)
        size = cuda_text.product_bytes(["b"] * buffers, needs, planes, terms)
        step, shape = f"Step<{buffers}, {weights}, {constants}>", f"Product<{planes}, {terms}>"
        lines.append(f"static_assert(sizeof(ProductArgs<{step}, {shape}>) == {size});")
    (tmp_path / "sizes.cpp").write_text("\n".join(lines) + "\n")
    compiler, why = host.find_compiler(os.environ)
    assert compiler is not None, why
    command = [*compiler.command, *FLAGS, *INCLUDES, "-fsyntax-only", str(tmp_path / "sizes.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.usefixtures("executed")
def test_results_repeat_bit_for_bit(executed: ctypes.CDLL) -> None:
    """In any order of threads."""
    found: list[list[Tensor]] = []
    for seed in range(3):
        executed.simt_begin(seed)
        found.append(own.results(own.scan_of(CELLS["layer_norm_lstm"], torch.float32), "executed"))
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            assert torch.equal(a, b)


def test_a_step_is_a_few_launches(executed: ctypes.CDLL) -> None:
    executed.simt_begin(1)
    check(CELLS["layer_norm_lstm"], T=2)
    launched = executed.simt_launches().decode().split()
    forward = ["own_product", "own_rows", "own_rows", "own_rows"] * 2
    backward = ["own_rows", "own_fused"] * 2
    assert launched == [*forward, "own_keep_last", *backward, "own_keep_last"]


@pytest.mark.usefixtures("executed")
def test_in_one_graph_of_a_compiler() -> None:
    layer = rnnfast.Recurrent(own_cells.peephole, 3, 12, num_layers=2, bidirectional=True)
    x = torch.randn(3, 2, 3)
    with rnnfast.use_backend("executed"):
        y, states = layer(x)
        compiled, _ = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        (y.sum() + states[1].sum()).backward()
        expected = [p.grad.clone() for p in layer.parameters()]
        layer.zero_grad()
        y, states = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        (y.sum() + states[1].sum()).backward()
    assert torch.equal(compiled, y)
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.usefixtures("executed")
def test_explain_says_what_was_made() -> None:
    layer = rnnfast.Recurrent(own_cells.gru, 3, 12)
    with rnnfast.use_backend("executed"):
        told = str(rnnfast.explain(layer, torch.randn(2, 3, 3)))
    assert "-> executed: stepwise (not resident: RNNFAST_PLAN asks for it); compiled" in told
    assert "from the step (1 product, 1 stage, backward" in told


@pytest.mark.usefixtures("executed")
def test_float64_is_refused() -> None:
    layer = rnnfast.Recurrent(own_cells.gru, 3, 12, dtype=torch.float64)
    with (
        rnnfast.use_backend("executed"),
        pytest.raises(rnnfast.BackendError, match=r"no kernel for torch\.float64"),
    ):
        layer(torch.randn(2, 3, 3, dtype=torch.float64))


# --- planted faults ------------------------------------------------------------------------------


def ran(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which may die of it."""
    command = [sys.executable, "-m", "tests.simt.own_faults", *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=900, env=environment
    )


def seen(name: str) -> bool:
    done = ran(name)
    assert done.returncode in (0, own_faults.SEEN) or done.returncode < 0, done.stderr
    return done.returncode != 0


def test_nothing_planted_is_not_seen() -> None:
    assert not seen("")


@pytest.mark.parametrize("name", own_faults.SAMPLE)
def test_a_planted_fault_is_seen(name: str) -> None:
    assert seen(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in own_faults.FAULTS if n not in own_faults.SAMPLE])
def test_every_planted_fault_is_seen(name: str) -> None:
    assert seen(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", own_faults.OUT_OF_BOUNDS])
def test_nothing_is_read_or_written_out_of_bounds(name: str) -> None:
    """Of torch's tensors, and of shared memory."""
    compiler, why = host.find_compiler(os.environ)
    assert compiler is not None, why
    preloaded = []
    for library in ("libasan.so", "libubsan.so"):
        command = [*compiler.command, f"-print-file-name={library}"]
        found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        if not os.path.isabs(found):
            pytest.skip(f"the compiler has no {library}")
        preloaded.append(found)
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    done = ran(name, "sanitized", LD_PRELOAD=" ".join(preloaded), ASAN_OPTIONS=options)
    assert (done.returncode == 0) == (name == ""), done.stdout + done.stderr[-2000:]
    assert ("heap-buffer-overflow" in done.stderr) == (name != "")

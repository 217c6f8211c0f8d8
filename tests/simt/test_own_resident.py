"""Cells of one's own in one launch a pass, executed on the CPU, against the loop in float64."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import rnnfast
from rnnfast import _ext
from rnnfast._build import host
from rnnfast.backends import registry
from rnnfast.cells import CELLS, CellSpec
from rnnfast.cells.masked import masked_cell
from rnnfast.direct import run_direct
from rnnfast.problem import problem_of
from rnnfast.scratch import scratch_scan
from rnnfast.steps import resident, run_cuda
from rnnfast.steps.gpu import layout_of
from rnnfast.steps.resident import Budget, Shape

from .. import own_cells
from ..steps import test_own_cpu as own
from . import resident_faults
from .build import INCLUDES, ROOT
from .own import FLAGS, executing
from .own_cases import check, check_lengths, name_of
from .own_faults import SEEN

pytestmark = pytest.mark.skipif(
    _ext.why_no_cpu() is not None, reason=f"no extension: {_ext.why_no_cpu()}"
)


@rnnfast.cell(gates=2)
def mgu(gx, states, w):
    """The minimal gated unit, its gate after the product as torch's GRU has it."""
    (h,) = states
    gx_f, gx_n = gx.chunk(2, -1)
    gh_f, gh_n = F.linear(h, w.w_hh, w.b_hh).chunk(2, -1)
    f = torch.sigmoid(gx_f + gh_f)
    return ((1 - f) * h + f * torch.tanh(gx_n + f * gh_n),)


@rnnfast.cell(gates=5, states=("h", "c"), params={"p": "H"})
def five(gx, states, w):
    """Five gates, and an operand that is made of a state."""
    h, c = states
    a, b, d, e, f = (gx + F.linear(h * w.p, w.w_hh, w.b_hh)).chunk(5, -1)
    c = torch.sigmoid(a) * c + torch.sigmoid(b) * torch.tanh(d)
    return torch.sigmoid(e) * torch.tanh(c) + 0.3 * torch.relu(f), c


@rnnfast.cell(gates=2)
def functions(gx, states, w):
    """What a step may call, behind a product."""
    (h,) = states
    a, b = (gx + F.linear(h, w.w_hh, w.b_hh)).chunk(2, -1)
    s = a.abs() + 0.1
    found = torch.exp(a * 0.3) + torch.exp2(b * 0.3) + torch.expm1(a * 0.3) + torch.log(s)
    found = found + torch.log1p(s) + torch.sqrt(s) + torch.rsqrt(s) + torch.erf(a) + s**1.7
    found = found + torch.sin(a) * torch.cos(b) + torch.sinh(a * 0.3) + torch.atan2(s, b)
    found = found + F.softplus(a) + F.logsigmoid(b) + F.silu(a) + F.gelu(b) + a.clamp(-0.7, 0.6)
    found = found + torch.maximum(a, b) + torch.minimum(a, h)
    found = found + torch.where((a > b) | ~(b < 0), a, h.detach())
    return (torch.tanh(found * 0.1),)


BUDGET = resident.budget_of("sm_90")
CELLS_HERE: list[CellSpec] = [
    own_cells.lstm,
    own_cells.gru,
    own_cells.rnn_tanh,
    own_cells.peephole,
    own_cells.three_states,
    CELLS["coupled_lstm"],
    CELLS["ligru"],
    own.handed,
    mgu,
    five,
]


@pytest.fixture
def executed() -> Iterator[ctypes.CDLL]:
    with executing(plan="resident") as settings:
        yield settings


@pytest.fixture(autouse=True)
def _poisoned(poisoned: object) -> None:
    """What a kernel forgets to write shows."""


@pytest.mark.parametrize("call", list(own.CALLS))
@pytest.mark.parametrize("spec", CELLS_HERE, ids=name_of)
@pytest.mark.usefixtures("executed")
def test_a_cell_is_the_loop(spec: CellSpec, call: str) -> None:
    check(spec, **own.CALLS[call])


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reversed"])
@pytest.mark.parametrize("spec", [own_cells.three_states, own_cells.gru], ids=name_of)
@pytest.mark.usefixtures("executed")
def test_lengths_count_within_the_steps(spec: CellSpec, reverse: bool) -> None:
    check_lengths(spec, "executed", reverse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("executed")
def test_no_sequence_in_16_bit(dtype: torch.dtype) -> None:
    """Of which there is no largest gradient to scale by."""
    check(own_cells.gru, dtype, B=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", [own_cells.gru, own_cells.peephole, mgu, five], ids=name_of)
@pytest.mark.usefixtures("executed")
def test_16_bit_storage(spec: CellSpec, dtype: torch.dtype) -> None:
    check(spec, dtype, ends=True, all_states=True)


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        (own_cells.gru, (1, 3, 2)),
        (own_cells.gru, (33, 9, 2)),
        (own_cells.gru, (136, 2, 2)),
        (own_cells.peephole, (33, 9, 2)),
        (own_cells.peephole, (72, 2, 2)),
        (mgu, (136, 2, 2)),
    ],
    ids=lambda value: "x".join(map(str, value)) if type(value) is tuple else name_of(value),
)
@pytest.mark.usefixtures("executed")
def test_sizes_that_fill_no_tile(spec: CellSpec, sizes: tuple[int, int, int]) -> None:
    """Of units, of sequences and of what is summed; the last with several groups of a warp, and
    slabs that are not in registers."""
    H, B, T = sizes
    check(spec, H=H, B=B, T=T)


@pytest.mark.usefixtures("executed")
def test_small_gradients_of_float16_do_not_vanish() -> None:
    """Those of a step are below what float16 has; the sum of all is not."""

    def of_h0(how: str, dtype: torch.dtype) -> Tensor:
        scan = own.scan_of(own_cells.gru, dtype)
        if how == "loop":
            y, *_ = scratch_scan(scan)
        else:
            y, *_ = run_direct(scan, registry.select(problem_of(scan), how))
        (found,) = torch.autograd.grad(y, scan.states, torch.full_like(y, 2.0**-22))
        return found.double()

    found, expected = of_h0("executed", torch.float16), of_h0("loop", torch.float64)
    assert (found - expected).abs().max() <= 2.0**-25 + 2.0**-9 * expected.abs().max()


def test_products_in_tf32() -> None:
    """Within what 10 bits of the operands allow."""
    with executing(plan="resident", precision="tf32"):
        for spec in (own_cells.lstm, own_cells.gru):
            scan = own.scan_of(spec, torch.float32, ends=True)
            exact = own.scan_of(spec, ends=True)
            found, expected = own.results(scan, "executed"), own.results(exact, "loop")
            for a, b in zip(found, expected, strict=True):
                assert (a - b).abs().max() <= 2.0**-9 * b.abs().max()


@pytest.mark.usefixtures("executed")
def test_every_function_is_torchs() -> None:
    check(functions, T=2)


@pytest.mark.usefixtures("executed")
def test_zoneout() -> None:
    check(CELLS[masked_cell("lstm", 12, True, False, (True, True))], ends=True)


def test_a_pass_is_one_launch(executed: ctypes.CDLL) -> None:
    executed.simt_begin(1)
    check(own_cells.peephole, T=5)
    assert executed.simt_launches().decode().split() == ["resident_forward", "resident_backward"]


def test_inference_saves_nothing(executed: ctypes.CDLL) -> None:
    """Nor is there anywhere to."""
    layer, x = rnnfast.Recurrent(mgu, 3, 20), torch.randn(5, 9, 3)
    expected, _ = layer(x)
    executed.simt_begin(1)
    with torch.no_grad(), rnnfast.use_backend("executed"):
        y, _ = layer(x)
    assert executed.simt_launches().decode().split() == ["resident_forward"]
    assert (y - expected).abs().max() < 1e-5


def test_results_repeat_bit_for_bit(executed: ctypes.CDLL) -> None:
    """In any order of threads."""
    found: list[list[Tensor]] = []
    for seed in range(3):
        executed.simt_begin(seed)
        found.append(own.results(own.scan_of(mgu, torch.float32, ends=True), "executed"))
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("executed")
def test_in_one_graph_of_a_compiler() -> None:
    layer = rnnfast.Recurrent(own_cells.peephole, 3, 12, num_layers=2, bidirectional=True)
    x = torch.randn(3, 2, 3)
    with rnnfast.use_backend("executed"):
        y, _ = layer(x)
        y.sum().backward()
        expected = [p.grad.clone() for p in layer.parameters()]
        layer.zero_grad()
        compiled, _ = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        compiled.sum().backward()
    assert torch.equal(compiled, y)
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


# --- the choice ----------------------------------------------------------------------------------

REFUSED = {
    "layer_norm_lstm": "it reduces over the hidden units",
    "slstm": "its product is block-diagonal",
    "min_lstm": "it has no recurrent product",
    own.product_last.name: "it has a product of what a product made",
    own.everything.name: "it takes the hidden units apart",
    own_cells.heads.name: "its product is block-diagonal",
}


@pytest.mark.parametrize("cell", list(REFUSED))
def test_explain_says_why_a_cell_is_not_resident(cell: str) -> None:
    layer, x = rnnfast.Recurrent(CELLS[cell], 3, 12), torch.randn(2, 3, 3)
    with executing(plan="") as _, rnnfast.use_backend("executed"):
        assert f"stepwise (not resident: {REFUSED[cell]}" in str(rnnfast.explain(layer, x))
    with executing(plan="resident") as _, rnnfast.use_backend("executed"):
        with pytest.raises(ValueError, match=f"can't be: {REFUSED[cell]}"):
            layer(x)


def test_a_cell_is_resident_unless_it_is_told_otherwise() -> None:
    layer, x = rnnfast.Recurrent(own_cells.lstm, 3, 12), torch.randn(2, 3, 3)
    for plan, words in {
        "": "resident, fp32, 1x",
        "stepwise": "stepwise (not resident: RNNFAST_PLAN asks for it)",
    }.items():
        with executing(plan=plan) as _, rnnfast.use_backend("executed"):
            assert words in str(rnnfast.explain(layer, x))


def test_what_a_block_has_no_room_for() -> None:
    def shape(H: int, budget: Budget = BUDGET) -> Shape | str:
        layout = layout_of(own_cells.lstm.name, H, True, blocks=True)
        assert not isinstance(layout, str), layout
        return run_cuda.shape(layout, "forward", "bf16", budget)

    assert isinstance(shape(128), Shape)
    assert "of shared memory" in str(shape(256)) or "registers" in str(shape(256))
    assert "registers of 8 warps" in str(shape(1024))
    assert shape(64, Budget(75, 64 << 10)) == "compute capability 7.5 is below 8.0"


def test_what_a_block_needs_is_what_python_counts(tmp_path: Path) -> None:
    lines = ['#include "cuda/steps/resident_loop.h"', "using namespace rnnfast::cuda;"]
    for pass_name in resident.PASSES:
        for H, planes, params, math in [
            (128, 4, 7, "bf16"),
            (137, 3, 0, "tf32"),
            (37, 1, 2, "fp32"),
        ]:
            found = resident.shape(pass_name, H, planes, params, 9, math, BUDGET)
            assert isinstance(found, Shape), found
            units, tiles = resident.group_of(pass_name, planes)
            columns = H * planes if pass_name == "backward" else H
            numbers = f"{H}, {columns}, {params}, {-(-H // units) * tiles}, {found.held}"
            shared = f"steps::resident_shared<{resident.MMA[math]}>({numbers})"
            lines.append(f"static_assert({shared} == {found.shared});")
            if pass_name == "forward":
                group = f"steps::Grouped<{planes}>"
                lines.append(f"static_assert({group}::kUnits == {units});")
                lines.append(f"static_assert({group}::kTiles == {tiles});")
    (tmp_path / "sizes.cpp").write_text("\n".join(lines) + "\n")
    compiler, why = host.find_compiler(os.environ)
    assert compiler is not None, why
    command = [*compiler.command, *FLAGS, *INCLUDES, "-fsyntax-only", str(tmp_path / "sizes.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


# --- planted faults ------------------------------------------------------------------------------


def seen(name: str) -> bool:
    """In a process of its own, which may die of it."""
    command = [sys.executable, "-m", "tests.simt.resident_faults", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode in (0, SEEN) or done.returncode < 0, done.stderr
    return done.returncode != 0


def test_nothing_planted_is_not_seen() -> None:
    assert not seen("")


@pytest.mark.parametrize("name", resident_faults.SAMPLE)
def test_a_planted_fault_is_seen(name: str) -> None:
    assert seen(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n in resident_faults.FAULTS if n not in resident_faults.SAMPLE]
)
def test_every_planted_fault_is_seen(name: str) -> None:
    assert seen(name)

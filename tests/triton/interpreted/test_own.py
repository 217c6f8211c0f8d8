"""Cells of one's own as Triton kernels, against the loop in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

import rnnfast
from rnnfast.backends import registry
from rnnfast.cells import CELLS, CellSpec
from rnnfast.cells.masked import masked_cell
from rnnfast.problem import problem_of
from rnnfast.triton import own, vocabulary

from ... import own_cells
from ...steps.test_own_cpu import CALLS, scan_of
from .. import checks
from .test_kernels import applied


def name_of(spec: CellSpec) -> str:
    return spec.name.rpartition(":")[2]


@pytest.fixture(autouse=True)
def _poisoned(poisoned: object) -> None:
    """What a kernel forgets to write shows."""


@pytest.mark.parametrize("call", list(CALLS))
@pytest.mark.parametrize("spec", checks.OWN, ids=name_of)
def test_a_cell_is_the_loop(spec: CellSpec, call: str) -> None:
    checks.check_own(spec, torch.float32, **CALLS[call])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", checks.OWN, ids=name_of)
def test_16_bit_storage(spec: CellSpec, dtype: torch.dtype) -> None:
    checks.check_own(spec, dtype, ends=True, all_states=True)


def test_16_bit_storage_is_saved_in_16_bits() -> None:
    scan = scan_of(own_cells.gru, torch.float16)
    with torch.no_grad():
        _, saved = registry.BACKENDS["triton"].forward(scan)
    found = [(tuple(tensor.shape), tensor.dtype) for tensor in saved]
    assert found == registry.BACKENDS["triton"].saved_like(problem_of(scan))
    assert {dtype for _, dtype in found} == {torch.int16, torch.float16}


@pytest.mark.parametrize("spec", [s for s in CELLS.values() if s.own and ":" not in s.name])
def test_a_cell_of_the_family(spec: CellSpec) -> None:
    checks.check_own(spec, torch.float32, H=16, T=3, B=2)


def test_a_projection_with_masks() -> None:
    cell = CELLS[masked_cell("lstm_proj", 5, True, True, (False, True))]
    checks.check_own(cell, torch.float32, ends=True)


def test_rows_and_products_of_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the units, of the batch and of what is summed."""
    monkeypatch.setattr(own, "WIDEST", 32)
    monkeypatch.setattr(own, "stepwise_tiling", lambda *_: own.Tiling(False, 16, 16, 16, 0, 4, 1))
    checks.check_own(CELLS["layer_norm_lstm"], torch.float32, H=34, B=17, T=2)


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reversed"])
def test_lengths_out_of_range(reverse: bool) -> None:
    checks.check_lengths("layer_norm_lstm", "stepwise", reverse, checks.as_it_is)


def test_explain_says_how() -> None:
    layer = rnnfast.Recurrent(CELLS["layer_norm_lstm"], 3, 8)
    with rnnfast.use_backend("triton"):
        told = str(rnnfast.explain(layer, torch.randn(2, 3, 3)))
    assert "stepwise, made from the step (launches: 2 a step forward, 2 backward)" in told


def test_resident_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNFAST_TRITON_STRATEGY", "resident")
    layer = rnnfast.Recurrent(CELLS["layer_norm_lstm"], 3, 8)
    with (
        rnnfast.use_backend("triton"),
        pytest.raises(RuntimeError, match="own have stepwise kernels only"),
    ):
        layer(torch.randn(2, 3, 3))


# --- the functions that a text names -------------------------------------------------------------

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        name: getattr(torch, name)
        for name in ("abs", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt",
                     "rsqrt", "sin", "cos", "sinh", "cosh", "atan", "erf", "floor", "ceil",
                     "trunc", "round", "sign")
    },
    "softplus": F.softplus,
}  # fmt: skip


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_functions_are_within_four_ulp(name: str) -> None:
    x = torch.cat([torch.linspace(-12, 12, 5001), torch.logspace(-30, 1.5, 1000)])
    x = torch.cat([x, -x, torch.tensor([0.0, 0.5, -0.5, 1.5, 2.5])])
    exact = FUNCTIONS[name](x.double())
    x, exact = x[exact.isfinite()], exact[exact.isfinite()]
    error = (applied(getattr(vocabulary, name), x).double() - exact).abs()
    assert float((error / exact.abs().clamp(min=2**-126)).max()) <= 4 * 2**-23


@triton.jit
def _of_two(x, y, found, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(found + at, FUNCTION(tl.load(x + at), tl.load(y + at)))


@pytest.mark.parametrize("name", ["atan2", "fmod"])
def test_functions_of_two_are_torchs(name: str) -> None:
    make = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4096, generator=make) * 3
    x[:100], y[50:150] = 0.0, 2.0
    exact = getattr(torch, name)(x.double(), y.double())
    found = torch.empty_like(x)
    _of_two[(1,)](x, y, found, FUNCTION=getattr(vocabulary, name), BLOCK=x.numel())
    found = found.double()
    assert torch.allclose(found, exact, rtol=4 * 2**-23, atol=2**-23)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_functions_keep_nan_and_infinities(name: str) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf])
    expected, found = FUNCTIONS[name](x), applied(getattr(vocabulary, name), x)
    if name in ("sign",):
        expected[0], found[0] = 0.0, 0.0
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0)), (found, expected)

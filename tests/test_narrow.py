"""16-bit storage by the backend ``cpu``: dot products of bfloat16, threads, where tensors lie."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

import rnnfast
from rnnfast import _ext
from rnnfast.backends import cpu, registry
from rnnfast.problem import problem_of

from .cases import BUILT_IN, Case, leaves, run, scan_of
from .oracle import assert_all_close_to_oracle
from .test_cpu import EVERYTHING, on_threads
from .test_matrix import yardsticks

pytestmark = pytest.mark.skipif(
    _ext.why_no_cpu() is not None, reason=str(_ext.why_no_cpu() or "built")
)
NARROW = (torch.bfloat16, torch.float16)
narrow = pytest.mark.parametrize("dtype", NARROW, ids=["bfloat16", "float16"])
# (T, B, I, H): the input's product made by the loop, from two blocks of k; one sequence, whose
# threads share the units; odd sums; one large product of all steps
SIZES = [(3, 40, 301, 37), (4, 1, 5, 384), (5, 3, 7, 9), (9, 2, 290, 64)]


@narrow
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("cell", BUILT_IN)
def test_within_torchs_error(
    cell: str, size: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    T, B, I, H = size
    case = Case(cell, T=T, B=B, I=I, H=H, **EVERYTHING)
    found = run(case, "cpu", dtype)
    assert_all_close_to_oracle(found, *yardsticks(case, dtype, found["y"]))


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="one processor, which a team does not share"
)
@narrow
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("cell", BUILT_IN)
def test_bits_do_not_depend_on_threads(
    cell: str, size: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    if _ext.cpu().cpu_isa() == "baseline":
        pytest.skip("the products of the input and for the weights are torch's there")
    T, B, I, H = size
    case = Case(cell, T=T, B=B, I=I, H=H, **EVERYTHING)
    one, two = (on_threads(n, lambda: run(case, "cpu", dtype)) for n in (1, 2))
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


@narrow
def test_tensors_may_lie_at_any_number(dtype: torch.dtype) -> None:
    """Pairs are read where they lie, at odd numbers too; rows of x at any distance."""
    layer = rnnfast.GRU(5, 9, dtype=dtype)
    x = torch.randn(4, 20, 5).to(dtype)
    moved = torch.zeros(4 * 20 * 7 + 1, dtype=dtype)[1:].view(20, 4, 7)[..., 1:6].transpose(0, 1)
    moved.copy_(x)
    with rnnfast.use_backend("cpu"):
        for parameter in layer.parameters():
            odd = torch.zeros(parameter.numel() + 1, dtype=dtype)[1:].view_as(parameter)
            found, expected = [], torch.autograd.grad(layer(x)[0].sum(), parameter)
            kept = parameter.data
            parameter.data = odd.copy_(kept)
            found = torch.autograd.grad(layer(moved)[0].sum(), parameter)
            parameter.data = kept
            assert torch.equal(found[0], expected[0])


@narrow
def test_infinities_and_nan_stay_in_their_rows(dtype: torch.dtype) -> None:
    """Of an odd number of steps the last is no pair: what lies behind a row is not multiplied."""
    layer = rnnfast.RNN(5, 9, dtype=dtype)
    x = torch.randn(2, 3, 5).to(dtype)
    worse = x.clone()
    worse[:, 1], worse[:, 2] = float("nan"), float("inf")
    with rnnfast.use_backend("cpu"), torch.no_grad():
        expected, found = layer(x)[0], layer(worse)[0]
    assert torch.equal(found[:, 0], expected[:, 0])
    assert bool(found[:, 1].isnan().all())


@narrow
def test_a_subnormal_number_is_read(dtype: torch.dtype) -> None:
    """A state that no product rounds comes back as it was."""
    least = torch.tensor([torch.finfo(dtype).smallest_normal / 4], dtype=dtype)
    layer = rnnfast.LSTM(3, 4, dtype=dtype)
    with torch.no_grad(), rnnfast.use_backend("cpu"):
        for parameter in layer.parameters():
            parameter.zero_()
        layer.bias_ih_l0[4:8] = 1e3 if dtype == torch.float16 else 1e9  # the gate that forgets
        hx = (torch.zeros(1, 1, 4, dtype=dtype), least.expand(1, 1, 4).contiguous())
        c = layer(torch.zeros(3, 1, 3, dtype=dtype), hx)[1][1]
    assert torch.equal(c, hx[1])


@narrow
def test_an_empty_batch(dtype: torch.dtype) -> None:
    layer = rnnfast.LSTM(3, 4, dtype=dtype)
    x = torch.zeros(2, 0, 3, dtype=dtype, requires_grad=True)
    with rnnfast.use_backend("cpu"):
        y, _ = layer(x)
        y.sum().backward()
    assert y.shape == (2, 0, 4)
    assert y.dtype == dtype
    assert layer.weight_hh_l0.grad is not None
    assert not layer.weight_hh_l0.grad.any()


def test_the_strategy_tells_of_dot_products() -> None:
    case, words = Case("gru"), "with dot products of bfloat16"
    for dtype in (torch.float32, *NARROW):
        asked = problem_of(scan_of(case, leaves(case, dtype)))
        said = registry.BACKENDS["cpu"].strategy(asked)
        assert (words in said) == (dtype == torch.bfloat16 and _ext.cpu().cpu_has_dots())


def fake(**answers: object) -> SimpleNamespace:
    """Of the module ``_cpu`` what these functions say."""
    return SimpleNamespace(**{name: lambda value=value: value for name, value in answers.items()})


@pytest.mark.parametrize(
    ("tiles", "why", "words"),
    [
        (False, "", ""),
        (True, "", ", of 16 rows or more in tiles (AMX)"),
        (False, "its numbers differ", " (without AMX: its numbers differ)"),
    ],
)
def test_the_strategy_tells_of_amx_and_why_it_is_not_used(
    tiles: bool, why: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fake(cpu_has_dots=True, cpu_has_tiles=tiles, cpu_why_no_tiles=why)
    monkeypatch.setattr(cpu, "module", lambda: found)
    assert cpu.of_bfloat16() == f" with dot products of bfloat16{words}"
    monkeypatch.setattr(cpu, "module", lambda: fake(cpu_has_dots=False))
    assert cpu.of_bfloat16() == ""


def test_a_weight_whose_rows_are_one_row() -> None:
    """As a view, which is not packed in pairs of rows."""
    torch.manual_seed(0)
    row = torch.randn(1, 6).bfloat16()
    layer = rnnfast.GRU(6, 5).bfloat16()
    found = []
    for weight in (row.expand(15, 6), row.expand(15, 6).contiguous()):
        x = torch.ones(3, 2, 6).bfloat16().requires_grad_()
        with rnnfast.use_backend("cpu"):
            y, _ = torch.func.functional_call(layer, {"weight_ih_l0": weight}, (x,))
        y.sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(*found, rtol=0, atol=0)

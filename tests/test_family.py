"""The cells of the family against loops written from their papers (tests/papers.py)."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import rnnfast
from rnnfast import library
from rnnfast.backends import registry
from rnnfast.cells import FAMILY, CellSpec, OwnCell
from rnnfast.direct import run_direct
from rnnfast.problem import Options, Scan, ScanResult, problem_of
from rnnfast.scratch import scratch_scan

from .papers import PAPERS, paper_loop

f64 = torch.float64
NAMES = [spec.name for spec in FAMILY]


def weights_of(spec: OwnCell, input_size: int, H: int, bias: bool = True) -> dict[str, Tensor]:
    """Random ones, by name, far enough from 0 that every term of a formula counts."""
    found = {}
    for name in spec.weight_names("dense", bias):
        shape = (spec.gates * H, input_size) if name == "w_ih" else spec.weight_shape(name, H)
        found[name] = torch.randn(shape, dtype=f64)
    return found


def scanned(
    spec: OwnCell,
    x: Tensor,
    states: list[Tensor],
    w: dict[str, Tensor],
    run: Callable[[Scan], ScanResult] = scratch_scan,
) -> list[Tensor]:
    """y and the final states."""
    scan = Scan(spec.name, "dense", x, states, list(w.values()), None, None, Options(training=True))
    found = run(scan)
    return [found.y, *found.final]


def compiled(scan: Scan) -> ScanResult:
    return run_direct(scan, registry.select(problem_of(scan), "cpu"))


def _names(spec: CellSpec) -> tuple[str, ...]:
    """Of the weights that a step reads."""
    return spec.weight_names("gates", True)


def states_of(spec: OwnCell, B: int, H: int) -> list[Tensor]:
    """Random ones; sLSTM's n is above 0."""
    found = [torch.randn(B, H, dtype=f64) for _ in spec.states]
    return [s.abs() + 0.1 if name == "n" else s for name, s in zip(spec.states, found, strict=True)]


def with_gradients(outputs: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    loss = sum((torch.randn(y.shape, generator=generator, dtype=f64) * y).sum() for y in outputs)
    assert isinstance(loss, Tensor)
    return [*outputs, *torch.autograd.grad(loss, leaves)]


def test_every_cell_has_its_paper() -> None:
    assert list(PAPERS) == NAMES


@pytest.mark.parametrize("started", ["zero", "random"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_forward_and_gradients_are_the_papers(name: str, bias: bool, started: str) -> None:
    assert_the_papers(name, bias, started, scratch_scan)


@pytest.mark.skipif(library.why_not() is not None, reason=f"nothing compiles: {library.why_not()}")
@pytest.mark.parametrize("started", ["zero", "random"])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_cells_are_the_papers(name: str, started: str) -> None:
    assert_the_papers(name, True, started, compiled)


def assert_the_papers(
    name: str, bias: bool, started: str, run: Callable[[Scan], ScanResult]
) -> None:
    spec = rnnfast.CELLS[name]
    assert isinstance(spec, OwnCell)
    if spec.settings and run is compiled:
        spec = spec.with_settings(heads=2)  # of 8 a block GRU takes g++ long
    T, B, I, H = 4, 3, 5, 8
    w, x = weights_of(spec, I, H, bias), torch.randn(T, B, I, dtype=f64)
    states = states_of(spec, B, H)
    if started == "zero":
        states = [torch.zeros(B, H, dtype=f64) for _ in spec.states]
    leaves = [t.requires_grad_() for t in (x, *states, *w.values())]
    if name == "slstm" and started == "zero":  # n = 0 is a past that there is not: no derivative
        leaves = [x, *w.values()]
    found = with_gradients(scanned(spec, x, states, w, run), leaves)
    y, final = paper_loop(name, x, states, w)
    expected = with_gradients([y, *final], leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name: str) -> None:
    spec = rnnfast.CELLS[name]
    assert isinstance(spec, OwnCell)
    if spec.settings:
        spec = spec.with_settings(heads=2)
    w, states = weights_of(spec, 2, 4), states_of(spec, 2, 4)
    leaves = [t.requires_grad_() for t in (torch.randn(3, 2, 2, dtype=f64), *states, *w.values())]

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        states, given = rest[: len(spec.states)], rest[len(spec.states) :]
        return tuple(scanned(spec, x, list(states), dict(zip(w, given, strict=True))))

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_is_found_by_name_and_pickled_by_it(name: str) -> None:
    spec = rnnfast.CELLS[name]
    assert spec.source
    assert spec.step.__doc__
    assert pickle.loads(pickle.dumps(spec)) is spec
    assert copy.deepcopy(spec) is spec


@pytest.mark.parametrize("name", NAMES)
def test_a_step_goes_by_no_value(name: str) -> None:
    """On the meta device there are none to go by."""
    spec, H = rnnfast.CELLS[name], 8
    w = {n: torch.empty(spec.weight_shape(n, H), device="meta") for n in _names(spec)}
    states = tuple(torch.empty(3, H, device="meta") for _ in spec.states)
    weights = rnnfast.cells.StepWeights(params=w)
    found = spec.step(torch.empty(3, spec.gates * H, device="meta"), states, weights)
    assert [s.shape for s in found] == [s.shape for s in states]


# --- numbers far out -----------------------------------------------------------------------------


@pytest.mark.parametrize("far", [-300.0, 300.0])
@pytest.mark.parametrize("name", NAMES)
def test_gates_far_out_give_finite_numbers(name: str, far: float) -> None:
    """In float32, where exp(300) is infinite and exp(-300) is 0."""
    spec = rnnfast.CELLS[name]
    H = 8
    for number in range(spec.gates):
        gx = torch.zeros(2, spec.gates, H)
        gx[:, number] = far
        ones = {n: torch.ones(spec.weight_shape(n, H)) / H for n in _names(spec)}
        w = rnnfast.cells.StepWeights(params=ones)
        gx = gx.flatten(1).requires_grad_()
        states = tuple(torch.zeros(2, H) for _ in spec.states)
        for _ in range(3):
            states = spec.step(gx, states, w)
        (grad,) = torch.autograd.grad(states[0].sum(), gx)
        assert torch.isfinite(torch.cat([*states, grad], 1)).all(), number


def test_min_lstm_shares_what_both_gates_have_lost() -> None:
    """f = exp(-200) and i = exp(-201), both 0 in float32: by their ratio, not 0/0."""
    gx = torch.tensor([[-201.0, -200.0, 1.0]])
    (h,) = rnnfast.CELLS["min_lstm"].step(gx, (torch.zeros(1, 1),), rnnfast.cells.StepWeights())
    torch.testing.assert_close(h, torch.sigmoid(torch.tensor([[-1.0]])))


def test_slstm_after_zeros_is_as_at_the_start() -> None:
    """After a reset the first input counts in full, however small its gate."""
    spec = rnnfast.CELLS["slstm"].with_settings(heads=1)  # type: ignore[attr-defined]
    zero = [torch.zeros(1, 1) for _ in spec.states]
    weights = [torch.ones(4, 1), torch.zeros(4, 1, 1, 1)]
    x = torch.full((3, 1, 1), -300.0)
    resets = torch.tensor([[False], [False], [True]])
    found = scratch_scan(Scan(spec.name, "dense", x, zero, weights, None, resets, Options()))
    assert torch.equal(found.y[0], found.y[2])
    assert found.final[2].item() == 1


# --- block_linear ------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("heads", "N", "out"), [(1, 3, 6), (2, 4, 6), (3, 1, 9), (6, 2, 6)])
def test_block_linear_is_a_product_with_block_diagonal_matrices(
    heads: int, N: int, out: int, bias: bool
) -> None:
    x = torch.randn(5, 6, dtype=f64)
    weight = torch.randn(N, heads, out // heads, 6 // heads, dtype=f64)
    b = torch.randn(N * out, dtype=f64) if bias else None
    found = rnnfast.block_linear(x, weight, b)
    for n, made in enumerate(found.chunk(N, -1)):
        expected = x @ torch.block_diag(*weight[n]).t()
        expected = expected if b is None else expected + b[n * out : (n + 1) * out]
        torch.testing.assert_close(made, expected)


def test_block_linear_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"4 axes, got: \[6, 6\]"):
        rnnfast.block_linear(torch.zeros(2, 6), torch.zeros(6, 6))
    with pytest.raises(ValueError, match=r"takes 2 x 4 units, got: 6"):
        rnnfast.block_linear(torch.zeros(2, 6), torch.zeros(3, 2, 4, 4))


def test_block_linear_is_one_call_to_those_who_look_at_calls() -> None:
    seen = []

    class Calls(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Calls():
        rnnfast.block_linear(torch.zeros(2, 6), torch.zeros(3, 2, 3, 3))
    assert rnnfast.block_linear in seen


@pytest.mark.parametrize("name", [spec.name for spec in FAMILY if spec.settings])
def test_heads_have_to_divide_the_units(name: str) -> None:
    spec = rnnfast.CELLS[name]
    with pytest.raises(ValueError, match=r"'w_hh' should give whole sizes .*H = 6, .*heads = "):
        spec.weight_shape("w_hh", 6)
    with pytest.raises(TypeError, match="heads should be an integer > 0"):
        spec.with_settings(heads=0)  # type: ignore[attr-defined]

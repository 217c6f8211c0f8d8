"""What the matrix does not reach: several tiles, saturation, tiny and infinite values, the op."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import rnnfast
from rnnfast.backends import registry
from rnnfast.ops import pack
from rnnfast.triton import math as activations
from rnnfast.triton.tiles import row_scale

from ...cases import BUILT_IN, Case, leaves, run, scan_of
from ...oracle import assert_all_close_to_oracle
from ...test_matrix import yardsticks

EVERYTHING = {"lengths": True, "resets": True, "all_states": True, "clip": 0.25}


@triton.jit
def _apply(x, y, N, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < N, other=0.0)
    tl.store(y + at, FUNCTION(value), mask=at < N)


@triton.jit
def _row_scale(x, scale, inverse, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.arange(0, ROWS)[:, None]
    tile = tl.load(x + rows * COLUMNS + tl.arange(0, COLUMNS)[None, :])
    up, down = row_scale(tile)
    tl.store(scale + rows, up)
    tl.store(inverse + rows, down)


def applied(function: triton.JITFunction, x: Tensor) -> Tensor:
    y = torch.full_like(x, torch.nan)
    _apply[(1,)](x, y, x.numel(), FUNCTION=function, BLOCK=triton.next_power_of_2(x.numel()))
    return y


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_activations_are_within_two_ulp_of_their_scale(name: str) -> None:
    x = torch.cat([torch.linspace(-12, 12, 20_001), torch.logspace(-30, 0, 2000)])
    x = torch.cat([x, -x, torch.tensor([0.0, 50.0, -50.0, 3e38, -3e38])])
    exact = getattr(torch, name)(x.double())
    error = (applied(getattr(activations, name), x).double() - exact).abs()
    assert float((error / exact.abs().clamp(min=2**-126)).max()) <= 2 * 2**-22
    assert float(error.max()) <= 2 * 2**-24


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu"])
def test_activations_saturate_and_keep_nan(name: str) -> None:
    x = torch.tensor([torch.inf, -torch.inf, 1e30, -1e30, torch.nan])
    found = applied(getattr(activations, name), x)
    assert torch.equal(found[:4], getattr(torch, name)(x[:4]))
    assert bool(found[4].isnan())


def test_rows_are_scaled_by_powers_of_two() -> None:
    scaled, left_alone = [1.0, 1.5, 6e4, 1e-7, 1e-30], [0.0, torch.inf, torch.nan]
    x = torch.zeros(8, 16)
    x[:, 3] = torch.tensor(scaled + left_alone)
    x[:5, 9] = -x[:5, 3] / 2
    scale, inverse = torch.empty(8), torch.empty(8)
    _row_scale[(1,)](x, scale, inverse, ROWS=8, COLUMNS=16)
    largest = x[:5, 3] * scale[:5]
    assert bool(((largest >= 1) & (largest < 2)).all()), largest
    assert bool((torch.frexp(scale)[0] == 0.5).all())  # a power of two
    assert scale[5:].tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(scale * inverse, torch.ones(8))


@pytest.mark.parametrize("cell", BUILT_IN)
@pytest.mark.usefixtures("poisoned")
def test_several_tiles_of_the_batch_and_of_the_units(cell: str) -> None:
    case = Case(cell, T=3, B=35, I=3, H=40, P=37, reverse=True, **EVERYTHING)
    found = run(case, "triton", torch.float32)
    assert_all_close_to_oracle(found, *yardsticks(case, torch.float32, found["y"]))


def test_tiny_float16_gradients_do_not_vanish() -> None:
    """2^-22 times a slope is rounded to a multiple of 2^-24 in float16; times a large weight it is
    well within its range again. Unit 0 is 0 at the first step, so that nothing saturates."""
    H = 6
    gates = torch.linspace(-1, 1, 2 * H).view(2, 1, H).half()
    gates[0, 0, 0] = 0
    w_hh = torch.zeros(H, H, dtype=torch.float16)
    w_hh[:, 0] = 1024
    dy = torch.zeros(2, 1, H, dtype=torch.float16)
    dy[1] = 2.0**-22
    found, exact = gates.clone().requires_grad_(), gates.double().requires_grad_()
    h0 = torch.zeros(1, H, dtype=torch.float16)
    scan = rnnfast.scan("rnn_tanh", found, [h0], [w_hh], projected=True, backend="triton")
    scan.y.backward(dy)
    h1 = torch.tanh(exact[0])
    torch.tanh(exact[1] + h1 @ w_hh.double().t()).backward(dy[1].double())
    assert found.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(
        found.grad[0, 0, 0].double(), exact.grad[0, 0, 0], rtol=4 * 2**-11, atol=0
    )


def test_tiny_float16_gradients_of_weights() -> None:
    """What the products after the loop sum up is scaled too: a column of x holds 1024."""
    T, B, H = 16, 4, 6
    x = torch.full((T, B, 1), 1024.0).half()
    w_ih = torch.zeros(H, 1, dtype=torch.float16, requires_grad=True)
    b = [torch.linspace(-1, 1, H).half(), torch.zeros(H, dtype=torch.float16)]
    weights = [w_ih, torch.zeros(H, H, dtype=torch.float16), *b]
    h0 = torch.zeros(B, H, dtype=torch.float16)
    y = rnnfast.scan("rnn_tanh", x, [h0], weights, backend="triton").y
    y.backward(torch.full_like(y, 2.0**-22))
    exact = T * B * 1024 * 2.0**-22 * (1 - torch.tanh(b[0].double()) ** 2)
    assert w_ih.grad is not None
    torch.testing.assert_close(w_ih.grad.flatten().double(), exact, rtol=4 * 2**-11, atol=0)


def test_a_diverging_relu_network_is_as_torchs() -> None:
    """inf times the padding of a tile would be a NaN."""
    theirs = torch.nn.RNN(2, 3, nonlinearity="relu")
    ours = rnnfast.RNN(2, 3, nonlinearity="relu")
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.abs_().mul_(1e15)
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(5, 2, 2)
    with rnnfast.use_backend("triton"):
        y = ours(x)[0]
    assert bool(y.isinf().any())
    torch.testing.assert_close(y, theirs(x)[0])


OPCHECK = [
    Case("rnn_tanh", 2, 2, 2, 2),
    Case("lstm", 2, 2, 2, 2, lengths=True, resets=True, reverse=True, all_states=True),
    Case("lstm_proj", 2, 2, 2, 2, kind="tokens", bias=False),
    Case("gru", 2, 2, 2, 2, lengths=True),
    Case("gru_reset_before", 2, 2, 2, 2, kind="gates"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", OPCHECK, ids=str)
def test_opcheck(case: Case, dtype: torch.dtype) -> None:
    t = leaves(case, dtype)
    scan = scan_of(case, t)
    arguments = pack(scan, "triton")
    torch.library.opcheck(torch.ops.rnnfast.scan_forward.default, arguments)
    with torch.no_grad():
        y, _final, trace, saved = torch.ops.rnnfast.scan_forward(*arguments)
    dfinal = [t["d" + n] for n in rnnfast.CELLS[case.cell].states]
    dtrace = [t["dtrace"]] if case.all_states else []
    needs = [case.kind != "tokens", True, True]
    arguments = (*arguments, t["dy"], dfinal, dtrace, y, trace, saved, needs, 0)
    torch.library.opcheck(torch.ops.rnnfast.scan_backward.default, arguments)


@pytest.mark.parametrize("reset_after", [True, False])
def test_fullgraph(reset_after: bool) -> None:
    torch._dynamo.reset()
    layer = rnnfast.GRU(3, 5, reset_after=reset_after)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 2, 3)
    with rnnfast.use_backend("triton"):
        found, expected = compiled(x)[0], layer(x)[0]
        torch.testing.assert_close(found, expected)
        weights = list(layer.parameters())
        torch.testing.assert_close(
            torch.autograd.grad(found.square().sum(), weights),
            torch.autograd.grad(expected.square().sum(), weights),
        )


def test_refusals() -> None:
    scan = scan_of(Case("lstm"), leaves(Case("lstm"), torch.float64))
    with pytest.raises(rnnfast.BackendError, match=r"no kernel for torch\.float64"):
        rnnfast.scan("lstm", scan.input, scan.states, scan.weights, backend="triton")
    triton_backend = registry.BACKENDS["triton"]
    problem = rnnfast.problem.problem_of(scan)._replace(dtype=torch.float32)
    assert triton_backend.why_not(problem) is None
    assert "not on cuda" in (triton_backend.why_not(problem._replace(device="cuda")) or "")
    assert registry.select(problem).name != "triton"  # auto leaves the interpreter alone


def test_two_runs_give_the_same_bits() -> None:
    case = Case("gru", T=5, B=20, H=33, **EVERYTHING)
    first, second = (run(case, "triton", torch.float32) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name

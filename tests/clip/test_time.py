"""grad_clip_time beyond the matrix: zeroing, what is limited and what is not, derivatives, modules.

docs/clipping.md says what must hold; tests/test_matrix.py has its clipping on every backend.
"""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnfast
from rnnfast.backends import registry

from ..cases import BUILT_IN, Case, leaves, oracle, refusal, run
from ..oracle import assert_all_close_to_oracle
from ..test_matrix import check

CELLS = list(BUILT_IN)
BACKENDS = [name for name in registry.BACKENDS if name != "torch"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("poisoned")
def test_zeroing(backend: str, cell: str, dtype: torch.dtype) -> None:
    check(Case(cell, clip=-0.05), backend, dtype)
    case = Case(cell, clip=-0.05, lengths=True, resets=True, reverse=True, all_states=True)
    check(case, backend, dtype)


@pytest.mark.parametrize("clip", [0.05, -0.05])
@pytest.mark.parametrize("cell", CELLS)
def test_behind_the_op(cell: str, clip: float) -> None:
    for backend in ("cpu", "reference"):
        if refusal(Case(cell), backend, torch.float64) is None:
            check(Case(cell, clip=clip), backend, torch.float64, route="op")


@pytest.mark.parametrize("cell", CELLS)
def test_the_limit_limits(cell: str) -> None:
    """These cases do differ from those without, else they would test nothing."""
    plain, clipped = Case(cell), Case(cell, clip=0.05)
    zeroed = Case(cell, clip=-0.05)
    found = [oracle(case, torch.float64)["grad of h"] for case in (plain, clipped, zeroed)]
    assert found[0].abs().max() > 0.05 >= found[1].abs().max()
    assert (found[2] == 0).any()
    assert not torch.equal(found[1], found[2])


def gradients(layer: nn.Module, x: Tensor, hx: Any = None) -> list[Tensor]:
    layer.zero_grad()
    y, _ = layer(x, hx)
    y.square().sum().backward()
    return [p.grad.clone() for p in layer.parameters()]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("cell", CELLS)
def test_two_halves_are_the_whole(cell: str, backend: str) -> None:
    """The gradient of the initial state is limited, so a sequence may be cut anywhere."""
    case = Case(cell, T=8, clip=0.05)
    if refusal(case, backend, torch.float64) is not None:
        pytest.skip(f"{backend}: {refusal(case, backend, torch.float64)}")
    t = leaves(case, torch.float64)
    spec = rnnfast.CELLS[cell]
    weights = [t[n] for n in spec.weight_names("dense", True)]
    states = [t[n] for n in spec.states]

    def scan(x: Tensor, states: list[Tensor]) -> Any:
        return rnnfast.scan(cell, x, states, weights, grad_clip_time=0.05, backend=backend)

    whole = scan(t["x"], states)
    first = scan(t["x"][:3], states)
    second = scan(t["x"][3:], first.final)
    inputs = [t["x"], *states, *weights]
    expected = torch.autograd.grad(whole.y, inputs, t["dy"])
    found = torch.autograd.grad(torch.cat([first.y, second.y]), inputs, t["dy"])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("option", [0.5, ("zero", 0.5)])
def test_nan_stays_and_infinity_is_limited(option: Any, backend: str) -> None:
    if refusal(Case("rnn_relu"), backend, torch.float32) is not None:
        pytest.skip(f"{backend}: {refusal(Case('rnn_relu'), backend, torch.float32)}")
    weights = [torch.ones(3, 1), torch.eye(3), torch.zeros(3), torch.zeros(3)]
    h = torch.ones(1, 3, requires_grad=True)
    y = rnnfast.scan("rnn_relu", torch.ones(1, 1, 1), [h], weights, grad_clip_time=option,
                     backend=backend).y  # fmt: skip
    (dh,) = torch.autograd.grad(y, h, torch.tensor([[[math.inf, -math.inf, 0.25]]]))
    low = 0.0 if isinstance(option, tuple) else 0.5
    # the product with the identity adds 0 · inf to every other element: NaN, and kept
    assert dh.isnan().all()
    (dh,) = torch.autograd.grad(
        rnnfast.scan("rnn_relu", torch.ones(1, 1, 1), [h], weights, grad_clip_time=option,
                     backend=backend).y,
        h, torch.tensor([[[3e38, -3e38, 0.5]]]),
    )  # fmt: skip
    assert dh.tolist() == [[low, -low, 0.5]]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_an_empty_sequence_passes_its_gradient_on_as_it_is(cell: str) -> None:
    case = Case(cell, B=2)
    t = leaves(case, torch.float64)
    spec = rnnfast.CELLS[cell]
    states = [t[n] for n in spec.states]
    result = rnnfast.scan(
        cell, t["x"], states, [t[n] for n in spec.weight_names("dense", True)],
        lengths=torch.tensor([0, 7]), grad_clip_time=0.01,
    )  # fmt: skip
    (dh,) = torch.autograd.grad(result.final[0], states[0], t["dh"])
    assert torch.equal(dh[0], t["dh"][0])
    assert dh[1].abs().max() <= 0.01 < t["dh"][1].abs().max()


# --- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_double_backward(backend: str) -> None:
    """Where nothing reaches the limit it is as without it, and elsewhere it is not."""

    def second(option: float) -> Tensor:
        torch.manual_seed(0)
        layer = rnnfast.GRU(3, 4, grad_clip_time=option).double()
        x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
        with rnnfast.use_backend(backend):
            y, _ = layer(x)
            (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            (ddx,) = torch.autograd.grad(dx.square().sum(), x)
        return ddx

    if refusal(Case("gru"), backend, torch.float64) is not None:
        pytest.skip(f"{backend}: {refusal(Case('gru'), backend, torch.float64)}")
    torch.testing.assert_close(second(1e6), second(0.0))
    assert not torch.allclose(second(0.05), second(0.0))


def test_transforms() -> None:
    """vmap over the batch equals the batch; a tangent passes as it is."""
    torch.manual_seed(0)
    layer = rnnfast.GRU(3, 4, grad_clip_time=0.05).double()
    plain = rnnfast.GRU(3, 4).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(5, 6, 3, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return layer(x)[0].square().sum()

    whole = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(whole), whole)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=1, out_dims=1)(x)
    torch.testing.assert_close(each, expected)
    tangent = torch.randn_like(x)
    found = torch.func.jvp(lambda x: layer(x)[0], (x,), (tangent,))
    want = torch.func.jvp(lambda x: plain(x)[0], (x,), (tangent,))
    torch.testing.assert_close(found, want)


# --- modules -------------------------------------------------------------------------------------

LAYERS = (rnnfast.RNN, rnnfast.LSTM, rnnfast.GRU, rnnfast.compat.LSTM)


@pytest.mark.parametrize("kind", LAYERS)
def test_module_option(kind: Any) -> None:
    torch.manual_seed(0)
    layer = kind(3, 4, 2, bidirectional=True, grad_clip_time=0.05)
    assert repr(layer).endswith("grad_clip_time=0.05)")
    assert "grad_clip_time" not in str(layer.state_dict().keys())
    x = torch.randn(6, 2, 3)
    clipped = gradients(layer, x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert all(torch.equal(a, b) for a, b in zip(clipped, gradients(twin, x), strict=True))
    layer.grad_clip_time = 0.0
    plain = gradients(layer, x)
    assert "grad_clip_time" not in repr(layer)
    assert not torch.allclose(clipped[0], plain[0])
    layer.grad_clip_time = ("zero", 0.05)
    zeroed = gradients(layer, x)
    assert not torch.allclose(zeroed[0], clipped[0])
    assert repr(layer).endswith("grad_clip_time=('zero', 0.05))")


def test_forward_is_the_same_and_inference_has_all_backends() -> None:
    layer = rnnfast.LSTM(3, 4, grad_clip_time=0.1)
    plain = nn.LSTM(3, 4)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(5, 2, 3)
    with rnnfast.use_backend("torch"):
        with torch.no_grad():
            torch.testing.assert_close(layer(x)[0], plain(x)[0])
        with pytest.raises(rnnfast.BackendError, match="torch's kernels have no grad_clip_time"):
            layer(x)
    torch.testing.assert_close(layer(x)[0], plain(x)[0])


def test_the_short_way_to_torch_does_not_skip_the_limit() -> None:
    """A layer that torch served is asked again when the option is switched on."""
    layer = rnnfast.LSTM(3, 4)
    x = torch.randn(5, 2, 3)
    with rnnfast.use_backend("torch"):
        layer(x)
        layer.grad_clip_time = 0.1
        with pytest.raises(rnnfast.BackendError):
            layer(x)


def test_packed_sequences_and_replaced_layers() -> None:
    torch.manual_seed(0)
    layer = rnnfast.GRU(3, 4, grad_clip_time=0.05)
    x, lengths = torch.randn(6, 3, 3), torch.tensor([6, 4, 1])
    y, _ = layer(x, lengths=lengths)
    y.square().sum().backward()
    expected = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths)
    layer(packed)[0].data.square().sum().backward()
    torch.testing.assert_close([p.grad for p in layer.parameters()], expected)
    (swapped,) = rnnfast.replace(nn.Sequential(nn.GRU(3, 4))).model
    assert swapped.grad_clip_time == 0
    swapped(x)


def test_compiled() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = rnnfast.GRU(3, 4, grad_clip_time=0.05)
    x = torch.randn(5, 2, 3)
    expected = gradients(layer, x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    layer.zero_grad()
    compiled(x)[0].square().sum().backward()
    torch.testing.assert_close([p.grad for p in layer.parameters()], expected)


BAD = (
    ("1", TypeError),
    (True, TypeError),
    (("drop", 1.0), TypeError),
    (("zero", "1"), TypeError),
    (-1.0, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
    (("zero", -1.0), ValueError),
)


@pytest.mark.parametrize(("value", "error"), BAD)
def test_bad_values(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="grad_clip_time should be"):
        rnnfast.GRU(3, 4, grad_clip_time=value)


def test_matrix_has_it() -> None:
    assert_all_close_to_oracle(
        run(Case("lstm", clip=0.05), "reference", torch.float64),
        oracle(Case("lstm", clip=0.05), torch.float64),
    )

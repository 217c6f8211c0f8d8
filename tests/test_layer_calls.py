"""A training layer in one call into C++ a pass (layer_calls.py): the bits of the long way, its
derivatives, and what torch's surroundings ask of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

import rnnfast
from rnnfast import _ext
from rnnfast.layer_calls import LayerCall
from rnnfast.products import multiply
from rnnfast.recurrent import RecurrentLayer

from .test_repeat import flat

why_not = _ext.why_no_cpu() or (None if multiply.is_faster() else "torch's products are faster")
pytestmark = pytest.mark.skipif(why_not is not None, reason=str(why_not or "built"))

LAYERS: dict[str, Any] = {
    "tanh": rnnfast.RNN,
    "relu": lambda *sizes, **how: rnnfast.RNN(*sizes, nonlinearity="relu", **how),
    "gru": rnnfast.GRU,
    "lstm": rnnfast.LSTM,
    "projected": lambda *sizes, **how: rnnfast.LSTM(*sizes, proj_size=3, **how),
}
SHAPES = ((1, 1, 4, 7), (5, 3, 2, 9), (4, 0, 3, 5), (17, 33, 20, 40))
WANTED = ("all", "input", "weights", "states")


@pytest.fixture(autouse=True)
def on_the_cpu() -> Any:
    with rnnfast.use_backend("cpu"):
        yield


def is_served(layer: RecurrentLayer) -> bool:
    return layer._served is not None and type(layer._served[1]) is LayerCall


def states_of(layer: Any, batch: int, wanted: bool) -> Any:
    made = [
        torch.randn(1, batch, width, dtype=layer.weight_hh_l0.dtype).requires_grad_(wanted)
        for width in layer._state_widths()
    ]
    return layer._join_hidden(made)


def all_of(layer: Any, x: Tensor, hx: Any, only_y: bool = False) -> list[Tensor]:
    """Outputs, last states, and the gradients of all that needs one."""
    outputs = flat(layer(x, hx))
    leaves = [t for t in (x, *flat(hx), *layer.parameters()) if t.requires_grad]
    loss = sum(
        (o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view(o.shape)).sum()
        for o in outputs[: 1 if only_y else None]
    )
    return [*outputs, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("dtype", multiply.WIDE_DTYPES + multiply.NARROW_DTYPES)
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("name", LAYERS)
def test_it_has_the_bits_of_the_long_way(name: str, wanted: str, dtype: torch.dtype) -> None:
    for T, B, I, H in SHAPES:
        for batch_first, bias, given in ((False, True, True), (True, False, wanted == "states")):
            layer = LAYERS[name](I, H, bias=bias, batch_first=batch_first).to(dtype)
            layer.requires_grad_(wanted in ("all", "weights"))
            x = torch.randn(*((B, T) if batch_first else (T, B)), I, dtype=dtype)
            x.requires_grad_(wanted in ("all", "input"))
            hx = states_of(layer, B, wanted in ("all", "states")) if given else None
            expected = all_of(layer, x, hx)
            assert is_served(layer)
            for a, b in zip(all_of(layer, x, hx), expected, strict=True):
                assert a.shape == b.shape
                assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["tanh", "gru", "lstm"])
def test_only_the_output_has_a_gradient(name: str) -> None:
    """The last states' is then zero, and so are the states where none are given."""
    layer, x = LAYERS[name](3, 5), torch.randn(4, 2, 3, requires_grad=True)
    expected = all_of(layer, x, None, only_y=True)
    found = all_of(layer, x, None, only_y=True)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives(name: str) -> None:
    layer = LAYERS[name](3, 4).double()
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    states = flat(states_of(layer, 2, True))

    def run(x: Tensor, *others: Tensor) -> Any:
        hx = layer._join_hidden(list(others[: len(states)]))
        return tuple(flat(layer(x, hx)))

    everything = (x, *states, *layer.parameters())
    for _ in range(2):
        run(*everything)
    assert is_served(layer)
    assert torch.autograd.gradcheck(run, everything)
    assert torch.autograd.gradgradcheck(run, everything)


def check_many_outputs_at_once(layer: Any, x: Tensor) -> None:
    one, all_at_once = (
        torch.autograd.functional.jacobian(lambda x: layer(x)[0], x, vectorize=vectorize)
        for vectorize in (False, True)
    )
    torch.testing.assert_close(all_at_once, one)


def test_gradients_of_many_outputs_at_once() -> None:
    """By the vmap inside torch.autograd, for which the layer's calls are scans again."""
    layer, x = rnnfast.GRU(3, 4).double(), torch.randn(3, 2, 3, dtype=torch.float64)
    for _ in range(2):
        layer(x.requires_grad_())
    assert is_served(layer)
    check_many_outputs_at_once(layer, x)


def check_checkpoints(layer: Any, x: Tensor, dx: Tensor) -> None:
    """``dx``: the gradient of the output's sum."""
    for _ in range(3):
        y = checkpoint(lambda x: layer(x)[0], x, use_reentrant=False)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], dx)
        layer(x)  # from now on the short way is known


def check_that_changes_are_seen(layer: Any, x: Tensor, weight: Tensor) -> None:
    y, _ = layer(x)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_checkpoint_of_the_first_call() -> None:
    """It counts what is saved in the call and when that is computed once more."""
    layer, x = rnnfast.LSTM(3, 4), torch.randn(3, 2, 3, requires_grad=True)
    expected = rnnfast.LSTM(3, 4)
    expected.load_state_dict(layer.state_dict())
    (dx,) = torch.autograd.grad(expected(x)[0].sum(), x)
    check_checkpoints(layer, x, dx)


def test_what_is_saved_and_changed_is_told() -> None:
    layer, x = rnnfast.GRU(3, 4), torch.randn(3, 2, 3, requires_grad=True)
    for _ in range(2):
        y, _ = layer(x)
    y.relu_()
    with pytest.raises(RuntimeError, match="save their input, weights and output"):
        y.sum().backward()
    check_that_changes_are_seen(layer, x, layer.weight_hh_l0)


def test_backward_twice() -> None:
    layer, x = rnnfast.GRU(3, 4), torch.randn(3, 2, 3, requires_grad=True)
    for _ in range(2):
        loss = layer(x)[0].sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(torch.autograd.grad(loss, x)[0], first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_autocast_around_backward_alone() -> None:
    layer, x = rnnfast.GRU(3, 4), torch.randn(3, 2, 3, requires_grad=True)
    for _ in range(2):
        loss = layer(x)[0].sum()
    (expected,) = torch.autograd.grad(loss, x, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(loss, x)
    assert torch.equal(found, expected)


class Zero(torch.autograd.Function):
    """The identity, through which no gradient goes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch._efficientzerotensor(grad.shape, dtype=grad.dtype)


@pytest.mark.parametrize("name", ["tanh", "gru", "lstm"])
def test_tensors_of_zeros_that_have_no_memory(name: str) -> None:
    layer, x = LAYERS[name](3, 4), torch.randn(3, 2, 3, requires_grad=True)
    for which in range(2 if name != "lstm" else 3):
        outputs = flat(layer(x))
        rest = sum(o.sum() for k, o in enumerate(outputs) if k != which)
        (expected,) = torch.autograd.grad(rest, x)
        for _ in range(2):
            outputs = flat(layer(x))
            outputs[which] = Zero.apply(outputs[which])
            (found,) = torch.autograd.grad(sum(o.sum() for o in outputs), x)
            torch.testing.assert_close(found, expected)
    zeros = torch._efficientzerotensor((3, 2, 3))
    for _ in range(2):
        assert torch.equal(layer(zeros)[0], layer(torch.zeros(3, 2, 3))[0])


def test_parts_of_torchs_zero_tensors() -> None:
    """They begin at a distance from nowhere: an address that is not null, and nobody's."""
    parts = torch._efficientzerotensor((3, 2, 4))
    for layers in (1, 2):  # of each layer's states, or of a tensor of the user's
        layer, x = rnnfast.GRU(4, 4, num_layers=layers), torch.randn(3, 2, 4)
        states = parts[-layers:]
        for training in (False, True):
            with torch.set_grad_enabled(training):
                for _ in range(2):
                    y = layer(x, states)[0]
                    assert torch.equal(y, layer(x)[0])
        y.sum().backward()
        assert torch.equal(layer(parts[1:], None)[0], layer(torch.zeros(2, 2, 4))[0])


@pytest.mark.parametrize("calls", [1, 2])
def test_a_gradient_whose_values_only_its_class_knows(calls: int) -> None:
    """It has no memory either, and is not nothing."""
    layer, x = rnnfast.GRU(3, 4), torch.randn(3, 2, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x)[0].sum(), x)
    layer.__dict__.pop("_served", None)
    for _ in range(calls):
        y, _ = layer(x)
    one = torch.ones_like(y)
    (found,) = torch.autograd.grad(y, x, TwoTensor(one, 2 * one))
    torch.testing.assert_close(found.a, expected)
    torch.testing.assert_close(found.b, 2 * expected)
    with pytest.raises(TypeError, match="whose values kernels can read, got TwoTensor"):
        _ext.cpu().cpu_product(TwoTensor(one[0], one[0]), one[0].t())


def test_an_input_of_another_layout_is_not_read() -> None:
    layer, x = rnnfast.GRU(3, 4), torch.randn(3, 2, 3)
    for _ in range(2):
        layer(x)
    with pytest.raises((RuntimeError, NotImplementedError, TypeError, ValueError, BufferError)):
        layer(x.to_sparse())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", [*LAYERS, "reset before"])
def test_first_states_that_need_no_gradient(name: str, steps: int, dtype: torch.dtype) -> None:
    """The product for theirs is left out; the other gradients have the same bits."""
    make = LAYERS.get(name, lambda *sizes: rnnfast.GRU(*sizes, reset_after=False))
    layer, x = make(5, 9).to(dtype), torch.randn(steps, 3, 5, dtype=dtype, requires_grad=True)
    lengths, resets = torch.tensor([steps, 0, 1]), torch.rand(steps, 3) < 0.3
    for options in ({}, {"lengths": lengths, "resets": resets}):
        found = []
        for wanted in (True, False):
            torch.manual_seed(0)
            hx = states_of(layer, 3, wanted)
            loss = sum(o.sum() for o in flat(layer(x, hx, **options)))
            found.append(torch.autograd.grad(loss, [x, *layer.parameters()]))
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)

"""Scans of tangents that are run once for several derivatives, below their levels, and by whom they
are looked at."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

import rnnfast
from rnnfast import second, transforms

from . import test_derivatives as derivatives
from .test_derivatives import EVERY, Called, Parameters, assert_as_the_loop, sum_of_squares

pytestmark = derivatives.pytestmark
H, LAYERS, V, X = derivatives.H, derivatives.LAYERS, derivatives.V, derivatives.X


@pytest.mark.parametrize("name", ["lstm", "own_gru"])
def test_a_third_derivative_forward(name: str) -> None:
    def along(y: Any, v: Tensor) -> Any:
        return lambda x: jvp(y, (x,), (v,))[1]

    def third(f: Called) -> Any:
        return along(along(along(partial(f.y, f.p), V), X.cos()), X.sin())(X)

    f = Called(LAYERS[name]().double())
    assert_as_the_loop(third, f)
    with rnnfast.use_backend("cpu"):
        assert third(f).abs().max() > 1e-3


def test_forward_over_reverse_runs_one_scan_of_tangents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward's, through which the tangents of backward go back, and with them the gradients."""
    monkeypatch.setattr(second, "moved", lambda *_, **__: pytest.fail("it ran once more"))
    fail = staticmethod(lambda *_: pytest.fail("the gradients were made by themselves"))
    monkeypatch.setattr(transforms._Backward, "run", fail)
    f = Called(LAYERS["gru"](num_layers=2).double())
    assert_as_the_loop(EVERY["forward over reverse"], f)
    assert_as_the_loop(lambda f: jvp(lambda p: grad(f.loss)(p, X), (f.p,), (f.dp,)), f)


@pytest.mark.parametrize("name", ["lstm", "gru", "own_gru"])
def test_who_looks_at_the_tangents_of_backward_alone(name: str) -> None:
    """Nobody differentiates the scan of tangents, which ran over its input then, but its backward:
    by what its cotangents are made of."""
    scale = torch.linspace(0.5, 2, H, dtype=torch.float64).requires_grad_()

    def third(f: Called) -> Any:
        def loss(p: Parameters, x: Tensor) -> Tensor:
            return (f.y(p, x) * scale).square().sum()

        _, found = jvp(lambda p: grad(loss)(p, X), (f.p,), (f.dp,))
        return torch.autograd.grad(sum_of_squares(found), scale)

    assert_as_the_loop(third, Called(LAYERS[name]().double()))


@pytest.mark.parametrize("transform", ["jvp by weights", "forward over reverse", "per sample"])
def test_transforms_in_inference_mode(transform: str) -> None:
    f = Called(LAYERS["gru"]().double())
    with rnnfast.use_backend("cpu"):
        expected = EVERY[transform](f)
        with torch.inference_mode():
            found = EVERY[transform](f)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before", "own_lstm"])
def test_second_derivatives_of_tokens(name: str) -> None:
    tokens = torch.randint(2, (4, 3), generator=torch.manual_seed(3))
    lengths = torch.tensor([4, 0, 2])

    def both(f: Called) -> Any:
        def loss(p: Parameters) -> Tensor:
            return f.loss(p, tokens)

        return jvp(grad(loss), (f.p,), (f.dp,)), vjp(grad(loss), f.p)[1](f.dp)

    assert_as_the_loop(both, Called(LAYERS[name]().double(), lengths=lengths))


@pytest.mark.parametrize("shape", [(1, 1), (3, 0)])
def test_second_derivatives_of_few_steps_and_of_no_sequences(shape: tuple[int, int]) -> None:
    f = Called(LAYERS["gru"]().double())
    x = torch.randn(*shape, 2, dtype=torch.float64, generator=torch.manual_seed(4))

    def both(f: Called) -> Any:
        along = jvp(grad(f.loss, argnums=(0, 1)), (f.p, x), (f.dp, x.cos()))
        return along, vjp(grad(f.loss), f.p, x)[1](f.dp)

    assert_as_the_loop(both, f)


@rnnfast.cell(gates=1, params={"v": "H", "d_v": "H"}, recurrent=None)
def named_alike(gx, states, w):
    (h,) = states
    return (torch.tanh(gx + w.v * h) * w.d_v,)


def test_a_weight_may_have_the_name_of_a_tangent() -> None:
    f = Called(rnnfast.Recurrent(named_alike, 2, H).double())
    for transform in ("jvp by weights", "forward over reverse", "reverse over reverse"):
        assert_as_the_loop(EVERY[transform], f)


@pytest.mark.parametrize("name", ["lstm", "own_gru"])
def test_a_third_derivative_by_weights(name: str) -> None:
    """The tangent of the tangent has tangents of the weights, and tangents of these."""
    scale = torch.linspace(0.5, 2, H, dtype=torch.float64)

    def third(f: Called) -> Any:
        def along(scale: Tensor) -> Tensor:
            def loss(p: Parameters) -> Tensor:
                return (f.y(p, X) * scale).sum()

            return sum_of_squares(jvp(grad(loss), (f.p,), (f.dp,))[1])

        return grad(along)(scale)

    assert_as_the_loop(third, Called(LAYERS[name]().double()))

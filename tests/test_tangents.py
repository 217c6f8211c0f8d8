"""Scans of tangents that are run once for several derivatives, below their levels, and by whom they
are looked at."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

import rnnfast
from rnnfast import layer_calls, second, transforms
from rnnfast.backends import registry
from rnnfast.problem import Needs, Scan
from rnnfast.products import multiply
from rnnfast.tangent_gates import GatesAlong

from . import test_derivatives as derivatives
from .test_derivatives import EVERY, Called, Parameters, assert_as_the_loop, sum_of_squares

pytestmark = derivatives.pytestmark
no_loop = derivatives.no_loop
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
    """Which has forward's results, and through which the tangents of backward go back, and with
    them the gradients."""
    monkeypatch.setattr(second, "moved", lambda *_, **__: pytest.fail("it ran once more"))
    fail = staticmethod(lambda *_: pytest.fail("it was made by itself"))
    monkeypatch.setattr(transforms._Forward, "run", fail)
    monkeypatch.setattr(transforms._Backward, "run", fail)
    f = Called(LAYERS["gru"](num_layers=2).double())
    assert_as_the_loop(EVERY["forward over reverse"], f)
    assert_as_the_loop(lambda f: jvp(lambda p: grad(f.loss)(p, X), (f.p,), (f.dp,)), f)


@pytest.mark.parametrize("name", ["lstm", "lstm_proj", "gru", "own_gru", "rnn_tanh"])
def test_what_forward_saves_where_the_scan_of_tangents_left_none(name: str) -> None:
    """A backward that can't go by that scan runs forward anew: of weights where the input moves,
    after the level of forward mode, and within a vmap."""

    def by_weights_along_the_input(f: Called) -> Any:
        return jvp(partial(grad(f.loss), f.p), (X,), (V,))

    def afterwards(f: Called) -> Any:
        kept = []

        def outputs(x: Tensor) -> Tensor:
            y, back = vjp(f.y, f.p, x)
            kept.append(back)
            return y

        y, dy = jvp(outputs, (X,), (V,))
        return y, dy, kept[0](y.cos())

    def within_a_vmap(f: Called) -> Any:
        one = torch.vmap(grad(f.loss, argnums=1), in_dims=(None, 1))
        return jvp(partial(one, f.p), (X,), (V,))

    f = Called(LAYERS[name]().double(), lengths=torch.tensor([4, 0, 2]))
    assert_as_the_loop(by_weights_along_the_input, f)
    assert_as_the_loop(afterwards, f)
    assert_as_the_loop(within_a_vmap, Called(LAYERS[name]().double()))


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


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_that_nobody_asked_for_are_not_made(
    layers: int, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch.autograd.grad; .backward() makes all."""
    layer, x = LAYERS["gru"](num_layers=layers).double(), X.clone().requires_grad_()
    made: list[bool] = []
    cpu = registry.BACKENDS["cpu"]
    one = cpu.backward
    several = cpu.backward_whole

    def backward(scan: Scan, saved: Any, cotangents: Any, needs: Needs) -> Any:
        made.append(needs.input and scan.kind == "dense")
        return one(scan, saved, cotangents, needs)

    def of_tangents(gates: GatesAlong, dgates: Tensor) -> Tensor:
        made.append(True)
        return of_both(gates, dgates)

    def backward_whole(scans: Any, saved: Any, cotangents: Any, needs: list[Needs]) -> Any:
        made.append(needs[0].input)
        return several(scans, saved, cotangents, needs)

    monkeypatch.setattr(cpu, "backward", backward)
    monkeypatch.setattr(cpu, "backward_whole", backward_whole)
    of_both = GatesAlong.gradient_of_input
    monkeypatch.setattr(GatesAlong, "gradient_of_input", of_tangents)
    with rnnfast.use_backend("cpu"):
        loss = layer(x)[0].square().sum()
        if order == 2:
            slopes = torch.autograd.grad(loss, list(layer.parameters()), create_graph=True)
            loss = sum_of_squares(slopes)
            made.clear()
        found = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
        assert not made[-1]
        made.clear()
        loss.backward()
        assert made[-1]
    torch.testing.assert_close(found, tuple(p.grad for p in layer.parameters()))
    assert x.grad is not None
    assert x.grad.abs().max() > 1e-3


@pytest.mark.skipif(
    not multiply.is_faster(), reason="no layer has the one call: torch's products are faster here"
)
def test_nor_by_a_layer_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = LAYERS["lstm"]().double(), X.clone().requires_grad_()
    made: list[bool] = []
    make = layer_calls.Needs

    def needs(input: bool, *rest: Any) -> Needs:
        made.append(input)
        return make(input, *rest)

    monkeypatch.setattr(layer_calls, "Needs", needs)
    with rnnfast.use_backend("cpu"):
        for _ in range(3):  # which is served so once it repeats itself
            loss = layer(x)[0].square().sum()
        found = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
        loss.backward()
    assert made == [False, True]
    torch.testing.assert_close(found, tuple(p.grad for p in layer.parameters()))


LIMITED: dict[str, Any] = {
    "forward over reverse": EVERY["forward over reverse"],
    "both": lambda f: jvp(lambda p: grad(f.loss)(p, X), (f.p,), (f.dp,)),
    "by input": lambda f: jvp(grad(partial(f.loss, f.p)), (X,), (V,)),
    "hessian": EVERY["hessian"],
    "jvp of per sample": EVERY["jvp of per sample"],
}
ENDS = {
    "lengths": torch.tensor([4, 0, 2]),
    "resets": (torch.arange(12) % 5 == 3).view(4, 3),
}


@pytest.mark.parametrize("transform", LIMITED)
@pytest.mark.parametrize("mode", [0.05, ("zero", 0.05)])
def test_forward_mode_of_a_clipped_backward_is_the_kernels(
    mode: Any, transform: str, no_loop: Callable[[], None]
) -> None:
    f = Called(LAYERS["lstm"](grad_clip_time=mode).double())
    free = Called(LAYERS["lstm"]().double())
    free.p, leaves = f.p, torch.utils._pytree.tree_leaves
    with rnnfast.use_backend("reference"):
        expected = LIMITED[transform](f)
    no_loop()
    with rnnfast.use_backend("cpu"):
        found, other = LIMITED[transform](f), LIMITED[transform](free)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    pairs = zip(leaves(found), leaves(other), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) > 1e-3  # it was reached


@pytest.mark.parametrize("name", ["lstm", "lstm_proj", "gru_reset_before", "own_gru", "mgu"])
@pytest.mark.parametrize("reverse", [False, True])
def test_forward_mode_of_a_clipped_backward_with_options(name: str, reverse: bool) -> None:
    layers = {"num_layers": 2, "bidirectional": reverse, "bias": reverse}
    f = Called(LAYERS[name](grad_clip_time=0.05, **layers).double(), **ENDS)
    assert_as_the_loop(EVERY["forward over reverse"], f)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_derivative_of_forward_mode_of_a_clipped_backward(name: str) -> None:
    """Which is the loop's. Of forward mode in forward mode torch loses a part in the loop's own, so
    that it is held against finite differences."""

    def along(f: Called, p: Parameters) -> Parameters:
        return jvp(lambda p: grad(f.loss)(p, X), (p,), (f.dp,))[1]

    f = Called(LAYERS[name](grad_clip_time=0.05).double(), **ENDS)
    assert_as_the_loop(lambda f: grad(lambda p: sum_of_squares(along(f, p)))(f.p), f)
    eps = 1e-6
    with rnnfast.use_backend("cpu"):
        found = jvp(partial(along, f), (f.p,), (f.dp,))[1]
        above, below = (
            along(f, {n: p + step * f.dp[n] for n, p in f.p.items()}) for step in (eps, -eps)
        )
    expected = {n: (above[n] - below[n]) / (2 * eps) for n in above}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", [0.5, ("zero", 0.5)])
def test_forward_mode_at_the_limit_itself(mode: Any) -> None:
    """As torch.clamp has it, whichever it is; what is zeroed only beyond is kept."""
    weights = [torch.ones(3, 1), torch.eye(3), torch.zeros(3), torch.zeros(3)]
    dy = torch.tensor([[[0.5, -0.5, 0.75]]])

    def dh(dy: Tensor) -> Tensor:
        def y(h: Tensor) -> Tensor:
            return rnnfast.scan(
                "rnn_relu", torch.ones(1, 1, 1), [h], weights, grad_clip_time=mode, backend="cpu"
            ).y

        return vjp(y, torch.ones(1, 3))[1](dy)[0]

    found = jvp(dh, (dy,), (torch.ones_like(dy),))[1]
    expected = torch.tensor([[1.0, 1.0, 0.0]])
    if mode == 0.5:
        expected = jvp(lambda d: d.clamp(-0.5, 0.5), (dy,), (torch.ones_like(dy),))[1][0]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["RNN", "LSTM"])
def test_forward_mode_twice_goes_by_the_limit(name: str, backend: str) -> None:
    """No limit enters it: it is that of the layer without one, and of its gradients that of the
    first."""
    layer = getattr(rnnfast, name)(2, H, grad_clip_time=0.1).double()
    x, u, v = torch.randn(3, 3, 1, 2, dtype=torch.float64)

    def twice(f: Any) -> Tensor:
        return jvp(lambda x: jvp(f, (x,), (u,))[1], (x,), (v,))[1]

    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: layer(x)[0].square().sum())(x)

    with rnnfast.use_backend(backend):
        limited, of_gradient = twice(lambda x: layer(x)[0]), twice(gradient)
        e = 1e-5
        once = [jvp(gradient, (x + step * v,), (u,))[1] for step in (e, -e)]
        layer.grad_clip_time = 0.0
        torch.testing.assert_close(limited, twice(lambda x: layer(x)[0]))
    torch.testing.assert_close(of_gradient, (once[0] - once[1]) / (2 * e), rtol=1e-6, atol=1e-8)


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

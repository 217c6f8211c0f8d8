"""Double backward of layers by plain autograd: the scan of tangents that a scan's backward leaves
to the node of its forward, which goes back through it once for both."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import rnnfast
from rnnfast import direct, layer_calls
from rnnfast.problem import Options, Scan
from rnnfast.schema import pack

from . import test_derivatives as derivatives
from .test_derivatives import LAYERS, V, X, sum_of_squares

pytestmark = derivatives.pytestmark
no_loop = derivatives.no_loop
Way = Callable[[nn.Module, Tensor], Sequence[Tensor]]


def first_order(layer: nn.Module, x: Tensor, **options: Any) -> tuple[Tensor, Sequence[Tensor]]:
    """The output, and the gradients of the sum of squares of all that a layer returns."""
    found = [t for t in tree_leaves(layer(x, **options)) if isinstance(t, Tensor)]
    given = [x, *layer.parameters()]
    return found[0], torch.autograd.grad(sum_of_squares(found), given, create_graph=True)


def second_order(layer: nn.Module, x: Tensor) -> Sequence[Tensor]:
    _, slopes = first_order(layer, x)
    return torch.autograd.grad(sum_of_squares(slopes), [x, *layer.parameters()])


def of_weights(layer: nn.Module, x: Tensor) -> Sequence[Tensor]:
    _, (dx, *_) = first_order(layer, x)
    return torch.autograd.grad(dx.square().sum(), list(layer.parameters()), allow_unused=True)


def of_a_linear_loss(layer: nn.Module, x: Tensor) -> Sequence[Tensor]:
    """Nothing comes in for the results then."""
    (dx,) = torch.autograd.grad((layer(x)[0] * V[..., :1]).sum(), x, create_graph=True)
    return torch.autograd.grad(dx.square().sum(), [x, *layer.parameters()], allow_unused=True)


def of_the_output(layer: nn.Module, x: Tensor) -> Sequence[Tensor]:
    """With and without what lies behind it."""
    y, slopes = first_order(layer, x)
    loss = sum_of_squares(slopes)
    alone = torch.autograd.grad(loss, [y], retain_graph=True)
    return (*alone, *torch.autograd.grad(loss, [y, x, *layer.parameters()]))


def of_two_backwards(layer: nn.Module, x: Tensor) -> Sequence[Tensor]:
    """Of one forward, differentiated at once, and one of them twice."""
    y, slopes = first_order(layer, x)
    (other,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    both = sum_of_squares(slopes) + other.pow(3).sum()
    given = [x, *layer.parameters()]
    found = torch.autograd.grad(both, given, retain_graph=True)
    return (*found, *torch.autograd.grad(sum_of_squares(slopes), given))


def third_order(layer: nn.Module, x: Tensor) -> Sequence[Tensor]:
    _, slopes = first_order(layer, x)
    given = [x, *layer.parameters()]
    found = torch.autograd.grad(sum_of_squares(slopes), given, create_graph=True)
    return torch.autograd.grad(sum_of_squares(found), given)


def by_backward(layer: nn.Module, x: Tensor) -> Sequence[Tensor]:
    _, slopes = first_order(layer, x)
    layer.zero_grad()
    sum_of_squares(slopes).backward()
    return [p.grad for p in layer.parameters() if p.grad is not None]


def of_frozen_weights(layer: nn.Module, x: Tensor) -> Sequence[Tensor]:
    layer.requires_grad_(False)
    try:
        (dx,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), x)
    finally:
        layer.requires_grad_(True)


WAYS: dict[str, Way] = {
    "all": second_order,
    "of weights": of_weights,
    "of a linear loss": of_a_linear_loss,
    "of the output": of_the_output,
    "of two backwards": of_two_backwards,
    "third order": third_order,
    "by backward": by_backward,
    "of frozen weights": of_frozen_weights,
}


def assert_as_the_loop(way: Way, layer: nn.Module, x: Tensor = X, calls: int = 1) -> None:
    """The last of so many calls."""
    found = []
    for name, count in (("reference", 1), ("cpu", calls)):
        with rnnfast.use_backend(name):
            for _ in range(count):
                made = way(layer, x.clone().requires_grad_())
        found.append([t for t in made if t is not None])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many scans of tangents each node of forward was left."""
    counts: list[int] = []

    def counted(left: Any, *rest: Any) -> Any:
        counts.append(len(left))
        return run(left, *rest)

    run = direct.together
    monkeypatch.setattr(direct, "together", counted)
    monkeypatch.setattr(layer_calls, "together", counted)
    return counts


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["lstm", "gru", "lstm_proj", "own_gru", "three_states"])
def test_as_the_loop_has_it(name: str, way: str) -> None:
    assert_as_the_loop(WAYS[way], LAYERS[name]().double(), calls=3)  # the third the short way


@pytest.mark.parametrize("way", ["all", "of weights", "third order"])
@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}, {"bias": False}])
def test_of_layers_and_directions(options: dict[str, Any], way: str) -> None:
    assert_as_the_loop(WAYS[way], LAYERS["lstm"](**options).double(), calls=3)


@pytest.mark.parametrize("shape", [(1, 1), (3, 0)])
def test_of_few_steps_and_of_no_sequences(shape: tuple[int, int]) -> None:
    assert_as_the_loop(second_order, LAYERS["gru"]().double(), X.new_ones(*shape, 2).cos())


def test_with_lengths_and_resets() -> None:
    ends = {"lengths": torch.tensor([4, 0, 2]), "resets": (torch.arange(12) % 5 == 3).view(4, 3)}

    def way(layer: nn.Module, x: Tensor) -> Sequence[Tensor]:
        _, slopes = first_order(layer, x, **ends)
        return torch.autograd.grad(sum_of_squares(slopes), [x, *layer.parameters()])

    assert_as_the_loop(way, LAYERS["gru"]().double())


def test_with_initial_states() -> None:
    def way(layer: nn.Module, x: Tensor) -> Sequence[Tensor]:
        states = [torch.ones(1, 3, 5, dtype=x.dtype).mul(k).requires_grad_() for k in (0.5, -0.3)]
        y, _ = layer(x, tuple(states))
        slopes = torch.autograd.grad(y.square().sum(), [x, *states], create_graph=True)
        return torch.autograd.grad(sum_of_squares(slopes), [x, *states, *layer.parameters()])

    assert_as_the_loop(way, LAYERS["lstm"]().double(), calls=3)


def test_one_pass_back_for_both(together: list[int]) -> None:
    layer = LAYERS["lstm"](num_layers=2).double()
    assert_as_the_loop(second_order, layer)
    assert together == [1, 1]
    together.clear()
    assert_as_the_loop(of_two_backwards, layer)
    assert sorted(together) == [1, 1, 2, 2]


def test_weights_that_were_frozen_in_forward(together: list[int]) -> None:
    """Its node takes no gradients to them."""

    def way(layer: nn.Module, x: Tensor) -> Sequence[Tensor]:
        layer.requires_grad_(False)
        y = layer(x)[0]
        layer.requires_grad_(True)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), [x, *layer.parameters()])

    layer = LAYERS["gru"]().double()
    with rnnfast.use_backend("cpu"):
        found = way(layer, X.clone().requires_grad_())
    assert not together
    assert all(d.abs().max() > 1e-6 for d in found[:3])


def test_what_a_run_that_failed_left_is_dropped() -> None:
    """It ended between the two nodes."""
    layer, fails = LAYERS["lstm"]().double(), [True]

    def hook(_: Tensor) -> None:
        if fails.pop():
            raise ValueError("on its way to forward")

    def way(layer: nn.Module, x: Tensor) -> Sequence[Tensor]:
        y = layer(x)[0]
        seen = y * 1
        given = [x, *layer.parameters()]
        slopes = torch.autograd.grad(seen.square().sum(), given, create_graph=True)
        seen.register_hook(hook)
        fails[:] = [False, True]
        with pytest.raises(ValueError, match="on its way"):
            torch.autograd.grad(sum_of_squares(slopes), given, retain_graph=True)
        return torch.autograd.grad(sum_of_squares(slopes), given)

    assert_as_the_loop(way, layer)


def test_not_under_a_transform_or_the_older_vmap(together: list[int]) -> None:
    layer = LAYERS["gru"]().double()

    def batched(layer: nn.Module, x: Tensor) -> Sequence[Tensor]:
        _, (dx, *_) = first_order(layer, x)
        rows = torch.stack([torch.ones_like(dx), dx.detach()])
        return torch.autograd.grad(dx, [x, *layer.parameters()], rows, is_grads_batched=True)

    def mapped(layer: nn.Module, x: Tensor) -> Sequence[Tensor]:
        _, (dx, *_) = first_order(layer, x)

        def along(v: Tensor) -> Tensor:
            return torch.autograd.grad(dx, x, v, retain_graph=True)[0]

        return [torch.func.vmap(along)(torch.stack([torch.ones_like(dx), dx.detach()]))]

    assert_as_the_loop(batched, layer)
    assert not together
    assert_as_the_loop(mapped, layer)
    assert not together


@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_of_the_op_itself(cell: str, groups: int, no_loop: Callable[[], None]) -> None:
    """By finite differences, and no loop runs."""
    spec, make = rnnfast.CELLS[cell], torch.manual_seed(5)
    T, B, I, H = 3, 2, 2, 3

    def new(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=make).requires_grad_()

    names = spec.weight_names("dense", True)
    rows = spec.gates * H
    shapes = {"w_ih": (rows, I), "w_hh": (rows, H), "b_ih": (rows,), "b_hh": (rows,)}
    states, weights = [new(B, H) for _ in spec.states], [new(*shapes[name]) for name in names]
    dfinal, options = [new(B, H) for _ in spec.states], Options(reverse=True, training=True)
    lengths, resets = torch.tensor([3, 2]), torch.tensor([[0, 0], [0, 1], [0, 0]]).bool()

    def gradients(x: Tensor, dy: Tensor, *rest: Tensor) -> Sequence[Tensor]:
        own, given, last = (rest[a:b] for a, b in pairwise(cuts))
        scan = Scan(cell, "dense", x, list(own), list(given), lengths, resets, options)
        y, _, trace, saved = torch.ops.rnnfast.scan_forward(*pack(scan, "cpu"))
        outputs = (y, trace, saved, [True, True, True], groups)
        made = torch.ops.rnnfast.scan_backward(*pack(scan, "cpu"), dy, list(last), [], *outputs)
        return [made[0], *made[1], *made[2]]

    count = len(states)
    cuts = (0, count, count + len(weights), 2 * count + len(weights))
    no_loop()
    given = (new(T, B, I), new(T, B, H), *states, *weights, *dfinal)
    assert torch.autograd.gradcheck(gradients, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(gradients, given, fast_mode=True)


@pytest.mark.parametrize("calls", [1, 2])
def test_what_a_run_that_ended_had_left_goes(calls: int) -> None:
    """As of any graph: a hook that raises between the two nodes leaves nothing behind."""

    def run() -> list[weakref.ref[Any]]:
        layer, x = rnnfast.LSTM(3, 4).double(), torch.randn(5, 2, 3).double().requires_grad_()
        for _ in range(calls):
            y = layer(x)[0]
        (slope,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
        y.register_hook(lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            torch.autograd.grad((slope**2).sum(), x)
        return [weakref.ref(x), weakref.ref(layer)]

    with rnnfast.use_backend("cpu"):
        left = run()
    gc.collect()
    assert [of() for of in left] == [None, None]


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
@pytest.mark.parametrize("name", ["rnn_tanh", "lstm", "gru", "lstm_proj", "mgu"])
def test_second_derivatives_under_the_older_vmap(
    name: str, strategy: str, no_loop: Callable[[], None]
) -> None:
    """torch.autograd's own: hessian(vectorize=True), is_grads_batched=True."""
    layer = LAYERS[name]().double()

    def f(x: Tensor) -> Tensor:
        return layer(x)[0].square().sum()

    def batched(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(f(x), x, create_graph=True)
        eye = torch.eye(g.numel(), dtype=g.dtype).view(g.numel(), *g.shape)
        (found,) = torch.autograd.grad(g, x, eye, is_grads_batched=True)
        return found.view(*x.shape, *x.shape)

    of_torch = torch.autograd.functional.hessian
    with rnnfast.use_backend("reference"):
        expected = of_torch(f, X)
    no_loop()
    with rnnfast.use_backend("cpu"):
        found = of_torch(f, X, vectorize=True, outer_jacobian_strategy=strategy)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(batched(X), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bias": False}, {"grad_clip_time": 0.05}])
def test_of_weights_under_the_older_vmap(options: dict[str, Any]) -> None:
    """Of second order, and what that is differentiated again."""
    layer, lengths = LAYERS["lstm"](**options).double(), torch.tensor([4, 0, 2])

    def derivatives() -> Any:
        x = X.clone().requires_grad_()
        given = [x, *layer.parameters()]
        loss = layer(x, lengths=lengths)[0].square().sum()
        slopes = torch.autograd.grad(loss, given, create_graph=True)
        rows = [torch.stack([g.detach(), g.detach().cos()]) for g in slopes]
        options = {"is_grads_batched": True, "create_graph": True}
        found = torch.autograd.grad(slopes, given, rows, **options)
        return *found, *torch.autograd.grad(sum_of_squares(found), given)

    found = []
    for name in ("cpu", "reference"):
        with rnnfast.use_backend(name):
            found.append([d.detach() for d in derivatives()])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)

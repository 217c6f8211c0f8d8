"""Every transform of torch through the kernels, held against the loop in plain torch, which torch
transforms; and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp

import rnnfast
from rnnfast import _ext, library, tangents
from rnnfast.cells import CELLS
from rnnfast.cells.tangent import tangent_cell
from rnnfast.problem import Options, Scan
from rnnfast.products.arithmetic import Rounding
from rnnfast.products.gates import GateMajor, UnitMajor, slots_of
from rnnfast.products.gradients import Backward
from rnnfast.steps.check import check

from .layers import makers

pytestmark = pytest.mark.skipif(
    library.why_not() is not None or _ext.why_no_cpu() is not None,
    reason=f"nothing compiles here: {library.why_not()}",
)
T, B, I, H = 4, 3, 2, 5
LAYERS = makers(I, H, proj_size=2, own=True)
X, V = torch.randn(2, T, B, I, dtype=torch.float64, generator=torch.manual_seed(1)).unbind(0)
Parameters = dict[str, Tensor]


def check_second(outputs: Callable[..., Any], given: Any) -> None:
    """Second derivatives by finite differences: reverse over reverse, forward over reverse."""
    assert torch.autograd.gradgradcheck(outputs, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(
        outputs,
        given,
        fast_mode=True,
        check_fwd_over_rev=True,
        check_rev_over_rev=False,
        check_undefined_grad=False,
    )


class Called:
    """A layer as a function of its parameters and its input."""

    def __init__(self, layer: nn.Module, **options: Any) -> None:
        self.layer, self.options = layer, options
        self.p = {name: p.detach() for name, p in layer.named_parameters()}
        make = torch.manual_seed(2)
        self.dp = {
            n: torch.randn(p.shape, dtype=p.dtype, generator=make) for n, p in self.p.items()
        }

    def outputs(self, p: Parameters, x: Tensor, **options: Any) -> list[Tensor]:
        found = functional_call(self.layer, p, (x,), {**self.options, **options})
        return [t for t in torch.utils._pytree.tree_leaves(found) if isinstance(t, Tensor)]

    def y(self, p: Parameters, x: Tensor) -> Tensor:
        return self.outputs(p, x)[0]

    def loss(self, p: Parameters, x: Tensor) -> Tensor:
        return sum(output.square().sum() for output in self.outputs(p, x))

    def several(self) -> Parameters:
        return {name: torch.stack([p, 2 * p, -p]) for name, p in self.p.items()}


def per_sample(f: Called, p: Parameters, x: Tensor) -> Parameters:
    return torch.vmap(grad(f.loss), in_dims=(None, 1))(p, x)


def sum_of_squares(tensors: Any) -> Tensor:
    return sum(t.square().sum() for t in torch.utils._pytree.tree_leaves(tensors))


FIRST: dict[str, Callable[[Called], Any]] = {
    "vmap": lambda f: torch.vmap(partial(f.outputs, f.p), in_dims=1)(X),
    "per sample": lambda f: per_sample(f, f.p, X),
    "per sample, no batch of its own": lambda f: torch.vmap(
        grad(f.loss, argnums=1), in_dims=(None, 1)
    )(f.p, X.unsqueeze(2)),
    "grad of vmap": lambda f: grad(
        lambda p: torch.vmap(f.loss, in_dims=(None, 1))(p, X).square().sum()
    )(f.p),
    "jacrev by input": lambda f: jacrev(partial(f.y, f.p))(X),
    "jacrev by weights": lambda f: jacrev(f.y)(f.p, X),
    "ensemble": lambda f: torch.vmap(f.outputs, in_dims=(0, None))(f.several(), X),
    "ensemble's gradients": lambda f: torch.vmap(grad(f.loss), in_dims=(0, None))(f.several(), X),
    "jacobian, vectorised": lambda f: torch.autograd.functional.jacobian(
        partial(f.y, f.p), X, vectorize=True
    ),
}
FORWARD_MODE: dict[str, Callable[[Called], Any]] = {
    "jvp by input": lambda f: jvp(partial(f.outputs, f.p), (X,), (V,)),
    "jvp by weights": lambda f: jvp(lambda p: f.outputs(p, X), (f.p,), (f.dp,)),
    "jacfwd": lambda f: jacfwd(partial(f.y, f.p))(X),
    "linearize": lambda f: linearize(partial(f.y, f.p), X)[1](V),
    "dual numbers": lambda f: dual(f),
    "jacobian, forward mode": lambda f: torch.autograd.functional.jacobian(
        partial(f.y, f.p), X, vectorize=True, strategy="forward-mode"
    ),
}
SECOND: dict[str, Callable[[Called], Any]] = {
    "forward over reverse": lambda f: jvp(grad(f.loss, argnums=(0, 1)), (f.p, X), (f.dp, V)),
    "reverse over forward": lambda f: grad(
        lambda p: sum_of_squares(jvp(partial(f.outputs, p), (X,), (V,))[1])
    )(f.p),
    "reverse over reverse": lambda f: vjp(grad(f.loss), f.p, X)[1](f.dp),
    "gradient penalty": lambda f: grad(lambda p: sum_of_squares(grad(f.loss, argnums=1)(p, X)))(
        f.p
    ),
    "gradients of weights, by input": lambda f: grad(
        lambda x: sum_of_squares(grad(f.loss)(f.p, x))
    )(X),
    "hessian": lambda f: hessian(partial(f.loss, f.p))(X),
    "jacrev of jacrev": lambda f: jacrev(jacrev(partial(f.loss, f.p)))(X),
    "jvp of per sample": lambda f: jvp(partial(per_sample, f), (f.p, X), (f.dp, V)),
    "grad of per sample": lambda f: grad(
        lambda p, x: sum_of_squares(per_sample(f, p, x)), argnums=(0, 1)
    )(f.p, X),
}


def dual(f: Called) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f.y(f.p, forward_ad.make_dual(X, V))).tangent


def assert_as_the_loop(transform: Callable[[Called], Any], f: Called, backend: str = "cpu") -> None:
    found = []
    for name in (backend, "reference"):
        with rnnfast.use_backend(name):
            found.append(torch.utils._pytree.tree_leaves(transform(f)))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


@pytest.fixture
def no_loop(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """After a call of it the loop in plain torch is not there."""

    def forbidden(*_: Any) -> None:
        raise AssertionError("the loop in plain torch ran")

    def close() -> None:
        for loop in (
            "tangents.linearized_loop",
            "second.limited_gradients",
            "backends.reference.scratch_scan",
        ):
            monkeypatch.setattr(f"rnnfast.{loop}", forbidden)

    return close


EVERY = {**FIRST, **FORWARD_MODE, **SECOND}
SOME = ("per sample", "jvp by input", "jvp by weights", "reverse over reverse", "gradient penalty")
SPANNING = ("lstm_proj", "gru", "three_states")  # a projection, a gate's own product, no W_hh


@pytest.mark.parametrize("transform", EVERY)
@pytest.mark.parametrize("name", SPANNING)
def test_a_transform_as_the_loop_has_it(name: str, transform: str) -> None:
    assert_as_the_loop(EVERY[transform], Called(LAYERS[name]().double()))


@pytest.mark.parametrize("transform", SOME)
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in SPANNING])
def test_transforms_of_every_cell(name: str, transform: str) -> None:
    assert_as_the_loop(EVERY[transform], Called(LAYERS[name]().double()))


@pytest.mark.parametrize(
    "transform", ["jvp by weights", "forward over reverse", "gradient penalty"]
)
@pytest.mark.parametrize("name", LAYERS)
def test_transforms_of_one_step(name: str, transform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose weights are read where they lie."""
    monkeypatch.setitem(globals(), "X", X[:1])
    monkeypatch.setitem(globals(), "V", V[:1])
    assert_as_the_loop(EVERY[transform], Called(LAYERS[name]().double()))


@pytest.mark.parametrize("transform", EVERY)
def test_no_transform_takes_the_loop(transform: str, no_loop: Callable[[], None]) -> None:
    no_loop()
    with rnnfast.use_backend("cpu"):
        EVERY[transform](Called(LAYERS["gru"]().double()))


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lengths": ({}, {"lengths": torch.tensor([4, 0, 2])}),
    "resets": ({}, {"resets": (torch.arange(T * B) % 5 == 3).view(T, B)}),
    "both": (
        {"bidirectional": True},
        {"lengths": torch.tensor([3, 4, 2]), "resets": (torch.arange(T * B) % 4 == 2).view(T, B)},
    ),
    "layers": ({"num_layers": 2, "bidirectional": True}, {"return_all_states": True}),
    "no bias": ({"bias": False}, {}),
    "checkpoint": ({"checkpoint_every": 2}, {"lengths": torch.tensor([4, 1, 3])}),
    "zoneout": ({"zoneout": 0.2}, {}),
}
BATCHED = (  # whose vmap does not go over the batch, which options are for
    "jacrev by input",
    "ensemble's gradients",
    "jvp by input",
    "jvp by weights",
    "forward over reverse",
    "reverse over reverse",
    "gradient penalty",
)


@pytest.mark.parametrize("transform", BATCHED)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_transform_with_options(name: str, options: str, transform: str) -> None:
    of_layer, of_call = OPTIONS[options]
    f = Called(LAYERS[name](**of_layer).double().eval(), **of_call)
    assert_as_the_loop(EVERY[transform], f)


@pytest.mark.parametrize("name", ["lstm", "gru", "own_gru"])
def test_per_sample_gradients_with_lengths_and_resets(name: str) -> None:
    lengths, resets = torch.tensor([4, 0, 2]), (torch.arange(T * B) % 5 == 3).view(T, 1, B)
    h0 = torch.randn(B, 1, 1, H, dtype=torch.float64)

    def gradients(f: Called) -> Any:
        def loss(p: Parameters, x: Tensor, h: Tensor, length: Tensor, resets: Tensor) -> Tensor:
            state = (h, h.cos()) if name == "lstm" else h
            found = functional_call(f.layer, p, (x, state), {"lengths": length, "resets": resets})
            return sum_of_squares(found)

        each = torch.vmap(grad(loss, argnums=(0, 1, 2)), in_dims=(None, 1, 0, 0, 2))
        return each(f.p, X.unsqueeze(2), h0, lengths.unsqueeze(-1), resets)

    assert_as_the_loop(gradients, Called(LAYERS[name]().double()))


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before", "own_lstm"])
def test_per_sample_gradients_of_tokens(name: str) -> None:
    tokens = torch.randint(I, (T, B), generator=torch.manual_seed(3))

    def gradients(f: Called) -> Any:
        return torch.vmap(grad(f.loss), in_dims=(None, 1))(f.p, tokens.unsqueeze(-1))

    f = Called(LAYERS[name]().double())
    assert_as_the_loop(gradients, f)
    assert_as_the_loop(lambda f: jvp(lambda p: f.y(p, tokens), (f.p,), (f.dp,)), f)


def test_a_vmap_in_a_vmap() -> None:
    x = torch.randn(2, T, B, I, dtype=torch.float64)

    def gradients(f: Called) -> Any:
        return torch.vmap(lambda x: per_sample(f, f.p, x))(x)

    assert_as_the_loop(gradients, Called(LAYERS["lstm"]().double()))


LIMITS = (0.05, ("zero", 0.05))


@pytest.mark.parametrize("transform", [*BATCHED, "per sample", "jvp of per sample"])
@pytest.mark.parametrize("mode", LIMITS)
def test_gradients_that_are_clipped_on_their_way(mode: Any, transform: str) -> None:
    assert_as_the_loop(EVERY[transform], Called(LAYERS["gru"](grad_clip_time=mode).double()))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["lstm_proj", "gru"])
@pytest.mark.parametrize("mode", LIMITS)
def test_limited_gradients_against_finite_differences(mode: Any, name: str, backend: str) -> None:
    """Of the gradient as it is, limited; gradients beside it enter the same backward."""
    lengths, resets = torch.tensor([4, 2, 3]), (torch.arange(T * B) % 5 == 3).view(T, B)
    f = Called(LAYERS[name](grad_clip_time=mode).double(), lengths=lengths, resets=resets)
    names = list(f.p)
    given = [t.clone().requires_grad_() for t in (X, *f.p.values())]

    def outputs(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(f.outputs(dict(zip(names, weights, strict=True)), x))

    with rnnfast.use_backend(backend):
        check_second(outputs, given)
        slope = torch.autograd.grad(f.loss(f.p, given[0]), given[0])[0]
        plain = Called(LAYERS[name]().double(), lengths=lengths, resets=resets)
        free = torch.autograd.grad(plain.loss(f.p, given[0]), given[0])[0]
    assert (slope - free).abs().max() > 1e-3  # the limit was reached


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("mode", [0.5, ("zero", 0.5)])
def test_the_derivative_at_the_limit_itself(mode: Any, backend: str) -> None:
    """That of torch.clamp, whichever it is; what is zeroed only beyond the limit is kept at it."""
    weights = [torch.ones(3, 1), torch.eye(3), torch.zeros(3), torch.zeros(3)]
    h = torch.ones(1, 3, requires_grad=True)
    dy = torch.tensor([[[0.5, -0.5, 0.75]]], requires_grad=True)
    y = rnnfast.scan(
        "rnn_relu", torch.ones(1, 1, 1), [h], weights, grad_clip_time=mode, backend=backend
    ).y
    (dh,) = torch.autograd.grad(y, h, dy, create_graph=True)
    (ddy,) = torch.autograd.grad(dh.sum(), dy)
    expected = torch.tensor([[[1.0, 1.0, 0.0]]])
    if mode == 0.5:
        (expected,) = torch.autograd.grad(dy.clamp(-0.5, 0.5).sum(), dy)
    assert torch.equal(ddy, expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_gradient_beside_a_penalty_is_limited_by_itself(backend: str) -> None:
    f = Called(LAYERS["gru"](grad_clip_time=0.05).double())

    def found(penalty: float, loss: float) -> list[Tensor]:
        x = X.clone().requires_grad_()
        y = f.y(dict(f.layer.named_parameters()), x)
        value = (y * torch.arange(y.numel()).view_as(y)).sum()  # linear: y's gradient is a constant
        (dx,) = torch.autograd.grad(value, x, create_graph=True)
        total = penalty * sum_of_squares(dx) + loss * value
        return list(torch.autograd.grad(total, list(f.layer.parameters())))

    with rnnfast.use_backend(backend):
        both = [a + b for a, b in zip(found(1, 0), found(0, 1), strict=True)]
        torch.testing.assert_close(found(1, 1), both)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["lstm", "gru", "own_gru"])
def test_lower_precision_is_near_float64(name: str, dtype: torch.dtype) -> None:
    f, exact = Called(LAYERS[name]().to(dtype)), Called(LAYERS[name]().double())
    exact.p = {n: p.double() for n, p in f.p.items()}
    x, v = X.to(dtype), V.to(dtype)
    bound = 0.05 if dtype == torch.bfloat16 else 1e-4
    with rnnfast.use_backend("cpu"):
        for found, expected in (
            (per_sample(f, f.p, x), per_sample(exact, exact.p, x.double())),
            (
                jvp(partial(f.y, f.p), (x,), (v,))[1],
                jvp(partial(exact.y, exact.p), (x.double(),), (v.double(),))[1],
            ),
        ):
            pairs = zip(*map(torch.utils._pytree.tree_leaves, (found, expected)), strict=True)
            for a, b in pairs:
                assert a.dtype == dtype
                assert (a.double() - b).abs().max() <= bound * (1 + b.abs().max())


# --- against finite differences -------------------------------------------------------------------


@pytest.mark.parametrize("options", ["plain", "both", "layers"])
@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_against_finite_differences(name: str, options: str) -> None:
    of_layer, of_call = OPTIONS.get(options, ({}, {}))
    f = Called(LAYERS[name](**of_layer).double(), **of_call)
    names = list(f.p)
    given = [t.clone().requires_grad_() for t in (X, *f.p.values())]

    def outputs(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(f.outputs(dict(zip(names, weights, strict=True)), x))

    with rnnfast.use_backend("cpu"):
        assert torch.autograd.gradcheck(
            outputs, given, fast_mode=True, check_forward_ad=True, check_batched_grad=True
        )
        check_second(outputs, given)


def test_a_third_derivative() -> None:
    """Of the tangent of the tangent."""

    def third(f: Called) -> Any:
        def slope(x: Tensor) -> Tensor:
            return sum_of_squares(grad(lambda x: f.loss(f.p, x))(x))

        return grad(lambda x: sum_of_squares(grad(slope)(x)))(X)

    assert_as_the_loop(third, Called(LAYERS["gru"]().double()))


@pytest.mark.parametrize("weights_too", [False, True])
# of those that are there without other tests: a cell with settings has a bracket in its name
@pytest.mark.parametrize(
    "cell", [n for n in CELLS if ":" not in n and "[" not in n and "tangent" not in n]
)
def test_the_tangent_of_every_cell(cell: str, weights_too: bool) -> None:
    P = 3 if CELLS[cell].projected else 8
    check(CELLS[tangent_cell(cell, P, True, weights_too)], 8, False)


# --- where there are no kernels for tangents ------------------------------------------------------


@pytest.mark.parametrize(
    "transform", ["jvp by input", "jvp by weights", "dual numbers", "jacfwd", "gradient penalty"]
)
def test_without_kernels_for_tangents(transform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tangents, "kernels_for", lambda *_: None)
    assert_as_the_loop(EVERY[transform], Called(LAYERS["lstm_proj"]().double()))


# --- gradients of the weights for each part of the batch ------------------------------------------


@pytest.mark.parametrize("unit_major", [False, True])
@pytest.mark.parametrize("kind", ["dense", "tokens", "gates"])
@pytest.mark.parametrize(
    "cell", ["rnn_tanh", "lstm", "lstm_proj", "gru", "gru_reset_before", "mgu"]
)
@pytest.mark.parametrize("reverse", [False, True])
def test_products_of_groups(cell: str, kind: str, unit_major: bool, reverse: bool) -> None:
    spec, groups, size = CELLS[cell], 3, 2
    P = 4 if spec.projected else H
    shapes = {"w_ih": (I,), "w_hh": (P,), "b_ih": (), "b_hh": ()}
    weights = [
        torch.randn(P, H) if n == "w_hr" else torch.randn(spec.gates * H, *shapes[n])
        for n in spec.weight_names(kind, True)
    ]
    N = groups * size
    inputs = {
        "dense": torch.randn(T, N, I),
        "tokens": torch.randint(I, (T, N)),
        "gates": torch.randn(T, N, spec.gates * H),
    }
    lengths = torch.randint(T + 1, (N,))
    states = [torch.randn(N, width) for width in spec.state_widths(P, H)]
    resets = torch.rand(T, N) < 0.3
    y, dgates = torch.randn(T, N, P), torch.randn(T, N, H, slots_of(spec))
    extra, doutput = torch.randn(T, N, H), torch.randn(T, N, P)
    options = Options(reverse=reverse, training=True)

    def found(at: slice, groups: int) -> list[Tensor]:
        of = dgates[:, at]
        made: Any = UnitMajor(spec, of)
        if not unit_major:
            own = of[..., spec.gates] if spec.own_product_gate is not None else None
            made = GateMajor(spec, of[..., : spec.gates].transpose(-1, -2).flatten(-2), own)
        scan = Scan(
            cell,
            kind,
            inputs[kind][:, at],
            [s[at] for s in states],
            weights,
            lengths[at],
            resets[:, at],
            options,
        )
        operands = {spec.extra: extra[:, at]}
        rounding = Rounding(torch.float32)
        return Backward(scan, y[:, at], made, rounding, operands, doutput[:, at], groups).weights()

    together = found(slice(None), groups)
    apart = [found(slice(g * size, (g + 1) * size), 0) for g in range(groups)]
    torch.testing.assert_close(together, [torch.stack(each) for each in zip(*apart, strict=True)])

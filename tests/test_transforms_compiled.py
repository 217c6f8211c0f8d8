"""Derivatives by torch.func under torch.compile(fullgraph=True): by the ops, as in eager code."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.backends.common
from torch import Tensor
from torch.func import functional_call, grad, hessian, jvp, vjp

import rnnfast
from rnnfast import _ext, library, tangents

from .layers import makers

pytestmark = pytest.mark.skipif(
    library.why_not() is not None or _ext.why_no_cpu() is not None,
    reason=f"nothing compiles here: {library.why_not()}",
)
T, B, I, H = 4, 3, 2, 5
LAYERS = makers(I, H, proj_size=2, own=True)
X, V = torch.randn(2, T, B, I, dtype=torch.float64, generator=torch.manual_seed(1)).unbind(0)
Loss = Callable[[dict[str, Tensor], Tensor], Tensor]


def squares(tensors: dict[str, Tensor]) -> Tensor:
    return sum(t.square().sum() for t in tensors.values())


# Of a loss, parameters, a direction of them, and an input.
TRANSFORMS: dict[str, Callable[[Loss, Any, Any, Tensor], Any]] = {
    "grad": lambda f, p, dp, x: grad(f, argnums=(0, 1))(p, x),
    "per sample": lambda f, p, dp, x: torch.vmap(
        grad(lambda p, x: f(p, x[:, None])), in_dims=(None, 1)
    )(p, x),
    "jvp by input": lambda f, p, dp, x: jvp(lambda x: f(p, x), (x,), (V,)),
    "jvp by weights": lambda f, p, dp, x: jvp(lambda p: f(p, x), (p,), (dp,)),
    "forward over reverse": lambda f, p, dp, x: jvp(lambda p: grad(f)(p, x), (p,), (dp,)),
    "reverse over reverse": lambda f, p, dp, x: vjp(lambda p: grad(f)(p, x), p)[1](dp),
    "gradient penalty": lambda f, p, dp, x: grad(lambda p: grad(f, argnums=1)(p, x).square().sum())(
        p
    ),
    "grad of per sample": lambda f, p, dp, x: grad(
        lambda p: squares(torch.vmap(grad(f), in_dims=(None, 1))(p, x[:, :, None]))
    )(p),
    "hessian": lambda f, p, dp, x: hessian(lambda x: f(p, x))(x),
}


def of_layer(name: str, transform: str, **options: Any) -> Callable[[], Any]:
    """``transform`` of a loss of the layer; it differs with the seed."""
    torch.manual_seed(0)
    layer = LAYERS[name](**options).double()
    p = {n: w.detach() for n, w in layer.named_parameters()}
    dp = {n: torch.randn_like(w) for n, w in p.items()}

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, p, (x,))[0].square().sum()

    return lambda: TRANSFORMS[transform](loss, p, dp, X)


def graphs_of(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What it returns, compiled, and the functions that its graph calls."""
    calls: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=keep)
    return torch.compile(call, fullgraph=True, backend=backend)(), calls


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        *(("lstm", transform) for transform in TRANSFORMS),
        ("gru", "per sample"),
        ("lstm_proj", "forward over reverse"),
        ("own_gru", "gradient penalty"),
    ],
)
def test_a_compiled_transform_is_the_kernels(name: str, transform: str) -> None:
    with rnnfast.use_backend("cpu"):
        call = of_layer(name, transform)
        found, calls = graphs_of(call)
        torch.testing.assert_close(found, call(), rtol=1e-10, atol=1e-12)
    assert any("rnnfast.scan_" in name for name in calls)
    loops = [name for name in calls if "aten.sigmoid" in name or "aten.tanh" in name]
    assert not loops


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("transform", ["grad", "per sample", "forward over reverse"])
def test_the_compiled_gradient_is_clipped_on_its_way(backend: str, transform: str) -> None:
    with rnnfast.use_backend(backend):
        call = of_layer("gru", transform, grad_clip_time=0.05)
        free = of_layer("gru", transform)()
        found, expected = graphs_of(call)[0], call()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    leaves = torch.utils._pytree.tree_leaves
    pairs = zip(leaves(expected), leaves(free), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) > 1e-3  # the limit was reached


def test_forward_mode_in_forward_mode_is_refused_under_a_compiler() -> None:
    """Its tangents would be lost: torch has forward mode off, at all levels, within a jvp."""
    layer = LAYERS["gru"]().double()

    def second(x: Tensor) -> Tensor:
        def slope(x: Tensor) -> Tensor:
            return jvp(lambda x: layer(x)[0], (x,), (V,))[1]

        return jvp(slope, (x,), (V,))[1]

    torch._dynamo.reset()
    compiled = torch.compile(second, fullgraph=True, backend="aot_eager")
    with rnnfast.use_backend("cpu"):
        second(X)
        with pytest.raises(Exception, match="forward mode in forward mode"):
            compiled(X)
    torch._dynamo.reset()
    assert_no_level_is_left()


@pytest.mark.parametrize("transform", ["jvp by input", "forward over reverse"])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_forward_mode_under_a_compiler_needs_kernels(
    clip: float, transform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tangents, "kernels_for", lambda *_: None)
    with rnnfast.use_backend("cpu"):
        call = of_layer("gru", transform, grad_clip_time=clip)
        call()
        with pytest.raises(Exception, match="needs kernels for tangents"):
            graphs_of(call)
    torch._dynamo.reset()
    assert_no_level_is_left()


def assert_no_level_is_left() -> None:
    assert torch.autograd.forward_ad._current_level < 0
    assert torch._C._functorch.get_interpreter_stack() is None


def loss_of(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(GIVEN_UP, p, (x[:, None],))[0].square().sum()


def given_up(p: dict[str, Tensor], x: Tensor) -> Tensor:
    os.stat(os.devnull)  # which Dynamo can't trace
    return loss_of(p, x)


def per_sample() -> Any:
    p = {n: w.detach() for n, w in GIVEN_UP.named_parameters()}
    return torch.vmap(grad(given_up), in_dims=(None, 1))(p, X)


GIVEN_UP = LAYERS["gru"]().double()


def test_what_runs_where_dynamo_gives_up_is_not_compiled() -> None:
    """There it tries each function within: it must not reach those of our nodes, which go through
    the levels of torch.func, and which it takes for code without any."""
    torch._dynamo.reset()
    with rnnfast.use_backend("cpu"):
        found = torch.compile(per_sample, backend="eager")()
        torch.testing.assert_close(found, per_sample())
    torch._dynamo.reset()

"""torch.func, forward-mode AD, torch.compile and export through the layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.fx.experimental.proxy_tensor
from torch import Tensor, nn

import rnnfast
from rnnfast.backends import torch_native

from .cases import taking
from .layers import makers

T, B, I, H = 4, 3, 2, 5
LAYERS = makers(I, H, proj_size=2, own=True)


@pytest.mark.parametrize("name", LAYERS)
def test_per_sample_gradients(name: str) -> None:
    layer = LAYERS[name]().double()
    x = torch.randn(T, B, I, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict, sample: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (sample,))[0].square().sum()

    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 1))(parameters, x)
    for b in range(B):
        layer.zero_grad()
        layer(x[:, b])[0].square().sum().backward()
        for key, parameter in layer.named_parameters():
            torch.testing.assert_close(found[key][b], parameter.grad)


def test_an_ensemble_by_vmap() -> None:
    layers = [LAYERS["gru"]().double() for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(layers)
    x = torch.randn(T, B, I, dtype=torch.float64)

    def one(parameters: dict) -> Tensor:
        return torch.func.functional_call(layers[0], parameters, (x,))[0]

    found = torch.vmap(one)(stacked)
    torch.testing.assert_close(found, torch.stack([layer(x)[0] for layer in layers]))


@pytest.mark.parametrize("name", LAYERS)
def test_forward_mode(name: str) -> None:
    layer = LAYERS[name](bidirectional=True).double()
    x, v = torch.randn(2, T, B, I, dtype=torch.float64).unbind(0)
    _, found = torch.func.jvp(lambda x: layer(x)[0], (x,), (v,))
    step = 1e-6
    expected = (layer(x + step * v)[0] - layer(x - step * v)[0]) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x, v))[0]
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, found)


def test_double_backward_through_a_layer() -> None:
    layer = LAYERS["lstm"](num_layers=2).double()
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], [x], fast_mode=True)


# --- torch.compile -----------------------------------------------------------------------------

CALLS = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([4, 0, 2])},
    "resets": {"resets": torch.tensor([[True, False, False]]).expand(T, B)},
    "all_states": {"return_all_states": True},
}


def flat(outputs) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", LAYERS)
def test_fullgraph(name: str, call: str) -> None:
    torch._dynamo.reset()
    layer = LAYERS[name](num_layers=2, bidirectional=True).double()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    found, expected = flat(compiled(x, **CALLS[call])), flat(layer(x, **CALLS[call]))
    torch.testing.assert_close(found, expected)
    wanted = [x, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(sum(o.square().sum() for o in found), wanted),
        torch.autograd.grad(sum(o.square().sum() for o in expected), wanted),
    )


@pytest.mark.parametrize("backend", taking(torch.float64))
def test_fullgraph_with_a_backend_by_name(backend: str) -> None:
    torch._dynamo.reset()
    layer = LAYERS["gru"]().double()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(T, B, I, dtype=torch.float64)
    with rnnfast.use_backend(backend):
        torch.testing.assert_close(compiled(x), layer(x))


def test_the_graph_holds_one_op_a_direction() -> None:
    torch._dynamo.reset()
    graphs: list = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    layer = LAYERS["lstm"](num_layers=2, bidirectional=True)
    torch.compile(layer, fullgraph=True, backend=keep)(torch.randn(T, B, I))
    (graph,) = graphs
    ops = [n for n in graph.graph.nodes if "scan_forward" in str(n.target)]
    assert len(ops) == 4


def test_dynamic_sizes_compile_once() -> None:
    torch._dynamo.reset()
    layer = LAYERS["lstm"]()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    compilations = []
    for steps, batch in ((4, 3), (7, 5), (9, 2)):
        x = torch.randn(steps, batch, I)
        torch.testing.assert_close(compiled(x), layer(x))
        compilations.append(counter.frame_count)
    assert compilations[0] > 0
    assert len(set(compilations)) == 1


def test_inductor() -> None:
    torch._dynamo.reset()
    layer = LAYERS["gru"]()
    x = torch.randn(T, B, I)
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


def test_compiled_tokens_and_autocast() -> None:
    torch._dynamo.reset()
    layer = LAYERS["lstm"]()
    tokens = torch.randint(I, (T, B))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), layer(tokens))
    with torch.autocast("cpu", torch.bfloat16):
        y = compiled(torch.randn(T, B, I))[0]
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("hidden", [3, 5])  # torch's kernel is asked about first, and not at all
def test_a_tracer_need_not_know_whether_onednn_has_an_lstm(hidden: int) -> None:
    torch._dynamo.reset()
    torch_native._tried.cache_clear()
    compiled = torch.compile(rnnfast.LSTM(I, hidden), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(torch.randn(T, B, I))[0].dtype == torch.bfloat16


def test_export() -> None:
    layer = LAYERS["lstm"](num_layers=2).eval()
    x = torch.randn(T, B, I)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


def test_compat_layers_compile_with_a_graph_break() -> None:
    """A subclass of nn.LSTM: Dynamo breaks its graph there, and the numbers stay right."""
    torch._dynamo.reset()
    model = nn.Sequential(rnnfast.compat.LSTM(I, H))
    x = torch.randn(T, B, I)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), model(x))


# --- who records torch's calls must see the op ----------------------------------------------------


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_recorded_calls_replay_on_other_input(name: str) -> None:
    layer = LAYERS[name]()
    x, other = torch.randn(2, T, B, I).unbind(0)
    with torch.no_grad(), rnnfast.use_backend("reference"):
        expected = layer(other)[0]
    with torch.no_grad():
        traced = torch.fx.experimental.proxy_tensor.make_fx(lambda x: layer(x)[0])(x)
        torch.testing.assert_close(traced(other), expected)


def test_fake_tensors_have_shapes() -> None:
    layer = LAYERS["gru"]()
    mode = torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        y, h = layer(torch.randn(T, B, I))
    assert (y.shape, h.shape) == ((T, B, H), (1, B, H))


def test_vmap_over_a_vjp_of_an_eager_call() -> None:
    layer = LAYERS["gru"]().double()
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    y, _ = layer(x)
    rows = torch.randn(3, *y.shape, dtype=torch.float64)

    def dx(row: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, row, retain_graph=True)[0]

    torch.testing.assert_close(torch.func.vmap(dx)(rows), torch.stack([dx(r) for r in rows]))


def test_an_infinite_state_stays_behind_a_reset() -> None:
    eye = torch.eye(2)
    for backend in taking(torch.float32):
        if backend == "torch":
            continue  # has no resets
        w = eye.clone().requires_grad_()
        x = torch.tensor([[[torch.inf, 1.0]], [[1.0, 1.0]]])
        resets = torch.tensor([[False], [True]])
        y = rnnfast.scan(
            "rnn_relu", x, [torch.zeros(1, 2)], [eye, w], resets=resets, backend=backend
        ).y
        (dw,) = torch.autograd.grad(y[1].sum(), w)
        assert bool((dw == 0).all()), backend


@pytest.mark.parametrize("lengths", [None, [4, 2]], ids=["whole", "lengths"])
@pytest.mark.parametrize("cls", [rnnfast.LSTM, rnnfast.GRU, rnnfast.RNN])
def test_batched_gradients_are_differentiated(cls: Any, lengths: list[int] | None) -> None:
    """Of the weights there is one for each cotangent, in the op's own record too."""
    torch.manual_seed(0)
    layer = cls(3, 5, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    wanted = [x, *layer.parameters()]
    cotangents = torch.randn(2, 4, 2, 5, dtype=torch.float64)
    given = {} if lengths is None else {"lengths": torch.tensor(lengths)}
    found = []
    for backend in ("cpu", "reference"):
        with rnnfast.use_backend(backend):
            y = layer(x, **given)[0]
            first = torch.autograd.grad(
                y, wanted, cotangents, is_grads_batched=True, create_graph=True
            )
            loss = torch.stack([g.square().sum() for g in first]).sum()
            found.append(torch.autograd.grad(loss, wanted))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cls", [rnnfast.LSTM, rnnfast.GRU, rnnfast.RNN])
def test_forward_mode_of_no_sequence(cls: Any) -> None:
    layer, x = cls(3, 5), torch.zeros(4, 0, 3)
    _, moved = torch.func.jvp(lambda x: layer(x)[0], (x,), (x,))
    assert moved.shape == (4, 0, 5)

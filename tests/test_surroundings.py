"""What surrounds a call and changes who can serve it: compilers, transforms, modes, subclasses.

A question about the surroundings that is not asked gives wrong numbers without a word: here each
way in is asked for every kind of surrounding, and compared with the plain call.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing._internal.two_tensor import TwoTensor
from torch.torch_version import TorchVersion

import rnnfast
from rnnfast import CELLS, ops

from .cases import taking
from .layers import makers

T, B, I, H = 3, 3, 2, 4
LAYERS = makers(I, H, proj_size=2)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(T, B, I, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# --- torch.func within torch.compile, and around it ----------------------------------------------


def tangent(layer: nn.Module, x: Tensor) -> Tensor:
    v = torch.cos(torch.arange(x.numel(), dtype=x.dtype)).reshape(x.shape)
    return torch.func.jvp(lambda x: layer(x)[0], (x,), (v,))[1]


def loss(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)[0].square().sum()


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "jvp": tangent,
    "jacfwd": lambda m, x: torch.func.jacfwd(lambda x: m(x)[0].sum(0))(x),
    "grad": lambda m, x: torch.func.grad(lambda x: loss(m, x))(x),
    "jacrev": lambda m, x: torch.func.jacrev(lambda x: m(x)[0].sum(0))(x),
    "hessian": lambda m, x: torch.func.hessian(lambda x: loss(m, x))(x),
    "vmap": lambda m, x: torch.func.vmap(lambda x: m(x)[0], 1)(x),
    "per_sample": lambda m, x: torch.func.vmap(torch.func.grad(lambda x: loss(m, x)), 1)(x),
}


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_compiled_transform(name: str, transform: str, compiler: str, x: Tensor) -> None:
    layer = LAYERS[name]().double()
    run = TRANSFORMS[transform]
    expected = run(layer, x)
    assert float(expected.detach().abs().max()) > 0
    compiled = torch.compile(lambda x: run(layer, x), backend=compiler, fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_a_compiled_tangent_of_every_layer(name: str, x: Tensor) -> None:
    layer = LAYERS[name](bidirectional=True).double()
    expected = tangent(layer, x)
    compiled = torch.compile(lambda x: tangent(layer, x), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_of_a_compiled_layer(transform: str, compiler: str, x: Tensor) -> None:
    layer = LAYERS["gru"]().double()
    expected = TRANSFORMS[transform](layer, x)
    compiled = torch.compile(layer, backend=compiler)
    torch.testing.assert_close(TRANSFORMS[transform](compiled, x), expected)


def test_the_compiler_stays_out_of_what_it_gave_up(
    x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = [], ops.run_forwards

    def run_forwards(*args: Any) -> Any:
        seen.append(torch._C._dynamo.eval_frame.get_eval_frame_callback())
        return real(*args)

    monkeypatch.setattr(ops, "run_forwards", run_forwards)
    layer = torch.compile(LAYERS["gru"]().double(), backend="aot_eager")
    torch.func.vmap(lambda x: layer(x)[0], 1)(x)
    assert seen == [None]


EAGER = """
import sys, torch, rnnfast
layer, x = rnnfast.GRU(2, 5), torch.ones(4, 3, 2)
torch.func.jvp(lambda x: layer(x)[0], (x,), (x,))
torch.func.vmap(lambda x: layer(x)[0], 1)(x)
assert "torch._dynamo" not in sys.modules
"""


def test_transforms_in_eager_code_import_no_compiler() -> None:
    subprocess.run([sys.executable, "-c", EAGER], check=True)


def test_dual_numbers_reach_the_op(x: Tensor) -> None:
    layer = LAYERS["lstm"]().double()
    expected, v = tangent(layer, x), torch.cos(torch.arange(x.numel(), dtype=x.dtype))
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda x: layer(x)[0])(x)
    assert "scan_forward" in graph.code
    with torch.autograd.forward_ad.dual_level():
        dual = graph(torch.autograd.forward_ad.make_dual(x, v.reshape(x.shape)))
        found = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(found, expected)


def test_a_backend_by_name_refuses_a_compiled_tangent(x: Tensor) -> None:
    layer = LAYERS["gru"]().double()
    compiled = torch.compile(lambda x: tangent(layer, x), backend="eager", fullgraph=True)
    with rnnfast.use_backend("torch"), pytest.raises(Exception, match="forward-mode AD"):
        compiled(x)


def test_gradients_of_a_call_outside_of_the_transform(x: Tensor) -> None:
    layer = LAYERS["gru"]().double()
    x.requires_grad_()
    y, _ = layer(x)

    def dx(dy: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, dy, retain_graph=True)[0]

    dy, along = torch.randn_like(y), torch.randn_like(y)
    expected = dx(along)  # which is linear
    found = torch.func.jvp(dx, (dy.detach(),), (along.detach(),))
    torch.testing.assert_close(found, (dx(dy), expected))
    with torch.autograd.forward_ad.dual_level():
        made = dx(torch.autograd.forward_ad.make_dual(dy.detach(), along.detach()))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(made).tangent, expected)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("backend", taking(torch.float64))
def test_vectorised_jacobians(backend: str, create_graph: bool, x: Tensor) -> None:
    """``vectorize=True`` batches the gradients by a vmap that is older than torch.func's."""
    layer = LAYERS["lstm"](num_layers=2).double()
    options = {"create_graph": create_graph}
    with rnnfast.use_backend(backend):
        one_by_one = torch.autograd.functional.jacobian(lambda x: layer(x)[0], x, **options)
        found = torch.autograd.functional.jacobian(
            lambda x: layer(x)[0], x, vectorize=True, **options
        )
    torch.testing.assert_close(found, one_by_one)


def test_batched_gradients_where_some_are_not_batched(x: Tensor) -> None:
    layer = LAYERS["lstm"]().double()
    x.requires_grad_()
    _, (h, c) = layer(x)
    rows = torch.randn(6, *h.shape, dtype=x.dtype)
    # nothing flows from y
    found = torch.autograd.grad([h, c], x, [rows, rows], is_grads_batched=True, retain_graph=True)
    for row, dx in zip(rows, found[0], strict=True):
        expected = torch.autograd.grad([h, c], x, [row, row], retain_graph=True)[0]
        torch.testing.assert_close(dx, expected)


# --- packed input, dropped-out weights and traces


@pytest.mark.skipif(
    TorchVersion(torch.__version__) < "2.12",
    reason="torch's pad_packed_sequence fails on what torch.compile traced, before torch 2.12",
)
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_packing_within_a_compiled_function(name: str, enforce_sorted: bool, x: Tensor) -> None:
    layer = LAYERS[name](num_layers=2, bidirectional=True).double()
    lengths = torch.tensor([3, 2, 1] if enforce_sorted else [1, 3, 2])

    def run(x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
        return pad_packed_sequence(layer(packed)[0])[0]

    x.requires_grad_()
    expected, found = run(x), torch.compile(run, backend="aot_eager")(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (found, expected)))


def test_building_a_packed_sequence_compiles(x: Tensor) -> None:
    layer = LAYERS["gru"]().double()
    packed = pack_padded_sequence(x, torch.tensor([2, 3, 3]), enforce_sorted=False)
    compiled = torch.compile(layer, backend="aot_eager")
    found, expected = compiled(packed), layer(packed)
    torch.testing.assert_close(found[0].data, expected[0].data)
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(found[0], field), getattr(packed, field))


class _Masked:
    """A subclass as people write DropConnect: other tensors in ``_flat_weights`` for a call."""

    def forward(self, x: Tensor) -> Tensor:
        raw = self._flat_weights
        names = zip(self._flat_weights_names, raw, strict=True)
        self._flat_weights = [w * (w > 0) if "weight_hh" in n else w for n, w in names]
        found = super().forward(x)
        self._flat_weights = raw
        return found


@pytest.mark.parametrize("cls", ["RNN", "LSTM", "GRU"])
def test_flat_weights_that_a_subclass_writes_are_what_computes(cls: str) -> None:
    theirs = type("Theirs", (_Masked, getattr(nn, cls)), {})(I, H, 2).double()
    ours = type("Ours", (_Masked, getattr(rnnfast, cls)), {})(I, H, 2).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, I, dtype=torch.float64)
    expected = theirs(x)
    torch.testing.assert_close(ours(x), expected)
    assert not torch.allclose(super(_Masked, ours).forward(x)[0], expected[0])
    torch.testing.assert_close(
        torch.autograd.grad(ours(x)[0].sum(), list(ours.parameters())),
        torch.autograd.grad(expected[0].sum(), list(theirs.parameters())),
    )
    compiled = torch.compile(ours, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    for layer in (ours, theirs):  # a named parameter that was replaced wins once, as in torch.nn
        layer._parameters["weight_hh_l0"] = nn.Parameter(layer.weight_hh_l0.detach() * 2)
    for _ in range(2):
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("backend", ["auto", *taking(torch.float32)])
@pytest.mark.parametrize("name", ["rnn_tanh", "lstm", "gru"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace_with_its_check(name: str, backend: str, grad: bool) -> None:
    layer = LAYERS[name](num_layers=2, bidirectional=True)
    x, other = torch.randn(2, T, B, I).unbind(0)
    with rnnfast.use_backend(backend), torch.set_grad_enabled(grad):
        for _ in range(2):  # the second call of a layer takes the short way
            layer(x)
        traced = torch.jit.trace(layer, (x,))
        torch.testing.assert_close(traced(other), layer(other))
    if backend in ("auto", "torch"):
        assert "rnnfast::" not in str(traced.inlined_graph)


# --- modes, devices and subclasses ---------------------------------------------------------------


def test_flops_are_counted() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(T, B, I, requires_grad=True)
    for name, make in LAYERS.items():
        spec = CELLS[name]
        P = 2 if spec.projected else H
        forward = 2 * T * B * (spec.gates * H * (I + P) + (P * H if spec.projected else 0))
        for backend in ("auto", *taking(torch.float32)):
            if backend == "torch" and spec.torch_mode is None:
                continue
            with rnnfast.use_backend(backend), FlopCounterMode(display=False) as counter:
                y, _ = make()(x)
                assert counter.get_total_flops() == forward, (name, backend)
                y.sum().backward()
                assert counter.get_total_flops() == 3 * forward, (name, backend)


def test_flops_without_the_gradient_of_the_input_and_of_tokens() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    layer = rnnfast.GRU(I, H)
    of_input, of_state = 2 * T * B * 3 * H * I, 2 * T * B * 3 * H * H
    for x, forward, backward in (
        (torch.randn(T, B, I), of_input + of_state, of_input + 2 * of_state),
        (torch.randint(I, (T, B)), of_state, 2 * of_state),
    ):
        with FlopCounterMode(display=False) as counter:
            y, _ = layer(x)
            assert counter.get_total_flops() == forward
            y.sum().backward()
            assert counter.get_total_flops() == forward + backward


def test_the_counter_may_be_imported_after_rnnfast() -> None:
    code = (
        "import rnnfast, torch; from torch.utils.flop_counter import FlopCounterMode as F\n"
        "with F(display=False) as f: rnnfast.LSTM(2, 4)(torch.randn(3, 3, 2))\n"
        "print(f.get_total_flops())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 2 * T * B * 4 * H * (I + H)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_another_default_device(name: str, dtype: torch.dtype) -> None:
    """torch.set_default_device("meta"): whatever is made without a device of its own is no use."""
    layer = LAYERS[name](num_layers=2, bidirectional=True).to(dtype)
    tokens, lengths = torch.randint(I, (T, B)), torch.tensor([2, 3, 0])
    resets = torch.rand(T, B) < 0.3
    dense = torch.randn(T, B, I).to(dtype)
    calls = [(dense, {}), (dense, {"lengths": lengths, "resets": resets})]
    calls += [(tokens, {"lengths": lengths}), (tokens, {"return_all_states": True})]
    packed = pack_padded_sequence(dense, torch.tensor([2, 3, 1]), enforce_sorted=False)
    with torch.device("meta"):
        for input, options in calls:
            y = layer(input, **options)[0]
            assert y.device.type == "cpu"
            y.float().sum().backward()
        layer(packed)[0].data.float().sum().backward()
    assert all(p.grad.device.type == "cpu" for p in layer.parameters())


FACTORIES = "arange empty eye full linspace ones rand randint randn randperm tensor zeros".split()
FOLLOW_THE_DEFAULT = {  # what is the caller's to place
    "clip/__init__.py": "tensor(0.), as torch.nn.utils.clip_grad_norm_ returns it for no gradients",
    "text/scratch.py": "parameters of a module",
    "text/sine.py": "the series that the caller asked for",
}


def test_what_is_made_says_where() -> None:
    """Every factory call of the package names its device, so that a default device changes none."""
    package = Path(rnnfast.__file__).parent
    without = []
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or name in FOLLOW_THE_DEFAULT:
                continue
            called = ast.unparse(node.func).removeprefix("torch.")
            if ast.unparse(node.func).startswith("torch.") and called in FACTORIES:
                if "device" not in {keyword.arg for keyword in node.keywords}:
                    without.append(f"{name}:{node.lineno}")
    assert without == []


class Named(Tensor):
    """A subclass as libraries make them: it adds nothing."""


def types(values: object) -> set[type]:
    return {type(t) for t in torch.utils._pytree.tree_leaves(values) if isinstance(t, Tensor)}


@pytest.mark.parametrize("backend", ["auto", *taking(torch.float32)])
@pytest.mark.parametrize("name", LAYERS)
def test_results_have_the_type_of_a_subclass(name: str, backend: str) -> None:
    if backend == "torch" and CELLS[name].torch_mode is None:
        pytest.skip(f"torch: no kernel for {name}")
    layer = LAYERS[name](num_layers=2)
    plain = torch.randn(T, B, I)
    x = plain.as_subclass(Named)
    with rnnfast.use_backend(backend):
        for _ in range(2):
            assert types(layer(x)) == {Named}
            torch.testing.assert_close(layer(x)[0].as_subclass(Tensor), layer(plain)[0])
        assert types(layer(x, lengths=torch.tensor([3, 2, 0]))) == {Named}
        packed = pack_padded_sequence(x, torch.tensor([3, 2, 1]))
        assert type(layer(packed)[0].data) is Named
        layer(x)[0].sum().backward()
    assert types(layer(plain)) == {Tensor}


def test_a_subclass_is_asked_about_a_scan() -> None:
    layer = rnnfast.GRU(I, H)
    weights = [w.detach() for w in layer.parameters()]
    x = torch.randn(T, B, I).as_subclass(Named)
    found = rnnfast.scan("gru", x, [torch.zeros(B, H)], weights)
    assert types(found) == {Named}
    assert isinstance(found, rnnfast.problem.ScanResult)


# without torch, and auto, which may take it: its GRU writes in place, and this subclass loses that
@pytest.mark.parametrize("backend", sorted({*taking(torch.float32)} - {"torch"}))
def test_a_tensor_that_holds_others_sees_the_op(backend: str) -> None:
    """A subclass with ``__torch_dispatch__`` has no memory of its own for a kernel to read."""
    layer = rnnfast.GRU(I, H)
    a, b = torch.randn(T, B, I), torch.randn(T, B, I)
    with rnnfast.use_backend(backend):
        y, _ = layer(TwoTensor(a, b))
        assert type(y) is TwoTensor
        torch.testing.assert_close((y.a, y.b), (layer(a)[0], layer(b)[0]))


# --- in place ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_an_output_changed_in_place_is_named(name: str) -> None:
    layer = LAYERS[name]()
    x = torch.randn(T, B, I)
    with rnnfast.use_backend("cpu" if "cpu" in taking(torch.float32) else "auto"):
        y, _ = layer(x)
        y.relu_()
        with pytest.raises(RuntimeError, match=r"inplace operation.*use one that is not in place"):
            y.sum().backward()
        y, _ = layer(x)
        y.relu().sum().backward()

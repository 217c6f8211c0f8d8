"""``checkpoint_every``: the same results from less memory, on every backend."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rnnfast
from rnnfast.backends import registry
from rnnfast.backends.base import Backend
from rnnfast.backends.checkpointed import Checkpointed
from rnnfast.ops import pack
from rnnfast.problem import Scan, problem_of

from .cases import BUILT_IN, OPTIONS, Case, leaves, oracle, refusal, scan_of, small, with_gradients
from .layers import makers
from .oracle import assert_all_close_to_oracle
from .test_cpu import saved_bytes
from .test_matrix import yardsticks

EVERYTHING = {"lengths": True, "resets": True, "reverse": True, "all_states": True}
BACKENDS = pytest.mark.parametrize("backend", registry.BACKENDS)


def checkpointed_scan(case: Case, t: dict[str, Tensor], every: int) -> Scan:
    scan = scan_of(case, t)
    return scan._replace(options=scan.options._replace(checkpoint_every=every))


def run(
    case: Case, backend: str, dtype: torch.dtype, every: int, route: str = "eager"
) -> dict[str, Tensor]:
    """Outputs and gradients by name, as ``cases.run`` has them."""
    t = leaves(case, dtype)
    scan = checkpointed_scan(case, t, every)
    if route == "op":
        y, final, trace, _ = torch.ops.rnnfast.scan_forward(*pack(scan, backend))
    else:
        y, final, trace = rnnfast.scan(
            case.cell,
            scan.input,
            scan.states,
            scan.weights,
            lengths=scan.lengths,
            resets=scan.resets,
            projected=case.kind == "gates",
            reverse=case.reverse,
            all_states=case.all_states,
            grad_clip_time=case.clip,
            checkpoint_every=every,
            backend=backend,
        )
    named = {"y": y, **dict(zip("hc", final, strict=False))}
    if trace:
        named["trace"] = trace[0]
    return with_gradients(named, t)


def skip_if_refused(case: Case, backend: str, dtype: torch.dtype) -> None:
    reason = refusal(case, backend, dtype)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


# --- the same results --------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o)) or "plain")
@pytest.mark.parametrize("cell", BUILT_IN)
@BACKENDS
@pytest.mark.usefixtures("poisoned")
def test_every_option_in_double(backend: str, cell: str, options: dict) -> None:
    case = Case(cell, **options)
    skip_if_refused(case, backend, torch.float64)
    for every in (1, 3, 6):
        found = run(case, backend, torch.float64, every)
        assert_all_close_to_oracle(found, oracle(case, torch.float64))


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", BUILT_IN)
@BACKENDS
def test_lower_precisions(backend: str, cell: str, dtype: torch.dtype, options: dict) -> None:
    """Judged as without it, so summing the segments' gradients costs no digits."""
    case = Case(cell, T=23, B=5, I=7, H=33, **options)
    skip_if_refused(case, backend, dtype)
    found = run(case, backend, dtype, 10)
    assert_all_close_to_oracle(found, *yardsticks(case, dtype, found["y"]))


cases = st.builds(
    Case,
    cell=st.sampled_from(sorted(BUILT_IN)),
    T=st.integers(1, 12),
    B=st.integers(1, 3),
    I=st.integers(1, 3),
    H=st.integers(2, 5),
    kind=st.sampled_from(["dense", "gates", "tokens"]),
    bias=st.booleans(),
    reverse=st.booleans(),
    lengths=st.booleans(),
    resets=st.booleans(),
    all_states=st.booleans(),
    seed=st.integers(0, 10_000),
)


@BACKENDS
@given(case=cases, every=st.integers(1, 13))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_length_of_segment(backend: str, case: Case, every: int) -> None:
    if refusal(case, backend, torch.float64) is not None:
        return  # its reasons are tested by name in test_selection
    found = run(case, backend, torch.float64, every)
    assert_all_close_to_oracle(found, oracle(case, torch.float64))


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("cell", BUILT_IN)
@BACKENDS
def test_the_op_gives_what_eager_code_gives(backend: str, cell: str, options: dict) -> None:
    case = Case(cell, **options)
    skip_if_refused(case, backend, torch.float64)
    eager, op = (run(case, backend, torch.float64, 3, route) for route in ("eager", "op"))
    torch.testing.assert_close(op, eager, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("cell", BUILT_IN)
def test_gradients_clipped_in_time_are_clipped_at_the_borders_too(backend: str, cell: str) -> None:
    case = Case(cell, T=11, reverse=True, lengths=True, clip=0.05)
    whole, cut = (run(case, backend, torch.float64, every) for every in (0, 4))
    torch.testing.assert_close(cut, whole)
    free = run(replace(case, clip=0.0), backend, torch.float64, 4)
    assert not torch.allclose(free["grad of h"], whole["grad of h"])


def test_a_scan_of_one_segment_is_left_as_it_is() -> None:
    case = Case("gru", T=5)
    for every in (5, 6, 1000):
        scan = checkpointed_scan(case, leaves(case, torch.float32), every)
        assert registry.select(problem_of(scan), "cpu") is registry.BACKENDS["cpu"]
    scan = checkpointed_scan(case, leaves(case, torch.float32), 4)
    assert isinstance(registry.select(problem_of(scan), "cpu"), Checkpointed)


# --- less memory -------------------------------------------------------------------------------

T, B, I, H = 20, 8, 16, 32
LAYERS = makers(proj_size=24)


@pytest.mark.parametrize("every", [1, 6, 10])
@pytest.mark.parametrize("cell", LAYERS)
@BACKENDS
def test_saved_are_the_input_the_output_and_a_state_each_k_steps(
    backend: str, cell: str, every: int
) -> None:
    skip_if_refused(Case(cell), backend, torch.float32)
    layer = LAYERS[cell](I, H, checkpoint_every=every)
    P = layer.proj_size or H
    state = P + (H if cell.startswith("lstm") else 0)
    begins = (T + every - 1) // every  # of every segment, the scan's own initial states included
    with rnnfast.use_backend(backend):
        found = saved_bytes(layer, torch.randn(T, B, I))
    assert found == 4 * (T * B * (I + P) + begins * B * state)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_backward_has_one_segment_at_a_time(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that grows with T is computed with gradients at once."""
    kind, asked = type(registry.BACKENDS[backend]), []
    method = "backward" if backend == "torch" else "forward"
    original = getattr(kind, method)

    def watched(self: Backend, scan: Scan, *args: Any) -> Any:
        asked.append((scan.input.shape[0], scan.options.training))
        return original(self, scan, *args)

    monkeypatch.setattr(kind, method, watched)
    layer = rnnfast.GRU(I, H, checkpoint_every=6)
    with rnnfast.use_backend(backend):
        layer(torch.randn(T, B, I))[0].sum().backward()
    training = [steps for steps, saves in asked if saves]
    assert training == [2, 6, 6, 6]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_inference_saves_nothing_and_is_not_cut(backend: str) -> None:
    layer = rnnfast.LSTM(I, H, checkpoint_every=3)
    x = torch.randn(T, B, I)
    with rnnfast.use_backend(backend):
        trained = layer(x)[0]
        with torch.no_grad():
            assert saved_bytes(layer, x) == 0
            assert "each 3 steps" not in str(rnnfast.explain(layer, x))
            torch.testing.assert_close(layer(x)[0], trained)


def test_torchs_one_call_for_a_stack_does_not_go_around_it() -> None:
    layer = rnnfast.LSTM(I, H, num_layers=2, checkpoint_every=5)
    x = torch.randn(T, B, I)
    with rnnfast.use_backend("torch"):
        with torch.no_grad():
            layer(x)
            layer(x)
        less = saved_bytes(layer, x)
        layer.checkpoint_every = 0
        assert less < saved_bytes(layer, x) / 2


# --- derivatives, tracers and transforms -------------------------------------------------------


@pytest.mark.parametrize("route", ["eager", "op"])
@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_second_derivatives(cell: str, backend: str, route: str) -> None:
    case = replace(small(Case(cell)), T=3)
    t = leaves(case, torch.float64)
    names = [n for n, v in t.items() if v.requires_grad]

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        scan = checkpointed_scan(case, {**t, **dict(zip(names, values, strict=True))}, 2)
        if route == "op":
            y, final, _, _ = torch.ops.rnnfast.scan_forward(*pack(scan, backend))
        else:
            arguments = {"checkpoint_every": 2, "backend": backend}
            y, final, _ = rnnfast.scan(cell, scan.input, scan.states, scan.weights, **arguments)
        return (y, *final)

    assert torch.autograd.gradgradcheck(outputs, [t[n] for n in names], fast_mode=True)


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_opcheck(backend: str, options: dict) -> None:
    case = Case("lstm", T=5, B=2, I=2, H=2, **options)
    t = leaves(case, torch.float64)
    args = pack(checkpointed_scan(case, t, 2), backend)
    torch.library.opcheck(torch.ops.rnnfast.scan_forward.default, args)
    with torch.no_grad():
        y, _, trace, saved = torch.ops.rnnfast.scan_forward(*args)
    assert [list(s.shape) for s in saved] == [[2, 2, 2], [2, 2, 2]]
    dtrace = [t["dtrace"]] if case.all_states else []
    rest = (t["dy"], [t["dh"], t["dc"]], dtrace, y, trace, saved, [True] * 3, 0)
    torch.library.opcheck(torch.ops.rnnfast.scan_backward.default, (*args, *rest))


@pytest.mark.parametrize(("backend", "dynamic"), [("cpu", False), ("cpu", True), ("torch", False)])
def test_compiled_whole(backend: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    layer = rnnfast.LSTM(I, H, checkpoint_every=4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for steps in (9, 14):
        x = torch.randn(steps, 3, I, requires_grad=True)
        results = []
        with rnnfast.use_backend(backend):
            for call in (compiled, layer):
                y = call(x)[0]
                loss = y.square().sum()
                results.append([y.detach(), *torch.autograd.grad(loss, [x, *layer.parameters()])])
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_batched_gradients(backend: str) -> None:
    layer = rnnfast.GRU(3, 4, checkpoint_every=2).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    with rnnfast.use_backend(backend):
        y = layer(x)[0]
    rows = torch.randn(3, *y.shape, dtype=torch.float64)

    def dx(row: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, row, retain_graph=True)[0]

    torch.testing.assert_close(torch.vmap(dx)(rows), torch.stack([dx(r) for r in rows]))


def test_vmap_of_the_op_forward_and_back() -> None:
    case = Case("lstm", T=5, lengths=True)
    t = {n: v.detach() for n, v in leaves(case, torch.float64).items()}
    several = torch.stack([t["x"], t["x"].flip(0), 2 * t["x"]]).requires_grad_()
    found = []
    for every in (2, 0):

        def y_of(x: Tensor, every: int = every) -> Tensor:
            scan = checkpointed_scan(case, {**t, "x": x}, every)
            return torch.ops.rnnfast.scan_forward(*pack(scan, "reference"))[0]

        y = torch.vmap(y_of)(several)
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), several)])
    torch.testing.assert_close(*found)


def test_under_a_transform_the_scan_is_not_cut() -> None:
    plain, cut = (rnnfast.GRU(3, 4, checkpoint_every=k).double() for k in (0, 2))
    cut.load_state_dict(plain.state_dict())
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    found, expected = (torch.func.grad(lambda v, m=m: m(v)[0].sum())(x) for m in (cut, plain))
    torch.testing.assert_close(found, expected)


# --- layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", LAYERS)
def test_layers_take_it(cell: str) -> None:
    plain, cut = (
        LAYERS[cell](3, 32, 2, bidirectional=True, checkpoint_every=every) for every in (0, 2)
    )
    cut.load_state_dict(plain.state_dict())
    packed = nn.utils.rnn.pack_padded_sequence(
        torch.randn(7, 3, 3), torch.tensor([2, 7, 4]), enforce_sorted=False
    )
    results = []
    for layer in (plain, cut):
        y = layer(packed)[0].data
        results.append([y.detach(), *torch.autograd.grad(y.sin().sum(), list(layer.parameters()))])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("value", [-1, 2.0, "3", None, True])
def test_other_values_are_refused(value: Any) -> None:
    message = "checkpoint_every should be an integer >= 0"
    for make in (rnnfast.RNN, rnnfast.LSTM, rnnfast.GRU):
        with pytest.raises(ValueError, match=message):
            make(2, 3, checkpoint_every=value)
    layer = rnnfast.GRU(2, 3)
    layer.checkpoint_every = value
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(4, 1, 2))
    weights = [p.detach() for p in rnnfast.RNN(2, 3).parameters()]
    with pytest.raises(ValueError, match=message):
        rnnfast.scan(
            "rnn_tanh",
            torch.randn(4, 1, 2),
            [torch.zeros(1, 3)],
            weights,
            checkpoint_every=value,
        )


def test_repr_explain_and_old_layers() -> None:
    layer = rnnfast.LSTM(2, 3, checkpoint_every=4)
    assert "checkpoint_every=4" in repr(layer)
    assert "checkpoint_every" not in repr(rnnfast.LSTM(2, 3))
    with rnnfast.use_backend("cpu"):
        told = str(rnnfast.explain(layer, torch.randn(9, 1, 2)))
    assert "checkpoint_every=4" in told
    assert "states kept each 4 steps" in told
    assert rnnfast.replace(nn.LSTM(2, 3)).model.checkpoint_every == 0


@pytest.mark.parametrize("needed", list(product((False, True), repeat=3))[1:], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_only_the_gradients_asked_for(backend: str, needed: tuple[bool, ...]) -> None:
    case = Case("lstm", T=5)
    t = {n: v.detach() for n, v in leaves(case, torch.float64).items()}
    names = [n for n, wanted in zip(("x", "h", "w_hh"), needed, strict=True) if wanted]
    for name in names:
        t[name].requires_grad_()
    found = []
    for every in (0, 2):
        scan = checkpointed_scan(case, t, every)
        options = {"checkpoint_every": every, "backend": backend}
        y = rnnfast.scan("lstm", scan.input, scan.states, scan.weights, **options).y
        found.append(torch.autograd.grad(y.sin().sum(), [t[n] for n in names]))
    torch.testing.assert_close(*found)

"""Inputs and states as they come: strided, expanded, on the tape; autograd's own rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contract.helpers import (
    KINDS,
    Maker,
    assert_same_as_torch,
    hidden,
    results,
    run,
    states_of,
    twins,
)
from tests.oracle import assert_all_close_to_oracle

T, B, WIDTH, H = 6, 3, 4, 5
F64 = torch.float64

VIEWS: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: torch.randn(B, T, WIDTH, dtype=F64).transpose(0, 1),
    "feature_first": lambda: torch.randn(WIDTH, B, T, dtype=F64).permute(2, 1, 0),
    "every_other_step": lambda: torch.randn(2 * T, B, WIDTH, dtype=F64)[::2],
    "part_of_the_features": lambda: torch.randn(T, B, 2 * WIDTH, dtype=F64)[..., 1 : WIDTH + 1],
    "offset": lambda: torch.randn(T + 3, B, WIDTH, dtype=F64)[3:],
    "flipped": lambda: torch.randn(T, B, WIDTH, dtype=F64).flip(0),
    "expanded_batch": lambda: torch.randn(T, 1, WIDTH, dtype=F64).expand(T, B, WIDTH),
    "expanded_time": lambda: torch.randn(1, B, WIDTH, dtype=F64).expand(T, B, WIDTH),
    "expanded_all": lambda: torch.randn(1, 1, 1, dtype=F64).expand(T, B, WIDTH),
}


VIEWS_AND_LAYOUTS = [(view, False) for view in VIEWS]
VIEWS_AND_LAYOUTS += [("transposed", True), ("flipped", True), ("expanded_batch", True)]


@pytest.mark.parametrize(("view", "batch_first"), VIEWS_AND_LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_strides(
    make_layer: Maker, backend: str, kind: str, batch_first: bool, view: str
) -> None:
    ours, theirs = twins(make_layer, kind, WIDTH, H, 2, batch_first=batch_first, dtype=F64)
    x = VIEWS[view]()
    kept = x.clone()
    batch = T if batch_first else B
    assert_same_as_torch(ours, theirs, x, hidden(theirs, batch, dtype=F64))
    assert torch.equal(x, kept), "the input was written to"


@pytest.mark.parametrize("kind", KINDS)
def test_complex_numbers(make_layer: Maker, kind: str) -> None:
    """complex64 and complex128, which torch's loop computes on the CPU."""
    if kind == "rnn_relu":
        pytest.skip("torch has no relu of complex numbers")
    for dtype in (torch.complex64, torch.complex128):
        ours, theirs = twins(make_layer, kind, WIDTH, H, 2, bidirectional=True, dtype=dtype)
        x = torch.randn(T, B, WIDTH, dtype=dtype, requires_grad=True)
        found, expected = (layer(x)[0] for layer in (ours, theirs))
        torch.testing.assert_close(found, expected)
        sources = [(x, *layer.parameters()) for layer in (ours, theirs)]
        grads = [
            torch.autograd.grad(y.abs().sum(), inputs, retain_graph=True)
            for y, inputs in zip((found, expected), sources, strict=True)
        ]
        if dtype == torch.complex128:  # poles are near: in complex64 the digits are few
            torch.testing.assert_close(*grads)
        with torch.no_grad():
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.arange(B, 0, -1))
            torch.testing.assert_close(ours(packed)[0].data, theirs(packed)[0].data)


@pytest.mark.beyond_torch("torch's packing has no gradients for complex numbers")
def test_complex_numbers_by_lengths(make_layer: Maker) -> None:
    layer = make_layer("GRU", WIDTH, H, dtype=torch.complex128)
    x = torch.randn(T, B, WIDTH, dtype=torch.complex128, requires_grad=True)
    lengths = torch.arange(B, 0, -1)
    y, _ = layer(x, lengths=lengths)
    expected = torch.stack(
        [torch.cat([layer(x[:n, b])[0], x.new_zeros(T - n, H)]) for b, n in enumerate(lengths)], 1
    )
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        torch.autograd.grad(y.abs().square().sum(), x),
        torch.autograd.grad(expected.abs().square().sum(), x),
    )


@pytest.mark.beyond_torch("tokens are an input of rnnfast's")
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("kind", KINDS)
def test_packed_tokens(make_layer: Maker, kind: str) -> None:
    ours, _ = twins(make_layer, kind, WIDTH, H, 2, bidirectional=True)
    lengths = torch.tensor([2, 5, 1])
    tokens = torch.randint(WIDTH, (5, 3))
    hot = nn.functional.one_hot(tokens, WIDTH).float()
    pack = nn.utils.rnn.pack_padded_sequence
    found, hn = ours(pack(tokens, lengths, enforce_sorted=False))
    expected, expected_hn = ours(pack(hot, lengths, enforce_sorted=False))
    torch.testing.assert_close((found.data, hn), (expected.data, expected_hn))
    bad = pack(tokens + WIDTH, lengths, enforce_sorted=False)
    with pytest.raises(IndexError, match="token out of range"):
        ours(bad)


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_any_strides(make_layer: Maker, kind: str) -> None:
    ours, theirs = twins(make_layer, kind, WIDTH, H, 2, bidirectional=True, dtype=F64)
    x = torch.randn(T, B, WIDTH, dtype=F64)
    whole = states_of(hidden(theirs, B, dtype=F64))
    views = {
        "expanded": [state[:, :1].expand_as(state) for state in whole],
        "transposed": [state.transpose(0, 1).contiguous().transpose(0, 1) for state in whole],
        "last_axis_first": [
            state.permute(2, 0, 1).contiguous().permute(1, 2, 0) for state in whole
        ],
    }
    for states in views.values():
        kept = [state.clone() for state in states]
        assert_same_as_torch(ours, theirs, x, states[0] if len(states) == 1 else tuple(states))
        assert all(torch.equal(a, b) for a, b in zip(states, kept, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_through_an_expanded_input(make_layer: Maker, kind: str) -> None:
    ours, theirs = twins(make_layer, kind, WIDTH, H, dtype=F64)
    gradients = []
    for layer in (ours, theirs):
        torch.manual_seed(0)
        x = torch.randn(1, 1, WIDTH, dtype=F64, requires_grad=True)
        hx = [
            torch.randn(1, 1, s.shape[-1], dtype=F64, requires_grad=True)
            for s in states_of(hidden(layer, 1))
        ]
        wide = [state.expand(1, B, -1) for state in hx]
        output, _ = layer(x.expand(T, B, WIDTH), wide[0] if len(wide) == 1 else tuple(wide))
        gradients.append(torch.autograd.grad(output.square().sum(), [x, *hx]))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("kind", KINDS)
def test_states_carried_between_calls_as_in_truncated_backpropagation(
    make_layer: Maker, kind: str
) -> None:
    ours, theirs = twins(make_layer, kind, WIDTH, H, 2, dtype=F64)
    x, values = torch.randn(3, T, B, WIDTH, dtype=F64), []
    for layer in (ours, theirs):
        hx, total = None, torch.zeros((), dtype=F64)
        for chunk in x:
            output, hx = layer(chunk, hx)
            total = total + output.square().sum()
        total.backward()
        values.append({name: weight.grad for name, weight in layer.named_parameters()})
    assert_all_close_to_oracle(values[0], values[1])


@pytest.mark.parametrize("kind", KINDS)
def test_one_long_sequence_equals_its_pieces(make_layer: Maker, kind: str) -> None:
    layer, _ = twins(make_layer, kind, WIDTH, H, 2, dtype=F64)
    x = torch.randn(T, B, WIDTH, dtype=F64)
    whole, _ = layer(x)
    first, hx = layer(x[:2])
    rest, _ = layer(x[2:], hx)
    torch.testing.assert_close(torch.cat([first, rest]), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_called_twice_adds_its_gradients(make_layer: Maker, kind: str) -> None:
    ours, theirs = twins(make_layer, kind, WIDTH, H, dtype=F64)
    x, y = torch.randn(2, T, B, WIDTH, dtype=F64)
    for layer in (ours, theirs):
        for value in (x, y):
            layer(value)[0].square().sum().backward()
    got = {name: weight.grad for name, weight in ours.named_parameters()}
    assert_all_close_to_oracle(got, {n: w.grad for n, w in theirs.named_parameters()})


@pytest.mark.parametrize("kind", KINDS)
def test_a_kept_graph_gives_the_same_gradients_again(make_layer: Maker, kind: str) -> None:
    layer, _ = twins(make_layer, kind, WIDTH, H, 2, dtype=F64)
    loss = layer(torch.randn(T, B, WIDTH, dtype=F64))[0].square().sum()
    weights = list(layer.parameters())
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    second = torch.autograd.grad(loss, weights)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, weights)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_recorded_where_nothing_is_asked(make_layer: Maker, kind: str) -> None:
    layer, _ = twins(make_layer, kind, WIDTH, H, 2)
    x = torch.randn(T, B, WIDTH)
    with torch.no_grad():
        values = results(*layer(x))
    assert not any(value.requires_grad for value in values.values())
    with torch.inference_mode():
        inferred = results(*layer(x))
    assert all(value.is_inference() for value in inferred.values())
    for name, value in values.items():
        torch.testing.assert_close(inferred[name].clone(), value)
    layer.requires_grad_(False)
    assert not any(value.requires_grad for value in results(*layer(x)).values())
    x.requires_grad_()
    assert all(value.requires_grad for value in results(*layer(x)).values())


@pytest.mark.parametrize("changed", ["x", "weight_hh_l0", "output"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_value_changed_before_backward_is_never_used_silently(
    make_layer: Maker, kind: str, changed: str
) -> None:
    """Either autograd's own error, or the gradients of the values that the forward saw."""
    layer, _ = twins(make_layer, kind, WIDTH, H, dtype=F64)
    x = torch.randn(T, B, WIDTH, dtype=F64)
    weights = list(layer.parameters())
    reference = torch.autograd.grad(layer(x)[0].sum(), weights)
    output, _ = layer(x)
    loss = output.sum()
    with torch.no_grad():
        {"x": x, "output": output, **dict(layer.named_parameters())}[changed].mul_(1.5)
    error, gradients = None, ()
    try:
        gradients = torch.autograd.grad(loss, weights)
    except RuntimeError as refused:
        error = str(refused)
    if error is None:
        torch.testing.assert_close(gradients, reference)
    assert error is None or "modified by an inplace operation" in error


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_not_contiguous(make_layer: Maker, kind: str) -> None:
    ours, theirs = twins(make_layer, kind, WIDTH, H, bidirectional=True, dtype=F64)
    x, gradients = torch.randn(T, B, WIDTH, dtype=F64), []
    for layer in (ours, theirs):
        fed = x.clone().requires_grad_()
        output, _ = layer(fed)
        upstream = torch.arange(B, dtype=F64).view(1, B, 1).expand_as(output)
        gradients.append(torch.autograd.grad(output, [fed, *layer.parameters()], upstream))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_see_what_torchs_see(make_layer: Maker, kind: str) -> None:
    ours, theirs = twins(make_layer, kind, WIDTH, H, dtype=F64)
    x, seen = torch.randn(T, B, WIDTH, dtype=F64), []
    for layer in (ours, theirs):
        calls: list[Any] = []
        layer.register_forward_pre_hook(lambda _m, given, calls=calls: calls.append(len(given)))
        layer.weight_hh_l0.register_hook(lambda grad, calls=calls: calls.append(grad.sum().item()))
        layer(x)[0].square().sum().backward()
        seen.append(calls)
    assert seen[0] == pytest.approx(seen[1])


@pytest.mark.parametrize("kind", KINDS)
def test_nan_in_one_sequence_stays_there(make_layer: Maker, kind: str) -> None:
    layer, _ = twins(make_layer, kind, WIDTH, H, 2, bidirectional=True)
    x = torch.randn(T, B, WIDTH)
    clean = results(*layer(x))
    x[2, 1] = float("nan")
    dirty = results(*layer(x))
    for name, value in dirty.items():
        assert torch.equal(value[:, [0, 2]], clean[name][:, [0, 2]])
        if not (kind == "rnn_relu" and name == "h_n"):
            assert bool(value[:, 1].isnan().any()), name


AUTOCAST_EPS = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def autocast_error(layer: Any, x: Tensor, dtype: torch.dtype) -> float:
    """How far outputs and weight gradients move under autocast, in eps of the low precision."""
    with torch.autocast("cpu", dtype=dtype):
        low = run(layer, x)
    reference = run(layer.float(), x.float())
    worst = 0.0
    for name, value in reference.items():
        assert low[name].shape == value.shape, name
        assert bool(torch.isfinite(low[name]).all()), name
        off = (low[name].float() - value).abs().max() / value.abs().max().clamp_min(1e-3)
        worst = max(worst, float(off))
    return worst / AUTOCAST_EPS[dtype]


@pytest.mark.parametrize("with_low_input", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_in_bfloat16(make_layer: Maker, kind: str, with_low_input: bool) -> None:
    layer, _ = twins(make_layer, kind, WIDTH, H, 2)
    x = torch.randn(T, B, WIDTH).bfloat16()
    assert autocast_error(layer, x if with_low_input else x.float(), torch.bfloat16) < 12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.beyond_torch("oneDNN has no float16 LSTM here and raises a RuntimeError")
def test_autocast_in_float16(make_layer: Maker, kind: str) -> None:
    layer, _ = twins(make_layer, kind, WIDTH, H, 2)
    assert autocast_error(layer, torch.randn(T, B, WIDTH), torch.float16) < 12


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_lifts_the_dtype_check_and_its_end_restores_it(
    make_layer: Maker, kind: str
) -> None:
    layer, _ = twins(make_layer, kind, WIDTH, H)
    x = torch.randn(T, B, WIDTH, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)
    with pytest.raises(ValueError, match=r"RNN input dtype \(torch.bfloat16\) does not match"):
        layer(x)

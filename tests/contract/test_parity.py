"""Outputs, final states and every gradient against torch.nn: layouts, odd sizes, precisions."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from tests.contract.helpers import (
    KINDS,
    Maker,
    assert_same_as_torch,
    hidden,
    in_precision,
    run,
    to_float64,
    twins,
)
from tests.oracle import assert_all_close_to_oracle

DTYPES = {"fp64": torch.float64, "fp32": torch.float32}
LAYOUTS = [
    (*layout, dtype)
    for *layout, dtype in product([1, 2], [False, True], [True, False], [False, True], DTYPES)
    if dtype == "fp64" or (layout[0] == 2 and not layout[3])
]
# of T, B, I, H none, one, three or all are 1
ODD_SIZES = [sizes for sizes in product([1, 7], [1, 5], [1, 6], [1, 33]) if sizes.count(1) != 2]
ODD_CASES = [
    (kind, sizes, dtype)
    for kind, sizes, dtype in product(KINDS, ODD_SIZES, DTYPES)
    if not (kind == "lstm_proj" and sizes[-1] == 1)  # a projection is narrower than the state
    and (dtype == "fp64" or sizes[:2] == (7, 5))
]


def layout_name(layout: tuple[int, bool, bool, bool, str]) -> str:
    layers, bidirectional, bias, batch_first, dtype = layout
    flags = "-bi" * bidirectional + "-nobias" * (not bias) + "-bf" * batch_first
    return f"{layers}l{flags}-{dtype}"


def odd_name(value: object) -> str:
    return value if isinstance(value, str) else "T{}B{}I{}H{}".format(*value)  # type: ignore[misc]


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout(
    make_layer: Maker, backend: str, kind: str, layout: tuple[int, bool, bool, bool, str]
) -> None:
    layers, bidirectional, bias, batch_first, dtype = layout
    ours, theirs = twins(
        make_layer,
        kind,
        4,
        5,
        layers,
        bidirectional=bidirectional,
        bias=bias,
        batch_first=batch_first,
        dtype=DTYPES[dtype],
    )
    x = torch.randn(*((3, 6) if batch_first else (6, 3)), 4, dtype=DTYPES[dtype])
    assert_same_as_torch(ours, theirs, x, hidden(theirs, 3, dtype=DTYPES[dtype]))


@pytest.mark.parametrize(("kind", "sizes", "dtype"), ODD_CASES, ids=odd_name)
def test_odd_sizes(
    make_layer: Maker, backend: str, kind: str, sizes: tuple[int, int, int, int], dtype: str
) -> None:
    steps, batch, width, state = sizes
    ours, theirs = twins(make_layer, kind, width, state, bidirectional=True, dtype=DTYPES[dtype])
    x = torch.randn(steps, batch, width, dtype=DTYPES[dtype])
    assert_same_as_torch(ours, theirs, x)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_unbatched(make: Maker, kind: str, dtype: str, with_state: bool) -> None:
    ours, theirs = twins(make, kind, 4, 5, 2, bidirectional=True, dtype=DTYPES[dtype])
    hx = hidden(theirs, None, dtype=DTYPES[dtype]) if with_state else None
    assert_same_as_torch(ours, theirs, torch.randn(6, 4, dtype=DTYPES[dtype]), hx)


@pytest.mark.parametrize("kind", KINDS)
def test_four_layers_of_a_realistic_width(make: Maker, kind: str) -> None:
    ours, theirs = twins(make, kind, 28, 32, 4, bidirectional=True)
    assert_same_as_torch(ours, theirs, torch.randn(20, 9, 28), hidden(theirs, 9))


@pytest.mark.parametrize("scale", [1e-4, 30.0, 1e4])
@pytest.mark.parametrize("kind", ["rnn_tanh", "lstm", "lstm_proj", "gru"])
def test_gates_that_saturate_stay_finite(
    make_layer: Maker, backend: str, kind: str, scale: float
) -> None:
    """In float64 the numbers too; in float32 they hang on the last digits of a gate's large sum."""
    ours, theirs = twins(make_layer, kind, 4, 5, 2, bidirectional=True, dtype=torch.float64)
    x, hx = (
        scale * torch.randn(6, 3, 4, dtype=torch.float64),
        hidden(theirs, 3, dtype=torch.float64),
    )
    assert_same_as_torch(ours, theirs, x, hx)
    values = run(ours.float(), x.float(), in_precision(hx, torch.float32))
    assert all(bool(torch.isfinite(value).all()) for value in values.values())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_one_output_alone(make_layer: Maker, kind: str) -> None:
    """A loss that leaves out the output, or a final state, must not find an undefined gradient."""
    ours, theirs = twins(make_layer, kind, 4, 5, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(6, 3, 4, dtype=torch.float64)

    def gradients_of(layer: nn.Module, which: str) -> dict[str, torch.Tensor]:
        fed = x.clone().requires_grad_()
        output, hn = layer(fed)
        parts = {"output": output, "h": hn if torch.is_tensor(hn) else hn[0], "c": hn[-1]}
        layer.zero_grad()
        parts[which].square().sum().backward()
        named = {name: weight.grad.clone() for name, weight in layer.named_parameters()}
        return {"x": fed.grad, **named}

    for which in ("output", "h") + (("c",) if kind.startswith("lstm") else ()):
        assert_all_close_to_oracle(gradients_of(ours, which), gradients_of(theirs, which))


@pytest.mark.parametrize("frozen", ["weight_hh_l0", "bias_ih_l1_reverse", "weight_ih_l0", "input"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_gets_no_gradient(make_layer: Maker, kind: str, frozen: str) -> None:
    ours, theirs = twins(make_layer, kind, 4, 5, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=frozen != "input")
    for layer in (ours, theirs):
        if frozen != "input":
            layer.get_parameter(frozen).requires_grad_(False)
        layer(x)[0].square().sum().backward()
    for name, weight in ours.named_parameters():
        want = theirs.get_parameter(name).grad
        assert (weight.grad is None) == (want is None) == (name == frozen)
        if want is not None:
            torch.testing.assert_close(weight.grad, want)


@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_of_training_walk_together(make_layer: Maker, kind: str) -> None:
    ours, theirs = twins(make_layer, kind, 4, 5, 2, dtype=torch.float64)
    x, losses = torch.randn(6, 3, 4, dtype=torch.float64), []
    for layer in (ours, theirs):
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
        losses.append([])
        for _ in range(10):
            optimizer.zero_grad()
            loss = (layer(x)[0] - 0.3).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precisions(
    make_layer: Maker, kind: str, layers: int, bidirectional: bool, dtype: torch.dtype
) -> None:
    ours, theirs = twins(make_layer, kind, 6, 9, layers, bidirectional=bidirectional, dtype=dtype)
    x, hx = torch.randn(5, 3, 6, dtype=dtype), hidden(theirs, 3, dtype=dtype)
    # relu's derivative jumps at 0, where a rounding decides in these precisions: values only
    assert_same_as_torch(ours, theirs, x, hx, gradients=kind != "rnn_relu")


@pytest.mark.parametrize("kind", KINDS)
def test_the_matrix_would_see_a_wrong_weight(make_layer: Maker, kind: str) -> None:
    """The comparison itself: weights off by a thousandth are found in fp64 and in fp32."""
    for dtype in DTYPES.values():
        ours, theirs = twins(make_layer, kind, 4, 5, dtype=dtype)
        with torch.no_grad():
            ours.weight_hh_l0 += 1e-3
        x, hx = torch.randn(6, 3, 4, dtype=dtype), hidden(theirs, 3, dtype=dtype)
        reference = run(
            to_float64(theirs), in_precision(x, torch.float64), in_precision(hx, torch.float64)
        )
        with pytest.raises(AssertionError, match="allowed"):
            assert_all_close_to_oracle(run(ours, x, hx), reference, run(theirs, x, hx))

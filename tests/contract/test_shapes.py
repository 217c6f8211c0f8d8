"""Shapes, dtypes and ownership of outputs and final states."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contract.helpers import KINDS, LAYER_CLASSES, Maker, hidden, run, states_of, twins

T, B, WIDTH, H = 6, 3, 4, 5


@pytest.mark.parametrize(
    ("layers", "bidirectional"), [(1, False), (2, False), (1, True), (3, True)]
)
@pytest.mark.parametrize("layout", ["time_first", "batch_first", "unbatched", "unbatched_bf"])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_follow_the_table(
    make: Maker, kind: str, layout: str, layers: int, bidirectional: bool
) -> None:
    spec = KINDS[kind]
    batch_first = layout in ("batch_first", "unbatched_bf")
    layer = make(
        spec.cls,
        WIDTH,
        H,
        layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        **spec.kwargs,
    )
    directions = 2 if bidirectional else 1
    width = spec.kwargs.get("proj_size") or H
    batch = () if layout.startswith("unbatched") else (B,)
    steps = {"time_first": (T, B), "batch_first": (B, T)}.get(layout, (T,))

    output, hn = layer(torch.randn(*steps, WIDTH))

    assert output.shape == (*steps, directions * width)
    rows = layers * directions
    want = [(rows, *batch, width)] + ([(rows, *batch, H)] if spec.cls == "LSTM" else [])
    assert [tuple(state.shape) for state in states_of(hn)] == want


@pytest.mark.parametrize("kind", KINDS)
def test_the_containers_are_torchs(make: Maker, kind: str) -> None:
    ours, theirs = twins(make, kind, WIDTH, H)
    x = torch.randn(T, B, WIDTH)
    got, want = ours(x), theirs(x)
    assert type(got) is type(want) is tuple
    assert len(got) == len(want) == 2
    assert type(got[1]) is type(want[1])


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_are_the_default_state(make: Maker, kind: str) -> None:
    ours, _ = twins(make, kind, WIDTH, H, 2, bidirectional=True)
    x = torch.randn(T, B, WIDTH)
    zeros = [torch.zeros_like(state) for state in states_of(hidden(ours, B))]
    given = zeros[0] if len(zeros) == 1 else tuple(zeros)
    without, with_zeros = ours(x), ours(x, given)
    torch.testing.assert_close(without, with_zeros, rtol=0, atol=0)


def test_lstm_takes_its_states_as_a_list(make: Maker) -> None:
    ours, theirs = twins(make, "lstm", WIDTH, H)
    x, hx = torch.randn(T, B, WIDTH), hidden(theirs, B)
    torch.testing.assert_close(ours(x, list(hx)), theirs(x, list(hx)))
    torch.testing.assert_close(ours(x, list(hx)), ours(x, hx), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_outputs_have_the_dtype_of_the_input(make: Maker, cls: str, dtype: torch.dtype) -> None:
    layer = make(cls, WIDTH, H, dtype=dtype)
    output, hn = layer(torch.randn(T, B, WIDTH, dtype=dtype))
    assert {value.dtype for value in [output, *states_of(hn)]} == {dtype}


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_comes_back_shares_memory(make: Maker, kind: str, steps: int) -> None:
    spec = KINDS[kind]
    layer = make(spec.cls, WIDTH, H, **spec.kwargs)
    x, hx = torch.randn(steps, B, WIDTH), hidden(layer, B)
    named: dict[str, Tensor] = {"x": x}
    named.update((f"hx{i}", state) for i, state in enumerate(states_of(hx)))
    with torch.no_grad():
        output, hn = layer(x, hx)
    named["output"] = output
    named.update((f"hn{i}", state) for i, state in enumerate(states_of(hn)))
    for name in ("output", "hn0"):
        kept = {other: value.clone() for other, value in named.items() if other != name}
        named[name].fill_(7.0)
        changed = [other for other, value in kept.items() if not torch.equal(named[other], value)]
        assert not changed, f"writing to {name} changed {changed}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_final_states_close_the_output(make: Maker, kind: str) -> None:
    spec = KINDS[kind]
    layer = make(spec.cls, WIDTH, H, bidirectional=True, **spec.kwargs)
    output, hn = layer(torch.randn(T, B, WIDTH))
    h = states_of(hn)[0]
    width = h.shape[-1]
    assert torch.equal(output[-1, :, :width], h[0])
    assert torch.equal(output[0, :, width:], h[1])


@pytest.mark.parametrize(("batch_first", "with_state"), list(product([False, True], repeat=2)))
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_works(make: Maker, kind: str, batch_first: bool, with_state: bool) -> None:
    ours, theirs = twins(make, kind, WIDTH, H, 2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(*((0, T) if batch_first else (T, 0)), WIDTH)
    hx = hidden(theirs, 0) if with_state else None
    got, want = ours(x, hx), theirs(x, hx)
    assert shapes(got) == shapes(want)
    gradients: dict[str, Any] = run(ours, x, hx)
    assert all(bool((gradients[f"d{name}"] == 0).all()) for name, _ in ours.named_parameters())
    assert gradients["dx"].shape == x.shape


def shapes(returned: Any) -> list[tuple[int, ...]]:
    output, hn = returned
    return [tuple(value.shape) for value in [output, *states_of(hn)]]


@pytest.mark.parametrize("kind", ["lstm", "rnn_tanh"])
def test_more_steps_than_sixteen_bits_count(make_layer: Maker, kind: str) -> None:
    ours, theirs = twins(make_layer, kind, 1, 2)
    x = torch.randn(65_537, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)

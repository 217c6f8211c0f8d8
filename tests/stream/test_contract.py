"""Stream's arguments, shapes, states and errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import rnnfast

from ..layers import makers
from ..own_cells import peephole
from .layers import MISSING, states_of

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING or "built"))


@pytest.fixture
def stream() -> rnnfast.Stream:
    return rnnfast.Stream(rnnfast.LSTM(5, 8, 2), 3)


# --- what it gives -------------------------------------------------------------------------------


def test_shapes() -> None:
    layer = rnnfast.LSTM(5, 8, 2, proj_size=3)
    one = rnnfast.Stream(layer)
    assert one(torch.zeros(5)).shape == (3,)
    assert one(torch.zeros(1, 5)).shape == (1, 3)
    assert one(torch.zeros(4, 1, 5)).shape == (4, 1, 3)
    assert one(torch.zeros(0, 1, 5)).shape == (0, 1, 3)
    h, c = one.state
    assert h.shape == (2, 1, 3)
    assert c.shape == (2, 1, 8)
    first = rnnfast.Stream(rnnfast.GRU(5, 8, batch_first=True), 2)
    assert first(torch.zeros(2, 4, 5)).shape == (2, 4, 8)
    assert first(torch.zeros(2, 5)).shape == (2, 8)


def test_no_steps_change_nothing(stream: rnnfast.Stream) -> None:
    stream(torch.randn(3, 5))
    before = states_of(stream.state)
    stream(torch.zeros(0, 3, 5))
    for one, other in zip(states_of(stream.state), before, strict=True):
        assert torch.equal(one, other)


def test_inputs_that_are_not_contiguous() -> None:
    layer = rnnfast.GRU(5, 8)
    x = torch.randn(4, 3, 5)
    y = rnnfast.Stream(layer, 3)(x)
    wide = torch.randn(4, 3, 11)
    wide[..., 2:7] = x
    assert torch.equal(rnnfast.Stream(layer, 3)(wide[..., 2:7]), y)
    assert torch.equal(
        rnnfast.Stream(layer, 3)(x.permute(2, 0, 1).contiguous().permute(1, 2, 0)), y
    )
    assert torch.equal(rnnfast.Stream(layer, 3)(x.transpose(0, 1).contiguous().transpose(0, 1)), y)
    assert torch.equal(rnnfast.Stream(layer, 3)(torch._neg_view(-x)), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_out(dtype: torch.dtype) -> None:
    layer = rnnfast.LSTM(5, 8, dtype=dtype)
    x = torch.randn(4, 2, 5, dtype=dtype)
    y = rnnfast.Stream(layer, 2)(x)
    out = torch.full((2, 4, 20), float("nan"), dtype=dtype)
    place = out.transpose(0, 1)[..., 3:11]
    assert rnnfast.Stream(layer, 2)(x, out=place) is not None
    assert torch.equal(place, y)
    assert int(out.isnan().sum()) == 2 * 4 * 12  # nothing beside it
    out = torch.empty(2, 8, dtype=dtype)
    stream = rnnfast.Stream(layer, 2)
    for t in range(4):
        stream(x[t], out=out)
        assert torch.equal(out, y[t])


def test_results_are_written(poisoned: None) -> None:
    for make in makers(5, 8, 2, without=(), own=True).values():
        stream = rnnfast.Stream(make(), 3)
        assert not stream(torch.randn(50, 3, 5)).isnan().any()
        assert not any(s.isnan().any() for s in states_of(stream.state))


def test_nothing_is_recorded(stream: rnnfast.Stream) -> None:
    assert not stream(torch.randn(3, 5)).requires_grad
    with pytest.raises(RuntimeError, match="records no gradients"):
        stream(torch.randn(3, 5, requires_grad=True))
    with torch.inference_mode():
        stream(torch.randn(3, 5))


# --- states --------------------------------------------------------------------------------------


def test_reset(stream: rnnfast.Stream) -> None:
    x = torch.randn(3, 5)
    first = stream(x)
    stream(torch.randn(3, 5))
    kept = [s.clone() for s in states_of(stream.state)]
    stream.reset(torch.tensor([True, False, True]))
    for found, before in zip(states_of(stream.state), kept, strict=True):
        assert not found[:, [0, 2]].any()
        assert torch.equal(found[:, 1], before[:, 1])
    y = stream(x)
    assert torch.equal(y[[0, 2]], first[[0, 2]])
    assert not torch.equal(y[1], first[1])
    stream.reset()
    assert torch.equal(stream(x), first)


def test_reset_of_a_cell_of_ones_own() -> None:
    stream = rnnfast.Stream(rnnfast.Recurrent(peephole, 5, 8, 2), 2)
    x = torch.randn(2, 5)
    first = stream(x)
    stream(x)
    stream.reset(torch.tensor([False, True]))
    y = stream(x)
    assert torch.equal(y[1], first[1])
    assert not torch.equal(y[0], first[0])


@pytest.mark.parametrize("kind", ["lstm", "gru", "peephole"])
def test_a_state_is_a_copy_that_can_be_put_back(kind: str) -> None:
    stream = rnnfast.Stream(makers(5, 8, 2, own=True)[kind](), 3)
    x = torch.randn(2, 3, 5)
    stream(x)
    state = stream.state
    y = stream(x)
    stream.state = state
    assert torch.equal(stream(x), y)
    for s in states_of(state):
        s.zero_()
    assert all(bool(s.any()) for s in states_of(stream.state))


def test_states_of_other_dtypes_and_without_a_batch() -> None:
    stream = rnnfast.Stream(rnnfast.GRU(5, 8, dtype=torch.bfloat16))
    h = torch.randn(1, 8, dtype=torch.bfloat16)
    stream.state = h
    assert torch.equal(stream.state, h.float().unsqueeze(1))
    stream.state = nn.Parameter(h.double().unsqueeze(1))
    assert torch.equal(stream.state, h.float().unsqueeze(1))


def test_states_that_do_not_fit(stream: rnnfast.Stream) -> None:
    good = torch.zeros(2, 3, 8)
    with pytest.raises(ValueError, match="LSTM takes hx as a pair"):
        stream.state = good
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(2, 3, 8\)"):
        stream.state = (good, torch.zeros(2, 3, 9))


# --- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lstm_proj", "peephole"])
def test_copies_and_pickles(kind: str) -> None:
    stream = rnnfast.Stream(makers(5, 8, 2, own=True)[kind](), 2)
    x = torch.randn(3, 2, 5)
    stream(x)
    deep, same = copy.deepcopy(stream), copy.copy(stream)
    assert deep.layer is not stream.layer
    assert same.layer is stream.layer
    loaded = stream if kind == "peephole" else pickle.loads(pickle.dumps(stream))
    y = stream(x)
    for other in (deep, same):
        assert torch.equal(other(x), y)
    if loaded is not stream:
        assert torch.equal(loaded(x), y)


def test_repr_and_explain() -> None:
    layer = rnnfast.LSTM(5, 8)
    assert repr(rnnfast.Stream(layer)) == "Stream(LSTM(5, 8), batch_size=1)"
    stream = rnnfast.Stream(layer, 2, "int8")
    assert repr(stream) == "Stream(LSTM(5, 8), batch_size=2, weights='int8')"
    assert "lstm; weights int8, " in stream.explain()
    assert "1 thread" in stream.explain()
    own = rnnfast.Stream(rnnfast.Recurrent(peephole, 5, 8)).explain()
    assert "compiled from the step" in own


# --- errors --------------------------------------------------------------------------------------


def test_layers_that_it_does_not_take() -> None:
    with pytest.raises(TypeError, match=r"layer of rnnfast, got: LSTM \(rnnfast.replace"):
        rnnfast.Stream(nn.LSTM(3, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one direction, got bidirectional=True"):
        rnnfast.Stream(rnnfast.LSTM(3, 4, bidirectional=True))
    with pytest.raises(ValueError, match="one floating-point dtype"):
        rnnfast.Stream(rnnfast.LSTM(3, 4).to(torch.complex64))
    with pytest.raises(ValueError, match="should be on the CPU"):
        rnnfast.Stream(rnnfast.LSTM(3, 4, device="meta"))
    for size in (0, -1, True, 2.0):
        with pytest.raises(ValueError, match="batch_size should be a positive integer"):
            rnnfast.Stream(rnnfast.LSTM(3, 4), size)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["dropout", "recurrent_dropout", "zoneout", "weight_dropout"])
def test_masks_of_training(name: str) -> None:
    options: dict[str, Any] = {name: 0.25}
    layer = rnnfast.GRU(3, 4, 2, **options)
    with pytest.raises(ValueError, match=f"training mode and has {name}=0.25: call eval"):
        rnnfast.Stream(layer)
    rnnfast.Stream(layer.eval())
    rnnfast.Stream(rnnfast.GRU(3, 4, 2))  # in training mode, with nothing to drop


def test_weights_that_it_can_not_have() -> None:
    with pytest.raises(ValueError, match="weights should be None or one of"):
        rnnfast.Stream(rnnfast.GRU(3, 4), weights="int4")
    with pytest.raises(ValueError, match="sums of a float64 layer are float64"):
        rnnfast.Stream(rnnfast.GRU(3, 4, dtype=torch.float64), weights="int8")
    with pytest.raises(ValueError, match="for built-in cells"):
        rnnfast.Stream(rnnfast.Recurrent(peephole, 3, 4), weights="int8")
    layer = rnnfast.GRU(3, 4)
    layer.weight_hh_l0.data[1, 2] = float("inf")
    with pytest.raises(ValueError, match="weight_hh_l0 is not finite"):
        rnnfast.Stream(layer, weights="int8")


def test_inputs_that_do_not_fit(stream: rnnfast.Stream) -> None:
    cases: list[tuple[type[Exception], str, Any]] = [
        (TypeError, "input should be a tensor, got: list", [1.0]),
        (ValueError, "does not match weight dtype", torch.zeros(3, 5, dtype=torch.float64)),
        (RuntimeError, "Expected 5, got 4", torch.zeros(3, 4)),
        (RuntimeError, "a batch of 3, got 2", torch.zeros(2, 5)),
        (RuntimeError, "a batch of 3, got 4", torch.zeros(3, 4, 5)),
        (RuntimeError, "1-D input .* is for batch_size=1", torch.zeros(5)),
        (ValueError, "1D, 2D or 3D, got 4D", torch.zeros(1, 1, 3, 5)),
        (ValueError, "1D, 2D or 3D, got 0D", torch.zeros(())),
        (ValueError, "must be on the CPU", torch.zeros(3, 5, device="meta")),
        (IndexError, r"token 5 is not in \[0, 5\)", torch.tensor([0, 5, 1])),
        (IndexError, "token -1", torch.tensor([[0, -1, 1]])),
        (ValueError, "0D, 1D or 2D tokens", torch.zeros(1, 1, 3, dtype=torch.int64)),
    ]
    before = [s.clone() for s in states_of(stream.state)]
    for error, text, x in cases:
        with pytest.raises(error, match=text):
            stream(x)
    for s, kept in zip(states_of(stream.state), before, strict=True):
        assert torch.equal(s, kept)


def test_outputs_that_do_not_fit(stream: rnnfast.Stream) -> None:
    x = torch.zeros(3, 5)
    both = torch.zeros(3, 13)
    cases: list[tuple[type[Exception], str, Any]] = [
        (TypeError, "out should be a tensor", [1.0]),
        (ValueError, "must have shape", torch.zeros(3, 9)),
        (ValueError, "out must be", torch.zeros(3, 8, dtype=torch.float64)),
        (ValueError, "contiguous in its last axis", torch.zeros(3, 16)[:, ::2]),
        (RuntimeError, "single memory location", torch.zeros(1, 8).expand(3, 8)),
        (RuntimeError, "require gradients", torch.zeros(3, 8, requires_grad=True)),
    ]
    for error, text, out in cases:
        with pytest.raises(error, match=text):
            stream(x, out=out)
    flat = both.flatten()
    with pytest.raises(RuntimeError, match=r"overlap|single memory"):
        stream(flat[:15].view(3, 5), out=flat[10:34].view(3, 8))


def test_masks_that_do_not_fit(stream: rnnfast.Stream) -> None:
    with pytest.raises(TypeError, match=r"must be torch\.bool"):
        stream.reset(torch.zeros(3))
    with pytest.raises(ValueError, match=r"must have shape \[3\]"):
        stream.reset(torch.zeros(2, dtype=torch.bool))

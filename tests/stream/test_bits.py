"""A Stream against its layer over the whole sequence: bit for bit, however the steps come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import rnnfast

from ..layers import KINDS, makers
from ..oracle import assert_close_to_oracle
from .layers import DOTS, MISSING, OURS, in_parts, states_of, whole

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING or "built"))
ours = pytest.mark.skipif(not OURS, reason="the layer's product of the input is torch's here")

# (B, I, H, layers): vectors that are not whole, one unit, more than one block of k, more than a
# chunk of rows
SIZES = [
    (1, 5, 7, 1),
    (1, 1, 1, 2),
    (2, 200, 33, 1),
    (3, 16, 16, 3),
    (50, 9, 40, 2),
    (1, 385, 64, 1),
]
PARTS = [[7], [1] * 7, [0] * 7, [2, 0, 3, 1]]


def made(cell: str, I: int, H: int, layers: int, **more: Any) -> Any:
    layer = makers(I, H, layers, without=(), proj_size=max(1, H // 2), own=True)
    if cell == "lstm_proj" and H == 1:
        pytest.skip("a projection is narrower than H")
    return layer[cell](**more).eval()


def check(layer: Any, x: Tensor, ways: Sequence[list[int]]) -> None:
    """The bits of outputs and states, whichever way the steps are cut."""
    y, final = whole(layer, x)
    for parts in ways:
        stream = rnnfast.Stream(layer, x.shape[1])
        assert torch.equal(in_parts(stream, x, parts), y), parts
        for found, expected in zip(states_of(stream.state), final, strict=True):
            assert torch.equal(found, expected), parts


def agree(found: Tensor, expected: Tensor, rounded: bool) -> bool:
    if not rounded:
        return torch.equal(found, expected)
    off = (found.float() - expected.float()).abs().max()
    return float(off) <= 4 * torch.finfo(expected.dtype).eps * float(expected.abs().max())


@ours
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", KINDS)
def test_bits_of_the_layer(cell: str, bias: bool, size: tuple[int, int, int, int]) -> None:
    B, I, H, layers = size
    check(made(cell, I, H, layers, bias=bias), torch.randn(7, B, I), PARTS)


@ours
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", [*KINDS, "peephole", "three_states"])
def test_bits_in_other_dtypes(cell: str, dtype: torch.dtype) -> None:
    """Of 16 bits too: both keep the states in float32 and round what a layer gives to the next. But
    not of layers that multiply h rounded."""
    rounded = DOTS and dtype == torch.bfloat16 and cell in KINDS
    layer = made(cell, 200, 24, 2, dtype=dtype)
    x = torch.randn(60, 2, 200, dtype=dtype)
    y, final = whole(layer, x)
    for parts in ([60], [0] * 60, [1, 30, 29]):
        stream = rnnfast.Stream(layer, 2)
        assert agree(in_parts(stream, x, parts), y, rounded)
        for found, expected in zip(states_of(stream.state), final, strict=True):
            assert found.dtype == (dtype if dtype == torch.float64 else torch.float32)
            assert agree(found.to(dtype), expected, rounded)


@ours
@pytest.mark.parametrize("cell", ["own_lstm", "own_gru", "peephole", "three_states"])
@pytest.mark.parametrize("size", [(1, 5, 7, 1), (3, 16, 16, 3), (50, 9, 40, 2)], ids=str)
def test_bits_of_cells_of_ones_own(cell: str, size: tuple[int, int, int, int]) -> None:
    B, I, H, layers = size
    check(made(cell, I, H, layers), torch.randn(7, B, I), PARTS)


@ours
@pytest.mark.parametrize("name", ["LayerNormLSTM", "BlockGRU", "SLSTM", "MinGRU"])
def test_bits_of_the_family(name: str) -> None:
    check(getattr(rnnfast, name)(6, 16, 2), torch.randn(5, 2, 6), [[0, 3, 1]])


@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "peephole"])
def test_tokens(cell: str) -> None:
    layer = made(cell, 11, 20, 2)
    tokens = torch.randint(11, (6, 3))
    y, _final = whole(layer, tokens)
    for parts in ([6], [0] * 6, [2, 0, 3]):
        stream = rnnfast.Stream(layer, 3)
        assert torch.equal(in_parts(stream, tokens, parts), y)
    alone = rnnfast.Stream(layer)
    found = [alone(token) for token in tokens[:, 0]]  # without any axis
    assert torch.equal(torch.stack(found), y[:, 0])


@ours
def test_zoneout_of_evaluation() -> None:
    layer = rnnfast.LSTM(6, 16, 2, zoneout=(0.1, 0.3)).eval()
    x = torch.randn(5, 2, 6)
    y, final = whole(layer, x)
    stream = rnnfast.Stream(layer, 2)
    assert torch.equal(in_parts(stream, x, [0, 3, 1]), y)
    for found, expected in zip(states_of(stream.state), final, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("cell", [*KINDS, "peephole"])
def test_close_to_float64_everywhere(cell: str) -> None:
    """On every instruction set, where bits differ from those of torch's product."""
    layer = made(cell, 30, 20, 2)
    x = torch.randn(9, 2, 30)
    y, _ = whole(layer, x)
    found = in_parts(rnnfast.Stream(layer, 2), x, [0, 5, 3])
    reference, _ = whole(layer.double(), x.double())
    assert_close_to_oracle(found, reference, y)


def test_batch_first() -> None:
    layer = rnnfast.GRU(6, 16, batch_first=True)
    x = torch.randn(2, 70, 6)
    y = in_parts(rnnfast.Stream(layer, 2), x, [0, 60, 9], time=1)
    straight = rnnfast.Stream(rnnfast.GRU(6, 16), 2)
    straight.layer.load_state_dict(layer.state_dict())
    assert torch.equal(y, in_parts(straight, x.transpose(0, 1), [70]).transpose(0, 1))


def test_states_begin_where_they_are_set() -> None:
    layer = rnnfast.LSTM(6, 16, 2)
    x, hx = torch.randn(5, 3, 6), (torch.randn(2, 3, 16), torch.randn(2, 3, 16))
    stream = rnnfast.Stream(layer, 3)
    stream(x)
    stream.state = hx
    found = stream(x)
    y, _ = whole(layer, x, hx)
    torch.testing.assert_close(found, y)
    if OURS:
        assert torch.equal(found, y)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "gru_reset_before", "rnn_tanh"])
def test_threads_do_not_change_bits(cell: str, threads: int) -> None:
    layer = made(cell, 300, 700, 2)
    x = torch.randn(3, 1, 300)
    alone = rnnfast.Stream(layer)
    y = in_parts(alone, x, [0, 2])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = rnnfast.Stream(layer)
        found = in_parts(together, x, [0, 2])
        shared = together._held.threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, y)
    assert alone._held.threads == 1
    assert shared == 1 or cell != "lstm" or shared > 1

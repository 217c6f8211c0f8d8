"""Weights of 16 and 8 bits: errors against float64, on weights that were trained."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import rnnfast

from ..layers import KINDS
from .layers import MISSING, in_parts, whole

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING or "built"))
TEXT = (
    "the time traveller for so it will be convenient to speak of him was expounding a recondite "
    "matter to us his pale grey eyes shone and twinkled and his usually pale face was flushed and "
    "animated the fire burnt brightly and the soft radiance of the incandescent lights in the "
    "lilies of silver caught the bubbles that flashed and passed in our glasses "
)
SYMBOLS = sorted(set(TEXT))
WEIGHTS = ("bfloat16", "int8")
# of the outputs' root mean square error, three times what docs/streaming.md says
BOUNDS = {
    "LSTM": {"bfloat16": 0.0165, "int8": 0.041},
    "GRU": {"bfloat16": 0.0093, "int8": 0.061},
    "RNN": {"bfloat16": 0.091, "int8": 0.097},
}
NATS = 0.05


class Model(NamedTuple):
    layer: rnnfast.LSTM | rnnfast.GRU | rnnfast.RNN
    head: nn.Linear


@pytest.fixture(scope="module", params=["LSTM", "GRU", "RNN"])
def trained(request: pytest.FixtureRequest) -> Model:
    """A model of characters that knows its text."""
    torch.manual_seed(0)
    layer = getattr(rnnfast, request.param)(len(SYMBOLS), 64)
    head = nn.Linear(64, len(SYMBOLS))
    tokens = torch.tensor([SYMBOLS.index(c) for c in TEXT])
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=1e-2)
    columns = tokens[: len(tokens) // 8 * 8].view(8, -1).t()
    for _ in range(120):
        loss = nn.functional.cross_entropy(
            head(layer(columns[:-1])[0]).flatten(0, 1), columns[1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
    assert loss < 1.0, "the model did not learn"
    return Model(layer, head)


def likelihood(head: nn.Linear, y: Tensor, tokens: Tensor) -> float:
    """Mean negative log likelihood of each character after the first."""
    logits = nn.functional.linear(y[:-1, 0].double(), head.weight.double(), head.bias.double())
    return float(nn.functional.cross_entropy(logits, tokens[1:, 0]))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_error_on_trained_weights(trained: Model, weights: str) -> None:
    tokens = torch.tensor([SYMBOLS.index(c) for c in TEXT])[:, None]
    with torch.no_grad():
        stream = rnnfast.Stream(trained.layer, weights=weights)
        y = in_parts(stream, tokens, [0, 0, len(tokens) - 2])
        reference = whole_double(trained, tokens)
        error = float((y.double() - reference).square().mean().sqrt())
        worse = likelihood(trained.head, y, tokens) - likelihood(trained.head, reference, tokens)
    kind = type(trained.layer).__name__
    print(f"{kind} {weights}: {error:.2e}, {worse:.2e} nats")
    assert 1e-4 < error < BOUNDS[kind][weights]
    assert abs(worse) < NATS


def whole_double(trained: Model, tokens: Tensor) -> Tensor:
    double = type(trained.layer)(len(SYMBOLS), 64, dtype=torch.float64)
    double.load_state_dict(trained.layer.state_dict())
    return whole(double, tokens)[0]


def quantized(layer: nn.Module, weights: str) -> None:
    """The layer with the numbers that the packed weights stand for."""
    for name, p in layer.named_parameters():
        if weights == "bfloat16" and name.startswith("weight"):
            p.data = p.data.bfloat16().float()
        elif name.startswith("weight"):
            largest = p.data.abs().amax(1, keepdim=True)
            rounded = torch.round(127 * p.data.double() / largest.clamp_min(1e-30)).float()
            p.data = rounded * (largest / 127)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("cell", KINDS)
def test_it_is_the_layer_with_rounded_weights(cell: str, weights: str, batch: int) -> None:
    """So nothing but the weights is rounded."""
    kind, more = KINDS[cell]
    layer = kind(37, 20, 2, **more)
    layer.weight_hh_l0.data[3] = 0  # a row without a scale
    x = torch.randn(6, batch, 37)
    found = in_parts(rnnfast.Stream(layer, batch, weights), x, [0, 4, 1])
    quantized(layer, weights)
    y, _ = whole(layer, x)
    torch.testing.assert_close(found, y, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("cell", KINDS)
def test_steps_and_blocks_have_the_same_bits(cell: str, weights: str) -> None:
    kind, more = KINDS[cell]
    layer = kind(37, 20, 2, **more)
    for batch in (1, 3):
        x = torch.randn(60, batch, 37)
        y = in_parts(rnnfast.Stream(layer, batch, weights), x, [0] * 60)
        assert torch.equal(in_parts(rnnfast.Stream(layer, batch, weights), x, [60]), y)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_tokens_are_their_one_hot(weights: str) -> None:
    layer = rnnfast.LSTM(11, 20)
    tokens = torch.randint(11, (5, 2))
    x = nn.functional.one_hot(tokens, 11).float()
    found = rnnfast.Stream(layer, 2, weights)(tokens)
    torch.testing.assert_close(found, rnnfast.Stream(layer, 2, weights)(x))


def test_bfloat16_layers_lose_nothing() -> None:
    layer = rnnfast.LSTM(11, 20, dtype=torch.bfloat16)
    x = torch.randn(5, 2, 11, dtype=torch.bfloat16)
    same = rnnfast.Stream(layer, 2, "bfloat16")(x)
    assert torch.equal(rnnfast.Stream(layer, 2)(x), same)

"""What isinstance says of the layers, for code that asks it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.contract.helpers import LAYER_CLASSES, Maker


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_every_layer_is_an_rnn_base(make: Maker, cls: str) -> None:
    assert isinstance(make(cls, 4, 5), nn.RNNBase)


@pytest.mark.parametrize("cls", LAYER_CLASSES)
@pytest.mark.beyond_torch("there is only one family of torch.nn")
def test_a_plain_layer_is_not_torchs_own(make_layer: Maker, cls: str) -> None:
    layer = make_layer(cls, 4, 5)
    assert not any(isinstance(layer, getattr(nn, other)) for other in LAYER_CLASSES)


@pytest.mark.parametrize("cls", LAYER_CLASSES)
@pytest.mark.beyond_torch("there is only one family of torch.nn")
def test_a_compat_layer_is_both(cls: str) -> None:
    import rnnfast
    from rnnfast import compat

    layer = getattr(compat, cls)(4, 5)
    assert isinstance(layer, getattr(rnnfast, cls))
    assert isinstance(layer, getattr(nn, cls))
    others = set(LAYER_CLASSES) - {cls}
    assert not any(isinstance(layer, getattr(nn, other)) for other in others)


@pytest.mark.beyond_torch("torch's own forward is what compat must not fall back to")
@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_a_compat_layer_runs_rnnfasts_forward(cls: str) -> None:
    import rnnfast
    from rnnfast import compat

    ours = getattr(compat, cls)
    assert ours.forward is getattr(rnnfast, cls).forward
    x, lengths = torch.randn(4, 2, 3), torch.tensor([4, 2])
    output, _ = ours(3, 5)(x, lengths=lengths)
    assert bool((output[2:, 1] == 0).all())
    assert bool((output[:2, 1] != 0).any())

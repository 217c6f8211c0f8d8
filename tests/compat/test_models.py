"""Networks of other packages, built from small configs: the same after rnnfast.replace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import rnnfast

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def compare(model: nn.Module, run: Callable[[nn.Module], Any], layers: int) -> None:
    """Outputs, and the gradients of all parameters, before and after ``replace``."""
    ours = copy.deepcopy(model)
    report = rnnfast.replace(ours)
    assert len(report.swapped) == layers
    results = []
    for each in (model, ours):
        torch.manual_seed(1)
        outputs = [t for t in tree_leaves(run(each)) if isinstance(t, Tensor)]
        outputs = [t for t in outputs if t.requires_grad]
        weights = [p for p in each.parameters() if p.requires_grad]
        loss = sum(t.square().sum() for t in outputs)
        grads = torch.autograd.grad(loss, weights, allow_unused=True)
        results.append((outputs, [g for g in grads if g is not None]))
    assert len(results[0][0]) > 0
    assert len(results[0][1]) > 8
    torch.testing.assert_close(results[1], results[0])


def test_encodec_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.EncodecConfig(
        num_filters=4,
        hidden_size=16,
        num_lstm_layers=2,
        upsampling_ratios=[4, 2],
        codebook_size=16,
        codebook_dim=16,
        target_bandwidths=[60.0],
    )
    model = transformers.EncodecModel(config).double().eval()
    sound = torch.randn(2, 1, 320, dtype=torch.float64)
    compare(model, lambda m: m.decoder(m.encoder(sound)), layers=2)
    with torch.no_grad():
        expected = model(sound).audio_values
        rnnfast.replace(model)
        torch.testing.assert_close(model(sound).audio_values, expected)


def test_crdnn_of_speechbrain() -> None:
    crdnn = pytest.importorskip("speechbrain.lobes.models.CRDNN", reason="no speechbrain")
    sounds = torch.randn(3, 20, 12, dtype=torch.float64)
    from speechbrain.nnet.RNN import GRU, LSTM

    for layer in (LSTM, GRU):
        model = crdnn.CRDNN(
            input_size=12,
            cnn_blocks=1,
            cnn_channels=(4,),
            rnn_class=layer,
            rnn_layers=2,
            rnn_neurons=8,
            dnn_blocks=1,
            dnn_neurons=8,
        )
        compare(model.double().eval(), lambda m: m(sounds), layers=1)


def test_tft_of_pytorch_forecasting_is_left_as_it_is() -> None:
    forecasting = pytest.importorskip("pytorch_forecasting", reason="no pytorch-forecasting")
    import pandas as pd

    series = [
        {"time": t, "group": str(g), "value": float(t % 5 + g)} for g in range(3) for t in range(20)
    ]
    data = forecasting.TimeSeriesDataSet(
        pd.DataFrame(series),
        time_idx="time",
        target="value",
        group_ids=["group"],
        max_encoder_length=8,
        max_prediction_length=4,
        time_varying_unknown_reals=["value"],
        time_varying_known_reals=["time"],
    )
    model = forecasting.TemporalFusionTransformer.from_dataset(
        data, hidden_size=8, lstm_layers=2, attention_head_size=2
    )
    x, _ = next(iter(data.to_dataloader(train=False, batch_size=4)))
    report = rnnfast.replace(model.eval())  # its LSTM is a subclass with a forward of its own
    assert report.swapped == []
    assert [name for name, _ in report.left] == ["lstm_encoder", "lstm_decoder"]
    assert all(why.endswith("is a subclass, which may override anything") for _, why in report.left)
    assert model(x)["prediction"].shape[:2] == (4, 4)


def test_demucs_of_torchaudio() -> None:
    models = pytest.importorskip("torchaudio.models", reason="torchaudio is not installed")
    model = models.HDemucs(["a", "b"], audio_channels=1, channels=8, nfft=1024, depth=5)
    sound = torch.randn(1, 1, 8192)
    compare(model.double().eval(), lambda m: m(sound.double()), layers=2)

"""The family as layers: which cell, which parameters, what they begin as, what is refused."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import nn

import rnnfast
from rnnfast.cells import FAMILY
from rnnfast.problem import Options, Scan
from rnnfast.scratch import scratch_scan

I, H = 5, 16
LAYERS: list[tuple[str, dict[str, Any], str]] = [
    ("LayerNormLSTM", {}, "layer_norm_lstm"),
    ("LayerNormGRU", {}, "layer_norm_gru"),
    ("LayerNormGRU", {"joint": True}, "layer_norm_gru_joint"),
    ("PeepholeLSTM", {}, "peephole_lstm"),
    ("CoupledLSTM", {}, "coupled_lstm"),
    ("IndRNN", {}, "indrnn_relu"),
    ("IndRNN", {"nonlinearity": "tanh"}, "indrnn_tanh"),
    ("LiGRU", {}, "ligru"),
    ("MinLSTM", {}, "min_lstm"),
    ("MinLSTM", {"positive": True}, "min_lstm_positive"),
    ("MinGRU", {}, "min_gru"),
    ("MinGRU", {"positive": True}, "min_gru_positive"),
    ("SLSTM", {}, "slstm"),
    ("BlockGRU", {}, "block_gru"),
    ("BlockGRU", {"norm": "layer"}, "block_gru_layer_norm"),
    ("BlockGRU", {"norm": None}, "block_gru_no_norm"),
]
each = pytest.mark.parametrize(("name", "settings", "cell"), LAYERS)


def made(name: str, *args: Any, **settings: Any) -> rnnfast.Recurrent:
    layer = getattr(rnnfast, name)(I, H, *args, **settings)
    assert isinstance(layer, rnnfast.Recurrent)
    return layer


def test_every_cell_has_a_class() -> None:
    assert [cell for *_, cell in LAYERS] == [spec.name for spec in FAMILY]


@each
def test_the_layer_is_its_cells(name: str, settings: dict[str, Any], cell: str) -> None:
    layer = made(name, **settings)
    assert layer.cell is rnnfast.CELLS[cell]
    x = torch.randn(4, 3, I)
    states = [torch.zeros(3, H) for _ in layer.cell.states]
    weights = list(layer.parameters())
    scan = Scan(cell, "dense", x, states, weights, None, None, Options())
    with rnnfast.use_backend("reference"):  # test_family.py compiles them
        torch.testing.assert_close(layer(x)[0], scratch_scan(scan).y)


@each
def test_arguments_stand_in_torchs_order(name: str, settings: dict[str, Any], cell: str) -> None:
    layer = made(name, 2, False, True, 0.25, True, "meta", torch.float64, **settings)
    assert (layer.num_layers, layer.bias, layer.batch_first) == (2, False, True)
    assert (layer.dropout, layer.bidirectional) == (0.25, True)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}
    biased = "LayerNorm" not in name
    assert made(name, **settings).bias is biased
    assert list(inspect.signature(getattr(rnnfast, name)).parameters)[:2] == [
        "input_size",
        "hidden_size",
    ]


@each
def test_initial_values(name: str, settings: dict[str, Any], cell: str) -> None:
    bound = 1 / math.sqrt(H)
    for key, weight in made(name, **settings).named_parameters():
        own = key.removesuffix("_l0")
        if own.startswith("gain"):
            assert (weight == 1).all()
        elif own.startswith("shift"):
            assert (weight == 0).all()
        elif own == "u":
            assert 0 <= weight.min() < bound < weight.max() <= 1
        else:
            assert -bound <= weight.min() < 0 < weight.max() <= bound


@each
def test_errors_call_the_layer_by_its_name(name: str, settings: dict[str, Any], cell: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: Expected input to be 2D or 3D"):
        made(name, **settings)(torch.zeros(2, 2, 2, I))
    with pytest.raises(TypeError, match="no setting 'depth'"):
        made(name, depth=3, **settings)


def test_settings() -> None:
    assert made("SLSTM", heads=2).weight_hh_l0.shape == (4, 2, 8, 8)
    assert made("SLSTM").weight_hh_l0.shape == (4, 4, 4, 4)
    assert made("BlockGRU").weight_hh_l0.shape == (3, 8, 2, 2)
    assert made("BlockGRU", heads=1, norm=None).weight_hh_l0.shape == (3, 1, H, H)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("SLSTM", {"heads": 3}, r"'w_hh' should give whole sizes .*H = 16.*heads = 3"),
        ("BlockGRU", {"heads": 5}, r"'w_hh' should give whole sizes .*H = 16.*heads = 5"),
        ("BlockGRU", {"norm": "batch"}, "norm should be 'rms', 'layer' or None, got: 'batch'"),
        ("IndRNN", {"nonlinearity": "sin"}, "Unknown nonlinearity 'sin'"),
    ],
)
def test_what_is_refused(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made(name, **settings)


def test_block_gru_with_one_head_is_a_gru_of_dense_weights() -> None:
    """Against torch's Linear and RMSNorm."""
    layer = made("BlockGRU", heads=1)
    x, h = torch.randn(1, 3, I), torch.randn(1, 3, H)
    linear = nn.Linear(H, 3 * H)
    linear.weight.data, linear.bias.data = layer.weight_hh_l0[:, 0].flatten(0, 1), layer.bias_hh_l0
    norm = nn.RMSNorm(3 * H, eps=1e-4)
    gates = norm(nn.functional.linear(x, layer.weight_ih_l0, layer.bias_ih_l0) + linear(h))
    r, n, u = gates.chunk(3, -1)
    u = torch.sigmoid(u - 1)
    expected = u * torch.tanh(torch.sigmoid(r) * n) + (1 - u) * h
    torch.testing.assert_close(layer(x, h)[0], expected)


@pytest.mark.parametrize("name", ["SLSTM", "MinGRU"])  # of four states, and without w_hh
def test_compiled_in_one_graph(name: str) -> None:
    torch.compiler.reset()
    layer, x = made(name), torch.randn(3, 2, I)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], layer(x)[0])

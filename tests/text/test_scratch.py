"""The Python loops against torch.nn, and against the formulas as the chapters write them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rnnfast.text.model import ModelSpec, load_weights, make_layer
from rnnfast.text.scratch import ScratchLayers, cell_name

LAYERS = [
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
    ("LSTM", {}),
    ("GRU", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
    ("GRU", {"num_layers": 3}),
    ("RNN", {"bidirectional": True}),
]


def states(layer: nn.Module, rows: int, batch: int = 3):
    h = torch.randn(rows, batch, 5, dtype=torch.float64)
    is_lstm = "LSTM" in str(getattr(layer, "mode", ""))
    return (h, torch.randn_like(h)) if is_lstm else h


@pytest.mark.parametrize(("cell", "options"), LAYERS)
def test_same_numbers_as_torch(cell, options):
    ours, theirs = ScratchLayers(cell, 4, 5, **options).double(), getattr(nn, cell)(4, 5, **options)
    theirs = theirs.double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    x, state = torch.randn(6, 3, 4, dtype=torch.float64), states(theirs, rows)
    found, expected = ours(x, state), theirs(x, state)
    torch.testing.assert_close(found, expected)
    found[0].square().sum().backward()
    expected[0].square().sum().backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_starts_with_torchs_weights(cell):
    torch.manual_seed(4)
    ours = ScratchLayers(cell, 4, 5, 2)
    torch.manual_seed(4)
    theirs = getattr(nn, cell)(4, 5, 2)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def test_dropout_draws_torchs_masks():
    ours, theirs = ScratchLayers("GRU", 4, 5, 2, dropout=0.5), nn.GRU(4, 5, 2, dropout=0.5)
    load_weights(ours, theirs.state_dict())
    x, h = torch.randn(6, 3, 4), torch.zeros(2, 3, 5)
    results = []
    for layer in (ours, theirs):
        torch.manual_seed(1)
        results.append(layer(x, h)[0])
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(ours.eval()(x, h)[0], theirs.eval()(x, h)[0])
    assert not torch.allclose(results[0], ours(x, h)[0])


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_end_each_row(cell, bidirectional):
    layer = ScratchLayers(cell, 4, 5, bidirectional=bidirectional)
    x, lengths = torch.randn(6, 3, 4), torch.tensor([6, 2, 4])
    zero = torch.zeros(2 if bidirectional else 1, 3, 5)
    state = (zero, zero) if cell == "LSTM" else zero
    y, final = layer(x, state, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = tuple(s[:, row : row + 1] for s in state) if cell == "LSTM" else zero[:, :1]
        expected, last = layer(x[:length, row : row + 1], alone)
        torch.testing.assert_close(y[:length, row], expected[:, 0])
        assert not y[length:, row].any()
        for found, wanted in zip(
            final if cell == "LSTM" else (final,), last if cell == "LSTM" else (last,), strict=True
        ):
            torch.testing.assert_close(found[:, row], wanted[:, 0])


# --- the chapters' formulas, one bias ------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def chapter_rnn(x, h, c, w, u, b):
    return torch.tanh(x @ w[0] + h @ u[0] + b[0]), c


def chapter_lstm(x, h, c, w, u, b):
    i, f, o = (sigmoid(x @ w[k] + h @ u[k] + b[k]) for k in (0, 1, 3))
    candidate = torch.tanh(x @ w[2] + h @ u[2] + b[2])
    c = f * c + i * candidate
    return o * torch.tanh(c), c


def chapter_gru(x, h, c, w, u, b):
    r, z = (sigmoid(x @ w[k] + h @ u[k] + b[k]) for k in (0, 1))
    candidate = torch.tanh(x @ w[2] + (r * h) @ u[2] + b[2])
    return z * h + (1 - z) * candidate, c


@pytest.mark.parametrize("implementation", ["scratch", "rnnfast"])
@pytest.mark.parametrize(
    ("cell", "formula"), [("RNN", chapter_rnn), ("LSTM", chapter_lstm), ("GRU", chapter_gru)]
)
def test_one_bias_form_is_the_chapters(implementation, cell, formula):
    spec = ModelSpec(4, 5, cell, one_bias=True, reset_after=False)
    layer = make_layer(implementation, spec).double()
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[cell]
    w = layer.weight_ih_l0.view(gates, 5, 4).transpose(1, 2)
    u = layer.weight_hh_l0.view(gates, 5, 5).transpose(1, 2)
    b = layer.bias_ih_l0.view(gates, 5)
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    zero = torch.zeros(1, 3, 5, dtype=torch.float64)
    y, _ = layer(x, (zero, zero) if cell == "LSTM" else zero)
    h = c = torch.zeros(3, 5, dtype=torch.float64)
    for t in range(6):
        h, c = formula(x[t], h, c, w, u, b)
        torch.testing.assert_close(y[t], h)
    assert layer.bias_ih_l0.requires_grad
    second = getattr(layer, "bias_hh_l0", None)
    assert second is None or not (second.requires_grad or second.any())


def test_names_of_the_cells():
    assert cell_name("RNN", "relu") == "rnn_relu"
    assert cell_name("LSTM") == "lstm"
    assert [cell_name("GRU", reset_after=after) for after in (True, False)] == [
        "gru",
        "gru_reset_before",
    ]

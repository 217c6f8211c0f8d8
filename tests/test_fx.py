"""torch.fx: a layer is a leaf of a symbolic trace, and torch.ao's passes run over such a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import QConfigMapping, default_dynamic_qconfig, get_default_qconfig
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import rnnfast

from . import own_cells
from .layers import makers

T, B, I, H = 4, 3, 5, 6
LAYERS = makers(I, H, own=True)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Tagger(nn.Module):
    def __init__(self, layer: nn.Module, width: int = H) -> None:
        super().__init__()
        self.input = nn.Linear(I, I)
        self.layer = layer
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.layer(torch.relu(self.input(x)))
        return self.head(y)


def calls(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if node.op == "call_module"]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_a_leaf(name: str) -> None:
    layer = LAYERS[name]()
    model = Tagger(layer, layer.proj_size or H)
    made = fx.symbolic_trace(model)
    assert [node.target for node in calls(made)] == ["input", "layer", "head"]
    assert made.layer is layer
    x = torch.randn(T, B, I)
    torch.testing.assert_close(made(x), model(x))
    made.graph.lint()


@pytest.mark.parametrize("cls", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_replaced_before_and_after(cls: type, fullgraph: bool) -> None:
    model, x = Tagger(cls(I, H)), torch.randn(T, B, I)
    expected, theirs = model(x), fx.symbolic_trace(model)
    rnnfast.replace(theirs, fullgraph)
    assert isinstance(theirs.layer, getattr(rnnfast, cls.__name__))
    torch.testing.assert_close(theirs(x), expected)
    rnnfast.replace(model, fullgraph)
    ours = fx.symbolic_trace(model)
    assert str(ours.graph) == str(theirs.graph)
    torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(fx.symbolic_trace(ours)(x), expected)
    torch.testing.assert_close(fx.Transformer(ours).transform()(x), expected)
    torch.testing.assert_close(fx.Interpreter(ours).run(x), expected)


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = rnnfast.LSTM(I, H)
        self.lstm_cell, self.gru_cell = rnnfast.LSTMCell(I, H), rnnfast.GRUCell(I, H)
        self.rnn_cell = rnnfast.RNNCell(I, H)
        self.paper = rnnfast.GRUCell(I, H, reset_after=False)
        self.own = rnnfast.RecurrentCell(own_cells.peephole, I, H)

    def forward(self, x: Tensor, lengths: Tensor, h0: Tensor, c0: Tensor) -> Any:
        y, (h, c), states = self.layer(x, (h0, c0), lengths=lengths, return_all_states=True)
        h, c = self.lstm_cell(x[0], (h[0], c[0]))
        h = self.paper(x[2], self.gru_cell(x[1], self.rnn_cell(x[3], h)))
        h, c = self.own(x[0], (h, c))
        fixed, _ = self.layer(torch.ones(1, 3, I), (h0, c0))  # a proxy among the states only
        return y, h, c, states.c[0], fixed


def test_states_lengths_options_and_single_cells() -> None:
    model = Everything()
    made = fx.symbolic_trace(model)
    args = (
        torch.randn(T, B, I),
        torch.tensor([2, 4, 0]),
        torch.randn(1, B, H),
        torch.randn(1, B, H),
    )
    torch.testing.assert_close(made(*args), model(*args))
    first, *_ = calls(made)
    assert set(first.kwargs) == {"lengths", "return_all_states"}
    names = ["layer", "lstm_cell", "rnn_cell", "gru_cell", "paper", "own", "layer"]
    assert [node.target for node in calls(made)] == names


def test_what_can_not_be_recorded_says_so() -> None:
    layer = rnnfast.GRU(I, H)
    with pytest.raises(RuntimeError, match="trace a module that holds it"):
        fx.symbolic_trace(layer)
    layer.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="GRU with forward hooks"):
        fx.symbolic_trace(Tagger(layer))


@pytest.mark.parametrize("cls", [rnnfast.LSTM, rnnfast.compat.LSTM, rnnfast.GRU, rnnfast.MGU])
@pytest.mark.parametrize("how", ["static", "dynamic"])
def test_torch_aos_passes(cls: type, how: str) -> None:
    """The Linear layers are quantised, the recurrent one stays as it is."""
    model, x = Tagger(cls(I, H)).eval(), torch.randn(T, B, I)
    expected = model(x)
    backend = torch.backends.quantized.engine
    config = get_default_qconfig(backend) if how == "static" else default_dynamic_qconfig
    prepared = prepare_fx(model, QConfigMapping().set_global(config), (x,))
    prepared(x)
    found = convert_fx(prepared)
    assert isinstance(found.layer, cls)
    assert type(found.head).__module__.startswith("torch.ao.nn.")
    assert float((found(x) - expected).abs().max()) < 0.1

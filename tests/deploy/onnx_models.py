"""Random models for the tests of ONNX, exported, run by onnxruntime and held against the layer."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import rnnfast
from rnnfast.cells import CELLS
from rnnfast.recurrent import RecurrentLayer
from tests import own_cells

LAYERS: dict[str, tuple[type[RecurrentLayer], tuple[Any, ...], dict[str, Any]]] = {
    "rnn_tanh": (rnnfast.RNN, (), {}),
    "rnn_relu": (rnnfast.RNN, (), {"nonlinearity": "relu"}),
    "lstm": (rnnfast.LSTM, (), {}),
    "lstm_proj": (rnnfast.LSTM, (), {"proj_size": 2}),
    "gru": (rnnfast.GRU, (), {}),
    "gru_reset_before": (rnnfast.GRU, (), {"reset_after": False}),
    "mgu": (rnnfast.MGU, (), {}),
    "own_peephole": (rnnfast.Recurrent, (own_cells.peephole,), {}),
    "own_three_states": (rnnfast.Recurrent, (own_cells.three_states,), {}),
    "own_heads": (rnnfast.Recurrent, (own_cells.heads,), {}),
    "LayerNormLSTM": (rnnfast.LayerNormLSTM, (), {}),
    "LayerNormGRU": (rnnfast.LayerNormGRU, (), {}),
    "CoupledLSTM": (rnnfast.CoupledLSTM, (), {}),
    "IndRNN": (rnnfast.IndRNN, (), {}),
    "LiGRU": (rnnfast.LiGRU, (), {}),
    "MinLSTM": (rnnfast.MinLSTM, (), {}),
    "MinGRU": (rnnfast.MinGRU, (), {"positive": True}),
    "SLSTM": (rnnfast.SLSTM, (), {"heads": 2}),
    "BlockGRU": (rnnfast.BlockGRU, (), {"heads": 2}),
}
NODES = {
    "rnn_tanh": "RNN",
    "rnn_relu": "RNN",
    "lstm": "LSTM",
    "gru": "GRU",
    "gru_reset_before": "GRU",
}
# Of the largest value, between onnxruntime's functions and torch's, both in float32; in 16 bit a
# value may be rounded to another neighbour, and later layers and steps go on with it.
TOLERANCE = {
    torch.float32: 1e-5,
    torch.float64: 1e-10,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


@dataclass(frozen=True)
class Case:
    """A model, the sizes that it is exported with, and others that it is run with."""

    layer: str
    layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    bias: bool = True
    dtype: torch.dtype = torch.float32
    tokens: bool = False
    states: bool = False
    lengths: bool = False
    resets: bool = False
    all_states: bool = False
    I: int = 3
    H: int = 4
    example: tuple[int, int] = (5, 3)  # T, B
    run: tuple[int, int] = (7, 2)
    seed: int = 0

    @property
    def nodes(self) -> dict[str, int]:
        """The recurrent nodes and loops that are to be in the graph, and how many of each."""
        D = 2 if self.bidirectional else 1
        shows_c = self.all_states and self.layer == "lstm"
        as_node = self.layer in NODES and not (self.resets or shows_c)
        if as_node and self.dtype != torch.float64:
            looked_up = self.tokens and self.I > CELLS[self.layer].gates * self.H
            return {NODES[self.layer]: self.layers + (D - 1 if looked_up else 0)}
        return {"Scan": self.layers * D}


cases = st.builds(
    Case,
    layer=st.one_of(st.sampled_from(sorted(NODES)), st.sampled_from(sorted(LAYERS))),
    layers=st.sampled_from([1, 1, 2, 3]),
    bidirectional=st.sampled_from([False, False, True]),
    batch_first=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32] * 3 + [torch.float64, torch.float16, torch.bfloat16]),
    tokens=st.sampled_from([False, False, True]),
    states=st.booleans(),
    lengths=st.booleans(),
    resets=st.sampled_from([False, False, True]),
    all_states=st.sampled_from([False, False, True]),
    I=st.sampled_from([1, 3, 30]),
    H=st.sampled_from([4, 6]),
    example=st.tuples(st.integers(2, 6), st.integers(2, 4)),  # torch.export may keep a size of 1
    run=st.tuples(st.integers(1, 9), st.integers(1, 5)),
    seed=st.integers(0, 1000),
)


class Model(nn.Module):
    """The layer in its dtype between float32 (or tokens) and float32; its results in one list."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        make, before, more = LAYERS[case.layer]
        torch.manual_seed(case.seed)
        self.case = case
        self.layer = make(
            *before,
            case.I,
            case.H,
            case.layers,
            bias=case.bias,
            batch_first=case.batch_first,
            bidirectional=case.bidirectional,
            dtype=case.dtype,
            **more,
        ).eval()

    def forward(
        self,
        x: Tensor,
        states: list[Tensor] | None,
        lengths: Tensor | None,
        resets: Tensor | None,
    ) -> list[Tensor]:
        case = self.case
        x = x if case.tokens else x.to(case.dtype)
        hx = None if states is None else self.layer._join_hidden([s.to(case.dtype) for s in states])
        y, final, *every = self.layer(
            x, hx, lengths=lengths, resets=resets, return_all_states=case.all_states
        )
        found = [y, *self.layer._split_hidden(final)]
        for named in every:
            series = named.values() if isinstance(named, dict) else named
            found += [s for layers in series if layers is not None for s in layers]
        return [tensor.float() if case.dtype != torch.float64 else tensor for tensor in found]


Inputs = tuple[Tensor, list[Tensor] | None, Tensor | None, Tensor | None]


def inputs_of(model: Model, T: int, B: int) -> Inputs:
    """Random ones; of the sequences with lengths the first has none, if there is another."""
    case = model.case
    rows = case.layers * (2 if case.bidirectional else 1)
    x = torch.randint(case.I, (T, B)) if case.tokens else torch.randn(T, B, case.I)
    lengths = resets = states = None
    if case.lengths:
        lengths = torch.randint(1, T + 1, (B,))
        lengths[0] = 0 if B > 1 else T
        if case.tokens:
            x[torch.arange(T).unsqueeze(-1) >= lengths] = case.I + 9  # padding is not read
    if case.resets:
        resets = torch.rand(T, B) < 0.3
    if case.states:
        states = [torch.randn(rows, B, width) for width in model.layer._state_widths()]
    if case.batch_first:
        x = x.transpose(0, 1).contiguous()
        resets = None if resets is None else resets.t().contiguous()
    return x, states, lengths, resets


def exported(model: nn.Module, inputs: Inputs, case: Case) -> Any:
    """The ONNXProgram, with any T and B."""
    T, B = (1, 0) if case.batch_first else (0, 1)
    _, states, lengths, resets = inputs
    shapes = (
        {T: "T", B: "B"},
        None if states is None else [{1: "B"} for _ in states],
        None if lengths is None else {0: "B"},
        None if resets is None else {T: "T", B: "B"},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of its own calls
        return torch.onnx.export(model, inputs, dynamo=True, verbose=False, dynamic_shapes=shapes)


def nodes_of(program: Any) -> dict[str, int]:
    """The recurrent nodes and loops in the graph."""
    found = Counter(node.op_type for node in program.model.graph)
    return {name: found[name] for name in ("RNN", "LSTM", "GRU", "Scan", "Loop") if found[name]}


def to_16_bit(program: Any) -> bool:
    """Whether anything is cast to float16 or bfloat16."""
    casts = (node for node in program.model.graph if node.op_type == "Cast")
    return any(node.attributes["to"].as_int() in (10, 16) for node in casts)


def run(program: Any, inputs: Inputs) -> list[Tensor]:
    """What onnxruntime makes of them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if "Scan" in nodes_of(program) and to_16_bit(program):  # docs/onnx.md
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    x, states, lengths, resets = inputs
    tensors = [t for t in (x, *(states or ()), lengths, resets) if t is not None]
    named = zip((i.name for i in session.get_inputs()), tensors, strict=True)
    found = session.run(None, {name: tensor.numpy() for name, tensor in named})
    return [torch.from_numpy(array) for array in found]


def assert_close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Shapes too."""
    assert [t.shape for t in found] == [t.shape for t in expected]
    for ours, theirs in zip(expected, found, strict=True):
        bound = TOLERANCE[dtype] * max(1.0, ours.abs().max().item())
        torch.testing.assert_close(theirs, ours, rtol=0, atol=bound)


def check(case: Case) -> None:
    """Exports, runs on the example and on other sizes, and compares."""
    model = Model(case)
    example = inputs_of(model, *case.example)
    with rnnfast.use_backend("reference"):  # which compiles nothing
        program = exported(model, example, case)
        assert nodes_of(program) == case.nodes
        for inputs in (example, inputs_of(model, *case.run)):
            assert_close(run(program, inputs), model(*inputs), case.dtype)

"""Recurrent layers as the chapters write them: a Python loop over the steps, in plain torch.

The steps are those of `rnnfast.cells`, the same formulas that every kernel is tested against. The
parameters have torch.nn's names and shapes, so weights can be copied back and forth.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cells import CELLS, CellSpec, States, StepWeights

State = Tensor | tuple[Tensor, Tensor]


def cell_name(cell: str, nonlinearity: str = "tanh", reset_after: bool = True) -> str:
    """The name in `rnnfast.cells.CELLS` of an ``RNN``, ``LSTM`` or ``GRU``."""
    if cell == "RNN":
        return f"rnn_{nonlinearity}"
    if cell == "GRU":
        return "gru" if reset_after else "gru_reset_before"
    return cell.lower()


class ScratchLayers(nn.Module):
    """Layers of one cell, one or two directions, time first; called as torch.nn's layers are.

    Args:
        cell: ``RNN``, ``LSTM`` or ``GRU``.
        one_bias: one bias for each gate, as in the chapters, in place of torch.nn's two. (With two,
            SGD moves their sum twice as far a step.)
        nonlinearity: of the RNN. reset_after: which of the two GRUs.

    The weights start as torch.nn's do, drawn in the same order: U(±1/√H).
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        dropout: float = 0.0,
        one_bias: bool = False,
        nonlinearity: str = "tanh",
        reset_after: bool = True,
    ) -> None:
        super().__init__()
        self.cell: CellSpec = CELLS[cell_name(cell, nonlinearity, reset_after)]
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bidirectional, self.dropout = bidirectional, dropout
        self.suffixes = [""] + (["_reverse"] if bidirectional else [])
        rows = self.cell.gates * hidden_size
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * len(self.suffixes)
            for suffix in self.suffixes:
                end = f"l{layer}{suffix}"
                self.register_parameter(f"weight_ih_{end}", nn.Parameter(torch.empty(rows, width)))
                w_hh = nn.Parameter(torch.empty(rows, hidden_size))
                self.register_parameter(f"weight_hh_{end}", w_hh)
                self.register_parameter(f"bias_ih_{end}", nn.Parameter(torch.empty(rows)))
                if not one_bias:
                    self.register_parameter(f"bias_hh_{end}", nn.Parameter(torch.empty(rows)))
        bound = 1 / math.sqrt(hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(
        self, input: Tensor, state: State, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """input [T, B, I], state [D*L, B, H] or a pair of them -> output [T, B, D*H], state.

        From ``lengths`` int64 [B] on, outputs are 0 and the state is frozen.
        """
        rows = list(zip(*(state if isinstance(state, tuple) else (state,)), strict=True))
        finals: list[States] = []
        x = input
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for suffix in self.suffixes:
                y, final = self._direction(x, rows[len(finals)], f"l{layer}{suffix}", lengths)
                outputs.append(y)
                finals.append(final)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        joined = [torch.stack(states) for states in zip(*finals, strict=True)]
        return x, joined[0] if len(joined) == 1 else (joined[0], joined[1])

    def _direction(
        self, x: Tensor, states: States, end: str, lengths: Tensor | None
    ) -> tuple[Tensor, States]:
        w_ih, b_ih = getattr(self, f"weight_ih_{end}"), getattr(self, f"bias_ih_{end}")
        weights = StepWeights(
            getattr(self, f"weight_hh_{end}"), getattr(self, f"bias_hh_{end}", None)
        )
        T = x.shape[0]
        outputs: list[Tensor] = [x] * T
        for t in reversed(range(T)) if end.endswith("reverse") else range(T):
            new = self.cell.step(F.linear(x[t], w_ih, b_ih), states, weights)
            if lengths is None:
                outputs[t], states = new[0], new
                continue
            live = (t < lengths)[:, None]
            outputs[t] = torch.where(live, new[0], torch.zeros_like(new[0]))
            states = tuple(
                torch.where(live, now, before) for now, before in zip(new, states, strict=True)
            )
        return torch.stack(outputs), states

"""The one list of the cells in Triton; csrc/cells/list.h and rnnfast/cells have the others.

``forward(gx, gh, s) -> s_new, saved`` and ``backward(ds_new, saved, s) -> dgx, dgh, ds`` take and
return tuples of tiles, one a gate, state or saved value, in the order of csrc/cells. gx = W_ih·x +
b_ih and gh = W_hh·h + b_hh; s[0] is h. ds is the direct part of the gradient of s; the part through
gh is W_hhᵀ·dgh, outside. What is saved beyond the gates is stored apart ("extra").
"""

from __future__ import annotations

from typing import Any, NamedTuple

from . import gru, lstm, rnn


class TritonCell(NamedTuple):
    """``forward`` and ``backward`` are None for the cell of two phases, whose kernels call its
    four functions by name. ``reads_h``: whether its backward reads s[0]."""

    name: str
    forward: Any
    backward: Any
    gates: int
    states: int
    saved: int
    phases: int = 1
    projected: bool = False
    reads_h: bool = False


_LIST = (
    TritonCell("rnn_tanh", rnn.rnn_tanh_forward, rnn.rnn_tanh_backward, 1, 1, 1),
    TritonCell("rnn_relu", rnn.rnn_relu_forward, rnn.rnn_relu_backward, 1, 1, 1),
    TritonCell("lstm", lstm.lstm_forward, lstm.lstm_backward, 4, 2, 4),
    TritonCell(
        "lstm_proj", lstm.lstm_proj_forward, lstm.lstm_proj_backward, 4, 2, 5, projected=True
    ),
    TritonCell("gru", gru.gru_forward, gru.gru_backward, 3, 1, 4, reads_h=True),
    TritonCell("gru_reset_before", None, None, 3, 1, 4, phases=2, reads_h=True),
)

CELLS: dict[str, TritonCell] = {cell.name: cell for cell in _LIST}

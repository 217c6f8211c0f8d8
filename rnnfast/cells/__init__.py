"""The cells: what each is called, what it holds, and one step of it in plain torch.

A step here is the readable specification. The C++ cells (csrc/cells) and those in Triton
(rnnfast/triton/cells) carry the same names, the same facts and the same order of gates, and the
tests compare them.

Shapes in this folder: B batch, I input size, H hidden size, P output size (the projection's, else
H), G gates.
"""

from .gru import GRU, GRU_RESET_BEFORE
from .lstm import LSTM, LSTM_PROJ
from .mgu import MGU
from .own import CELLS, OwnCell, cell
from .rnn import RNN_RELU, RNN_TANH
from .spec import CellSpec, Param, Product, States, StepWeights, Value
from .step_error import StepError

BUILT_IN = (RNN_TANH, RNN_RELU, LSTM, LSTM_PROJ, GRU, GRU_RESET_BEFORE, MGU)
CELLS.update({spec.name: spec for spec in BUILT_IN})

__all__ = [
    "BUILT_IN",
    "CELLS",
    "CellSpec",
    "OwnCell",
    "Param",
    "Product",
    "States",
    "StepError",
    "StepWeights",
    "Value",
    "cell",
]

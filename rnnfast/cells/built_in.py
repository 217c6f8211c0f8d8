"""The built-in cells, the first in CELLS: those that have kernels written by hand."""

from __future__ import annotations

from .gru import GRU, GRU_RESET_BEFORE
from .lstm import LSTM, LSTM_PROJ
from .mgu import MGU
from .own import CELLS
from .rnn import RNN_RELU, RNN_TANH

BUILT_IN = (RNN_TANH, RNN_RELU, LSTM, LSTM_PROJ, GRU, GRU_RESET_BEFORE, MGU)
CELLS.update({spec.name: spec for spec in BUILT_IN})

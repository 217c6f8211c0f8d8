"""rnnfast: recurrent layers for PyTorch that replace torch.nn's.

``rnnfast.RNN``, ``LSTM`` and ``GRU`` take torch.nn's arguments, weights and inputs, and also
``lengths``, ``resets``, tokens, and every cell state. See docs/ for the rest.
"""

from __future__ import annotations

from . import batching as _batching  # noqa: F401  registers the ops' rules for vmap
from . import flops as _flops
from . import ops as _ops  # noqa: F401  registers rnnfast::scan_forward and scan_backward
from ._version import __version__
from .backends.registry import BackendError, use_backend
from .cell_modules import GRUCell, LSTMCell, RNNCell
from .cells import CELLS, CellSpec, StepError, block_linear, cell
from .clip import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm
from .decompositions import decompositions
from .explain import Explanation, explain
from .family import (
    SLSTM,
    BlockGRU,
    CoupledLSTM,
    IndRNN,
    LayerNormGRU,
    LayerNormLSTM,
    LiGRU,
    MinGRU,
    MinLSTM,
    PeepholeLSTM,
)
from .functional import scan
from .modules import GRU, LSTM, MGU, RNN, AllStates
from .own_modules import Recurrent, RecurrentCell
from .tuning import Tuning, tune

from . import compat  # isort: skip  builds on the modules
from .compat import Replacement, replace  # isort: skip

_flops.register_when_imported()

__all__ = [
    "CELLS",
    "GRU",
    "LSTM",
    "MGU",
    "RNN",
    "SLSTM",
    "AllStates",
    "BackendError",
    "BlockGRU",
    "CellSpec",
    "CoupledLSTM",
    "Explanation",
    "GRUCell",
    "IndRNN",
    "LSTMCell",
    "LayerNormGRU",
    "LayerNormLSTM",
    "LiGRU",
    "MinGRU",
    "MinLSTM",
    "PeepholeLSTM",
    "RNNCell",
    "Recurrent",
    "RecurrentCell",
    "Replacement",
    "StepError",
    "Tuning",
    "__version__",
    "block_linear",
    "cell",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "compat",
    "decompositions",
    "explain",
    "get_total_norm",
    "replace",
    "scan",
    "tune",
    "use_backend",
]

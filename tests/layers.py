"""The layer that computes each cell: one line a cell, from which the tests' layers are made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import rnnfast
from rnnfast import CELLS, CellSpec
from rnnfast.recurrent import RecurrentLayer

from . import own_cells

KINDS: dict[str, tuple[type[RecurrentLayer], dict[str, Any]]] = {
    "rnn_tanh": (rnnfast.RNN, {}),
    "rnn_relu": (rnnfast.RNN, {"nonlinearity": "relu"}),
    "lstm": (rnnfast.LSTM, {}),
    "lstm_proj": (rnnfast.LSTM, {"proj_size": 3}),
    "gru": (rnnfast.GRU, {}),
    "gru_reset_before": (rnnfast.GRU, {"reset_after": False}),
    "mgu": (rnnfast.MGU, {}),
}


OWN: dict[str, CellSpec] = {
    "own_lstm": own_cells.lstm,
    "own_gru": own_cells.gru,
    "peephole": own_cells.peephole,
    "three_states": own_cells.three_states,
}


def makers(
    *args: int,
    without: tuple[str, ...] = ("rnn_relu",),
    proj_size: int = 3,
    own: bool = False,
) -> dict[str, Callable[..., Any]]:
    """By cell: what makes its layer, ``args`` first; ``rnn_relu`` is as ``rnn_tanh`` to most.

    ``own``: and layers of cells of one's own.
    """
    found: dict[str, Callable[..., Any]] = {}
    for cell, (kind, more) in KINDS.items():
        if cell not in without:
            more = more | ({"proj_size": proj_size} if CELLS[cell].projected else {})
            found[cell] = partial(kind, *args, **more)
    for name, cell in OWN.items() if own else ():
        found[name] = partial(rnnfast.Recurrent, cell, *args)
    return found

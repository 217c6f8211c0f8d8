"""The layer that computes each cell: one line a cell, from which the tests' layers are made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import rnnfast
from rnnfast import CELLS
from rnnfast.recurrent import Recurrent

KINDS: dict[str, tuple[type[Recurrent], dict[str, Any]]] = {
    "rnn_tanh": (rnnfast.RNN, {}),
    "rnn_relu": (rnnfast.RNN, {"nonlinearity": "relu"}),
    "lstm": (rnnfast.LSTM, {}),
    "lstm_proj": (rnnfast.LSTM, {"proj_size": 3}),
    "gru": (rnnfast.GRU, {}),
    "gru_reset_before": (rnnfast.GRU, {"reset_after": False}),
    "mgu": (rnnfast.MGU, {}),
}


def makers(
    *args: int, without: tuple[str, ...] = ("rnn_relu",), proj_size: int = 3
) -> dict[str, Callable[..., Any]]:
    """By cell: what makes its layer, ``args`` first; ``rnn_relu`` is as ``rnn_tanh`` to most."""
    found: dict[str, Callable[..., Any]] = {}
    for cell, (kind, more) in KINDS.items():
        if cell not in without:
            more = more | ({"proj_size": proj_size} if CELLS[cell].projected else {})
            found[cell] = partial(kind, *args, **more)
    return found

"""torch.nn's layers stated as cells of one's own, with torch.nn's arguments: what the contract says
of a layer holds of every cell's."""

from __future__ import annotations

from typing import Any

import rnnfast
from tests import own_cells


class RNN(rnnfast.Recurrent):
    _label, _suffix = "RNN", " tensor"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self.nonlinearity = nonlinearity
        cell = {"tanh": own_cells.rnn_tanh, "relu": own_cells.rnn_relu}[nonlinearity]
        super().__init__(cell, input_size, hidden_size, num_layers, *args, **kwargs)


class LSTM(rnnfast.Recurrent):
    _label = "LSTM"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(own_cells.lstm, *args, **kwargs)
        self.mode = "LSTM"


class GRU(rnnfast.Recurrent):
    _label = "GRU"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(own_cells.gru, *args, **kwargs)

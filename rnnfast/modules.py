"""RNN, LSTM, GRU: torch.nn's layers, their parameters and arguments, and more inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .masks import Zoneout
from .recurrent import AllStates, RecurrentLayer
from .time_clip import GradClipTime

__all__ = ["GRU", "LSTM", "MGU", "RNN", "AllStates"]


class RNN(RecurrentLayer):
    """Elman RNN: h' = tanh or relu (x W_ihᵀ + b_ih + h W_hhᵀ + b_hh). As :class:`torch.nn.RNN`.

    ``grad_clip_time``: limits the gradient between the steps of BPTT (docs/clipping.md).
    ``checkpoint_every=k``: training keeps the states of every k-th step only and computes the steps
    in between once more in backward (docs/checkpointing.md).
    ``recurrent_dropout``, ``zoneout``, ``weight_dropout``: docs/recurrent-dropout.md.
    """

    _suffix = " tensor"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        grad_clip_time: GradClipTime = 0.0,
        checkpoint_every: int = 0,
        recurrent_dropout: float = 0.0,
        zoneout: Zoneout = 0.0,
        weight_dropout: float = 0.0,
        **unknown: Any,
    ) -> None:
        _reject(type(self), unknown)
        modes = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
        self.nonlinearity = nonlinearity
        if nonlinearity not in modes:
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        nn.RNNBase.__init__(
            self,
            modes[nonlinearity],
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self._set_bptt(grad_clip_time, checkpoint_every)
        self._set_masks(recurrent_dropout, zoneout, weight_dropout)

    def _cell(self) -> str:
        return "rnn_tanh" if self.mode == "RNN_TANH" else "rnn_relu"


class LSTM(RecurrentLayer):
    """Long short-term memory, with ``proj_size`` its projected form. As :class:`torch.nn.LSTM`.

    c' = σ(f) ⊙ c + σ(i) ⊙ tanh(g); h' = σ(o) ⊙ tanh(c'), times W_hr where projected.
    ``grad_clip_time``: limits the gradient between the steps of BPTT (docs/clipping.md).
    ``checkpoint_every=k``: training keeps the states of every k-th step only and computes the steps
    in between once more in backward (docs/checkpointing.md).
    ``recurrent_dropout``, ``zoneout``, ``weight_dropout``: docs/recurrent-dropout.md.
    """

    _label = "LSTM"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        grad_clip_time: GradClipTime = 0.0,
        checkpoint_every: int = 0,
        recurrent_dropout: float = 0.0,
        zoneout: Zoneout = 0.0,
        weight_dropout: float = 0.0,
    ) -> None:
        nn.RNNBase.__init__(
            self,
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        self._set_bptt(grad_clip_time, checkpoint_every)
        self._set_masks(recurrent_dropout, zoneout, weight_dropout)

    # helpers that subclasses of torch.nn's layer call; RNNBase has them for one state only
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def _cell(self) -> str:
        return "lstm_proj" if self.proj_size > 0 else "lstm"

    def _split_hidden(self, hx: Any) -> list[Tensor]:
        if isinstance(hx, Tensor) or len(hx) != 2:
            raise ValueError(
                "LSTM takes hx as a pair (h_0, c_0), got "
                + (f"a tensor {list(hx.shape)}" if isinstance(hx, Tensor) else f"{len(hx)} items")
            )
        return list(hx)

    def _join_hidden(self, states: Sequence[Tensor]) -> Any:
        return tuple(states)

    def _wrong_dims(self, states: list[Tensor], batched: bool) -> str:
        case = (
            "batched 3-D input, hx and cx should also be 3-D"
            if batched
            else ("unbatched 2-D input, hx and cx should also be 2-D")
        )
        return f"For {case} but got ({states[0].dim()}-D, {states[1].dim()}-D) tensors"

    def _wrong_size(self, index: int, expected: tuple[int, ...], got: list[int]) -> str:
        return f"Expected hidden[{index}] size {expected}, got {got}"


class GRU(RecurrentLayer):
    """Gated recurrent unit. As :class:`torch.nn.GRU`, and with ``reset_after=False`` the paper's.

    h' = (1 − z) ⊙ n + z ⊙ h, where torch's n = tanh(x W_in + b_in + r ⊙ (h W_hn + b_hn)), and the
    paper's (Cho et al., arXiv:1406.1078) n = tanh(x W_in + b_in + (r ⊙ h) W_hn + b_hn).
    ``grad_clip_time``: limits the gradient between the steps of BPTT (docs/clipping.md).
    ``checkpoint_every=k``: training keeps the states of every k-th step only and computes the steps
    in between once more in backward (docs/checkpointing.md).
    ``recurrent_dropout``, ``zoneout``, ``weight_dropout``: docs/recurrent-dropout.md.
    """

    _label = "GRU"

    # of layers that become this class without its __init__ (`__class__ =`, a remapped pickle); no
    # annotation, which torch.jit would read
    reset_after = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        grad_clip_time: GradClipTime = 0.0,
        checkpoint_every: int = 0,
        recurrent_dropout: float = 0.0,
        zoneout: Zoneout = 0.0,
        weight_dropout: float = 0.0,
        **unknown: Any,
    ) -> None:
        _reject(type(self), unknown)
        if not isinstance(reset_after, bool):
            raise TypeError(
                f"reset_after should be of type bool, got: {type(reset_after).__name__}"
            )
        self.reset_after = reset_after
        nn.RNNBase.__init__(
            self,
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self._set_bptt(grad_clip_time, checkpoint_every)
        self._set_masks(recurrent_dropout, zoneout, weight_dropout)

    def _cell(self) -> str:
        return "gru" if self.reset_after else "gru_reset_before"

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


class MGU(RecurrentLayer):
    """Minimal gated unit (Zhou et al., arXiv:1603.09420): a GRU with one gate.

    f = σ(x W_ifᵀ + b_if + h W_hfᵀ + b_hf), n = tanh(x W_inᵀ + b_in + (f ⊙ h) W_hnᵀ + b_hn),
    h' = (1 − f) ⊙ h + f ⊙ n. Arguments, parameters (``weight_ih_l0`` [2*H, I], gates f, n) and
    initial values as :class:`torch.nn.GRU`'s.
    ``grad_clip_time``: limits the gradient between the steps of BPTT (docs/clipping.md).
    ``checkpoint_every=k``: training keeps the states of every k-th step only and computes the steps
    in between once more in backward (docs/checkpointing.md).
    ``recurrent_dropout``, ``zoneout``, ``weight_dropout``: docs/recurrent-dropout.md.
    """

    _label = "MGU"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        grad_clip_time: GradClipTime = 0.0,
        checkpoint_every: int = 0,
        recurrent_dropout: float = 0.0,
        zoneout: Zoneout = 0.0,
        weight_dropout: float = 0.0,
    ) -> None:
        nn.RNNBase.__init__(
            self,
            "RNN_TANH",  # torch.nn has no mode for it; one gate, until _set_gates
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self._set_gates("MGU")
        self._set_bptt(grad_clip_time, checkpoint_every)
        self._set_masks(recurrent_dropout, zoneout, weight_dropout)

    def _cell(self) -> str:
        return "mgu"


def _reject(cls: type, unknown: dict[str, Any]) -> None:
    """The error for a keyword argument that the layer does not have; torch's for ``proj_size``."""
    if "proj_size" in unknown:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
    if unknown:
        name = next(iter(unknown))
        raise TypeError(f"{cls.__name__}.__init__() got an unexpected keyword argument {name!r}")

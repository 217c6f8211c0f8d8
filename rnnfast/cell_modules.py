"""RNNCell, LSTMCell, GRUCell: one step, with torch.nn's arguments, parameters and errors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cells import CELLS, StepWeights
from .tracers import leaf_call, not_scripted, twin


class RNNCell(nn.RNNCell):
    """One step of an Elman RNN: all as :class:`torch.nn.RNNCell`, whose kernel it is."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """As :class:`torch.nn.RNNCell`'s."""
        node = leaf_call(self, input, hx)
        return super().forward(input, hx) if node is None else node

    def __prepare_scriptable__(self) -> nn.Module:
        return twin(self, nn.RNNCell)


class LSTMCell(nn.LSTMCell):
    """One step of an LSTM: all as :class:`torch.nn.LSTMCell`, whose kernel it is."""

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """As :class:`torch.nn.LSTMCell`'s."""
        node = leaf_call(self, input, hx)
        return super().forward(input, hx) if node is None else node

    def __prepare_scriptable__(self) -> nn.Module:
        return twin(self, nn.LSTMCell)


class GRUCell(nn.GRUCell):
    """One step of a GRU: as :class:`torch.nn.GRUCell`, and with ``reset_after=False`` the paper's.

    The paper's (Cho et al., arXiv:1406.1078) resets before the product:
    n = tanh(x W_in + b_in + (r ⊙ h) W_hn + b_hn).
    """

    reset_after = True  # of cells that become this class without its __init__

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
    ) -> None:
        if not isinstance(reset_after, bool):
            raise TypeError(
                f"reset_after should be of type bool, got: {type(reset_after).__name__}"
            )
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.reset_after = reset_after

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """h' [B, H] from input [B, I] and hx [B, H] (or [I] and [H]); hx defaults to zeros.

        Raises:
            ValueError, RuntimeError: torch.nn.GRUCell's, with its words.
        """
        if (node := leaf_call(self, input, hx)) is not None:
            return node
        if self.reset_after:
            return super().forward(input, hx)
        self._check(input, hx)
        if hx is None:
            hx = input.new_zeros(*input.shape[:-1], self.hidden_size)
        gx = F.linear(input, self.weight_ih, self.bias_ih)
        weights = StepWeights(self.weight_hh, self.bias_hh)
        return CELLS["gru_reset_before"].step(gx, (hx,), weights)[0]

    def __prepare_scriptable__(self) -> nn.Module:
        if not self.reset_after:
            raise not_scripted(self, "torch.nn's GRUCell resets after the product")
        return twin(self, nn.GRUCell)

    def _check(self, input: Tensor, hx: Tensor | None) -> None:
        for name, tensor in (("input", input), ("hidden", hx)):
            if tensor is not None and tensor.dim() not in (1, 2):
                shown = "input" if name == "input" else "hidden"
                raise ValueError(
                    f"GRUCell: Expected {shown} to be 1D or 2D, got {tensor.dim()}D instead"
                )
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {input.shape[-1]} "
                f"expected {self.input_size}"
            )
        expected = (*input.shape[:-1], self.hidden_size)
        if hx is not None and tuple(hx.shape) != expected:
            raise RuntimeError(f"Expected hidden size {expected}, got {list(hx.shape)}")

"""A PackedSequence as padded data and lengths, and back."""

from __future__ import annotations

import torch
from torch import _VF, Tensor
from torch.nn.utils.rnn import PackedSequence


def batch_of(packed: PackedSequence) -> int:
    """The number of sequences; in a trace of torch.jit.trace as a tensor, which it records."""
    first = packed.batch_sizes[0]
    traced = torch._C._get_tracing_state() is not None
    return first if traced else int(first)  # type: ignore[return-value]


class Packing:
    """Where each row of packed data lies in [T, B, …].

    torch's functions do the work, but for a compiler, which breaks its graph at them (and in
    torch 2.11 and before fails where a packed sequence crosses the break).
    """

    def __init__(self, packed: PackedSequence) -> None:
        self.sizes, self.steps = packed.batch_sizes, len(packed.batch_sizes)
        self.batch, self.rows = batch_of(packed), packed.data.shape[0]
        self.traced = torch.compiler.is_compiling()

    def lengths(self) -> Tensor:
        """int64 [B], on the CPU."""
        return self._alive().sum(0)

    def pad(self, data: Tensor) -> Tensor:
        """[T, B, …] with 0 past each end."""
        if not self.traced:
            padded: Tensor
            padded, _ = _VF._pad_packed_sequence(data, self.sizes, False, 0.0, self.steps)
            return padded
        alive = self._alive()
        source = (self._starts().unsqueeze(1) + torch.arange(self.batch, device="cpu")) * alive
        found = data.index_select(0, source.flatten().to(data.device))
        alive = alive.to(data.device).view(self.steps, self.batch, *[1] * (data.dim() - 1))
        padded = found.unflatten(0, (self.steps, self.batch))
        return torch.where(alive, padded, torch.zeros_like(padded))

    def pack(self, padded: Tensor) -> Tensor:
        """The rows that are no padding, in the order of packed data."""
        if not self.traced:
            data: Tensor
            data, _ = _VF._pack_padded_sequence(padded, self.lengths(), False)
            return data
        row = torch.arange(self.rows, device="cpu")
        step = torch.searchsorted(self.sizes.cumsum(0), row, right=True)
        target = step * self.batch + row - self._starts()[step]
        return padded.flatten(0, 1).index_select(0, target.to(padded.device))

    def _alive(self) -> Tensor:
        """bool [T, B], on the CPU."""
        return torch.arange(self.batch, device="cpu") < self.sizes.unsqueeze(1)

    def _starts(self) -> Tensor:
        """[T]: the row at which each step's begin."""
        return self.sizes.cumsum(0) - self.sizes

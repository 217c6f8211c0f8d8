"""The backend ``torch``: torch's own kernels (cuDNN, oneDNN, ATen's loop), for what they know."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _VF, Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from ..problem import Problem, Scan, ScanResult, Stack, StackResult
from ..rules import reverse_time, without_padding
from ..surroundings import constant_while_tracing
from .base import Call, CompositeBackend

KERNELS: dict[str, Callable[..., Any]] = {
    "RNN_TANH": _VF.rnn_tanh,
    "RNN_RELU": _VF.rnn_relu,
    "LSTM": _VF.lstm,
    "GRU": _VF.gru,
}


class TorchNative(CompositeBackend):
    name = "torch"
    takes_whole = True

    def why_not(self, problem: Problem) -> str | None:
        spec = problem.spec
        if spec.torch_mode is None:
            return f"torch has no kernel for the cell {spec.name!r}"
        if spec.projected and problem.P >= problem.H:
            return "torch's projection has to be smaller than hidden_size"
        if problem.kind == "gates":
            return "torch's kernels project the input themselves"
        if problem.has_resets:
            return "torch's kernels have no resets"
        if problem.options.all_states and spec.has_cell_state:
            return "torch's kernels return the last cell state only"
        if problem.transformed:
            return "torch's kernels have no rules for vmap and forward-mode AD"
        if problem.device == "cpu" and spec.torch_mode == "LSTM" and not spec.projected:
            reason = _why_no_lstm(problem)
            if reason is not None:
                return reason
        if problem.dtype.is_complex and problem.has_lengths and problem.options.training:
            return "torch's packing has no gradients for complex numbers"
        if problem.options.grad_clip_time != 0:
            return "torch's kernels have no grad_clip_time"
        return None

    def why_not_whole(self, problems: Sequence[Problem], call: Call) -> str | None:
        if problems[0].tracing:
            return "a compiler is to see rnnfast's own op"
        if problems[0].has_lengths and not call.packed:
            return "torch packs the sequences of each layer anew"
        if problems[0].options.all_states:
            return "torch's one call returns the top layer's output only"
        return None

    def run_whole(
        self,
        stack: Stack,
        input: Tensor,
        hx: Sequence[Tensor],
        problem: Problem,
        batch_sizes: Tensor | None,
    ) -> StackResult:
        if problem.kind == "tokens":
            input = one_hot(input, problem.I, stack.weights[0][0].dtype)
        y, *final = call_kernel(
            problem.spec.torch_mode,
            input,
            hx,
            [w for weights in stack.weights for w in weights],
            stack.has_bias,
            num_layers=stack.num_layers,
            dropout=stack.dropout if stack.training else 0.0,
            # cuDNN has a backward in training mode only; in evaluation no dropout is left to tell
            training=stack.training or problem.options.training,
            bidirectional=stack.bidirectional,
            batch_first=stack.batch_first,
            batch_sizes=batch_sizes,
        )
        return StackResult(y, final, [], True)

    def strategy(self, problem: Problem) -> str:
        if problem.device == "cuda":
            how = "cuDNN where torch takes it"
        elif problem.cell == "lstm" and problem.dtype in (torch.float32, torch.bfloat16):
            how = "oneDNN where torch takes it"
        else:
            how = "ATen's loop, a few calls a step"
        if problem.has_lengths:
            how += "; packed (lengths are read on the host)"
        if problem.tracing:
            how += "; backward runs forward anew"
        return how

    def run(self, scan: Scan) -> ScanResult:
        lengths = scan.lengths
        if scan.input.shape[1] == 0:
            lengths = None
        x = dense_input(scan if lengths is None else without_padding(scan))
        if scan.options.reverse:
            x = reverse_time(x, lengths)
        y, final = self._run_dense(scan, x) if lengths is None else self._run_packed(scan, x)
        if scan.options.reverse:
            y = reverse_time(y, lengths)
        return ScanResult(y, final, [])

    def _run_dense(self, scan: Scan, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        hx = [s.unsqueeze(0) for s in scan.states]
        mode, training = scan.spec.torch_mode, scan.options.training
        y, *final = call_kernel(mode, x, hx, scan.weights, scan.has_bias, training=training)
        return y, [s.squeeze(0) for s in final]

    def _run_packed(self, scan: Scan, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        assert scan.lengths is not None
        T = x.shape[0]
        lengths = scan.lengths
        at_least_one = lengths.clamp(1, T).cpu()  # torch packs no empty sequence: masked below
        packed = pack_padded_sequence(x, at_least_one, enforce_sorted=False)
        assert packed.sorted_indices is not None
        assert packed.unsorted_indices is not None
        hx = [s.index_select(0, packed.sorted_indices).unsqueeze(0) for s in scan.states]
        data, *final = call_kernel(
            scan.spec.torch_mode,
            packed.data,
            hx,
            scan.weights,
            scan.has_bias,
            training=scan.options.training,
            batch_sizes=packed.batch_sizes,
        )
        padded, _ = _VF._pad_packed_sequence(data, packed.batch_sizes, False, 0.0, T)
        y = padded.index_select(1, packed.unsorted_indices)
        final = [s.squeeze(0).index_select(0, packed.unsorted_indices) for s in final]
        some = (lengths > 0).unsqueeze(-1)
        y = torch.where(some, y, torch.zeros_like(y))
        return y, [torch.where(some, s, s0) for s, s0 in zip(final, scan.states, strict=False)]


def _why_no_lstm(problem: Problem) -> str | None:
    """Why torch's LSTM on the CPU does not run in these precisions on this processor, or None.

    torch gives it to oneDNN by the dtype, and what oneDNN has depends on the instruction set.
    """
    runs: list[tuple[torch.dtype, torch.dtype | None]] = [(problem.dtype, None)]
    if problem.autocast is not None:
        runs.append((torch.float32, problem.autocast))
    for dtype, low in runs:
        failure = lstm_failure(dtype, low, problem.options.training)
        if failure is not None:
            where = f"under autocast to {low}" if low else f"in {dtype}"
            return f"torch's LSTM fails {where} on this processor: {failure}"
    return None


@constant_while_tracing
def lstm_failure(dtype: torch.dtype, low: torch.dtype | None, training: bool) -> str | None:
    """The error of a tiny LSTM of torch's, None where it runs."""
    return _tried(dtype, low, training)


@functools.cache  # which a tracer would look into, were it not for the function around it
def _tried(dtype: torch.dtype, low: torch.dtype | None, training: bool) -> str | None:
    """In a thread of its own, which has no modes, transforms or tracers."""
    if low is None and dtype in (torch.float32, torch.float64):
        return None
    told: list[str] = []

    def run() -> None:
        try:
            layer = torch.nn.LSTM(1, 1, device="cpu", dtype=dtype)
            x = torch.ones(1, 1, 1, device="cpu", dtype=dtype)
            with (
                torch.set_grad_enabled(training),
                torch.autocast("cpu", low, enabled=low is not None),
            ):
                y = layer(x)[0]
            if training:
                y.sum().backward()
        except RuntimeError as error:
            told.append(str(error).partition("\n")[0])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return told[0] if told else None


def dense_input(scan: Scan) -> Tensor:
    """x [T, B, I]; tokens become their one-hot."""
    if scan.kind != "tokens":
        return scan.input
    w_ih = scan.weights[0]
    return one_hot(scan.input, w_ih.shape[1], w_ih.dtype)


def one_hot(tokens: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """[..., width] of 0 and 1 for int64 ``tokens`` [...]."""
    zeros = torch.zeros(*tokens.shape, width, dtype=dtype, device=tokens.device)
    return zeros.scatter_(-1, tokens.unsqueeze(-1), 1)


def call_kernel(
    mode: str | None,
    input: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_bias: bool,
    *,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The very call that torch.nn's layer makes: (output, h_n) or (output, h_n, c_n)."""
    assert mode is not None
    states = list(hx) if mode == "LSTM" else hx[0]
    common = (list(weights), has_bias, num_layers, dropout, training, bidirectional)
    if batch_sizes is not None:
        return KERNELS[mode](input, batch_sizes, states, *common)
    return KERNELS[mode](input, states, *common, batch_first)

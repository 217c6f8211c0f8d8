"""RNN, LSTM, GRU: torch.nn's layers, their parameters, arguments and errors, and more inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import checks, repeat
from .cells import CELLS
from .functional import Stack, StackResult, packed_in_torch, run_stack
from .time_clip import GradClipTime, as_option


class AllStates(NamedTuple):
    """Every state of every step: a list with one tensor a layer.

    ``h`` [T, B, D*P] (the last one is the output), ``c`` [T, B, D*H] or None for cells without;
    [B, T, …] with ``batch_first``, without B for unbatched input. Past a sequence's end both are 0.
    """

    h: list[Tensor]
    c: list[Tensor] | None


class _Layout(NamedTuple):
    """How the input came in, to give the output back the same way."""

    batched: bool
    packed: PackedSequence | None


class Recurrent(nn.RNNBase):
    """What RNN, LSTM and GRU share.

    A subclass of ``nn.RNNBase`` and not of ``nn.LSTM`` and so on, at which torch.compile would
    break the graph; ``rnnfast.compat`` has the latter.
    """

    _label = "RNN"  # torch.nn's name of the layer in the error about the input's dimensions
    _suffix = ""
    _served_by_torch: tuple[Any, ...] | None = None  # the facts of the last such call
    # docs/clipping.md; here for layers that were made or pickled without it
    grad_clip_time = 0.0  # type: GradClipTime  # no annotation: torch.jit would read it
    checkpoint_every = 0

    def _cell(self) -> str:
        raise NotImplementedError

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_all_states: bool = False,
    ) -> tuple[Any, ...]:
        """Runs all layers.

        Args:
            input: float [T, B, I] ([B, T, I] with ``batch_first``), [T, I] unbatched, or a
                PackedSequence; or int64 tokens [T, B] ([B, T]), the same numbers as their one-hot
                of width ``input_size``.
            hx: initial states, default zeros: h_0 [D*L, B, P], for LSTM (h_0, c_0 [D*L, B, H]);
                without B for unbatched input.
            lengths: int64 [B] on the input's device (unbatched: []). From its end on a sequence's
                outputs are 0 and its state is frozen. Needs no order and, in rnnfast's own kernels,
                no wait for the device.
            resets: bool [T, B], laid out as the input is. Where true, the states are replaced by 0
                before that step is consumed, and no gradient crosses.
            return_all_states: also return :class:`AllStates`.

        Returns:
            output [T, B, D*P] as the input is laid out, and h_n [D*L, B, P] (LSTM: (h_n, c_n)).

        Raises:
            ValueError, RuntimeError: torch.nn's, with its words; ValueError also for lengths
                outside [0, T] (on the CPU).
            TypeError: lengths or resets of another dtype. IndexError: a token outside [0, I).
            BackendError: the backend asked for by name can't take the problem.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths, resets, return_all_states)
        weights = self._weights()
        facts = None
        plain = lengths is None and resets is None and not return_all_states
        if plain and not torch.compiler.is_compiling():
            facts = repeat.facts(self, input, hx, weights[0][0])
            if facts is not None and facts == self._served_by_torch:
                return repeat.call(self, input, hx, [w for row in weights for w in row])
        input, batched = self._batch(input, resets)
        states = self._batch_hidden(hx, batched)
        if not batched:
            lengths = None if lengths is None else lengths.unsqueeze(0)
            resets = None if resets is None else resets.unsqueeze(1)
        elif resets is not None and self.batch_first and resets.dim() == 2:
            resets = resets.t()
        self._check(input, states, weights)
        if lengths is not None or resets is not None:
            self._check_ends(input, lengths, resets)
        result = run_stack(
            self._stack(weights),
            input,
            states,
            lengths=lengths,
            resets=resets,
            all_states=return_all_states,
        )
        if result.whole and facts is not None:
            self.__dict__["_served_by_torch"] = facts  # not an attribute that nn.Module knows of
        return self._results(result, _Layout(batched, None), return_all_states)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_served_by_torch", None)  # true of this process only
        return state

    # --- the input -----------------------------------------------------------------------------

    def _is_tokens(self, input: Tensor) -> bool:
        return input.dtype == torch.int64

    def _batch(self, input: Tensor, resets: Tensor | None) -> tuple[Tensor, bool]:
        """The input with a batch axis, and whether it had one."""
        dims = input.dim() + (1 if self._is_tokens(input) else 0)
        if dims not in (2, 3):
            what = f"{input.dim()}D{self._suffix}"
            wanted = "1D or 2D tokens" if self._is_tokens(input) else "2D or 3D"
            raise ValueError(f"{self._label}: Expected input to be {wanted}, got {what} instead")
        if dims == 2:
            return input.unsqueeze(0 if self.batch_first else 1), False
        return input, True

    def _weights(self) -> list[list[Tensor]]:
        """The parameters, read at every call, so that whoever replaced one is obeyed."""
        parameters = self._parameters  # faster than getattr, which also finds what took its place
        weights = []
        for names in self._all_weights:
            row = []
            for name in names:
                found = parameters.get(name)
                row.append(getattr(self, name) if found is None else found)
            weights.append(row)
        return weights

    def _stack(self, weights: list[list[Tensor]]) -> Stack:
        return Stack(
            self._cell(),
            weights,
            self.hidden_size,
            self.num_layers,
            self.bidirectional,
            self.bias,
            self.dropout,
            self.training,
            self.batch_first,
            as_option(self.grad_clip_time),
            checks.check_checkpoint_every(self.checkpoint_every),
        )

    def _set_bptt(self, grad_clip_time: GradClipTime, checkpoint_every: int) -> None:
        as_option(grad_clip_time)  # raises for what is none
        self.grad_clip_time = grad_clip_time
        self.checkpoint_every = checks.check_checkpoint_every(checkpoint_every)

    def extra_repr(self) -> str:
        clip, every = self.grad_clip_time, self.checkpoint_every
        shown = super().extra_repr() + (f", grad_clip_time={clip}" if clip != 0 else "")
        return shown + (f", checkpoint_every={every}" if every != 0 else "")

    # --- the states ----------------------------------------------------------------------------

    def _split_hidden(self, hx: Any) -> list[Tensor]:
        return [hx]

    def _join_hidden(self, states: Sequence[Tensor]) -> Any:
        return states[0]

    def _zero_states(self, input: Tensor) -> Any:
        """Zeros as this layer takes them, for batched input."""
        batch = input.shape[0 if self.batch_first else 1]
        rows = self.num_layers * (2 if self.bidirectional else 1)
        widths = self._state_widths()[: len(CELLS[self._cell()].states)]
        zeros = [
            torch.zeros(rows, batch, width, dtype=input.dtype, device=input.device)
            for width in widths
        ]
        return self._join_hidden(zeros)

    def _batch_hidden(self, hx: Any, batched: bool) -> list[Tensor] | None:
        if hx is None:
            return None
        states = self._split_hidden(hx)
        wanted = 3 if batched else 2
        if any(s.dim() != wanted for s in states):
            raise RuntimeError(self._wrong_dims(states, batched))
        return states if batched else [s.unsqueeze(1) for s in states]

    def _wrong_dims(self, states: list[Tensor], batched: bool) -> str:
        case = (
            "batched 3-D input, hx should also be 3-D"
            if batched
            else ("unbatched 2-D input, hx should also be 2-D")
        )
        return f"For {case} but got {states[0].dim()}-D tensor"

    # --- checks --------------------------------------------------------------------------------

    def _check(
        self,
        input: Tensor,
        states: list[Tensor] | None,
        weights: list[list[Tensor]],
        batch: int | None = None,
    ) -> None:
        """torch.nn's checks, in its order, with its words; ``batch`` for packed data."""
        first = weights[0][0]
        tokens = self._is_tokens(input)
        if not tokens:
            self._check_dense(input, first, packed=batch is not None)
        if batch is None:
            batch = input.shape[0] if self.batch_first else input.shape[1]
            if input.shape[1 if self.batch_first else 0] == 0:
                raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        self._check_one_device(input, states, weights)
        if states is not None:
            self._check_states(first.dtype if tokens else input.dtype, states, batch)

    def _check_dense(self, input: Tensor, weight: Tensor, packed: bool) -> None:
        if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: "
                f"model.to({input.dtype})"
            )
        dims = 2 if packed else 3
        if input.dim() != dims:
            raise RuntimeError(f"input must have {dims} dimensions, got {input.dim()}")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {input.shape[-1]}"
            )

    def _check_states(self, dtype: torch.dtype, states: list[Tensor], batch: int) -> None:
        rows = self.num_layers * (2 if self.bidirectional else 1)
        for index, (state, width) in enumerate(zip(states, self._state_widths(), strict=False)):
            expected = (rows, batch, width)
            if tuple(state.shape) != expected:
                raise RuntimeError(self._wrong_size(index, expected, list(state.shape)))
        if torch._C._is_any_autocast_enabled():
            return
        for state in states:
            if state.dtype != dtype:
                raise RuntimeError(
                    f"Input and hidden tensors are not the same dtype, found input tensor with "
                    f"{dtype} and hidden tensor with {state.dtype}"
                )

    def _check_one_device(
        self, input: Tensor, states: list[Tensor] | None, weights: list[list[Tensor]]
    ) -> None:
        device = input.device
        for weight in (w for layer in weights for w in layer):
            if weight.device != device:
                raise RuntimeError(
                    "Input and parameter tensors are not at the same device, found input tensor "
                    f"at {device} and parameter tensor at {weight.device}"
                )
        for state in states or ():
            if state.device != device:
                raise RuntimeError(
                    "Input and hidden tensors are not at the same device, found input tensor at "
                    f"{device} and hidden tensor at {state.device}"
                )

    def _state_widths(self) -> tuple[int, ...]:
        return (self.proj_size or self.hidden_size, self.hidden_size)

    def _wrong_size(self, index: int, expected: tuple[int, ...], got: list[int]) -> str:
        return f"Expected hidden size {expected}, got {got}"

    def _check_ends(self, input: Tensor, lengths: Tensor | None, resets: Tensor | None) -> None:
        T, B = (1, 0) if self.batch_first else (0, 1)
        checks.check_lengths_and_resets(lengths, resets, input.shape[T], input.shape[B])
        for name, tensor in (("lengths", lengths), ("resets", resets)):
            if tensor is not None and tensor.device != input.device:
                raise RuntimeError(
                    f"{name} should be on the input's device {input.device}, got {tensor.device}"
                )
        if lengths is not None and not torch.compiler.is_compiling():
            checks.check_lengths(lengths, input.shape[T])

    # --- the results ---------------------------------------------------------------------------

    def _results(
        self, result: StackResult, layout: _Layout, return_all_states: bool
    ) -> tuple[Any, ...]:
        y, final, h, c, _ = result
        if not layout.batched:
            y = y.squeeze(0 if self.batch_first else 1)
            final = [s.squeeze(1) for s in final]
        if not return_all_states:
            return y, self._join_hidden(final)

        def laid_out(states: Tensor) -> Tensor:
            if not layout.batched:
                return states.squeeze(1)
            return states.transpose(0, 1) if self.batch_first else states

        cells = [laid_out(s) for s in c] if len(CELLS[self._cell()].states) > 1 else None
        return y, self._join_hidden(final), AllStates([laid_out(s) for s in h], cells)

    # --- PackedSequence ------------------------------------------------------------------------

    def _forward_packed(
        self,
        packed: PackedSequence,
        hx: Any,
        lengths: Tensor | None,
        resets: Tensor | None,
        return_all_states: bool,
    ) -> tuple[Any, ...]:
        """Padded once, run by ``lengths``, packed again; torch's kernels take it as it is."""
        if lengths is not None or resets is not None or return_all_states:
            raise ValueError(
                "a PackedSequence brings its own lengths: lengths, resets and return_all_states "
                "are for padded input"
            )
        checks.check_packed(packed)
        batch = int(packed.batch_sizes[0])
        states = self._batch_hidden(hx, batched=True)
        weights = self._weights()
        self._check(packed.data, states, weights, batch)
        if states is not None and packed.sorted_indices is not None:
            states = [s.index_select(1, packed.sorted_indices) for s in states]
        stack = self._stack(weights)._replace(batch_first=False)
        data, final = self._run_packed(stack, packed, states)
        if packed.unsorted_indices is not None:
            final = [s.index_select(1, packed.unsorted_indices) for s in final]
        return packed._replace(data=data), self._join_hidden(final)

    def _run_packed(
        self, stack: Stack, packed: PackedSequence, states: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        as_it_is = packed_in_torch(stack, packed, states)
        if as_it_is is not None:
            return as_it_is.y, as_it_is.final
        in_order = PackedSequence(packed.data, packed.batch_sizes, None, None)
        padded, host_lengths = pad_packed_sequence(in_order)

        def dropout(x: Tensor, probability: float) -> Tensor:  # torch draws its masks packed
            rows = pack_padded_sequence(x, host_lengths)
            return pad_packed_sequence(rows._replace(data=F.dropout(rows.data, probability)))[0]

        lengths = host_lengths.to(padded.device)
        result = run_stack(stack, padded, states, lengths=lengths, dropout=dropout)
        return pack_padded_sequence(result.y, host_lengths).data, result.final


class RNN(Recurrent):
    """Elman RNN: h' = tanh or relu (x W_ihᵀ + b_ih + h W_hhᵀ + b_hh). As :class:`torch.nn.RNN`.

    ``grad_clip_time``: limits the gradient between the steps of BPTT (docs/clipping.md).
    ``checkpoint_every=k``: training keeps the states of every k-th step only and computes the steps
    in between once more in backward (docs/checkpointing.md).
    """

    _suffix = " tensor"

    def __init__(
        self,
        *args: Any,
        grad_clip_time: GradClipTime = 0.0,
        checkpoint_every: int = 0,
        **kwargs: Any,
    ) -> None:
        reject_projection(kwargs)
        if len(args) > 3:
            self.nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        modes = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
        if self.nonlinearity not in modes:
            raise ValueError(
                f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        nn.RNNBase.__init__(self, modes[self.nonlinearity], *args, **kwargs)
        self._set_bptt(grad_clip_time, checkpoint_every)

    def _cell(self) -> str:
        return "rnn_tanh" if self.mode == "RNN_TANH" else "rnn_relu"


class LSTM(Recurrent):
    """Long short-term memory, with ``proj_size`` its projected form. As :class:`torch.nn.LSTM`.

    c' = σ(f) ⊙ c + σ(i) ⊙ tanh(g); h' = σ(o) ⊙ tanh(c'), times W_hr where projected.
    ``grad_clip_time``: limits the gradient between the steps of BPTT (docs/clipping.md).
    ``checkpoint_every=k``: training keeps the states of every k-th step only and computes the steps
    in between once more in backward (docs/checkpointing.md).
    """

    _label = "LSTM"

    def __init__(
        self,
        *args: Any,
        grad_clip_time: GradClipTime = 0.0,
        checkpoint_every: int = 0,
        **kwargs: Any,
    ) -> None:
        nn.RNNBase.__init__(self, "LSTM", *args, **kwargs)
        self._set_bptt(grad_clip_time, checkpoint_every)

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


class GRU(Recurrent):
    """Gated recurrent unit. As :class:`torch.nn.GRU`, and with ``reset_after=False`` the paper's.

    h' = (1 − z) ⊙ n + z ⊙ h, where torch's n = tanh(x W_in + b_in + r ⊙ (h W_hn + b_hn)), and the
    paper's (Cho et al., arXiv:1406.1078) n = tanh(x W_in + b_in + (r ⊙ h) W_hn + b_hn).
    ``grad_clip_time``: limits the gradient between the steps of BPTT (docs/clipping.md).
    ``checkpoint_every=k``: training keeps the states of every k-th step only and computes the steps
    in between once more in backward (docs/checkpointing.md).
    """

    _label = "GRU"

    def __init__(
        self,
        *args: Any,
        reset_after: bool = True,
        grad_clip_time: GradClipTime = 0.0,
        checkpoint_every: int = 0,
        **kwargs: Any,
    ) -> None:
        reject_projection(kwargs)
        if not isinstance(reset_after, bool):
            raise TypeError(
                f"reset_after should be of type bool, got: {type(reset_after).__name__}"
            )
        self.reset_after = reset_after
        nn.RNNBase.__init__(self, "GRU", *args, **kwargs)
        self._set_bptt(grad_clip_time, checkpoint_every)

    def _cell(self) -> str:
        return "gru" if self.reset_after else "gru_reset_before"

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")

    def __setstate__(self, state: dict[str, Any]) -> None:
        state.setdefault("reset_after", True)  # pickled from torch.nn.GRU
        super().__setstate__(state)


def reject_projection(kwargs: dict[str, Any]) -> None:
    """torch's error for ``proj_size`` given to an RNN or a GRU."""
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")

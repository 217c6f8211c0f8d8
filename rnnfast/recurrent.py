"""What RNN, LSTM and GRU share: inputs of every layout, states, checks with torch.nn's words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import checks, masks, repeat
from .cells import CELLS, CellSpec
from .masks import Zoneout
from .packing import Packing, batch_of
from .problem import Stack, StackResult, kind_of
from .stack import run_packed, run_stack
from .surroundings import within_torch_func
from .time_clip import GradClipTime, as_option
from .tracers import layer_of_torch_nn, leaf_call


class AllStates(NamedTuple):
    """Every state of every step: a list with one tensor a layer.

    ``h`` [T, B, D*P] (the last one is the output), ``c`` [T, B, D*H] or None for cells without;
    [B, T, …] with ``batch_first``, without B for unbatched input. Past a sequence's end both are 0.
    """

    h: list[Tensor]
    c: list[Tensor] | None


# so that an exported program that returns them can be saved
torch.utils._pytree._register_namedtuple(AllStates, serialized_type_name="rnnfast.AllStates")


def _all_states(shown: dict[str, list[Tensor]]) -> AllStates | dict[str, list[Tensor]]:
    """By their names where they are not h, or h and c."""
    if tuple(shown) in (("h",), ("h", "c")):
        return AllStates(shown["h"], shown.get("c"))
    return shown


class _Layout(NamedTuple):
    """How the input came in, to give the output back the same way."""

    batched: bool
    packed: PackedSequence | None


class RecurrentLayer(nn.RNNBase):
    """What RNN, LSTM and GRU share.

    A subclass of ``nn.RNNBase`` and not of ``nn.LSTM`` and so on, at which torch.compile would
    break the graph; ``rnnfast.compat`` has the latter.
    """

    _label = "RNN"  # torch.nn's name of the layer in the error about the input's dimensions
    _suffix = ""
    _served: tuple[Any, ...] | None = None  # the facts of a call, and by whom the next one may be
    # docs/clipping.md; here for layers that were made or pickled without it
    grad_clip_time = 0.0  # type: GradClipTime  # no annotation: torch.jit would read it
    checkpoint_every = 0
    # docs/recurrent-dropout.md
    recurrent_dropout = 0.0
    zoneout = 0.0  # type: Zoneout
    weight_dropout = 0.0

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
            return_all_states: also return :class:`AllStates`; of a cell whose states have other
                names than h and c a dict of lists by these names.

        Returns:
            output [T, B, D*P] as the input is laid out, and h_n [D*L, B, P] (LSTM: (h_n, c_n); a
            tuple for every cell with several states, as hx).

        Raises:
            ValueError, RuntimeError: torch.nn's, with its words; ValueError also for lengths
                outside [0, T] (on the CPU).
            TypeError: lengths or resets of another dtype. IndexError: a token outside [0, I).
            BackendError: the backend asked for by name can't take the problem.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths, resets, return_all_states)
        if type(input) is not Tensor or hx is not None or lengths is not None or resets is not None:
            options = {"lengths": lengths, "resets": resets, "return_all_states": return_all_states}
            if (node := leaf_call(self, input, hx, **options)) is not None:
                return node
        weights = self._called_weights()
        facts = None
        plain = lengths is None and resets is None and not return_all_states
        if plain and not torch.compiler.is_compiling():
            facts = repeat.facts(self, input, hx, weights)
            if facts is not None:
                again = repeat.call(self, self._served, facts, input, hx, weights)
                if again is not None:
                    return again
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
            self._stack(weights, self.batch_first),
            input,
            states,
            lengths=lengths,
            resets=resets,
            all_states=return_all_states,
        )
        repeat.remember(self, facts, result)
        return self._results(result, _Layout(batched, None), return_all_states)

    def _slow_forward(self, *args: Any, **more: Any) -> Any:
        """What torch calls for ``forward`` while it records. torch.onnx.export with
        ``dynamo=False`` gives the layer that it exports every argument by position."""
        more.update(zip(("lengths", "resets", "return_all_states"), args[2:], strict=False))
        return super()._slow_forward(*args[:2], **more)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_served", None)  # true of this process only
        return state

    def __prepare_scriptable__(self) -> nn.RNNBase:
        """What torch.jit.script compiles: torch.nn's layer with these parameters."""
        return layer_of_torch_nn(self)

    # --- the input -----------------------------------------------------------------------------

    def _is_tokens(self, input: Tensor) -> bool:
        return kind_of(input) == "tokens"

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
        """The weights of each layer and direction, by torch.nn's rule: ``_flat_weights``, made anew
        where a named parameter was replaced, so that whoever wrote one or the other is obeyed."""
        flat: Iterator[Any]
        compiling = torch.compiler.is_compiling()
        # there a compiler can't look at what refers to the layer's own
        by_name = compiling and within_torch_func()
        if not by_name and not self._any_replaced():
            flat = iter(self._flat_weights)
        elif compiling:  # which is to leave no trace on the layer
            flat = iter([getattr(self, name) for name in self._flat_weights_names])
        else:
            self._init_flat_weights()
            flat = iter(self._flat_weights)
        return [[next(flat) for _ in names] for names in self._all_weights]

    def _called_weights(self) -> list[list[Tensor]]:
        """``_weights``, in training with the masks of ``weight_dropout``."""
        weights = self._weights()
        if self.weight_dropout == 0 or not self.training:
            return weights
        names = self._spec().weight_names("dense", self.bias)
        return masks.dropped(weights, names.index("w_hh"), self.weight_dropout)

    def _any_replaced(self) -> bool:
        parameters = self._parameters  # faster than getattr, which also finds what took its place
        flat, refs = self._flat_weights, self._flat_weight_refs
        for index, name in enumerate(self._flat_weights_names):
            ref = refs[index]
            known = None if ref is None else ref()
            found = parameters.get(name)
            if found is None:
                found = getattr(self, name, None)
                if found is None and (flat[index] is None or flat[index] is known):
                    raise AttributeError(
                        f"{type(self).__name__!r} object has no attribute {name!r}"
                    )
            if found is not None and found is not known:
                return True
        return False

    def _stack(self, weights: list[list[Tensor]], batch_first: bool) -> Stack:
        return Stack(
            self._cell(),
            weights,
            self.hidden_size,
            self.num_layers,
            self.bidirectional,
            self.bias,
            self.dropout,
            self.training,
            batch_first,
            as_option(self.grad_clip_time),
            checks.check_checkpoint_every(self.checkpoint_every),
            self.recurrent_dropout,
            () if self.zoneout == 0 else masks.zoneout_of(self._spec(), self.zoneout),
        )

    def _set_bptt(self, grad_clip_time: GradClipTime, checkpoint_every: int) -> None:
        as_option(grad_clip_time)  # raises for what is none
        self.grad_clip_time = grad_clip_time
        self.checkpoint_every = checks.check_checkpoint_every(checkpoint_every)

    def _set_masks(self, recurrent_dropout: float, zoneout: Zoneout, weight_dropout: float) -> None:
        """Raises TypeError, ValueError for what is no probability, or of no use to the cell."""
        spec = self._spec()
        self.recurrent_dropout = masks.check_probability("recurrent_dropout", recurrent_dropout)
        self.weight_dropout = masks.check_probability("weight_dropout", weight_dropout)
        self.zoneout = zoneout
        if weight_dropout != 0 and spec.recurrent is None:
            raise ValueError(f"weight_dropout: the cell {spec.name!r} has no weight_hh")
        masks.check_cell(
            spec,
            self.hidden_size,
            self.proj_size or self.hidden_size,
            self.bias,
            self._parameters["weight_ih_l0"],
            recurrent_dropout,
            masks.zoneout_of(spec, zoneout),
        )

    def _set_gates(self, mode: str) -> None:
        """Parameters of as many gates as the cell has, of a cell that torch.nn has no mode for."""
        self.mode, gates = mode, self._spec().gates
        for name in self._flat_weights_names:
            of_one_gate = getattr(self, name)
            shape = (gates * of_one_gate.shape[0], *of_one_gate.shape[1:])
            setattr(self, name, nn.Parameter(of_one_gate.new_empty(shape)))
        self._init_flat_weights()
        self.reset_parameters()

    def flatten_parameters(self) -> None:
        """As torch.nn's, for the cells that cuDNN has."""
        if self._spec().torch_mode is not None:
            super().flatten_parameters()

    def extra_repr(self) -> str:
        clip, every = self.grad_clip_time, self.checkpoint_every
        shown = super().extra_repr() + (f", grad_clip_time={clip}" if clip != 0 else "")
        shown += f", checkpoint_every={every}" if every != 0 else ""
        for name in ("recurrent_dropout", "zoneout", "weight_dropout"):
            value = getattr(self, name)
            shown += f", {name}={value}" if value != 0 else ""
        return shown

    # --- the states ----------------------------------------------------------------------------

    def _split_hidden(self, hx: Any) -> list[Tensor]:
        return [hx]

    def _join_hidden(self, states: Sequence[Tensor]) -> Any:
        return states[0]

    def _spec(self) -> CellSpec:
        return CELLS[self._cell()]

    def _zero_states(self, input: Tensor) -> Any:
        """Zeros as this layer takes them, for batched input."""
        batch = input.shape[0 if self.batch_first else 1]
        rows = self.num_layers * (2 if self.bidirectional else 1)
        zeros = [
            torch.zeros(rows, batch, width, dtype=input.dtype, device=input.device)
            for width in self._state_widths()
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
        return self._spec().state_widths(self.proj_size or self.hidden_size, self.hidden_size)

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
        y, final, every = result[:3]
        if not layout.batched:
            y = y.squeeze(0 if self.batch_first else 1)
            final = [s.squeeze(1) for s in final]
        if not return_all_states:
            return y, self._join_hidden(final)

        def laid_out(states: Tensor) -> Tensor:
            if not layout.batched:
                return states.squeeze(1)
            return states.transpose(0, 1) if self.batch_first else states

        shown = {
            name: [laid_out(s) for s in layers]
            for name, layers in zip(self._spec().states, every, strict=True)
        }
        return y, self._join_hidden(final), _all_states(shown)

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
        batch = batch_of(packed)
        states = self._batch_hidden(hx, batched=True)
        weights = self._called_weights()
        self._check(packed.data, states, weights, batch)
        if states is not None and packed.sorted_indices is not None:
            states = [s.index_select(1, packed.sorted_indices) for s in states]
        stack = self._stack(weights, batch_first=False)
        data, final = self._run_packed(stack, packed, states)
        if packed.unsorted_indices is not None:
            final = [s.index_select(1, packed.unsorted_indices) for s in final]
        rest = (packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        return PackedSequence(data, *rest), self._join_hidden(final)  # _replace is not traceable

    def _run_packed(
        self, stack: Stack, packed: PackedSequence, states: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        as_it_is = run_packed(stack, packed, states)
        if as_it_is is not None:
            return as_it_is.y, as_it_is.final
        packing = Packing(packed)
        padded = packing.pad(packed.data)

        def dropout(x: Tensor, probability: float) -> Tensor:  # torch draws its masks packed
            return packing.pad(F.dropout(packing.pack(x), probability))

        lengths = packing.lengths().to(padded.device)
        result = run_stack(stack, padded, states, lengths=lengths, dropout=dropout)
        return packing.pack(result.y), result.final

"""What a scan is asked to do: its metadata (Problem), its tensors (Scan), its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .cells import CELLS, CellSpec, StepWeights
from .surroundings import surroundings

Record = TypeVar("Record", bound=tuple[Any, ...])
KINDS = ("dense", "gates", "tokens")


class Options(NamedTuple):
    """Options of a scan; the op takes them flat.

    ``checkpoint_every``: training keeps the states of every k-th step only; 0: all that backward
    needs. ``grad_clip_time`` is as ``time_clip.as_option`` gives it: v clips the gradient between
    two steps to [-v, v], -v zeroes what is beyond, 0 is off.
    """

    reverse: bool = False
    all_states: bool = False
    training: bool = False
    checkpoint_every: int = 0
    grad_clip_time: float = 0.0


class Problem(NamedTuple):
    """Metadata of one direction of one layer: all that choosing a backend may look at.

    T, B, I, H, P may be symbolic while a compiler traces. ``dtype`` is what it is computed in: that
    of the weights, or what ``autocast`` (its dtype, where it changes anything) makes of them.
    ``tracing``: by a compiler; ``recorded``: by torch.jit.trace; ``transformed``: by torch.func or
    forward-mode AD, and ``dual``: by forward mode. ``device_index``: among the devices of its type.
    """

    cell: str
    kind: str
    device: str
    dtype: torch.dtype
    T: int
    B: int
    I: int
    H: int
    P: int
    bias: bool
    has_lengths: bool
    has_resets: bool
    options: Options
    tracing: bool = False
    recorded: bool = False
    transformed: bool = False
    autocast: torch.dtype | None = None
    device_index: int = 0
    dual: bool = False

    @property
    def spec(self) -> CellSpec:
        return CELLS[self.cell]


class Scan(NamedTuple):
    """The tensors of one direction of one layer.

    Attributes:
        input: [T, B, I] dense, [T, B, G*H] gates, or int64 [T, B] tokens.
        states: initial states, the output's [B, P] and every other [B, H] (LSTM: h, c).
        weights: as ``CellSpec.weight_names`` orders them.
        lengths: int64 [B] or None. resets: bool [T, B] or None.
    """

    cell: str
    kind: str
    input: Tensor
    states: list[Tensor]
    weights: list[Tensor]
    lengths: Tensor | None
    resets: Tensor | None
    options: Options

    @property
    def spec(self) -> CellSpec:
        return CELLS[self.cell]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of every number; of the states where the cell has no weights."""
        return (self.weights or self.states)[0].dtype

    @property
    def tensors(self) -> list[Tensor]:
        """Those that may have gradients."""
        return [self.input, *self.states, *self.weights]

    @property
    def has_bias(self) -> bool:
        return len(self.weights) > len(self.spec.weight_names(self.kind, False))

    def named_weights(self) -> dict[str, Tensor]:
        """The weights by their names."""
        names = self.spec.weight_names(self.kind, self.has_bias)
        return dict(zip(names, self.weights, strict=True))

    def weight(self, name: str) -> Tensor | None:
        """The weight of this name, None where the scan has none."""
        names = self.spec.weight_names(self.kind, self.has_bias)
        return self.weights[names.index(name)] if name in names else None

    def to(self, dtype: torch.dtype) -> Scan:
        """The scan with its numbers in ``dtype``."""
        if self.dtype == dtype:
            return self
        return self._replace(
            input=self.input if self.kind == "tokens" else self.input.to(dtype),
            states=[s.to(dtype) for s in self.states],
            weights=[w.to(dtype) for w in self.weights],
        )

    def step_weights(self) -> StepWeights:
        found = self.named_weights()
        params = {param.name: found[param.name] for param in self.spec.params}
        return StepWeights(found.get("w_hh"), found.get("b_hh"), found.get("w_hr"), params)


class ScanResult(NamedTuple):
    """``y`` [T, B, P]; ``final`` states as the initial ones; ``trace``: every state but the output
    at each step (LSTM: c [T, B, H]) where asked for, else empty."""

    y: Tensor
    final: list[Tensor]
    trace: list[Tensor]

    def to(self, dtype: torch.dtype) -> ScanResult:
        """The results in ``dtype``."""
        final, trace = ([s.to(dtype) for s in states] for states in self[1:])
        return ScanResult(self.y.to(dtype), final, trace)


class Saved(NamedTuple):
    """What forward left for backward: its outputs, and what the backend saved beside them."""

    y: Tensor
    trace: list[Tensor]
    extra: list[Tensor]


class Cotangents(NamedTuple):
    """Gradients of the outputs of a scan: dy [T, B, P] or None (zero), the rest as the outputs; of
    ``dtrace`` of a cell of one's own, below the ops, each may be None, too."""

    dy: Tensor | None
    dfinal: list[Tensor]
    dtrace: list[Any]


class Needs(NamedTuple):
    """Which gradients are wanted. ``groups``: the batch is of so many parts, and each has gradients
    of the weights of its own, [groups, …]; 0: the weights have one gradient, as they are.
    ``leading``: of the weights so many at least, from the first on; None: all."""

    input: bool
    states: bool
    weights: bool
    groups: int = 0
    leading: int | None = None


class Gradients(NamedTuple):
    """Gradients of the inputs of a scan; None where not needed."""

    dinput: Tensor | None
    dstates: list[Tensor] | None
    dweights: list[Tensor] | None


class Stack(NamedTuple):
    """Layers of one cell on top of one another, as a module or torch.nn has them.

    Attributes:
        weights: for each layer and direction (forward, then reverse) its list.
        dropout: the probability between layers, of effect while ``training`` only.
        grad_clip_time, checkpoint_every: as ``Options`` has them.
        recurrent_dropout: a probability, of effect while ``training``; zoneout: one for each state,
            or none at all (``masks``).
    """

    cell: str
    weights: list[list[Tensor]]
    hidden_size: int
    num_layers: int
    bidirectional: bool
    has_bias: bool
    dropout: float
    training: bool
    batch_first: bool = False
    grad_clip_time: float = 0.0
    checkpoint_every: int = 0
    recurrent_dropout: float = 0.0
    zoneout: tuple[float, ...] = ()

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        if CELLS[self.cell].projected:
            return self.weights[0][1].shape[1]
        return self.hidden_size


class StackResult(NamedTuple):
    """``y`` [T, B, D*P] (or batch first), ``final``: a state each, the output's [D*L, B, P], every
    other [D*L, B, H]; ``every``: a list for each state, of each layer all states [T, B, D*P] and
    [T, B, D*H], empty unless asked for; ``whole``: torch computed all of it in its one call;
    ``assigned``: who computed each layer and direction (``selection.Assigned``), None where the
    next call is to be looked at anew."""

    y: Tensor
    final: list[Tensor]
    every: list[list[Tensor]]
    whole: bool
    assigned: Any = None


def changed(record: Record, **changes: Any) -> Record:
    """As ``record._replace(**changes)``, which Dynamo of torch 2.11 gives back empty where a graph
    breaks."""
    fields: tuple[str, ...] = record._fields  # type: ignore[attr-defined]
    return type(record)(*[changes.get(name, getattr(record, name)) for name in fields])


def h_and_c(states: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """The states of a cell, None for a second one that it has not."""
    return states[0], states[1] if len(states) == 2 else None


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in ``dtype``; where it is so already, without a call of torch's."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What numbers stored in ``dtype`` are computed in: 16-bit ones in float32."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def index_of(tensor: Tensor) -> int:
    """Of its device, among those of this type."""
    return tensor.device.index or 0


def device_named(problem: Problem) -> torch.device:
    """The device that ``problem`` is for."""
    return torch.device(problem.device, problem.device_index)


def kind_of(input: Tensor) -> str:
    """The kind of an input that is not projected yet: int64 is tokens, everything else dense."""
    return "tokens" if input.dtype == torch.int64 else "dense"


def problem_of(scan: Scan) -> Problem:
    """The metadata of ``scan``, as it stands now (tracing and transforms included; autocast has
    done its work on a scan)."""
    input = scan.input
    around = surroundings(input.device.type)
    if scan.kind == "dense":
        width = input.shape[2]
    elif scan.kind == "tokens":
        width = scan.weights[0].shape[1]
    else:
        width = 0
    return Problem(
        scan.cell,
        scan.kind,
        input.device.type,
        scan.dtype,
        input.shape[0],
        input.shape[1],
        width,
        scan.states[-1].shape[1],
        scan.states[0].shape[1],
        scan.has_bias,
        scan.lengths is not None,
        scan.resets is not None,
        scan.options,
        around.tracing,
        around.recorded,
        around.transformed,
        None,
        index_of(input),
        around.dual,
    )

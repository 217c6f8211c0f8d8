"""What a scan is asked to do: its metadata (Problem), its tensors (Scan), its results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .cells import CELLS, CellSpec, StepWeights

Function = TypeVar("Function", bound=Callable[..., Any])
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
    ``tracing``: by a compiler; ``recorded``: by torch.jit.trace; ``transformed``: by torch.func.
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

    @property
    def spec(self) -> CellSpec:
        return CELLS[self.cell]


class Scan(NamedTuple):
    """The tensors of one direction of one layer.

    Attributes:
        input: [T, B, I] dense, [T, B, G*H] gates, or int64 [T, B] tokens.
        states: initial states, h [B, P] and, for LSTM, c [B, H].
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
    def tensors(self) -> list[Tensor]:
        """Those that may have gradients."""
        return [self.input, *self.states, *self.weights]

    @property
    def has_bias(self) -> bool:
        return len(self.weights) > len(self.spec.weight_names(self.kind, False))

    def weight(self, name: str) -> Tensor | None:
        """The weight of this name, None where the scan has none."""
        names = self.spec.weight_names(self.kind, self.has_bias)
        return self.weights[names.index(name)] if name in names else None

    def step_weights(self) -> StepWeights:
        w_hh = self.weight("w_hh")
        assert w_hh is not None
        return StepWeights(w_hh, self.weight("b_hh"), self.weight("w_hr"))


class ScanResult(NamedTuple):
    """``y`` [T, B, P]; ``final`` states as the initial ones; ``trace``: every state but the output
    at each step (LSTM: c [T, B, H]) where asked for, else empty."""

    y: Tensor
    final: list[Tensor]
    trace: list[Tensor]


def changed(record: Record, **changes: Any) -> Record:
    """As ``record._replace(**changes)``, which Dynamo of torch 2.11 gives back empty where a graph
    breaks."""
    fields: tuple[str, ...] = record._fields  # type: ignore[attr-defined]
    return type(record)(*[changes.get(name, getattr(record, name)) for name in fields])


def kind_of(input: Tensor) -> str:
    """The kind of an input that is not projected yet: int64 is tokens, everything else dense."""
    return "tokens" if input.dtype == torch.int64 else "dense"


def problem_of(scan: Scan) -> Problem:
    """The metadata of ``scan``, as it stands now (tracing and transforms included; autocast has
    done its work on a scan)."""
    w_hh = scan.weight("w_hh")
    assert w_hh is not None
    input, spec = scan.input, scan.spec
    H = w_hh.shape[0] // spec.gates
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
        w_hh.dtype,
        input.shape[0],
        input.shape[1],
        width,
        H,
        w_hh.shape[1],
        scan.has_bias,
        scan.lengths is not None,
        scan.resets is not None,
        scan.options,
        *circumstances(input.device.type)[:3],
        None,
    )


def circumstances(device_type: str) -> tuple[bool, bool, bool, torch.dtype | None]:
    """(tracing, recorded, transformed, autocast): what surrounds the call and changes who can serve
    it."""
    tracing = torch.compiler.is_compiling()
    return tracing, *_surroundings(device_type, tracing)


def constant_while_tracing(function: Function) -> Function:
    """As torch.compiler.assume_constant_result, which imports all of the compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_while_tracing
def _surroundings(device_type: str, tracing: bool) -> tuple[bool, bool, torch.dtype | None]:
    """(recorded, transformed, autocast). A tracer calls this and keeps the answer; its own guards
    tell when the levels of torch.func or autocast are others.

    While tracing, levels of vmap alone leave the call as it is: the op has a rule for them.
    """
    if tracing:
        transformed = differentiating()
    else:
        transformed = torch._C._are_functorch_transforms_active() or _dual_level()
    autocast = None
    has_autocast = torch.amp.is_autocast_available(device_type)  # "meta" has none
    if has_autocast and torch.is_autocast_enabled(device_type):
        autocast = torch.get_autocast_dtype(device_type)
    return torch._C._get_tracing_state() is not None, transformed, autocast


def differentiating() -> bool:
    """Whether a transform that takes derivatives surrounds the call: a level of torch.func's grad,
    vjp or jvp, or of forward-mode AD."""
    if _dual_level():
        return True
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() in _DERIVATIVES for level in levels)


_DERIVATIVES = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)


def _dual_level() -> bool:
    return torch.autograd.forward_ad._current_level >= 0

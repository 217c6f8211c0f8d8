"""Checks of a scan's tensors: of metadata before a backend is chosen, of values where it runs."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .cells import CELLS, CellSpec
from .problem import KINDS, Scan, kind_of
from .surroundings import constant_while_tracing


def check_names(scan: Scan) -> None:
    """ValueError for an unknown cell or kind, and for a wrong number of weights or states."""
    if scan.cell not in CELLS:
        raise ValueError(f"no cell is called {scan.cell!r}; there are: {', '.join(CELLS)}")
    if scan.kind not in KINDS:
        raise ValueError(f"no kind of input is called {scan.kind!r}; there are: {', '.join(KINDS)}")
    _check_counts(scan)


def check_metadata(scan: Scan) -> None:
    """Shapes, dtypes and devices of every tensor of ``scan``.

    Raises:
        ValueError: as ``check_names``; a bad option.
        TypeError: lengths, resets or tokens of another dtype.
        RuntimeError: a shape or device that does not fit.
    """
    check_names(scan)
    check_checkpoint_every(scan.options.checkpoint_every)
    if not math.isfinite(scan.options.grad_clip_time):
        raise ValueError(f"grad_clip_time must be finite, got {scan.options.grad_clip_time}")
    _check_input_dtype(scan)
    input = scan.input
    want_dims = 2 if scan.kind == "tokens" else 3
    if input.dim() != want_dims:
        raise RuntimeError(f"input must have {want_dims} dimensions, got {input.dim()}")
    if input.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    _check_shapes(scan)
    tensors = [*scan.states, *scan.weights]
    tensors += [t for t in (scan.lengths, scan.resets) if t is not None]
    for tensor in tensors:
        if tensor.device != input.device:
            raise RuntimeError(
                f"all tensors of a scan must be on one device, found {input.device} and "
                f"{tensor.device}"
            )


def check_checkpoint_every(value: Any) -> int:
    """``value``. Raises ValueError unless it is an integer >= 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"checkpoint_every should be an integer >= 0, got: {value!r}")
    return value


def _check_counts(scan: Scan) -> None:
    spec = scan.spec
    with_bias = spec.weight_names(scan.kind, True)
    without = spec.weight_names(scan.kind, False)
    if len(scan.weights) not in (len(with_bias), len(without)):
        raise ValueError(
            f"{scan.cell} with {scan.kind} input takes the weights {', '.join(with_bias)} "
            f"(or without the biases), got {len(scan.weights)} tensors"
        )
    if len(scan.states) != len(spec.states):
        raise ValueError(
            f"{scan.cell} takes the states {', '.join(spec.states)}, got {len(scan.states)} tensors"
        )


def _check_input_dtype(scan: Scan) -> None:
    dtype = scan.dtype
    if not dtype.is_floating_point and not dtype.is_complex:
        raise TypeError(f"weights should be floating point or complex, got {dtype}")
    is_number = scan.input.is_floating_point() or scan.input.is_complex()
    if scan.input.dtype != torch.int64 and (scan.kind == "tokens" or not is_number):
        raise TypeError(f"tokens should be of dtype torch.int64, got {scan.input.dtype}")
    if scan.kind == "tokens":
        floats = [*scan.states, *scan.weights]
    else:
        floats = [scan.input, *scan.states, *scan.weights]
    for tensor in floats:
        if tensor.dtype != dtype:
            raise RuntimeError(
                f"input, states and weights of a scan must share one dtype, found {dtype} and "
                f"{tensor.dtype}"
            )


def _check_shapes(scan: Scan) -> None:
    spec = scan.spec
    T, B = scan.input.shape[:2]
    H, P = _own_sizes(scan) if spec.own else _sizes(scan)
    GH = spec.gates * H
    expected: dict[str, tuple[int, ...]] = {
        "w_hh": (GH, P),
        "b_hh": (GH,),
        "b_ih": (GH,),
        "w_hr": (P, H),
    }
    if spec.own:
        expected.update(_own_shapes(scan.cell, H))
    if scan.kind == "dense":
        expected["w_ih"] = (GH, scan.input.shape[2])
    elif scan.kind == "tokens":
        expected["w_ih"] = (GH, scan.weights[0].shape[-1])
    elif scan.input.shape[2] != GH:
        raise RuntimeError(f"gates should be [T, B, {GH}], got {list(scan.input.shape)}")
    for name, weight in zip(
        spec.weight_names(scan.kind, scan.has_bias), scan.weights, strict=False
    ):
        if list(weight.shape) != list(expected[name]):  # Dynamo of 2.11 can't compare the tuples
            raise RuntimeError(f"{name} should be {list(expected[name])}, got {list(weight.shape)}")
    widths = spec.state_widths(P, H)
    for name, state, width in zip(spec.states, scan.states, widths, strict=False):
        if tuple(state.shape) != (B, width):
            raise RuntimeError(f"state {name} should be {[B, width]}, got {list(state.shape)}")
    check_lengths_and_resets(scan.lengths, scan.resets, T, B)


def _sizes(scan: Scan) -> tuple[int, int]:
    """H and P of a built-in cell, by its w_hh."""
    spec, w_hh = scan.spec, scan.weight("w_hh")
    assert w_hh is not None
    if w_hh.dim() != 2 or w_hh.shape[0] % spec.gates != 0 or w_hh.shape[0] == 0:
        raise RuntimeError(f"w_hh should be [{spec.gates}*H, P], got {list(w_hh.shape)}")
    GH, P = w_hh.shape
    H = GH // spec.gates
    return H, P if spec.projected else H


def _own_sizes(scan: Scan) -> tuple[int, int]:
    """H twice, of a cell of one's own: by its w_ih, or the gates where they are given."""
    spec, w_ih = scan.spec, scan.weight("w_ih")
    GH = scan.input.shape[2] if w_ih is None else w_ih.shape[0]
    if GH % spec.gates != 0 or GH == 0 or (w_ih is not None and w_ih.dim() != 2):
        what = "gates should be [T, B, " if w_ih is None else "w_ih should be ["
        more = "]" if w_ih is None else ", I]"
        shape = list(scan.input.shape if w_ih is None else w_ih.shape)
        raise RuntimeError(f"{what}{spec.gates}*H{more}, got {shape}")
    return int(GH // spec.gates), int(GH // spec.gates)


@constant_while_tracing
def _own_shapes(cell: str, H: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(name, shape) of the weights of a cell of one's own that no product of the input needs."""
    return _own_shapes_once(CELLS[cell], H)


@functools.lru_cache(maxsize=256)
def _own_shapes_once(spec: CellSpec, H: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    names = spec.weight_names("gates", True)
    return tuple((name, spec.weight_shape(name, H)) for name in names)


def check_lengths_and_resets(lengths: Tensor | None, resets: Tensor | None, T: int, B: int) -> None:
    """dtype and shape of both: TypeError, RuntimeError."""
    if lengths is not None:
        if lengths.dtype != torch.int64:
            raise TypeError(f"lengths should be of dtype torch.int64, got {lengths.dtype}")
        if tuple(lengths.shape) != (B,):
            raise RuntimeError(f"lengths should be {[B]}, got {list(lengths.shape)}")
    if resets is not None:
        if resets.dtype != torch.bool:
            raise TypeError(f"resets should be of dtype torch.bool, got {resets.dtype}")
        if tuple(resets.shape) != (T, B):
            raise RuntimeError(f"resets should be {[T, B]}, got {list(resets.shape)}")


def check_packed(packed: PackedSequence) -> None:
    """The fields of a PackedSequence fit one another, which torch.nn does not check.

    Raises:
        RuntimeError: data that is not 2-D (tokens: 1-D), batch sizes that are empty, on another
            device, not int64, not positive, increasing, or whose sum is not the data's length;
            indices that are not a permutation's.
    """
    data, sizes = packed.data, packed.batch_sizes
    if sizes.device.type != "cpu" or sizes.dtype != torch.int64 or sizes.dim() != 1:
        raise RuntimeError("batch_sizes of a PackedSequence should be 1-D int64 on the CPU")
    if sizes.numel() == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    dims = 1 if kind_of(data) == "tokens" else 2
    if data.dim() != dims:
        raise RuntimeError(f"input must have {dims} dimensions, got {data.dim()}")
    if int(sizes.min()) <= 0 or bool((sizes[1:] > sizes[:-1]).any()):
        raise RuntimeError("batch_sizes of a PackedSequence should be positive and not increase")
    if int(sizes.sum()) != data.shape[0]:
        raise RuntimeError(
            f"batch_sizes of a PackedSequence add up to {int(sizes.sum())}, "
            f"its data has {data.shape[0]} rows"
        )
    for indices in (packed.sorted_indices, packed.unsorted_indices):
        if indices is not None and tuple(indices.shape) != (int(sizes[0]),):
            raise RuntimeError(
                f"indices of a PackedSequence should be [{int(sizes[0])}], got "
                f"{list(indices.shape)}"
            )


def check_values(scan: Scan) -> None:
    """Values of lengths and tokens, on the CPU; on a GPU that would wait for the device, and the
    kernels clamp lengths into [0, T] instead.

    Raises:
        ValueError: a length below 0 or above T.
        IndexError: a token (before its sequence's end) outside [0, I).
    """
    if scan.lengths is not None:
        check_lengths(scan.lengths, scan.input.shape[0])
    if scan.kind == "tokens":
        check_tokens(scan.input, scan.lengths, scan.weights[0].shape[1])


def check_lengths(lengths: Tensor, T: int) -> None:
    """ValueError for a length outside [0, T]; on the CPU only."""
    if _readable(lengths):
        low, high = _range(lengths)
        if low < 0 or high > T:
            raise ValueError(f"lengths should be in [0, {T}], found {low if low < 0 else high}")


def check_tokens(tokens: Tensor, lengths: Tensor | None, width: int) -> None:
    """IndexError for a token outside [0, width); on the CPU only."""
    if _readable(tokens):
        if lengths is not None:
            steps = torch.arange(tokens.shape[0], device=tokens.device).unsqueeze(-1)
            tokens = torch.where(steps < lengths, tokens, 0)
        low, high = _range(tokens)
        if low < 0 or high >= width:
            bad = low if low < 0 else high
            raise IndexError(f"token out of range: expected 0 <= token < {width}, found {bad}")


def _readable(tensor: Tensor) -> bool:
    on_host = tensor.device.type == "cpu" and tensor.numel() > 0
    return on_host and not torch._C._are_functorch_transforms_active()


def _range(tensor: Tensor) -> tuple[int, int]:
    low, high = torch.aminmax(tensor)
    return int(low), int(high)

"""The short way of a call like the one before.

Choosing a backend looks at the same few facts at every call. Where the last call with these facts
went to torch's one call for the whole layer, or to kernels on the CPU, the next one goes there at
once: what stands between the user and the kernel is then a comparison. Measured on a layer of one
unit, this halves what ``auto`` costs over torch.nn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backends import measured
from .backends.registry import requested_backend
from .backends.torch_native import call_kernel
from .layer_calls import LayerCall
from .problem import Stack, StackResult
from .stack import run_again
from .stack_calls import StackCall
from .surroundings import PLAIN, in_dispatch_mode

Facts = tuple[Any, ...]


def facts(layer: Any, input: Tensor, hx: Any, weights: Sequence[Sequence[Tensor]]) -> Facts | None:
    """All that the checks and the choice depend on, None for what never takes the short way."""
    if (
        input.dim() != 3
        # torch's one call serves layers with these only where no gradient is wanted
        or layer.grad_clip_time != 0
        or layer.checkpoint_every != 0
        or layer.zoneout != 0
        or (layer.training and (layer.recurrent_dropout != 0 or layer.weight_dropout != 0))
        or torch._C._is_any_autocast_enabled()
        or in_dispatch_mode()
        or torch._C._get_tracing_state() is not None  # each call is to be recorded the same way
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        # a checkpoint counts what is saved: each way saves its own
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    ):
        return None
    given: Any = () if hx is None else (hx,) if isinstance(hx, Tensor) else tuple(hx)
    weight = weights[0][0]
    return (
        input.shape,
        input.dtype,
        input.device,
        weight.dtype,
        weight.device,
        weight.shape,
        layer.input_size,
        layer.hidden_size,
        layer.proj_size,
        layer.num_layers,
        layer.bidirectional,
        layer.bias,
        tuple((s.shape, s.dtype, s.device) for s in given if isinstance(s, Tensor)),
        len(given) if isinstance(hx, tuple) else type(hx),
        layer._cell(),
        layer.batch_first,
        layer.training and layer.dropout,
        requested_backend(),
        measured.changes(),
        _differentiated(input, given, weights),
    )


def _differentiated(input: Tensor, given: Sequence[Any], weights: Any) -> bool:
    if not torch.is_grad_enabled():
        return False
    for row in weights:
        for weight in row:
            if weight.requires_grad:
                return True
    return input.requires_grad or any(getattr(s, "requires_grad", False) for s in given)


def _plain(input: Tensor, hx: Any, weights: Any) -> bool:
    """Whether nobody but torch's own tensors has a say in what functions do."""
    given = () if hx is None else (hx,) if isinstance(hx, Tensor) else hx
    kinds = {type(input), *map(type, given)}
    for row in weights:
        kinds.update(map(type, row))
    return kinds <= PLAIN and not torch._C._is_torch_function_mode_enabled()


def remember(layer: Any, found: Facts | None, result: StackResult) -> None:
    """Keeps who computed ``result``, if the next call may go there at once."""
    if found is None or not (result.whole or (result.assigned and found[2].type == "cpu")):
        return
    served: Any = None if result.whole else result.assigned
    if served is not None:
        served = (LayerCall if len(served) == 1 else StackCall).of(layer, served) or served
    layer.__dict__["_served"] = (found, served)  # not an attribute that nn.Module knows of


def call(
    layer: Any, known: Any, found: Facts, input: Tensor, hx: Any, weights: list[list[Tensor]]
) -> tuple[Any, ...] | None:
    """The call again, if one with the facts ``found`` is the one ``known``; else None."""
    if known is None or found != known[0]:
        return None
    served = known[1]  # None: torch's kernel of the whole layer
    if served is not None:
        if not _plain(input, hx, weights):
            return None
        if type(served) is not list:
            states = () if hx is None else layer._split_hidden(hx)
            try:
                y, final = served(input, states, weights[0] if len(weights) == 1 else weights)
            except (TypeError, ValueError):  # something does not fit: the long way says it properly
                return None
            return y, layer._join_hidden(final)
        stack = Stack(
            layer._cell(),
            weights,
            layer.hidden_size,
            layer.num_layers,
            layer.bidirectional,
            layer.bias,
            layer.dropout,
            layer.training,
            layer.batch_first,
        )
        result = run_again(stack, input, None if hx is None else layer._split_hidden(hx), served)
        return result.y, layer._join_hidden(result.final)
    return _by_torch(layer, input, hx, [w for row in weights for w in row])


def _by_torch(layer: Any, input: Tensor, hx: Any, weights: list[Tensor]) -> tuple[Any, ...]:
    """torch's kernel for the whole of ``layer``, as the backend ``torch`` calls it."""
    if hx is None:
        hx = layer._zero_states(input)
    training = layer.training
    y, *final = call_kernel(
        layer.mode,
        input,
        layer._split_hidden(hx),
        weights,
        layer.bias,
        num_layers=layer.num_layers,
        dropout=layer.dropout if training else 0.0,
        training=training or torch.is_grad_enabled(),
        bidirectional=layer.bidirectional,
        batch_first=layer.batch_first,
    )
    return y, layer._join_hidden(final)

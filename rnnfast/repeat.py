"""The short way of a call that torch's kernels served before.

Choosing a backend looks at the same few facts at every call. Where the last call with these facts
went to torch's one call for the whole layer, the next one goes there at once: what stands between
the user and torch's kernel is then a comparison. Measured on a layer of one unit, this halves what
``auto`` costs over torch.nn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .backends.registry import requested_backend
from .backends.torch_native import call_kernel
from .surroundings import in_dispatch_mode


def facts(layer: Any, input: Tensor, hx: Any, weight: Tensor) -> tuple[Any, ...] | None:
    """All that the checks and the choice depend on, None for what never takes the short way.

    ``weight`` is the layer's first.
    """
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
    ):
        return None
    states: Any = hx
    if isinstance(hx, Tensor):
        states = (hx.shape, hx.dtype, hx.device)
    elif hx is not None:
        states = tuple((s.shape, s.dtype, s.device) for s in hx if isinstance(s, Tensor))
    return (
        input.shape,
        input.dtype,
        input.device,
        weight.dtype,
        weight.device,
        states,
        layer._cell(),
        layer.batch_first,
        requested_backend(),
    )


def call(layer: Any, input: Tensor, hx: Any, weights: list[Tensor]) -> tuple[Any, ...]:
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

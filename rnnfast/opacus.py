"""Per-sample gradients of rnnfast's layers for Opacus: ``import rnnfast.opacus``.

That registers a grad sampler for ``GradSampleModule`` in hooks mode and ``PrivacyEngine``, and the
answer to Opacus's validator. A sampler computes the layer anew, all samples in one call of the
kernels (``torch.func.vmap``; docs/transforms.md), and the weights' gradients for each apart.

Opacus hands a sampler the positional inputs and the gradient of the first output alone. So hx goes
in by keyword, and the loss is to depend on the output, not on h_n: a gradient of h_n raises.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from opacus.grad_sample import register_grad_sampler
from opacus.validators.errors import IllegalModuleConfigurationError
from opacus.validators.utils import register_module_validator
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from . import compat, family, modules, own_modules
from .recurrent import RecurrentLayer
from .tracers import twin

_LAYERS: list[type[RecurrentLayer]] = [
    *(modules.RNN, modules.LSTM, modules.GRU, modules.MGU, own_modules.Recurrent),
    *(compat.RNN, compat.LSTM, compat.GRU),
    *(
        c
        for c in vars(family).values()
        if isinstance(c, type) and issubclass(c, own_modules.Recurrent)
    ),
]
_DRAWN = ("dropout", "recurrent_dropout", "weight_dropout", "zoneout")

# the keyword arguments of each layer's calls that are still to come to backward, the last one last
_calls: WeakKeyDictionary[nn.Module, list[dict[str, Any]]] = WeakKeyDictionary()


@register_module_validator(_LAYERS)
def validate(layer: Any) -> list[Exception]:
    """Why Opacus can't train ``layer``: the masks that a sampler would draw anew."""
    return [
        IllegalModuleConfigurationError(
            f"{type(layer).__name__}: {name}={getattr(layer, name)} draws masks, which per-sample "
            "gradients can't draw a second time. Set it to 0"
        )
        for name in _DRAWN
        if getattr(layer, name) != 0
    ]


def _remember(layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """A hook of every module's forward: what Opacus does not keep of a call."""
    if not isinstance(layer, RecurrentLayer) or not _is_hooked(layer):
        return
    if not (layer.training and torch.is_grad_enabled()):
        return
    _calls.setdefault(layer, []).append({k: v for k, v in kwargs.items() if k in _AXES})
    for state in torch.utils._pytree.tree_leaves(output[1:]):
        if state.requires_grad:
            state.register_hook(_refuse)


def _is_hooked(layer: nn.Module) -> bool:
    owners: Any = (getattr(hook, "__self__", None) for hook in layer._forward_hooks.values())
    return any(
        hasattr(owner, "capture_activations_hook") and owner.hooks_enabled for owner in owners
    )


def _refuse(gradient: Tensor | None) -> None:  # None behind a hook of a module
    if gradient is not None and bool(gradient.any()):
        raise NotImplementedError(
            "Opacus sees the gradient of a layer's first output only: let the loss depend on the "
            "output, not on h_n, c_n or all states (the last step is output[-1])"
        )


register_module_forward_hook(_remember, with_kwargs=True)

_AXES = {"hx": 1, "lengths": 0, "resets": 1}  # of the batch; of resets that of the input


@register_grad_sampler(_LAYERS)
def sample_gradients(
    layer: Any, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """The gradients [B, *shape] of ``layer``'s parameters; ``activations[0]`` and ``backprops``
    have the batch first.

    Raises:
        IllegalModuleConfigurationError: the layer draws masks.
        ValueError: hx was given by position; Opacus and the layer disagree on ``batch_first``.
    """
    for error in validate(layer):
        raise error
    if len(activations) > 1:
        raise ValueError("Opacus and hx: give hx by keyword, as layer(x, hx=h)")
    given = {k: v for k, v in _calls[layer].pop().items() if v is not None}
    (x,), batch = activations, 0 if layer.batch_first else 1
    axes = {**_AXES, "resets": batch}
    clean = _without_hooks(layer)

    def loss(weights: dict[str, Tensor], x: Tensor, dy: Tensor, more: dict[str, Any]) -> Tensor:
        more = {name: _unsqueezed(value, axes[name]) for name, value in more.items()}
        y = torch.func.functional_call(clean, weights, (x.unsqueeze(batch),), more)[0]
        return (y * dy.unsqueeze(batch)).sum()

    weights = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    dims = (None, 0, 0, {name: axes[name] for name in given})
    detached = {name: p.detach() for name, p in weights.items()}
    found = torch.func.vmap(torch.func.grad(loss), dims)(detached, x, backprops, given)
    return {weights[name]: gradient for name, gradient in found.items()}


def _unsqueezed(value: Any, axis: int) -> Any:
    return torch.utils._pytree.tree_map(lambda tensor: tensor.unsqueeze(axis), value)


def _without_hooks(layer: nn.Module) -> nn.Module:
    clean = twin(layer, type(layer))
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
        setattr(clean, name, type(getattr(layer, name))())
    return clean
